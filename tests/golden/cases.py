"""What is frozen: the cases, each with its inputs and the commands that are run on them.

In a command, `{out}` is the case's own folder, `{data}` the folder of real data, and any other name
in braces is an input that `inputs.py` makes.
"""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
IGNORED = ("seconds",)  # columns that say how long something took


@dataclass(frozen=True)
class Case:
    """One or more commands that run one after another in one folder."""

    name: str
    commands: tuple[str, ...]  # without the leading `longaml`
    slow: bool = False  # takes long, and tests of its command see what would go wrong in it
    files: tuple[str, ...] = ()  # files that must be there, tables or not
    now: bool = False  # frozen after the code was reorganised, so names.json does not apply

    @property
    def real(self) -> bool:
        """Whether the case reads the real data sets."""
        return any("{data}" in c or "{thp1}" in c for c in self.commands)


GBM = (
    "{data}/glioblastoma_panobinostat.h5ad --patient-key patient_id --timepoint-key condition"
    " --timepoints ctrl,panobinostat"
)
SHOCK = "{data}/shock_bulk.h5ad --patient-key patient --timepoint-key time --timepoints T1,T2,T3"
TIDY = (
    "{tidy} --patient-key donor --timepoint-key day --timepoints DX,REL --cell-type-key cluster"
    " --malignant-key tumour --layer raw --gene-symbols symbol"
)
TYPES = "--label-key cell_type --donor-key patient --context 60 --folds 2 --epochs 2"
BEFORE = "--timepoint-key timepoint --timepoints DX,REL --lineage-key lineage"
SCREEN = "{screen} --perturbation-key guide --control NTC --batch-key lane --separator _"
SIMULATED = {
    "small": "--patients 4 --cells 40 --genes 120 --drivers 6",
    "realistic": "--patients 3 --cells 40 --genes 150 --drivers 5",
    "easy": "--patients 3 --cells 30 --genes 150 --drivers 5 --null",
    "null": "--patients 3 --cells 30 --genes 120",
    "two_timepoints": "--patients 3 --cells 30 --genes 120 --drivers 6",
    "bulk": "--patients 4 --cells 20 --genes 120 --drivers 6",
}


def run(cohort: str, options: str, out: str = "run") -> str:
    """The command `run` without its report."""
    return f"run {cohort} --out {{out}}/{out} --no-report {options}"


# Commands that no case runs, and why
UNCOVERED: dict[str, str] = {}

CASES = [
    Case(
        "simulate_convert",
        tuple(
            command
            for preset, options in SIMULATED.items()
            for command in (
                f"simulate {{out}}/{preset} --preset {preset} --seed 3 {options}",
                f"convert {{out}}/{preset} {{out}}/{preset}.h5ad",
            )
        ),
    ),
    Case(
        "convert_columns",
        (
            f"convert {TIDY.replace('{tidy}', '{tidy} {out}/tidy.h5ad')}",
            "convert {tenx} {out}/tenx.h5ad",
            "convert {tar} {out}/tar.h5ad --timepoints DX,REL",
        ),
    ),
    Case("run_simple", (run("{cohort}", "--models logistic,paired_de --nulls 4"),), slow=True),
    Case(
        "run_columns",
        (
            run(TIDY, "--models logistic,paired_de --nulls 3 --seed 1 --lineage-key cluster"),
            run("{bulk} --timepoints DX,REL", "--models paired_de --nulls 4", "bulk"),
        ),
    ),
    Case(
        "run_classical",
        (
            run(
                "{cohort}",
                "--timepoints DX,REL --nulls 3"
                " --models bayesian_ridge,nmf,network_degree,network_bdm,network_pair",
            ),
        ),
    ),
    Case(
        "run_neural",
        (
            run(
                "{cohort}",
                "--timepoints DX,REL --models transformer,lstm,bilstm,scbmlp --nulls 1",
            ),
        ),
        slow=True,
    ),
    Case(
        "run_forecast",
        (
            run("{visits}", "--models lstm --task forecast,impute --nulls 2", "lstm"),
            run(
                "{visits}", "--timepoints DX,REL --models logistic --task state,forecast --nulls 2"
            ),
        ),
        slow=True,
    ),
    Case(
        "run_forecast_models",
        (run("{visits}", "--models transformer,bilstm --task state,forecast,impute --nulls 2"),),
        slow=True,
    ),
    Case(
        "de_audit",
        (
            "de {cohort} --min-cells 10 --out {out}/de",
            "audit {ranking} --cohort {cohort} --out {out}/audit",
        ),
    ),
    Case("published", ("published {cohort} --out {out}/published --epochs 3",), slow=True),
    Case("perturb", (f"perturb {SCREEN} --models lgem --out {{out}}/perturb",)),
    Case(
        "perturb_models",
        (
            f"perturb {SCREEN} --models lgem,lgem_fixed,lgem_learnable_nonlinear,cross_attention"
            " --folds 2 --seed 1 --min-cells 12 --out {out}/perturb",
        ),
        slow=True,
    ),
    Case(
        "modules",
        (
            "modules {labelled} --label-key type --patient-key donor --sample-key lane --nulls 2"
            " --genes 50 --pair-genes 20 --out {out}/modules",
        ),
        slow=True,
    ),
    Case(
        "network",
        (
            "network {cohort} --genes {genes} --nulls 4 --out {out}/listed",
            "network {cohort} --genes top:40 --method pearson --density 0.1 --nulls 3"
            " --timepoints DX,REL --out {out}/variable",
        ),
        slow=True,
    ),
    Case(
        "compare",
        (
            "compare {cohort} --models logistic,bayesian_ridge,ridge --tasks state,forecast"
            " --out {out}/compare",
        ),
    ),
    Case(
        "compare_models",
        (
            "compare {visits} --models logistic,nmf,rank_tokens,transformer,lstm,scbmlp"
            " --tasks state,forecast,impute --out {out}/compare",
        ),
        slow=True,
    ),
    Case(
        "report",
        (
            run("{cohort}", "--timepoints DX,REL --models paired_de --nulls 2"),
            "report {out}/run",
        ),
        files=("run/report.ipynb", "run/report.html"),
        slow=True,
    ),
    Case(
        "celltype",
        (
            f"celltype train {{types}} {TYPES} --out {{out}}/model",
            "celltype annotate {new} --model {out}/model --threshold 0.4 --out {out}/named.h5ad",
            "celltype annotate {new} --model {out}/model --prior training --out {out}/prior.h5ad",
            f"celltype train {{clones}} {TYPES} --encoding bin --positions --previous {BEFORE}"
            " --out {out}/previous",
            f"celltype annotate {{clones}} --model {{out}}/previous --patient-key patient {BEFORE}"
            " --out {out}/clones.h5ad",
        ),
        slow=True,
    ),
    Case("demo", ("demo --out {out}/demo --no-report",), slow=True),
    Case(
        "glioblastoma",
        (
            run(GBM, "--models logistic,paired_de --nulls 4"),
            f"de {GBM} --out {{out}}/de",
            f"network {GBM} --genes top:60 --nulls 4 --out {{out}}/network",
        ),
        slow=True,
    ),
    Case("shock_de", (f"de {SHOCK} --min-cells 1 --out {{out}}/de",), slow=True),
    Case(
        "shock_run",
        (run(SHOCK.replace("T1,T2,T3", "T1,T3"), "--models logistic,paired_de --nulls 2"),),
        slow=True,
    ),
    Case(
        "thp1_perturb",
        (
            "perturb {thp1} --perturbation-key target --control non-targeting --batch-key rep"
            " --models lgem --folds leave_one_out --out {out}/perturb",
        ),
        slow=True,
    ),
    Case(
        "pancreas_celltype",
        (
            "celltype train {data}/pancreas_endocrinogenesis.h5ad --label-key clusters"
            " --context 100 --folds 2 --epochs 3 --out {out}/model",
        ),
        slow=True,
    ),
    Case(
        "pancreas_modules",
        (
            "modules {data}/pancreas_endocrinogenesis.h5ad --label-key clusters --genes 300"
            " --pair-genes 30 --nulls 2 --out {out}/modules",
        ),
        slow=True,
    ),
    Case(
        "kang_celltype",
        (
            "celltype train {data}/kang_ifnb.h5ad --label-key cell_type --context 64 --folds 2"
            " --epochs 3 --out {out}/model",
        ),
        slow=True,
    ),
    Case(
        "questions",
        (
            "abundance {cohort} --permutations 5 --no-figures --jobs 1 --out {out}/abundance",
            "outcome {followed} --time days --event relapse --covariates age --folds 3 --repeats 1"
            " --permutations 3 --no-figures --jobs 1 --out {out}/outcome",
            "forecast {cohort} --genes 20 --no-figures --jobs 1 --out {out}/forecast",
        ),
        now=True,
    ),
    Case(
        "small_steps",
        (
            run(
                "{cohort}",
                "--models logistic,paired_downsampled --nulls 2 --timepoints DX,REL --no-figures"
                " --jobs 1",
            ),
            "network {cohort} --genes top:15 --nulls 2 --timepoints DX,REL --no-figures --jobs 1"
            " --out {out}/network",
            "modules {labelled} --label-key type --patient-key donor --sample-key lane --nulls 1"
            " --genes 25 --pair-genes 6 --no-figures --out {out}/modules",
            "published {cohort} --epochs 1 --models lstm --no-figures --jobs 1"
            " --out {out}/published",
        ),
        now=True,
    ),
]
