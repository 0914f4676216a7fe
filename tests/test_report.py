"""The report: what it says, that it needs nothing else, and how a browser shows it.

Tables are made by hand; the same run gives the same bytes."""

import base64
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import ROOT, python

from longaml.experiment import agreement, report, report_tables, report_text
from longaml.experiment.store import Run
from longaml.models.contract import names

TIMES = ("DX", "REM", "REL")
MODELS = ("majority", "patient_cell_type", "technical", "logistic", "transformer")
RANKERS = ("logistic", "paired_de", "transformer")
CONTRASTS = ("REL_vs_DX", "REM_vs_DX")
GENES = [f"G{i:02d}" for i in range(40)]


# ---------------------------------------------------------------- a run made by hand


def evaluation(gain=0.3, patients=8, seed=0):
    "Held-out accuracy: models that read genes exceed technical values by `gain`, all equally."
    rng = np.random.default_rng(seed)
    rows = []
    for c in (*CONTRASTS, "all"):
        for m in MODELS:
            for p in range(patients):
                v = (
                    0.5
                    if m in MODELS[:2]
                    else 0.55 + 0.05 * rng.random() + (gain if m in MODELS[3:] else 0)
                )
                rows += [
                    ("timepoint", c, m, f"AML{p + 1}", k, v, 1 / 3 if c == "all" else 0.5)
                    for k in ("balanced_accuracy", "auroc")
                ]
    return pd.DataFrame(rows, columns="task contrast model patient metric value chance".split())


def ranking(genes=GENES, passing=4, seed=0):
    "Rankings whose first genes pass."
    rng = np.random.default_rng(seed)
    tables = []
    for c in CONTRASTS:
        for m in RANKERS:
            order = rng.permutation(len(genes))
            order = np.r_[np.arange(passing), order[order >= passing]]
            n = len(genes)
            tables.append(
                pd.DataFrame(
                    {
                        "model": m,
                        "contrast": c,
                        "gene": np.array(genes)[order],
                        "rank": np.arange(1, n + 1),
                        "score": np.linspace(3, -1, n),
                        "direction": np.where(order % 2, "up", "down"),
                        "log2_fold_change": np.where(order % 2, 1.0, -1.0),
                        "p_value": np.linspace(0.001, 1, n),
                        "q_value": np.where(np.arange(n) < passing, 0.01, 0.9),
                        "stability": 0.5,
                        "mean_expression": 1.0,
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def audit(failed=()):
    "Checks, none of which failed but those named as (model, contrast, check)."
    names = [
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
    rows = [
        (
            m,
            c,
            v,
            "not assessed"
            if m == "paired_de" and v in ("chance level", "input-independent")
            else ("failed" if (m, c, v) in failed else "passed"),
            0.25,
            0.5,
            f"what was found about {v}",
        )
        for m in RANKERS
        for c in CONTRASTS
        for v in names
    ]
    return pd.DataFrame(rows, columns="model contrast check status value threshold text".split())


def visits(patients=8):
    return [(f"AML{p + 1}", t) for t in TIMES for p in range(patients) if (p, t) != (2, "REM")]


def samples(patients=8):
    rows = [
        (p, t, f"{p}_{t}", k, n, 1000.0 + 10 * i, 500.0, 0.05)
        for i, (p, t) in enumerate(visits(patients))
        for k, n in (("all", 100), ("HSC malignant", 60), ("T normal", 40))
    ]
    return pd.DataFrame(
        rows, columns="patient timepoint sample cell_type cells counts genes mitochondrial".split()
    )


def tables(**changes):
    "All tables of a run."
    rng = np.random.default_rng(1)
    r = ranking()
    seen = visits()
    top = r[r["rank"] <= 25]
    made = {
        "evaluation": evaluation(),
        "ranking": r,
        "audit": audit(),
        "samples": samples(),
        "coverage": pd.DataFrame(
            [
                (c, k, n, n, n > 2)
                for c, n in (*((c, 8) for c in CONTRASTS), ("REL_vs_REM", 2))
                for k in ("all", "HSC malignant")
            ],
            columns="contrast cell_type patients pairs evaluated".split(),
        ),
        "stability": pd.DataFrame(
            [(m, c, 0.5, 0.4, 0.6, 0.05, 0.0, 0.1, 8, 50, 10) for m in RANKERS for c in CONTRASTS],
            columns=(
                "model contrast index low high null_index null_low null_high patients k n".split()
            ),
        ),
        "power": pd.DataFrame(
            [(c, 8, 256.0, 127.0, 0.05, 0.001, 0.3) for c in CONTRASTS],
            columns="contrast patients possible distinct smallest_p_alone smallest_p power".split(),
        ),
        "gene_changes": pd.DataFrame(
            [
                (
                    x.model,
                    x.contrast,
                    x.gene,
                    f"AML{p + 1}",
                    x.log2_fold_change + rng.normal(0, 0.2),
                )
                for x in top.itertuples()
                for p in range(8)
            ],
            columns="model contrast gene patient log2_fold_change".split(),
        ),
        "gene_times": pd.DataFrame(
            [(g, p, t, rng.normal()) for g in GENES for p, t in seen],
            columns="gene patient timepoint log2_change".split(),
        ),
    }
    return {k: v for k, v in (made | changes).items() if v is not None}


def write(folder, made, **params):
    "A finished run directory with these tables."
    run = Run(
        folder,
        command="run",
        params={
            "task": "timepoint",
            "models": [*MODELS, "paired_de"],
            "nulls": 20,
            "halves": 10,
            "n_genes": 2000,
            "device": "auto",
            "read": {},
            **params,
        },
        seed=7,
    )
    run.manifest.record["inputs"] = [{"path": "/somewhere/else/cohort.h5ad", "sha256": "ab" * 32}]
    for name, t in made.items():
        run.table(f"{name}.csv", t)
    run.finish({"summary": ["a line", "note: dropped: 1 sample"]})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A run directory made by hand, with its report."
    out = write(tmp_path_factory.mktemp("report") / "out", tables())
    report.write_report(out)
    return out


class Page(HTMLParser):
    "Tags with their attributes, and the text of a page."

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.text = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


# ---------------------------------------------------------------- the two files


def test_page_needs_nothing_else(made):
    text = (made / "report.html").read_text()
    found = Page(text)
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"\w+:" + r"//|@import|url\(|srcset|\bon\w+=", bare)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {
        t for t, _ in found.tags
    }
    pictures = [a for t, a in found.tags if t == "img"]
    cells = nbformat.read(made / "report.ipynb", as_version=4).cells
    alts = [c.metadata["alt"] for c in cells if "alt" in c.metadata]
    assert [a["alt"] for a in pictures] == alts and len(alts) == 14 and all(alts)
    assert all(a["src"].startswith("data:image/png;base64,") for a in pictures)
    assert all(
        base64.b64decode(a["src"].partition(",")[2]).startswith(b"\x89PNG") for a in pictures
    )
    ids = {a["id"] for _, a in found.tags if "id" in a}
    links = [a["href"] for t, a in found.tags if t == "a"]
    assert len(links) > 6 and all(h.startswith("#") and h[1:] in ids for h in links)
    assert (
        any(a.get("name") == "viewport" for t, a in found.tags if t == "meta")
        and "prefers-color-scheme: dark" in text
        and "@media print" in text
    )


def test_sections_and_sentences(made):
    text = " ".join("".join(Page((made / "report.html").read_text()).text).split())
    for title in (
        "At a glance",
        "The cohort",
        "Quality and depth",
        "Held-out patients, against baselines",
        "Ranked genes",
        "Top genes over time",
        "Agreement of the models",
        "Gene modules",
        "Methods section",
    ):
        assert title in text
    assert (
        "8 patients, 23 samples at DX, REM and REL, 2,300 cells (100 to 100 in a sample). "
        "1 visit is missing: REM of AML3." in text
    )
    assert (
        text.index("Supported by this run")
        < text.index("Not supported")
        < text.index("8 patients, 23 samples")
    )
    assert "REL against REM: not evaluated; 2 patients have enough cells at both." in text
    assert (
        "dropped: 1 sample" in text
        and "This run has no gene modules." in text
        and "Forecast and imputation" not in text
    )


def test_notebook_is_executed_and_portable(made):
    nb = nbformat.read(made / "report.ipynb", as_version=4)
    nbformat.validate(nb)
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert (
        all(c.execution_count for c in code) and sum(bool(c.outputs) for c in code) == len(code) - 1
    )  # the first cell reads and says nothing
    assert not [
        o for c in code for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"
    ]
    assert not [c for c in nb.cells if "execution" in c.metadata] and nb.metadata.language_info == {
        "name": "python"
    }
    both = (made / "report.ipynb").read_text() + (made / "report.html").read_text()
    for where in (
        str(made),
        str(made.parent),
        "/somewhere",
        str(Path.home()),
        sys.prefix,
        str(Path(report.__file__).parents[1]),
    ):
        assert where == "/" or where not in both
    assert not list(made.rglob("*.part")) and "%matplotlib inline" in code[0].source


def kernels():
    "Kernels that this process has started and that still run."
    running = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {pid for pid in running if "ipykernel" in Path(f"/proc/{pid}/cmdline").read_text()}


def test_a_report_ends_its_kernel(made):
    assert not kernels(), "a report leaves its kernel running"


@pytest.mark.slow
def test_same_run_gives_the_same_bytes(made, tmp_path):
    other = shutil.copytree(made, tmp_path / "elsewhere")
    before = {p.name: p.read_bytes() for p in made.iterdir() if p.is_file()}
    for p in other.glob("report.*"):
        p.unlink()
    report.write_report(other)
    assert {p.name: p.read_bytes() for p in other.iterdir() if p.is_file()} == before


def test_odd_names_and_missing_tables(tmp_path):
    "Names like numbers, HTML or markdown are shown as they are; what the folder lacks is named."
    names = {
        "AML1": "007",
        "AML2": "<img src=x onerror=alert(1)>",
        "AML3": "NA",
        "G00": "<script>1</script>",
        "G01": "**b** $x$ |y|",
        "G02": "nan",
        "logistic": "logistic",
    }
    t = tables(power=None, stability=None, gene_times=None, gene_changes=None, coverage=None)
    out = write(tmp_path / "out", {k: v.replace({**names}) for k, v in t.items()})
    report.write_report(out)
    found = Page((out / "report.html").read_text())
    assert not {"script"} & {tag for tag, _ in found.tags} and all(
        "onerror" not in a for _, a in found.tags
    )
    text = "".join(found.text)
    for name in ("<script>1</script>", "**b** $x$ |y|", "nan", "REM of NA"):
        assert name in text
    for name in ("gene_changes.csv", "gene_times.csv"):
        assert name in text


def test_a_run_with_less(tmp_path):
    "Without samples, and without a ranking: sections name what is missing, or are not there."
    out = write(
        tmp_path / "out",
        tables(
            samples=None,
            ranking=None,
            audit=None,
            stability=None,
            gene_changes=None,
            gene_times=None,
            power=None,
        ),
        models=[*MODELS],
    )
    cells = report.report_cells(out)
    prose = "\n".join(c.source for c in cells if c.kind == "markdown")
    assert (
        "no `samples.csv`" in prose and "Ranked genes" not in prose and "Held-out patients" in prose
    )
    code = "\n".join(c.source for c in cells if c.kind == "code")
    assert "samples" not in code and "ranking" not in code


# ---------------------------------------------------------------- what it says


def said(kind, **changes):
    return [s for k, s in report_text.findings(tables(**changes)) if k == kind]


def test_a_gain_is_supported_and_a_network_that_adds_nothing_is_not():
    yes = said("yes")
    no = said("no")
    assert any(
        s.startswith(
            "REL against DX: the timepoints of held-out patients are distinguished by logistic"
        )
        and "technical 0.5" in s
        for s in yes
    )
    assert any(
        s.startswith(
            "transformer: no gain over logistic regression is shown for REL against DX, REM "
            "against DX and all timepoints"
        )
        for s in no
    )
    yes = said("yes", evaluation=evaluation(gain=0.0))
    no = said("no", evaluation=evaluation(gain=0.0))
    assert (
        not any("held-out patients are distinguished" in s for s in yes)
        and sum("no gain of logistic" in s and "is shown over depth" in s for s in no) == 3
    )


def test_genes_are_supported_unless_a_check_failed():
    assert any(
        s.startswith(
            "REL against DX: genes at q < 0.1 by logistic (4: G00, G01, G02 and 1 more); paired_de"
        )
        for s in said("yes")
    )
    flagged = audit(
        [("logistic", "REL_vs_DX", "explained by depth"), ("logistic", "REL_vs_DX", "unstable")]
    )
    no = [s for s in said("no", audit=flagged) if "genes of logistic" in s]
    assert len(no) == 1 and "sequencing depth" in no[0] and "another list" in no[0]
    assert not any(
        "REL against DX: genes" in s and "logistic" in s for s in said("yes", audit=flagged)
    )
    none = said("no", ranking=ranking(passing=0))
    assert [s for s in none if "no gene" in s] == [
        "REL against DX and REM against DX: no gene of logistic, paired_de and transformer exceeds "
        "the scores of permuted samples at q < 0.1. That does not show that nothing changes."
    ]
    assert any(
        s == "Not assessed for paired_de: chance level and input-independent." for s in said("open")
    )


def test_flags_of_the_cohort_and_technical_values():
    flagged = pd.concat(
        [
            audit(),
            pd.DataFrame(
                [
                    (
                        "all",
                        "all",
                        "depth uncontrolled",
                        "failed",
                        np.nan,
                        np.nan,
                        "depth uncontrolled: log-normalised input",
                    )
                ],
                columns=audit().columns,
            ),
        ],
        ignore_index=True,
    )
    assert "The whole cohort: depth uncontrolled: log-normalised input." in said(
        "no", audit=flagged
    )
    e = evaluation()
    e.loc[e["model"] == "technical", "value"] += 0.4
    assert any(
        s.startswith("Technical values: alone, they distinguish")
        for s in said("open", evaluation=e)
    )
    assert not any(
        "Technical values" in s for s in said("open", evaluation=e.assign(value=e["chance"]))
    )


def test_forecasts():
    rng = np.random.default_rng(0)
    rows = [
        ("forecast", "REL", m, f"AML{i}", "skill", v + 0.01 * rng.random(), 0.0)
        for m, v in (("baseline_expression", 0.0), ("no_change", -0.2), ("ridge", 0.1))
        for i in range(8)
    ]
    e = pd.concat(
        [evaluation(), pd.DataFrame(rows, columns=evaluation().columns)], ignore_index=True
    )
    assert any(s.startswith("The change to REL: ridge (+0.10") for s in said("yes", evaluation=e))
    e.loc[e["model"] == "ridge", "value"] = -0.1
    assert any("no model is shown" in s for s in said("no", evaluation=e))
    skill = report_tables.skill_table(e, "forecast", "REL").set_index("model")
    assert (
        skill.loc["ridge", "skill"] == pytest.approx(-0.1)
        and skill.loc["no_change", "patients"] == 8
    )


def test_held_out_is_what_numpy_gives():
    e = evaluation()
    t = report_tables.held_out(e, contrast="REL_vs_DX").set_index("model")
    wide = e[(e["contrast"] == "REL_vs_DX") & (e["metric"] == "balanced_accuracy")].pivot(
        index="patient", columns="model", values="value"
    )
    d = wide["transformer"] - wide["logistic"]
    far = d.abs().max()
    used = np.r_[d, far, -far]  # eight patients, each a fold, and two that cancel
    half = 2.2621571627409915 * used.std(ddof=1) * np.sqrt((1 + 8 / 7) / 10)  # t, 9 df
    half += abs(d.mean() - used.mean())
    assert np.allclose(
        t.loc["transformer", ["over_logistic", "over_logistic_low", "over_logistic_high"]].astype(
            float
        ),
        [d.mean(), d.mean() - half, d.mean() + half],
    )
    assert (
        (t["baseline"] == "technical").all()
        and t.loc["technical", ["over_baseline", "over_logistic"]].isna().all()
        and np.isnan(t.loc["logistic", "over_logistic"])
    )
    assert (report_tables.held_out(e)[["mean_low", "mean_high"]].to_numpy() >= 0).all() and (
        report_tables.held_out(e)[["mean_low", "mean_high"]].to_numpy() <= 1
    ).all()
    with pytest.raises(ValueError, match="Did you mean 'REL_vs_DX'"):
        report_tables.held_out(e, contrast="REL_vs_DY")


def test_top_genes_have_intervals_over_patients():
    t = tables()
    top = report_tables.top_genes(
        t["ranking"], "logistic", "REL_vs_DX", changes=t["gene_changes"], n=3
    )
    v = t["gene_changes"].query(
        "model == 'logistic' and contrast == 'REL_vs_DX' and gene == 'G00'"
    )["log2_fold_change"]
    assert (
        top.loc[0, "log2_fold_change"] == pytest.approx(v.mean())
        and top.loc[0, "log2_fold_change_low"] < v.mean() < top.loc[0, "log2_fold_change_high"] < 0
    )
    assert top["same_way"].tolist()[0] == "8 of 8" and list(top["gene"]) == ["G00", "G01", "G02"]
    assert "log2_fold_change_low" not in report_tables.top_genes(
        t["ranking"], "logistic", "REL_vs_DX"
    )


# ---------------------------------------------------------------- agreement


def rankings(scores):
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "model": m,
                    "contrast": "B_vs_A",
                    "gene": [f"g{i}" for i in range(len(v))],
                    "score": v,
                }
            )
            for m, v in scores.items()
        ],
        ignore_index=True,
    )


def keep(folder, kept):
    "A finished run whose steps hold the scores of models under permutations, two in a step."
    run = Run(folder, command="run", params={}, seed=0)
    for model, (null, patients) in kept.items():
        for i in range(0, len(null), 2):
            run.step(f"rank/B_vs_A/{model}/null-{i:04d}", lambda i=i, null=null: null[i : i + 2])
        found = {"patients": patients}
        run.step(f"rank/B_vs_A/{model}/stability", lambda found=found: found)
    run.finish({})
    return folder


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 120), st.integers(0, 10**6), st.integers(1, 10))
def test_agreement_of_a_ranking_with_itself_and_with_its_reverse(n, seed, k):
    x = np.random.default_rng(seed).normal(size=n)
    found = agreement.concordance(
        rankings({"a": x, "b": 2 * x + 1, "c": -x}), "B_vs_A", k=k
    ).set_index(["model", "other"])
    assert (
        found.loc[("a", "b"), "rank_correlation"] == pytest.approx(1)
        and found.loc[("a", "b"), "shared"] == k
    )
    assert (
        found.loc[("a", "c"), "rank_correlation"] == pytest.approx(-1)
        and found.loc[("a", "c"), "shared"] == 0
    )
    assert found["by_chance"].iloc[0] == pytest.approx(k * k / n) and found["permuted"].isna().all()


def test_agreement_by_chance_is_what_random_lists_share():
    rng = np.random.default_rng(0)
    shared = [
        agreement.concordance(
            rankings({"a": rng.normal(size=100), "b": rng.normal(size=100)}), "B_vs_A", k=20
        )
        for _ in range(60)
    ]
    assert np.mean([t["shared"].iloc[0] for t in shared]) == pytest.approx(
        shared[0]["by_chance"].iloc[0], abs=0.8
    )


def test_agreement_under_the_same_permutations(tmp_path):
    "Noise that two models share is shown; nulls of other permutations are not compared."
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8, 60))
    longer = np.r_[noise, rng.normal(size=(4, 60))]
    r = rankings({model: rng.normal(size=60) for model in "abc"})
    out = keep(tmp_path / "many", {"a": (noise, 10), "b": (longer, 10), "c": (noise, 9)})
    found = agreement.concordance(r, "B_vs_A", folder=out).set_index(["model", "other"])
    assert found.loc[("a", "b"), "permuted"] == pytest.approx(1)
    assert found.loc[("a", "b"), "permuted_shared"] == found["top"].iloc[0]
    assert found.loc[[("a", "c"), ("b", "c")], "permuted"].isna().all()  # other patients
    few = keep(tmp_path / "few", {"a": (noise, 4), "b": (noise[:7], 4)})
    two = r[r["model"] != "c"]
    found = agreement.concordance(two, "B_vs_A", folder=few)
    assert found["permuted"].isna().all()  # all permutations of four patients, in another order
    for part in out.rglob("*.npz"):
        part.write_bytes(b"PK\x03\x04")
    assert agreement.concordance(r, "B_vs_A", folder=out)["permuted"].isna().all()


def test_constant_scores_have_no_agreement():
    found = agreement.concordance(rankings({"a": np.zeros(30), "b": np.arange(30.0)}), "B_vs_A")
    assert found[["rank_correlation", "shared"]].isna().all(axis=None)


# ---------------------------------------------------------------- reading, methods


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]),
            min_size=1,
            max_size=8,
        ).filter(str.strip),
        min_size=1,
        max_size=6,
    )
)
def test_names_come_back_as_they_were(names):
    import tempfile

    with tempfile.TemporaryDirectory() as d:
        pd.DataFrame({"gene": names, "score": np.arange(len(names))}).to_csv(
            f"{d}/t.csv", index=False, lineterminator="\n"
        )
        assert report_tables.read_table(f"{d}/t.csv")["gene"].tolist() == names


def test_methods_say_what_was_run(made):
    run, t = report_tables.read_run(made)
    text = report_text.methods(run, t)
    for v in run["versions"].values():
        assert v is None or v in text
    for what in (
        "seed 7",
        "ab" * 32,
        "cohort.h5ad",
        "2,300 cells in 23 samples of 8 patients",
        "20 distinct permutations",
        "10 random halves",
        "Vaswani",
        "Law CW, Chen Y",
    ):
        assert what in text
    assert "/somewhere" not in text and "Hoerl" not in text
    used = set(report_text.references(run))
    p = run["params"] | {"task": "timepoint,forecast,impute", "models": [*p_all(), "lstm"]}
    p |= {"gene_sets": "hallmark.gmt", "cell_sets": True}
    every = set(
        report_text.references(
            {**run, "params": p, "inputs": [{"path": "GSE235063_RAW.tar", "sha256": "0"}]}
        )
    )
    papers = set(json.loads(report_text.template_text("references.json")).values())
    models = {spec.citation for spec in report_text.specs_of(p["models"]) if spec.citation}
    assert used < every and papers | models <= every and "Hoerl" in " ".join(every - used)
    for author in re.findall(r"\(([A-Z]\w+)(?: et al\.| and \w+)?, \d{4}\)", text):
        assert any(
            r.startswith(author) or f" {author} " in r or f", {author}" in r for r in used
        ), author


def p_all():
    return [*MODELS, "paired_de", "bilstm", "scbmlp", "bayesian_ridge", "nmf", "network_bdm"]


# ---------------------------------------------------------------- when there is no report


@pytest.mark.parametrize(
    "record, says",
    [
        ({"command": "perturb", "status": "complete"}, "damaged: it has no inputs, params"),
        ({"command": "perturb", "status": "running"}, "not finished"),
        ({"command": "run", "status": "running"}, "not finished"),
        ({}, "another program"),
        ([], "another program"),
    ],
)
def test_what_has_no_report(tmp_path, record, says):
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=says):
        report.write_report(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_no_run_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        report.write_report(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        report.write_report(tmp_path / "file")
    with pytest.raises(ValueError, match="no run.json"):
        report.write_report(tmp_path)
    (tmp_path / "run.json").write_text('{"command": "ru')
    with pytest.raises(ValueError, match="damaged"):
        report.write_report(tmp_path)
    (tmp_path / "demo/run").mkdir(parents=True)
    (tmp_path / "demo/run/run.json").touch()
    with pytest.raises(ValueError, match="Did you mean .*demo/run"):
        report.write_report(tmp_path / "demo")


def test_a_failing_cell_leaves_the_old_report(made, monkeypatch):
    before = {p.name: p.read_bytes() for p in made.glob("report.*")}
    failing = [report.Cell("code", "1/0", {})]
    monkeypatch.setattr(report, "report_cells", lambda folder: failing)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero"):
        report.write_report(made)
    line = report.report_or_say(made)
    assert (
        line.startswith("no report (RuntimeError: a cell of the report failed")
        and "tries again" in line
        and "\n" not in line
    )
    assert {p.name: p.read_bytes() for p in made.glob("report.*")} == before and not list(
        made.rglob("*.part")
    )


# ---------------------------------------------------------------- real runs


@pytest.mark.slow
def test_every_task_and_modules_inside(tmp_path):
    import longaml as la
    from longaml.experiment.modules import run_modules
    from longaml.experiment.run import run_cohort

    cohort = la.datasets.simulate_cohort(
        "small", seed=2, n_patients=8, n_genes=120, n_drivers=6, n_cells=120
    )
    la.pp.save_cohort(cohort, tmp_path / "cohort.h5ad")
    run_cohort(
        tmp_path / "cohort.h5ad",
        tmp_path / "out",
        task="timepoint,forecast,impute",
        models=["logistic", "scbmlp", "transformer"],
        nulls=2,
    )
    run_modules(
        tmp_path / "cohort.h5ad",
        tmp_path / "out/modules",
        label_key="cell_type",
        n_genes=80,
        pair_genes=15,
        nulls=2,
    )
    report.write_report(tmp_path / "out")
    text = " ".join("".join(Page((tmp_path / "out/report.html").read_text()).text).split())
    e = report_tables.read_table(tmp_path / "out/evaluation.csv")
    for task, title, why in (
        ("forecast", "The change to REL", "forecast REL: not evaluated"),
        ("impute", "Imputed: REM", "impute REM: not evaluated"),
    ):
        assert (title if (e["task"] == task).any() else why) in text
    for what in (
        "Forecast and imputation",
        "From the weights of a bilinear MLP",
        "Pearce",
        "Hoerl",
    ):
        assert what in text
    only = tmp_path / "later"
    run_cohort(tmp_path / "cohort.h5ad", only, task="forecast", models=["transformer"], nulls=4)
    report.write_report(only)
    text = (only / "report.html").read_text()
    assert "Forecast and imputation" in text and "Ranked genes" not in text


# ---------------------------------------------------------------- a browser


@pytest.fixture(scope="module")
def browser():
    "Headless Chromium, playwright's own or the system's."
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as p:
        own = p.chromium.executable_path
        where = (
            own
            if own and Path(own).exists()
            else next(
                filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None,
            )
        )
        if where is None:
            pytest.skip("no Chromium on this machine")
        b = p.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield b
        b.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(made, browser, width, theme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    said = []
    asked = []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    page.goto((made / "report.html").as_uri())
    assert not said and [u for u in asked if not u.startswith("data:")] == [
        (made / "report.html").as_uri()
    ]
    assert page.evaluate(
        "[...document.images].length == 14 && [...document.images].every(i => i.complete && "
        "i.naturalWidth > 0)"
    )
    assert page.evaluate(
        "document.documentElement.scrollWidth <= innerWidth"
    )  # tables and wide figures scroll within themselves
    assert page.evaluate(
        "[...document.querySelectorAll('.table')].every(t => t.getBoundingClientRect().right <= "
        "innerWidth)"
    )
    light = sum(
        map(
            int,
            re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[
                :3
            ],
        )
    )
    assert (light > 600) == (theme == "light")
    assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('p')).fontSize) >= 16")
    page.close()


def test_printed(made, browser):
    page = browser.new_page(viewport={"width": 700, "height": 900}, color_scheme="dark")
    page.emulate_media(media="print")
    page.goto((made / "report.html").as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.evaluate(
        "[...document.querySelectorAll('nav, details.code')].some(e => "
        "e.getBoundingClientRect().height)"
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(
        "[...document.querySelectorAll('details.fold')].every(d => "
        "d.getBoundingClientRect().height > 300)"
    )  # what is folded on a screen is printed
    page.close()


def test_a_report_knows_every_baseline_without_torch():
    "All are registered by the module that it imports; torch takes two seconds."
    assert report_tables.baseline_names() == list(names("timepoint", kind="baseline"))
    code = (
        "import sys; from longaml.experiment import report_tables, report_text;"
        "print(len(report_tables.baseline_names()), 'torch' in sys.modules)"
    )
    assert python("-c", code, cwd=ROOT).stdout.split() == ["3", "False"]
