"""The command on whole cohorts: what a run leaves behind, kill and resume, determinism, real and
awkward input, errors."""

import base64
import gzip
import html
import importlib.util
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import termios
import time
from pathlib import Path

import anndata as ad
import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from PIL import Image
from tools import ROOT, python_code

import longaml as la
from longaml import pl
from longaml.cli import main
from longaml.experiment import report_tables
from longaml.experiment.results import checksum, load_result, pack
from longaml.pl.rankings import leading_genes
from longaml.tl.summaries import meaning

RANKING = (
    "model contrast gene rank score direction log2_fold_change p_value q_value stability "
    "mean_expression"
).split()
EVALUATION = "task contrast model patient metric value chance".split()
AUDIT = "model contrast check status value threshold text".split()
CHECK_NAMES = [
    "chance level",
    "constant",
    "input-independent",
    "explained by abundance",
    "explained by depth",
    "explained by composition",
    "unstable",
    "underpowered",
    "no gene passes",
]
BASELINES = ["majority", "patient_cell_type", "technical"]
VERB = "(is better than|is worse than|is not significantly different from)"
DIFFERENCE = r"\(difference [+-]\d\.\d\d, 95% interval"
CONTRASTS = ["REL_vs_DX", "REM_vs_DX", "REL_vs_REM"]
QUICK = (
    "--timepoints DX,REL --models logistic --nulls 4 --halves 3 --no-report".split()
)  # one contrast, one ranking: what most tests here repeat
CODE = "import sys; from longaml.cli import main; sys.exit(main(sys.argv[1:]))"


def tables(out):
    return {
        n: (Path(out) / n).read_bytes()
        for n in ("ranking.csv", "evaluation.csv", "predictions.csv", "audit.csv", "coverage.csv")
    }


def step_content(path):
    "What a stored step holds, as bytes, but for how long it took."
    value = load_result(path)["value"]
    if isinstance(value, dict):
        value.pop("seconds", None)
    arrays = []
    return json.dumps(pack(value, arrays)).encode() + b"".join(a.tobytes() for a in arrays)


def bare(name):
    "The name of a step's file without its address."
    return re.sub(r"-[0-9a-f]{12}(?=\.npz$)", "", name)


def files(out):
    "Every file of a run as bytes, but for how long it took and for the lock of a killed process."
    return {
        p.relative_to(out).as_posix(): step_content(p) if p.suffix == ".npz" else p.read_bytes()
        for p in Path(out).rglob("*")
        if p.is_file() and p.name not in ("timings.json", ".lock")
    }


def differing(a, b):
    "Names of the files that two runs do not share byte for byte."
    a, b = files(a), files(b)
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*"))


def succeed(*args):
    "Run the command in this process; it must succeed."
    assert main([str(a) for a in args]) == 0


def refused(capsys, folder, *args):
    """Run the command in this process; it must exit 2 with one line on standard error and leave the
    folder as it was. The line."""
    before = tree(folder)
    capsys.readouterr()
    assert main([str(a) for a in args]) == 2
    got = capsys.readouterr()
    lines = [
        line for line in got.err.splitlines() if line and not line.startswith("longaml: warning:")
    ]
    assert got.out == "" and len(lines) == 1 and lines[0].startswith("longaml: "), got.err
    assert "Traceback" not in got.err and tree(folder) == before
    return lines[0]


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    "A folder in the GEO layout in which every contrast has patients enough."
    out = tmp_path_factory.mktemp("simulated") / "cohort"
    succeed(
        *"simulate".split(),
        out,
        *"--preset small --patients 7 --genes 150 --cells 200 --drivers 8 --seed 2".split(),
    )
    return out


@pytest.fixture(scope="session")
def finished(cohort, tmp_path_factory):
    """A whole run, made by the command in a process of its own: (its folder, standard output,
    standard error)."""
    out = tmp_path_factory.mktemp("finished") / "out"
    done = python_code(CODE, "run", cohort, "--out", out, *"--nulls 6 --halves 4".split(), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


@pytest.fixture(scope="session")
def quick(cohort, tmp_path_factory):
    "The folder of a quick run."
    out = tmp_path_factory.mktemp("quick") / "out"
    succeed("run", cohort, "--out", out, *QUICK)
    return out


@pytest.fixture(scope="session")
def archive(cohort, tmp_path_factory):
    "The cohort as one tar, as GEO hands it out."
    path = tmp_path_factory.mktemp("archive") / "GSE000000_RAW.tar"
    with tarfile.open(path, "w") as t:
        for p in sorted(cohort.glob("GSM*")):
            t.add(p, p.name)
    return path


def table(out, name):
    return pd.read_csv(Path(out) / name)


# ---- what a run leaves behind


def test_files(finished):
    out, _, _ = finished
    assert sorted(p.name for p in out.iterdir()) == [
        "abundance.csv",
        "audit.csv",
        "coverage.csv",
        "de.csv",
        "evaluation.csv",
        "figures",
        "gene_changes.csv",
        "gene_times.csv",
        "models",
        "power.csv",
        "predictions.csv",
        "ranking.csv",
        "report.html",
        "report.ipynb",
        "run.json",
        "samples.csv",
        "stability.csv",
        "steps",
        "steps.json",
        "timings.json",
    ]
    assert not [p for p in tree(out) if p.endswith(".part")]
    assert not [p for p in out.rglob("*.csv") if b"\r" in p.read_bytes()]


def test_ranking(finished, cohort):
    r = table(finished[0], "ranking.csv")
    truth = pd.read_csv(cohort / "truth.csv")
    assert list(r.columns) == RANKING
    assert list(dict.fromkeys(r["contrast"])) == CONTRASTS and set(r["model"]) == {
        "logistic",
        "paired_de",
        "transformer",
    }
    for _, one in r.groupby(["model", "contrast"]):
        assert one["gene"].is_unique and set(one["gene"]) <= set(truth["gene"])
        assert list(one["rank"]) == list(range(1, len(one) + 1))
        # a test of counts leaves out genes that have too few of them
        assert len(one) == 150 if one["model"].iat[0] != "paired_de" else 140 < len(one) <= 150
        assert one["score"].is_monotonic_decreasing and (
            one["p_value"].rank(method="min").diff().dropna() >= 0
        ).all() | (one["p_value"].nunique() > 1)
        assert (
            one["p_value"].between(0, 1, inclusive="right").all()
            and (one["q_value"] >= one["p_value"] - 1e-9).all()
            and one["stability"].dropna().between(0, 1).all()
        )
        # halves of few patients can lack a cell type with two of them
        assert one["stability"].notna().all() or one["model"].iat[0] == "paired_de"
        assert ((one["log2_fold_change"] >= 0) == (one["direction"] == "up")).all() and set(
            one["direction"]
        ) == {"up", "down"}
        assert (one["mean_expression"] >= 0).all() and np.isfinite(
            one.drop(columns=["model", "contrast", "gene", "direction", "stability"]).to_numpy()
        ).all()


def test_one_answer_to_what_changed(finished, cohort, tmp_path):
    "The table of the run, its ranking, and `longaml de` say the same of every gene."
    tests = table(finished[0], "de.csv")
    assert list(dict.fromkeys(tests["contrast"])) == CONTRASTS
    ranked = table(finished[0], "ranking.csv").query("model == 'paired_de'")
    columns = ["contrast", "gene", "log2_fold_change", "p_value", "q_value"]
    every = tests[tests["cell_type"] == "all"]
    both = every[columns].merge(ranked[columns], on=columns[:2], suffixes=("", "_ranked"))
    assert len(both) == len(ranked) == len(every)
    for c in columns[2:]:
        assert np.allclose(both[c], both[f"{c}_ranked"], rtol=1e-6)
    succeed("de", cohort, "--out", tmp_path / "de", "--permutations", 0, "--no-figures")
    pd.testing.assert_frame_equal(table(tmp_path / "de", "de.csv"), tests)
    called = (every["q_value"] < 0.05).groupby(every["contrast"]).sum()
    for contrast, n in called.items():
        counted = rf"{n}( \(\d+ up, \d+ down\))? change in any cell type at 5% FDR"
        assert re.search(rf"^{contrast}: of \d+ genes {counted}", finished[1], re.M)


def test_the_report_has_the_numbers_of_the_tables(finished):
    "And the pictures of both leave a margin: no label is cut."
    out = finished[0]
    page = re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", (out / "report.html").read_text())
    text = re.sub(r"\s+([,;.)\]])", r"\1", " ".join(html.unescape(page).split()))
    accuracy = report_tables.held_out(table(out, "evaluation.csv")).set_index(["contrast", "model"])
    for contrast in CONTRASTS:
        t = accuracy.loc[(contrast, "logistic")]
        assert f"{t['mean']:.2f} [{t['mean_low']:.2f}, {t['mean_high']:.2f}]" in text
        assert f"{t['over_baseline']:+.2f} [" in text
    ranked = table(out, "ranking.csv").query("model == 'logistic' and contrast == 'REL_vs_DX'")
    assert all(gene in text for gene in ranked["gene"].head(15))
    assert str(out) not in text
    notebook = nbformat.read(out / "report.ipynb", as_version=4)
    shown = [
        o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    pictures = [io.BytesIO(base64.b64decode(o["data"]["image/png"])) for o in shown]
    pictures += sorted((out / "figures").glob("*.png"))
    assert len(shown) == 26 and len(pictures) == 53  # of three models and three contrasts
    for picture in pictures:
        dots = np.asarray(Image.open(picture).convert("RGB"))
        edges = [dots[0], dots[-1], dots[:, 0], dots[:, -1]]
        assert all((edge == 255).all() for edge in edges), picture


def test_gene_sets_and_composition(cohort, tmp_path, capsys):
    "Both are those of `la.tl.enrich` and `la.tl.abundance`; gene sets are checked first."
    read = la.read_cohort(cohort, timepoints=["DX", "REL"])
    genes = list(read.var_names)
    sets = {f"set {i}": genes[15 * i : 15 * i + 15] for i in range(6)}
    gmt = tmp_path / "sets.gmt"
    gmt.write_text("".join("\t".join([k, "", *v]) + "\n" for k, v in sets.items()))
    out = tmp_path / "out"
    succeed("run", cohort, "--out", out, *QUICK, "--gene-sets", gmt)
    found = table(out, "gene_sets.csv")
    again = la.tl.enrich(read, sets, contrast=[("REL", "DX")])
    assert list(found["gene_set"]) == list(again["gene_set"])
    assert np.allclose(found["p_value"], again["p_value"], rtol=1e-6)
    types = table(out, "abundance.csv")
    assert np.allclose(types["effect"], la.tl.abundance(read)["effect"], rtol=1e-6)
    assert (out / "figures" / "gene-sets-REL_vs_DX.png").stat().st_size > 10_000
    assert "of 6 cell types" in capsys.readouterr().out
    gmt.write_text("a\t\tX1\tX2\nb\t\tX3\n")
    args = ["run", cohort, "--out", tmp_path / "no", *QUICK, "--gene-sets", gmt]
    assert "no gene of the sets is in the data" in refused(capsys, tmp_path, *args)
    assert "timepoint" in refused(capsys, tmp_path, *args, "--task", "forecast")


def test_ranking_finds_planted_drivers(finished, cohort):
    "Drivers that shift at relapse stand above the rest, in the right direction."
    truth = pd.read_csv(cohort / "truth.csv", index_col="gene")
    planted = truth[truth["kind"] == "marginal"]
    for _, one in (
        table(finished[0], "ranking.csv").query("contrast == 'REL_vs_DX'").groupby("model")
    ):
        one = one.set_index("gene")
        assert one.loc[planted.index, "rank"].median() < 40 < one["rank"].median()
        best = one.loc[planted.index].nsmallest(4, "rank")
        assert (
            np.sign(best["log2_fold_change"])
            == np.sign(planted.loc[best.index, "log2_fold_change"])
        ).all()


def test_evaluation(finished):
    e = table(finished[0], "evaluation.csv")
    assert list(e.columns) == EVALUATION
    assert set(e["task"]) == {"timepoint"} and list(dict.fromkeys(e["contrast"])) == [
        *CONTRASTS,
        "all",
    ]
    assert list(dict.fromkeys(e["model"])) == [*BASELINES, "logistic", "transformer"] and set(
        e["metric"]
    ) == {"balanced_accuracy", "auroc"}
    assert (
        not e.duplicated(["contrast", "model", "patient", "metric"]).any()
        and e["value"].between(0, 1).all()
    )
    accuracy = e[e["metric"] == "balanced_accuracy"]
    assert np.allclose(accuracy["chance"], np.where(accuracy["contrast"] == "all", 1 / 3, 1 / 2))
    baselines = accuracy[accuracy["model"].isin(["majority", "patient_cell_type"])]
    assert np.allclose(baselines["value"], baselines["chance"])  # the task gives nothing away
    patients = (
        accuracy.groupby(["contrast", "model"])["patient"].agg(lambda p: tuple(sorted(p))).unstack()
    )
    assert (
        patients.nunique(axis=1) == 1
    ).all()  # every model is judged on the same held-out patients


def test_audit(finished):
    a = table(finished[0], "audit.csv")
    assert list(a.columns) == AUDIT
    for _, one in a.groupby(["model", "contrast"]):
        assert list(one["check"]) == CHECK_NAMES
    assert len(a) == len(CHECK_NAMES) * 3 * len(CONTRASTS)
    assert (
        set(a["status"]) <= {"failed", "passed", "not assessed"}
        and (a["text"].str.len() > 10).all()
    )
    assert (a.loc[a["status"] == "not assessed", "text"] == "not assessed").all()
    power = a.query("check == 'underpowered' and model == 'logistic'").set_index("contrast")
    n = table(finished[0], "evaluation.csv").groupby("contrast")["patient"].nunique()[CONTRASTS]
    assert (
        power["value"].to_dict() == n.to_dict()
    )  # the patients that were used, not those who came twice


def test_coverage(finished):
    c = table(finished[0], "coverage.csv")
    assert list(c.columns) == "contrast cell_type patients pairs evaluated".split()
    e = table(finished[0], "evaluation.csv")
    n = e.groupby("contrast")["patient"].nunique()
    assert {r.contrast: r.patients for r in c[c["cell_type"] == "all"].itertuples()} == {
        k: n[k] for k in CONTRASTS
    }
    parts = c[c["cell_type"] != "all"].groupby("contrast")["pairs"].sum()
    assert parts.to_dict() == c[c["cell_type"] == "all"].set_index("contrast")["pairs"].to_dict()


def test_manifest(finished, cohort):
    m = json.loads((finished[0] / "run.json").read_text())
    assert m["command"] == "run" and m["seed"] == 0 and m["status"] == "complete"
    assert (
        m["params"]["task"] == "timepoint"
        and m["params"]["nulls"] == 6
        and m["params"]["models"] == [*BASELINES, "logistic", "paired_de", "transformer"]
        and m["params"]["networks"]["ranking"]["epochs"] == 10
        and m["params"]["read"] == {}
    )
    assert m["inputs"] == [{"path": str(cohort), "sha256": checksum(cohort)}]
    assert {"python", "longaml", "numpy", "scipy", "pandas", "anndata", "scanpy", "torch"} <= m[
        "versions"
    ].keys() and m["versions"]["numpy"] == np.__version__
    said, report = finished[1].rstrip("\n").rsplit("\n", 1)
    assert "\n".join(m["results"]["summary"]) == said and report.startswith("report: ")
    assert not re.search(
        r"second|duration|elapsed|timing|date", " ".join(re.findall(r'"(\w+)":', json.dumps(m)))
    )
    steps = json.loads((finished[0] / "timings.json").read_text())
    assert steps.keys() == {
        bare(p.relative_to(finished[0] / "steps").as_posix())[:-4]
        for p in (finished[0] / "steps").rglob("*.npz")
    } and all(s >= 0 for s in steps.values())


def test_figures(finished):
    figures = finished[0] / "figures"
    expected = {
        "cohort",
        "composition",
        "depth",
        "accuracy",
        "audit",
        "gene_times-REL_vs_DX",
        *(
            f"{k}-{c}"
            for k in ("volcano", "models", "null", "top_genes", "stability")
            for c in CONTRASTS
        ),
        *(f"{k}-{c}" for k in ("patients", "reliability") for c in CONTRASTS),
    }
    assert {p.stem for p in figures.glob("*.png")} == expected
    for p in figures.glob("*.png"):
        image = Image.open(p).convert("RGB")
        assert min(image.size) > 200 and len(image.getcolors(1 << 20)) > 20, p.name
        assert 0.005 < (np.asarray(image.convert("L")) < 250).mean() < 0.95, (
            p.name
        )  # neither blank nor one block


def test_summary(finished):
    out, said, err = finished
    e, r, a = table(out, "evaluation.csv"), table(out, "ranking.csv"), table(out, "audit.csv")
    accuracy = e[e["metric"] == "balanced_accuracy"]
    for contrast, rows in accuracy.groupby("contrast"):
        who = "all timepoints" if contrast == "all" else contrast
        assert (
            f"{who}: balanced accuracy over {rows['patient'].nunique()} held-out patients "
            f"(chance {rows['chance'].iloc[0]:.2f})" in said
        )
        for model, v in rows.groupby("model")["value"]:
            assert re.search(
                rf"^  {model} +{v.mean():.2f}  \(patients: {v.min():.2f} to {v.max():.2f}, "
                rf"standard deviation {v.std():.2f}\)$",
                said,
                re.M,
            )
        assert re.search(
            rf"^{contrast}: logistic {VERB} its best baseline, \w+ {DIFFERENCE}",
            said,
            re.M,
        )
        if contrast != "all":
            assert re.search(
                rf"^{contrast}: transformer {VERB} logistic {DIFFERENCE}",
                said,
                re.M,
            )
    for (contrast, model), one in r.groupby(["contrast", "model"]):
        assert (
            f"{contrast}, {model}: {(one['q_value'] < 0.1).sum()} of {len(one)} genes at q < 0.1 "
            f"(first: {', '.join(one['gene'].head(3))})" in said
        )
    failed = a[(a["status"] == "failed") & (a["check"] != "no gene passes")]
    for v in failed.itertuples():
        assert f"  failed check: {v.check} ({meaning(v)})" in said
    assert said.count("  failed check: ") == len(failed)
    assert err == ""


def test_predictions_agree_with_the_evaluation(finished):
    p, e = table(finished[0], "predictions.csv"), table(finished[0], "evaluation.csv")
    assert (
        list(p.columns)
        == (
            "task contrast model patient cell_type sample timepoint probability predicted_later "
            "is_later"
        ).split()
    )
    two = p[p["contrast"] != "all"]
    hit = two["probability"].sub(0.5).round(9).pipe(np.sign).add(1).div(2)  # a tie counts as chance
    again = (
        hit.groupby([two[k] for k in ("contrast", "model", "patient", "timepoint")])
        .mean()
        .groupby(["contrast", "model", "patient"])
        .mean()
    )
    told = e.query("metric == 'balanced_accuracy' and contrast != 'all'").set_index(
        ["contrast", "model", "patient"]
    )["value"]
    assert np.allclose(again, told.reindex(again.index), atol=1e-6) and len(again) == len(told)


def test_checkpoints(finished):
    """Every fold's network is kept, never saw the patients it was judged on, and the network of all
    patients reads another cohort."""
    e = table(finished[0], "evaluation.csv").query("model == 'transformer'")
    for contrast in CONTRASTS:
        patients = set(e[e["contrast"] == contrast]["patient"])
        folds = [
            la.models.load(f)
            for f in (finished[0] / "models").glob(f"transformer-{contrast}-fold-*.pt")
        ]
        left = [patients - f.seen for f in folds]
        assert set().union(*left) == patients and sum(map(len, left)) == len(patients)
    whole = la.models.load(finished[0] / "models" / "transformer-REL_vs_DX.pt")
    other = la.datasets.simulate_cohort(
        "small", n_patients=6, n_genes=150, n_cells=200, n_drivers=8, seed=2
    )
    called = la.models.annotate_samples(whole, other)
    assert np.allclose(called[["p_DX", "p_REL"]].sum(axis=1), 1, atol=1e-5) and set(
        called["timepoint"]
    ) == {"DX", "REL"}
    with pytest.raises(
        ValueError, match="3 of the 150 genes that this model reads are not in the data"
    ):
        la.models.annotate_samples(whole, other[:, 3:].copy())


# ---- the same cohort by other ways in, the same seed, another seed


@pytest.mark.slow  # the frozen tables of `convert` read a tar too
def test_the_tar_gives_the_same_tables(archive, quick, tmp_path):
    succeed("run", archive, "--out", tmp_path / "out", *QUICK)
    assert tables(tmp_path / "out") == tables(quick)


@pytest.mark.slow
def test_convert_then_run_gives_the_same_tables(cohort, quick, tmp_path, capsys):
    succeed("convert", cohort, tmp_path / "c.h5ad")
    assert re.fullmatch(
        r"wrote [\d,]+ cells x 150 genes of 7 patients in \d+ samples to .*c\.h5ad\n",
        capsys.readouterr().out,
    )
    a = ad.read_h5ad(tmp_path / "c.h5ad")
    assert (
        {"patient", "timepoint", "sample", "cell_type"} <= set(a.obs)
        and list(a.obs["timepoint"].cat.categories) == ["DX", "REM", "REL"]
        and a.obs["timepoint"].cat.ordered
    )
    assert sp.issparse(a.X) and (a.X.data % 1 == 0).all()
    succeed("run", tmp_path / "c.h5ad", "--out", tmp_path / "out", *QUICK)
    a, b = tables(tmp_path / "out"), tables(quick)
    flag = re.compile(rb"all,all,dropped.*")  # counts samples in one and rows in the other
    assert flag.sub(b"", a.pop("audit.csv")) == flag.sub(b"", b.pop("audit.csv"))
    assert a == b


def run_elsewhere(cohort, folder, options, **env):
    """The same run on a terminal, in another process, with another hash seed, from another folder:
    what the terminal showed."""
    args = ("run", cohort, "--out", "out", *options)
    code, shown, _, _ = on_a_terminal(*args, cwd=folder, PYTHONHASHSEED="7", **env)
    assert code == 0, shown
    return shown


def test_same_seed_same_bytes_and_progress(cohort, quick, tmp_path):
    "In another process, with another hash seed, from another folder; the terminal shows progress."
    shown = run_elsewhere(cohort, tmp_path, QUICK)
    assert differing(tmp_path / "out", quick) == []
    for step in ("REL_vs_DX/logistic: permuted samples", "100%", "evaluating held-out patients"):
        assert step in shown


def test_another_seed_differs(cohort, quick, tmp_path):
    succeed("run", cohort, "--out", tmp_path / "out", *QUICK, "--no-figures", "--seed", 1)
    a, b = tables(tmp_path / "out"), tables(quick)
    assert a["ranking.csv"] != b["ranking.csv"]
    top = [set(table(o, "ranking.csv")["gene"].head(20)) for o in (tmp_path / "out", quick)]
    assert len(top[0] & top[1]) >= 8  # but not another answer


def test_rerun_of_a_simulation_gives_the_same_files(tmp_path, cohort):
    succeed(
        *"simulate".split(),
        tmp_path / "again",
        *"--preset small --patients 7 --genes 150 --cells 200 --drivers 8 --seed 2".split(),
    )
    assert checksum(tmp_path / "again") == checksum(cohort)


NETWORK = "--timepoints DX,REL --models transformer --nulls 2 --no-report".split()


@pytest.fixture(scope="session")
def network(cohort, tmp_path_factory):
    "The folder of a run of the Transformer alone."
    out = tmp_path_factory.mktemp("network") / "out"
    succeed("run", cohort, "--out", out, *NETWORK)
    return out


def test_a_network_gives_the_same_bytes_and_silence(cohort, network, tmp_path):
    "Weights included, in another process; progress can be silenced."
    shown = run_elsewhere(cohort, tmp_path, NETWORK, LONGAML_PROGRESS="0")
    assert (
        any(f.endswith(".pt") for f in files(network))
        and differing(tmp_path / "out", network) == []
    )
    assert (
        shown
        == "longaml: warning: dropped: 6 samples at timepoints that were not asked for (REM)\r\n"
    )


# ---- killed and resumed

KILLED = """
import os, re, signal, sys
from contextlib import contextmanager
from pathlib import Path
import longaml.experiment.results as results
import longaml.experiment.store as runs
from longaml.cli import main
victim, nth, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve()
write, seen = runs.atomic_path, []
@contextmanager
def half(path):
    with write(path) as part:
        yield part
        name = Path(path).resolve().relative_to(out).as_posix()
        seen.append(re.sub(r"-[0-9a-f]{12}(?=\\.npz$)", "", name))
        if seen.count(victim) == nth:
            part.write_bytes(part.read_bytes()[:part.stat().st_size // 2])
            os.kill(os.getpid(), signal.SIGKILL)
runs.atomic_path = results.atomic_path = half
sys.exit(main(sys.argv[4:]))
"""
RANK = "steps/rank/REL_vs_DX/logistic"


@pytest.mark.parametrize(
    "victim,nth",
    [
        pytest.param("steps/evaluate/DX-REL/logistic.npz", 1, marks=pytest.mark.slow),
        (f"{RANK}/null-0002.npz", 1),
        pytest.param(f"{RANK}/half-0001.npz", 1, marks=pytest.mark.slow),
        pytest.param("evaluation.csv", 1, marks=pytest.mark.slow),
        pytest.param("ranking.csv", 1, marks=pytest.mark.slow),
        pytest.param("figures/models-REL_vs_DX.png", 1, marks=pytest.mark.slow),
        pytest.param("run.json", 2, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed(victim, nth, cohort, quick, tmp_path):
    out = tmp_path / "out"
    args = ["run", cohort, "--out", out, *QUICK]
    killed = python_code(KILLED, victim, nth, out, *args, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole = files(quick)
    for part in out.rglob(".*.part"):
        part.unlink()
    left = {k: v for k, v in files(out).items() if k != "run.json"}
    assert (
        left.items() <= whole.items() and (victim not in map(bare, left)) and len(left) < len(whole)
    )  # what is there is right, and the rest is missing
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    succeed(*args, "--resume")
    assert differing(out, quick) == []


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("models/transformer-REL_vs_DX-fold-2.pt", marks=pytest.mark.slow),
        pytest.param("steps/rank/REL_vs_DX/transformer/null-0001.npz", marks=pytest.mark.slow),
        pytest.param("models/transformer-REL_vs_DX.pt", marks=pytest.mark.slow),
    ],
)
def test_a_network_killed_and_resumed(victim, cohort, network, tmp_path):
    out = tmp_path / "out"
    killed = python_code(KILLED, victim, 1, out, "run", cohort, "--out", out, *NETWORK, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert victim not in map(bare, files(out))
    succeed("run", cohort, "--out", out, *NETWORK, "--resume")
    assert differing(out, network) == []


@pytest.mark.slow
def test_the_command_killed_from_outside(finished, cohort, tmp_path):
    "SIGKILL once nine steps are stored, wherever the run then is."
    out = tmp_path / "out"
    args = ["run", cohort, "--out", out, "--nulls", 6, "--no-report"]
    run = subprocess.Popen(
        [sys.executable, "-c", CODE, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while (
        len(list((out / "steps").rglob("[!.]*.npz"))) < 9
        and run.poll() is None
        and time.monotonic() < end
    ):
        time.sleep(0.01)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert (
        json.loads((out / "run.json").read_text())["status"] == "running"
    )  # nine steps or more, and not the end
    succeed(*args, "--resume")
    assert set(differing(out, finished[0])) <= {"report.html", "report.ipynb"}


def test_a_damaged_step_is_computed_again(cohort, quick, tmp_path):
    shutil.copytree(quick, tmp_path / "out")
    (step,) = (tmp_path / "out").glob(f"{RANK}/null-0000-*.npz")
    step.write_bytes(step.read_bytes()[:100])
    (tmp_path / "out" / "ranking.csv").unlink()
    succeed("run", cohort, "--out", tmp_path / "out", *QUICK, "--no-figures", "--resume")
    assert tables(tmp_path / "out") == tables(quick)


def test_a_complete_run_resumed_is_the_same(cohort, quick, capsys):
    before = files(quick)
    capsys.readouterr()
    succeed("run", cohort, "--out", quick, *QUICK, "--resume")
    assert files(quick) == before
    assert (
        capsys.readouterr().out.splitlines() == json.loads(before["run.json"])["results"]["summary"]
    )


def test_resume_of_nothing_starts(cohort, quick, tmp_path):
    (tmp_path / "out").mkdir()
    succeed("run", cohort, "--out", tmp_path / "out", *QUICK, "--resume")
    assert differing(tmp_path / "out", quick) == []


def test_a_used_folder_is_refused(cohort, quick, capsys):
    before = files(quick)
    said = refused(capsys, quick, "run", cohort, "--out", quick, *QUICK)
    assert "not empty" in said and "--resume" in said and files(quick) == before


@pytest.mark.parametrize(
    "other,named",
    [
        ("--seed 3", "seed was 0"),
        ("--nulls 5", "nulls was 4"),
        ("--models paired_de", "models was"),
        ("--timepoints DX,REM", "read was"),
        ("--cell-type-key cell_type", "read was"),
    ],
)
def test_resume_refuses_other_parameters(other, named, cohort, quick, capsys):
    before = files(quick)
    said = refused(capsys, quick, "run", cohort, "--out", quick, *QUICK, *other.split(), "--resume")
    assert named in said and other.split()[1].split(",")[-1] in said and files(quick) == before


def test_resume_refuses_a_changed_input(cohort, quick, tmp_path, capsys):
    shutil.copytree(cohort, tmp_path / "cohort")
    before = files(quick)
    assert (
        main(["run", str(tmp_path / "cohort"), "--out", str(quick), *QUICK, "--resume"]) == 0
    )  # moved, but the same
    assert tables(quick) == {k: before[k] for k in tables(quick)}
    (quick / "run.json").write_bytes(before["run.json"])
    one = next((tmp_path / "cohort").glob("*barcodes*"))
    one.write_bytes(gzip.compress(gzip.decompress(one.read_bytes())[::-1]))
    said = refused(capsys, quick, "run", tmp_path / "cohort", "--out", quick, *QUICK, "--resume")
    assert "checksum of the input" in said and files(quick) == before


# ---- real and awkward input


def test_glioblastoma(shared_data, tmp_path, capsys):
    "Five patients, each with and without panobinostat: the answer comes with its warning."
    path = shared_data / "glioblastoma_panobinostat.h5ad"
    start = time.monotonic()
    succeed(
        "run",
        "--no-report",
        path,
        "--patient-key",
        "patient_id",
        "--timepoint-key",
        "condition",
        "--timepoints",
        "ctrl,panobinostat",
        "--out",
        tmp_path / "out",
    )
    assert time.monotonic() - start < 120
    said, e, r, a = (
        capsys.readouterr().out,
        *(table(tmp_path / "out", n) for n in ("evaluation.csv", "ranking.csv", "audit.csv")),
    )
    assert "balanced accuracy over 5 held-out patients (chance 0.50)" in said
    few = "underpowered (few patients: changes may have been missed)"
    assert said.count(f"failed check: {few}") == 3
    assert e.groupby(["model", "metric"])["patient"].nunique().eq(5).all()
    power = a[a["check"] == "underpowered"]
    assert len(power) == 3 and power["status"].eq("failed").all()
    assert (
        "one cell type" in set(a["check"])
        and set(r["contrast"]) == {"panobinostat_vs_ctrl"}
        and r.groupby("model").size().between(295, 300).all()
    )  # all genes that vary
    for model in ("logistic", "transformer"):
        own = (e["model"] == model) & (e["metric"] == "balanced_accuracy")
        assert e.loc[own, "value"].mean() > 0.9
    metallothioneins = r[
        r["gene"].str.startswith(("ENSG00000187193", "ENSG00000125148"))
    ]  # MT1X and MT2A: HDAC inhibitors raise them
    assert (
        len(metallothioneins) == 6
        and (metallothioneins["direction"] == "up").all()
        and (metallothioneins["q_value"] < 0.1).all()
    )


@pytest.mark.slow  # the frozen tables of `run_columns` hold a bulk cohort too
def test_bulk_table(tmp_path, capsys):
    "15 donors x 3 days, one log-normalised row each, nothing but X."
    a = la.pp.normalize(la.datasets.simulate_cohort("bulk", n_genes=150, n_drivers=10, seed=3))
    obs = (
        a.obs[["patient", "timepoint"]]
        .astype(str)
        .rename(columns={"patient": "donor", "timepoint": "day"})
    )
    ad.AnnData(a.X, obs=obs, var=a.var[[]]).write_h5ad(tmp_path / "bulk.h5ad")
    capsys.readouterr()
    succeed(
        "run",
        "--no-report",
        tmp_path / "bulk.h5ad",
        "--patient-key",
        "donor",
        "--timepoint-key",
        "day",
        "--timepoints",
        "day0,day1,day7",
        "--models",
        "paired_de",
        "--nulls",
        4,
        "--out",
        tmp_path / "out",
    )
    got = capsys.readouterr()
    assert (
        "note: depth uncontrolled" in got.out
        and "note: one cell type" in got.out
        and "depth uncontrolled" in got.err
    )
    audit, cover = table(tmp_path / "out", "audit.csv"), table(tmp_path / "out", "coverage.csv")
    whole = audit[audit["model"] == "all"]
    assert (
        list(whole["contrast"]) == ["all", "all"]
        and set(whole["check"]) == {"one cell type", "depth uncontrolled"}
        and whole["status"].eq("failed").all()
    )
    assert (
        audit[audit["check"].str.startswith("explained")]["text"].eq("not assessed").all()
    )  # counts are gone
    assert (
        list(cover["contrast"]) == ["day7_vs_day0", "day1_vs_day0", "day7_vs_day1"]
        and (cover["patients"] == 15).all()
        and cover["evaluated"].all()
    )
    assert table(tmp_path / "out", "ranking.csv").groupby("contrast").size().eq(150).all()


def test_two_timepoints(tmp_path, capsys):
    a = la.datasets.simulate_cohort(
        "two_timepoints", n_patients=6, n_genes=150, n_cells=120, n_drivers=8
    )
    la.pp.save_cohort(a, tmp_path / "c.h5ad")
    succeed(
        "run",
        "--no-report",
        tmp_path / "c.h5ad",
        "--timepoints",
        "before,after",
        "--models",
        "paired_de",
        "--nulls",
        4,
        "--out",
        tmp_path / "out",
    )
    said = capsys.readouterr().out
    assert (
        set(table(tmp_path / "out", "ranking.csv")["contrast"])
        == set(table(tmp_path / "out", "evaluation.csv")["contrast"])
        == {"after_vs_before"}
    )
    assert "all timepoints" not in said and "after_vs_before, paired_de:" in said


def test_a_contrast_with_too_few_patients_is_listed(tmp_path, capsys):
    """Five of seven patients lack the middle visit: two contrasts cannot be evaluated, and are not
    dropped."""
    a = la.datasets.simulate_cohort(
        "small", n_patients=7, n_genes=150, n_cells=120, n_drivers=8, missing=0.0, seed=2
    )
    lacking = a.obs["patient"].isin([f"AML{i}" for i in range(1, 6)]) & (
        a.obs["timepoint"] == "REM"
    )
    la.datasets.write_geo(a[~lacking.to_numpy()].copy(), tmp_path / "c")
    succeed(
        "run",
        "--no-report",
        tmp_path / "c",
        "--models",
        "paired_de",
        "--nulls",
        4,
        "--out",
        tmp_path / "out",
    )
    said = capsys.readouterr().out
    cover = (
        table(tmp_path / "out", "coverage.csv").query("cell_type == 'all'").set_index("contrast")
    )
    assert (
        list(cover.index) == CONTRASTS
        and list(cover["evaluated"]) == [True, False, False]
        and cover.loc["REL_vs_DX", "patients"] == 7
        and (cover["patients"].iloc[1:] <= 2).all()
    )
    for c in CONTRASTS[1:]:
        assert re.search(
            rf"^{c}: \d patients? with bags at both timepoints; "
            r"not evaluated \(at least 3 are needed\)$",
            said,
            re.M,
        )
    assert (
        set(table(tmp_path / "out", "ranking.csv")["contrast"])
        == set(table(tmp_path / "out", "evaluation.csv")["contrast"])
        == {"REL_vs_DX"}
    )


def test_underpowered_counts_the_patients_used(tmp_path, capsys):
    "Six patients came twice; only three of them have cells enough of one cell type both times."
    a = la.datasets.simulate_cohort("small", n_patients=6, n_genes=150, n_cells=120, seed=0)
    la.pp.save_cohort(a, tmp_path / "c.h5ad")
    succeed(
        "run",
        "--no-report",
        "--no-figures",
        tmp_path / "c.h5ad",
        "--timepoints",
        "DX,REM",
        "--models",
        "paired_de",
        "--nulls",
        4,
        "--out",
        tmp_path / "out",
    )
    cover = table(tmp_path / "out", "coverage.csv").query("cell_type == 'all'").iloc[0]
    assert (
        cover["patients"] == 3
        and a.obs.groupby("patient", observed=True)["timepoint"]
        .agg(lambda t: {"DX", "REM"} <= set(t))
        .sum()
        == 6
    )
    few = "failed check: underpowered (few patients: changes may have been missed)"
    assert few in capsys.readouterr().out


def test_timepoints_with_spaces_and_slashes(tmp_path, capsys):
    "Names as laboratories write them."
    a = la.datasets.simulate_cohort(
        "two_timepoints", n_patients=4, n_genes=100, n_cells=100, n_drivers=4, seed=1
    )
    a.obs["timepoint"] = (
        a.obs["timepoint"].astype(str).map({"before": "Day 0", "after": "D+14 / late"})
    )
    columns = a.obs[["patient", "timepoint"]].assign(cell_type=a.obs["base_cell_type"])
    ad.AnnData(a.X, obs=columns.astype(str), var=a.var[[]]).write_h5ad(tmp_path / "c.h5ad")
    succeed(
        "run",
        "--no-report",
        tmp_path / "c.h5ad",
        "--timepoints",
        "Day 0,D+14 / late",
        "--models",
        "paired_de",
        "--nulls",
        2,
        "--out",
        tmp_path / "out",
    )
    assert set(table(tmp_path / "out", "ranking.csv")["contrast"]) == {"D+14 / late_vs_Day 0"}
    assert {p.parent.name for p in (tmp_path / "out").rglob("*.png")} == {
        "figures"
    }  # no folder made by a slash


def test_null_cohort_is_not_believed(tmp_path, capsys):
    "Nothing changes over time, samples differ strongly: at chance, and no gene passes."
    succeed(
        "simulate",
        tmp_path / "c",
        *"--preset null --patients 8 --genes 150 --cells 120 --seed 2000".split(),
    )
    succeed("run", tmp_path / "c", *QUICK, "--no-figures", "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "failed check: chance level" in said and "logistic: 0 of 150 genes" in said


# ---- errors, through the command


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    "Two patients on disk: enough to read, too few to compare."
    out = tmp_path_factory.mktemp("tiny") / "cohort"
    succeed(
        *"simulate".split(),
        out,
        *"--preset small --patients 2 --genes 100 --cells 80 --drivers 2 --seed 1".split(),
    )
    return out


def one(folder, kind):
    return sorted(folder.glob(f"*_{kind}*.gz"))[0]


def edit(path, change):
    path.write_bytes(
        gzip.compress(change(gzip.decompress(path.read_bytes()).decode()).encode(), mtime=0)
    )


def entry(value):
    "Put a value into the last entry."
    return lambda t: t.rstrip("\n").rsplit(" ", 1)[0] + f" {value}\n"


def header(*numbers):
    def change(t):
        lines = t.split("\n")
        i = next(i for i, line in enumerate(lines) if not line.startswith("%"))
        old = lines[i].split()
        lines[i] = " ".join(str(o if n is None else n) for o, n in zip(old, numbers))
        return "\n".join(lines)

    return change


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


BROKEN = {
    "truncated gz": (lambda c: cut(one(c, "matrix")), "truncated or damaged"),
    "truncated metadata": (lambda c: cut(one(c, "metadata")), "truncated or damaged"),
    "wrong dimensions": (
        lambda c: edit(one(c, "matrix"), header(101, None, None)),
        "says 101 genes",
    ),
    "a lying header": (
        lambda c: edit(one(c, "matrix"), header(10**12, 10**12, 10**12)),
        "says 1000000000000 genes",
    ),
    "too many entries": (
        lambda c: edit(one(c, "matrix"), header(None, None, 10**12)),
        "can hold at most",
    ),
    "a negative count": (lambda c: edit(one(c, "matrix"), entry(-3)), "value -3"),
    "a fractional count": (
        lambda c: edit(
            one(c, "matrix"), lambda t: entry("2.5")(t.replace(" integer ", " real ", 1))
        ),
        "value 2.5",
    ),
    "a missing count": (
        lambda c: edit(
            one(c, "matrix"), lambda t: entry("nan")(t.replace(" integer ", " real ", 1))
        ),
        "nan",
    ),
    "an empty sample": (
        lambda c: (
            edit(one(c, "barcodes"), lambda t: ""),
            edit(
                one(c, "matrix"), lambda t: header(None, 0, 0)(t).split("\n", 3)[0] + "\n100 0 0\n"
            ),
        ),
        "is empty",
    ),
    "no gene file": (lambda c: one(c, "genes").unlink(), "is missing; its companions are"),
    "no barcode file": (lambda c: one(c, "barcodes").unlink(), "is missing; its companions are"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_geo_files(what, tiny, tmp_path, capsys):
    breaks, said = BROKEN[what]
    shutil.copytree(tiny, tmp_path / "c")
    breaks(tmp_path / "c")
    line = refused(capsys, tmp_path, "run", tmp_path / "c", "--out", tmp_path / "out")
    assert said in line
    assert said in refused(capsys, tmp_path, "convert", tmp_path / "c", tmp_path / "c.h5ad")


def add(tar, name, kind=tarfile.REGTYPE, to=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    tar.addfile(info)


@pytest.mark.parametrize(
    "trap,said",
    [
        (lambda t: add(t, "../escape_matrix.mtx.gz"), "unsafe name, '../escape_matrix.mtx.gz'"),
        (lambda t: add(t, "/etc/passwd"), "unsafe name"),
        (
            lambda t: add(t, "GSM1_AML9_DX_processed_genes.tsv.gz", tarfile.SYMTYPE, "/etc/passwd"),
            "link to /etc/passwd",
        ),
        (
            lambda t: add(t, "GSM1_AML9_DX_processed_genes.tsv.gz", tarfile.LNKTYPE, "x"),
            "link to x",
        ),
        (lambda t: add(t, "GSM1_x", tarfile.FIFOTYPE), "not a plain file"),
    ],
)
def test_unsafe_tar(trap, said, tiny, tmp_path, capsys):
    with tarfile.open(tmp_path / "c.tar", "w") as t:
        for p in sorted(tiny.glob("GSM*")):
            t.add(p, p.name)
        trap(t)
    assert said in refused(capsys, tmp_path, "run", tmp_path / "c.tar", "--out", tmp_path / "out")


def test_truncated_tar(tiny, tmp_path, capsys):
    with tarfile.open(tmp_path / "c.tar", "w") as t:
        for p in sorted(tiny.glob("GSM*")):
            t.add(p, p.name)
    whole = (tmp_path / "c.tar").read_bytes()
    (tmp_path / "c.tar").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused(
        capsys, tmp_path, "run", tmp_path / "c.tar", "--out", tmp_path / "out"
    )


def plain(patients=4, times=("A", "B"), cells=30, genes=40):
    "Counts without a contract: what people have in an .h5ad."
    r = la.core.rng_for(0, "plain")
    obs = pd.DataFrame(
        [(f"P{p}", t) for p in range(patients) for t in times for _ in range(cells)],
        columns=["who", "when"],
    )
    return ad.AnnData(
        sp.csr_matrix(r.poisson(2, (len(obs), genes)).astype("float32")),
        obs=obs.set_index(obs.index.astype(str)),
        var=pd.DataFrame(index=[f"G{i}" for i in range(genes)]),
    )


KEYS = "--patient-key who --timepoint-key when --timepoints A,B".split()


def scaled(a):
    a.X = a.X.toarray() - a.X.toarray().mean(0)


def put(value):
    def change(a):
        a.X.data[5] = value

    return change


@pytest.mark.parametrize(
    "change,args,said",
    [
        (scaled, KEYS, "scaled"),
        (put(-1), KEYS, "below zero"),
        (put(0.5), KEYS, "fractional counts"),
        (put(np.nan), KEYS, "missing or infinite"),
        (None, ["--patient-key", "whom", *KEYS[2:]], "no patient column 'whom'"),
        (None, [*KEYS[:2], "--timepoint-key", "wen", *KEYS[4:]], "Did you mean 'when'?"),
        (None, [*KEYS[:4], "--timepoints", "A,C"], "timepoint 'C'"),
        (None, [*KEYS, "--cell-type-key", "type"], "'type'"),
        (None, [*KEYS, "--cell-type-key", "line"], "'line'"),
        (None, [*KEYS[:4], "--timepoints", "A"], "one timepoint (A)"),
        (None, KEYS[:4], "Pass --timepoints A,B in order of time"),
        (None, [], "Pass --patient-key COLUMN."),
        (None, [*KEYS, "--models", "logistics"], "Did you mean 'logistic'?"),
        (None, [*KEYS, "--task", "timepoints"], "Did you mean 'timepoint'?"),
        (None, [*KEYS, "--nulls", "0"], "at least 1 permutation"),
        (None, [*KEYS, "--device", "tpu"], "device is 'tpu'"),
    ],
)
def test_wrong_h5ad_or_options(change, args, said, tmp_path, capsys):
    a = plain()
    if change:
        change(a)
    a.write_h5ad(tmp_path / "c.h5ad")
    assert said in refused(
        capsys, tmp_path, "run", tmp_path / "c.h5ad", *args, "--out", tmp_path / "out"
    )


@pytest.mark.parametrize(
    "patients,cells,said",
    [
        (1, 30, "one patient (P0)"),
        (2, 30, "no contrast has 3 patients"),
        (4, 10, "no sample has 20 cells"),
    ],
)
def test_too_little(patients, cells, said, tmp_path, capsys):
    plain(patients, cells=cells).write_h5ad(tmp_path / "c.h5ad")
    assert said in refused(
        capsys, tmp_path, "run", tmp_path / "c.h5ad", *KEYS, "--out", tmp_path / "out"
    )


def test_too_few_patients_of_a_geo_cohort(tiny, tmp_path, capsys):
    assert "no contrast has 3 patients" in refused(
        capsys, tmp_path, "run", tiny, "--out", tmp_path / "out"
    )


@pytest.mark.parametrize(
    "content,said",
    [
        (b"", "cannot be read as h5ad"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "cannot be read as h5ad"),
    ],
)
def test_damaged_h5ad(content, said, tmp_path, capsys):
    (tmp_path / "c.h5ad").write_bytes(content)
    assert said in refused(capsys, tmp_path, "run", tmp_path / "c.h5ad", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "name,said",
    [
        ("nowhere", "no file or folder"),
        ("empty", "neither"),
        ("notes.txt", "expected a .tar or folder"),
    ],
)
def test_no_cohort(name, said, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert said in refused(capsys, tmp_path, "run", tmp_path / name, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "out,said",
    [
        ("{tmp}/file/out", "cannot write"),
        ("{tmp}/file", "is a file"),
        ("/proc/longaml-out", "cannot write"),
    ],
)
def test_unwritable_output(out, said, cohort, tmp_path, capsys):
    if out.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    (tmp_path / "file").write_text("mine")
    assert said in refused(
        capsys, tmp_path, "run", cohort, *QUICK, "--out", out.format(tmp=tmp_path)
    )
    assert (tmp_path / "file").read_text() == "mine"


# ---- audit and simulate


def audited(ranking, cohort, folder, capsys):
    ranking.to_csv(folder / "r.csv", index=False)
    capsys.readouterr()
    succeed("audit", folder / "r.csv", "--cohort", cohort, "--out", folder / "out")
    a = table(folder / "out", "audit.csv")
    assert (
        list(a.columns) == AUDIT
        and list(a["check"]) == CHECK_NAMES
        and set(a["model"]) == {"r"}
        and set(a["contrast"]) == {"REL_vs_DX"}
    )
    assert sorted(p.name for p in (folder / "out").iterdir()) == [
        "audit.csv",
        "figures",
        "report.html",
        "run.json",
    ] and tree(folder / "out" / "figures") == ["audit.png"]
    return a.set_index("check"), capsys.readouterr().out


def test_audit_of_scanpy_columns(finished, cohort, tmp_path, capsys):
    r = table(finished[0], "ranking.csv").query("model == 'paired_de' and contrast == 'REL_vs_DX'")
    r = r.rename(
        columns={
            "gene": "names",
            "score": "scores",
            "log2_fold_change": "logfoldchanges",
            "q_value": "pvals_adj",
        }
    )
    # without ranks, scores count by their magnitude: those of a run are negative below the median
    r["scores"] -= r["scores"].min()
    r = r[["names", "scores", "logfoldchanges", "pvals_adj"]]
    a, said = audited(r, cohort, tmp_path, capsys)
    assert (
        a.loc["constant", "status"] == "passed"
        and a.loc["explained by abundance", "status"] == "passed"
    )
    assert a.loc["no gene passes", "text"] == f"{(r['pvals_adj'] < 0.1).sum()} genes at q < 0.1"
    assert (
        a.loc["chance level", "status"] == a.loc["unstable", "status"] == "not assessed"
    )  # a table alone cannot say
    own = (
        table(finished[0], "audit.csv")
        .query("model == 'paired_de' and contrast == 'REL_vs_DX'")
        .set_index("check")
    )
    for v in CHECK_NAMES[3:6]:
        assert a.loc[v, "text"] == own.loc[v, "text"]  # what the run said of the same ranking
    *lines, report = said.strip().splitlines()
    assert report.startswith("report: ")
    assert lines == ["no check failed"] or all(x.startswith("REL_vs_DX, r: ") for x in lines)


def test_audit_of_an_abundance_ranking(finished, cohort, tmp_path, capsys):
    r = table(finished[0], "ranking.csv").query("model == 'logistic' and contrast == 'REL_vs_DX'")
    a, said = audited(
        pd.DataFrame({"gene": r["gene"], "score": r["mean_expression"]}), cohort, tmp_path, capsys
    )
    assert (
        a.loc["explained by abundance", "status"] == "failed"
        and a.loc["explained by abundance", "value"] > 0.8
    )
    assert "REL_vs_DX, r: explained by abundance (mean expression explains" in said


def test_audit_of_a_constant_ranking(finished, cohort, tmp_path, capsys):
    genes = table(finished[0], "ranking.csv")["gene"].unique()
    a, said = audited(pd.DataFrame({"gene": genes, "score": 0.125}), cohort, tmp_path, capsys)
    assert (
        a.loc["constant", "status"] == "failed"
        and "constant (1 distinct scores among 150 genes)" in said
    )


def test_audit_of_a_whole_run(finished, cohort, tmp_path, capsys):
    "Its own ranking.csv, with every model and contrast."
    succeed("audit", finished[0] / "ranking.csv", "--cohort", cohort, "--out", tmp_path / "out")
    a = table(tmp_path / "out", "audit.csv")
    assert set(zip(a["model"], a["contrast"])) == {
        (m, c) for m in ("logistic", "paired_de", "transformer") for c in CONTRASTS
    }


@pytest.mark.parametrize(
    "content,said",
    [
        ("gene,score\nENSG1,2\nENSG2,1\n", "0% of the ranking's genes are in the cohort"),
        ("name,score\nG00001,2\n", "no gene column"),
        ("gene,rating\nG00001,2\n", "no score column"),
        ("gene,score\nG00001,high\n", "not numbers"),
        ("", "No columns"),
        ("gene,score,contrast\nG00001,2,REM_vs_XX\n", "'REM_vs_XX' is not of this cohort"),
    ],
)
def test_audit_refuses(content, said, tiny, tmp_path, capsys):
    (tmp_path / "r.csv").write_text(content)
    assert said in refused(
        capsys, tmp_path, "audit", tmp_path / "r.csv", "--cohort", tiny, "--out", tmp_path / "out"
    )


def test_simulate(tiny, tmp_path, capsys):
    truth = pd.read_csv(tiny / "truth.csv")
    assert (
        len(truth) == 100
        and {"gene", "kind", "driver", "log2_fold_change"} <= set(truth)
        and (truth["kind"] == "marginal").sum() == 2
    )
    assert {
        re.fullmatch(r"GSM\d+_AML\d+_(?:DX|REM|REL)_processed_(\w+)\.\w+\.gz", p.name)[1]
        for p in tiny.glob("GSM*")
    } == {"matrix", "genes", "barcodes", "metadata"}
    assert json.loads((tiny / "simulation.json").read_text())["seed"] == 1
    succeed(
        "simulate",
        tmp_path / "null",
        *"--preset small --patients 2 --genes 100 --cells 40 --null".split(),
    )
    assert not pd.read_csv(tmp_path / "null" / "truth.csv")["driver"].any()
    assert (
        "wrote " in capsys.readouterr().out
        and tree(tmp_path)[0] == "null"
        and not [p for p in tree(tmp_path) if ".part" in p]
    )


# ---- progress, and the demo


def on_a_terminal(*args, stdout=subprocess.DEVNULL, cwd=ROOT, **env):
    """Run the command with a terminal as its standard error: (exit code, what the terminal showed,
    peak memory in GiB, seconds)."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    base = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PYTEST_CURRENT_TEST", "IN_TEST", "LONGAML_PROGRESS")
    }
    start, shown = time.monotonic(), b""
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *map(str, args)],
        cwd=cwd,
        env={**base, "PYTHONPATH": str(ROOT), **env},
        stdout=stdout,
        stderr=slave,
    )
    os.close(slave)
    while True:
        try:
            block = os.read(master, 1 << 16)
        except OSError:
            break  # the other end is closed
        if not block:
            break
        shown += block
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    os.close(master)
    return (
        process.returncode,
        shown.decode(errors="replace"),
        usage.ru_maxrss / 2**20,
        time.monotonic() - start,
    )


@pytest.mark.slow
def test_demo(tmp_path):
    """28 patients x 2,000 genes through the GEO reader, within 4 minutes and 4 GiB, with the
    planted drivers in its answer."""
    with open(tmp_path / "said", "w") as f:
        code, shown, memory, seconds = on_a_terminal("demo", "--out", tmp_path / "demo", stdout=f)
    print(f"demo: {seconds:.0f} s, {memory:.2f} GiB")
    assert code == 0 and "%|" in shown
    assert seconds < 240 and memory < 4
    run, said = tmp_path / "demo" / "run", (tmp_path / "said").read_text()
    assert (
        json.loads((run / "run.json").read_text())["status"] == "complete"
        and len(list((tmp_path / "demo" / "cohort").glob("*.tar"))) == 1
    )
    truth = la.datasets.simulate_cohort("realistic", seed=0).uns["truth"]
    planted = truth.index[truth["kind"] == "marginal"]
    for model, one in table(run, "ranking.csv").query("contrast == 'REL_vs_DX'").groupby("model"):
        called = one.loc[one["q_value"] < 0.1, "gene"]
        assert (
            f"  {model}: {called.isin(planted).sum()} of {len(planted)} planted drivers among "
            f"{len(called)} genes at q < 0.1" in said
        )
        assert one["gene"].head(20).isin(planted).mean() > 10 * len(planted) / len(
            truth
        )  # far more than an order at random would give
        if model == "paired_de":
            assert len(called) and called.isin(planted).mean() >= 0.5


@pytest.mark.slow  # the frozen tables of these models hold their audits too
def test_classical_models_and_network_rankings_are_audited_like_any_other(cohort, tmp_path):
    """Bayesian ridge, NMF factors and changes of the gene network: accuracy where they predict, and
    a ranking, a null and an audit for each."""
    if importlib.util.find_spec("pybdm") is None:
        pytest.skip("network_bdm needs the extra bdm")
    names = ["bayesian_ridge", "nmf", "network_degree", "network_bdm", "network_pair"]
    succeed(
        "run",
        cohort,
        "--out",
        tmp_path / "out",
        "--timepoints",
        "DX,REL",
        "--models",
        ",".join(names),
        "--nulls",
        4,
        "--no-report",
    )
    e, r, a = (table(tmp_path / "out", f"{n}.csv") for n in ("evaluation", "ranking", "audit"))
    assert {"bayesian_ridge", "nmf"} < set(e["model"]) and not {
        "network_degree",
        "network_bdm",
        "network_pair",
    } & set(e["model"])
    acc = e[e["metric"] == "balanced_accuracy"].groupby("model")["value"].mean()
    assert acc["bayesian_ridge"] > 0.6 and acc["majority"] == 0.5
    assert set(r["model"]) == set(a["model"]) == set(names)
    assert (r.groupby("model").size() > 20).all() and r[
        ["score", "p_value", "q_value", "stability", "mean_expression"]
    ].notna().all().all()
    assert (a.groupby("model")["check"].nunique() == a["check"].nunique()).all()
    assert set(leading_genes(r, "REL_vs_DX")) == set(names)
    assert {"figures/models-REL_vs_DX.png", "figures/null-REL_vs_DX.png"} <= set(
        tree(tmp_path / "out")
    )


# ---- two at once, and one's own models


HELD = """
import sys, time
from pathlib import Path
from longaml.cli import main
from longaml.experiment.run import CohortRun

flag, read = Path(sys.argv[1]), CohortRun.read


def held(self):
    flag.touch()  # the folder belongs to this process now
    while flag.exists():
        time.sleep(0.05)
    return read(self)


CohortRun.read = held
sys.exit(main(sys.argv[2:]))
"""


def test_two_runs_at_once_in_one_folder(cohort, quick, tmp_path):
    "The second is refused, with a sentence that says so; the tables of the first are right."
    out = tmp_path / "out"
    flag = tmp_path / "held"
    command = ["run", cohort, "--out", out, *QUICK]
    how = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
    how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = list(map(str, [sys.executable, "-c", HELD, flag, *command]))
    with subprocess.Popen(words, **how) as first:
        try:
            end = time.monotonic() + 200
            while not flag.exists():
                assert first.poll() is None and time.monotonic() < end, first.communicate()
                time.sleep(0.05)
            words = list(map(str, [sys.executable, "-c", CODE, *command]))
            second = subprocess.run(words, timeout=200, **how)
            assert second.returncode == 2, second.stderr
            assert "in use by another process" in second.stderr
            flag.unlink()
            said = first.communicate(timeout=300)[1]
        finally:
            first.kill()
    assert first.returncode == 0, said
    assert differing(out, quick) == []


OWN = Path(__file__).parent / "own_models.py"


def test_own_models_on_the_command_line(cohort, tmp_path):
    "A network, a pipeline and a constant: in every table and figure, the report and its methods."
    models = f"logistic,{OWN}:TinyGRU,{OWN}:PIPELINE,{OWN}:Constant"
    out = tmp_path / "out"
    args = ["--timepoints", "DX,REL", "--models", models, "--nulls", 2, "--halves", 2]
    succeed("run", cohort, "--out", out, *args)
    own = {"TinyGRU", "PIPELINE", "Constant"}
    for name in ("evaluation", "predictions", "ranking", "audit", "stability", "gene_changes"):
        assert own <= set(table(out, f"{name}.csv")["model"]), name
    drawn = {p.stem for p in (out / "figures").iterdir()}
    kinds = ("volcano", "models", "null", "top_genes", "gene_times")
    assert {f"{k}-REL_vs_DX" for k in kinds} <= drawn
    side_by_side = pl.rankings.plot_models(table(out, "ranking.csv"), contrast="REL_vs_DX")
    assert own <= {t.get_text() for t in side_by_side.get_xticklabels()}
    page = (out / "report.html").read_text()
    assert all(name in page for name in own)
    _, heading, rest = page.partition('id="Methods-section"')
    section = re.split(r"<h2", rest)[0]
    assert heading and all(name in section for name in own), section
    assert "nmf" not in section
    checks = table(out, "audit.csv").set_index(["model", "check"])["status"]
    assert checks["Constant", "chance level"] == checks["Constant", "constant"] == "failed"
    accuracy = table(out, "evaluation.csv").query("metric == 'balanced_accuracy'")
    assert (accuracy.loc[accuracy["model"] == "Constant", "value"] == 0.5).all()
    compared = tmp_path / "compared"
    tasks = "timepoint,forecast"
    more = ["--timepoints", "DX,REL", "--tasks", tasks, "--models", f"{models},ridge"]
    succeed("compare", cohort, "--out", compared, *more, "--store", out / "steps")
    found = table(compared, "comparison.csv")
    assert own <= set(found.loc[found["task"] == "timepoint", "model"])
    assert "TinyGRU" in set(found.loc[found["task"] == "forecast", "model"])
    assert own & set(table(compared, "differences.csv")["model"]) == own


def test_an_own_model_that_is_not_there(cohort, tmp_path, capsys):
    args = ["run", cohort, "--out", tmp_path / "out", "--models"]
    assert "TinyGRU" in refused(capsys, tmp_path, *args, f"{OWN}:TinyGRUs")
    assert "no file" in refused(capsys, tmp_path, *args, "nowhere.py:Net")


def test_sets_of_cells(tmp_path, capsys):
    "run --cell-sets: a table, a figure and sentences; not of bulk samples or log values."
    from longaml.datasets.cell_sets import simulate_cell_sets

    cohort = simulate_cell_sets("expanding", seed=11, n_cells=60, n_genes=150, late=0.3)
    path = la.pp.save_cohort(cohort, tmp_path / "c.h5ad")
    args = "--models logistic --nulls 1 --halves 2 --cell-sets".split()
    out = tmp_path / "out"
    succeed("run", path, "--out", out, *args)
    said = capsys.readouterr().out
    found = table(out, "cell_sets.csv")
    assert "beyond the mean" in said and f"{found['accuracy'].iloc[0]:.2f} [" in said
    assert found["accuracy"].iloc[0] > 0.8 and found["p_value"].iloc[0] <= 0.05
    genes = table(out, "cell_set_genes.csv")
    planted = cohort.var["programme"].reindex(genes["gene"].head(10)).to_numpy()
    assert planted.mean() > 0.8
    assert (out / "figures" / "cell-sets.png").stat().st_size > 5_000
    page = (out / "report.html").read_text()
    assert "Changes beyond the mean" in page and "read the centred cells of a visit" in page
    bulk = la.pp.pseudobulk(cohort, min_cells=5)
    bulk.obs = bulk.obs[["patient", "timepoint"]]
    bulk = bulk[~bulk.obs.duplicated().to_numpy()].copy()
    bulk.X = bulk.layers["counts"]
    bulk.uns.clear()
    bulk.write_h5ad(tmp_path / "bulk.h5ad")
    no = ["run", tmp_path / "bulk.h5ad", "--out", tmp_path / "no", *args]
    assert "need counts of single cells" in refused(capsys, tmp_path, *no)
