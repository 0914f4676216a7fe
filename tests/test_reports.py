"""The page that every command leaves: what it says first, that it needs nothing else, that labels
stay text, and that it can be left out or made again."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import longaml as la
from longaml.cli import main
from longaml.experiment import command_report, report

EVIL = "Mono <script>alert(1)</script>"
COHORT = "--timepoints DX,REL --cell-type-key kind --malignant-key none"
COMMANDS = {
    "de": f"de cohort.h5ad {COHORT} --permutations 1 --gene-sets sets.gmt",
    "abundance": f"abundance cohort.h5ad {COHORT} --permutations 4",
    "outcome": "outcome table.csv --time days --event relapse --covariates age,blasts "
    "--cell-type-columns B,T,blood --permutations 4 --folds 3 --repeats 1 --no-figures",
    "forecast": f"forecast cohort.h5ad {COHORT} --genes 20 --no-figures",
    "compare": f"compare cohort.h5ad {COHORT} --tasks timepoint --models logistic",
}


class Page(HTMLParser):
    "Tags with their attributes, sections with their text, and the text of a page."

    VOID = ("meta", "img", "br", "input", "link")

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.open = []
        self.sections = {}
        self.words = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs).get("id")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"{tag} ends what it did not begin"

    def handle_data(self, data):
        inside = [tag for tag, _ in self.open]
        if "script" in inside or "style" in inside:
            return
        self.words.append(data)
        for tag, name in self.open:
            if tag == "section":
                self.sections[name] = f"{self.sections.get(name, '')} {data}"

    def of(self, tag):
        return [attrs for t, attrs in self.tags if t == tag]


def plain(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A cohort whose cell types look like a script, and a table of outcomes."
    folder = tmp_path_factory.mktemp("reports")
    size = {"n_patients": 10, "n_genes": 140, "n_cells": 70, "n_drivers": 6}
    cohort = la.datasets.simulate_cohort("small", seed=3, timepoints=("DX", "MID", "REL"), **size)
    kind = cohort.obs["cell_type"].astype(str).str.split().str[0]
    cohort.obs["kind"] = kind.replace({"Mono": EVIL}).to_numpy()
    late = cohort.obs["timepoint"].astype(str) == "REL"
    first = sorted(cohort.obs["patient"].unique())[0]
    cohort = cohort[~(late & (cohort.obs["patient"] == first)).to_numpy()].copy()
    raised = list(cohort.var_names[:12])
    late = (cohort.obs["timepoint"].astype(str) == "REL").to_numpy()
    counts = cohort.to_df()
    counts.loc[late, raised] = 4 * counts.loc[late, raised] + 1
    cohort.X = counts.to_numpy(np.float32)
    la.pp.save_cohort(cohort, folder / "cohort.h5ad")
    (folder / "sets.gmt").write_text("\t".join(["PLANTED <b>", "", *raised]) + "\n")
    rng = np.random.default_rng(0)
    age = rng.normal(50, 10, 60)
    days = rng.exponential(400 * np.exp(-(age - 50) / 8)).round() + 1
    table = {"patient": [f"P{i}" for i in range(60)], "days": days, "age": age}
    table |= {"relapse": rng.integers(0, 2, 60), "blasts": rng.uniform(0, 1, 60)}
    table |= {c: rng.integers(5, 90, 60) for c in ("B", "T", "blood")}
    pd.DataFrame(table).to_csv(folder / "table.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def made(place):
    "Every command with what it printed, run when it is first asked for."
    kept = {}

    def of(name, *options):
        key = (name, *options)
        if key not in kept:
            out = place / "-".join([name, *options])
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place)
                code = main([*COMMANDS[name].split(), "--out", out.name, *options])
            assert code == 0, name
            kept[key] = out
        return kept[key]

    return of


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_needs_nothing_else(made, name):
    out = made(name)
    text = (out / "report.html").read_text()
    page = Page(text)
    assert not page.open, "a tag is left open"
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"\w+:" + r"//|@import|url\(|srcset|\bon\w+=|/work|/tmp", bare)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {t for t, _ in page.tags}
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for a in page.of("meta") if "http-equiv" in a]
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    pictures = page.of("img")
    assert all(a["alt"].strip() and int(a["width"]) > 50 for a in pictures)
    content = [a["src"].removeprefix("data:image/png;base64,") for a in pictures]
    assert all(base64.b64decode(c).startswith(b"\x89PNG") for c in content)
    assert len(content) == len(set(content)), "a figure is shown twice"
    names = {p.name for p in (out / "figures").glob("*.png")}
    assert len(content) == len(names) and bool(names) == ("--no-figures" not in COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_sections_headings_and_tables(made, name):
    out = made(name)
    page = Page((out / "report.html").read_text())
    assert list(page.sections)[0] == "findings" and "methods" in page.sections
    assert all(len(plain(words).split()) > 2 for words in page.sections.values()), "an empty one"
    levels = [int(t[1]) for t, _ in page.tags if re.fullmatch(r"h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:])), levels
    assert len(page.of("table")) == len(page.of("caption")) == len(page.of("thead")) > 0
    boxes = [a for a in page.of("div") if a.get("class", "").startswith("table")]
    assert len(boxes) == len(page.of("table"))  # each scrolls by itself
    hrefs = [a["href"] for a in page.of("a")]
    files = {h for h in hrefs if not h.startswith("#")}
    assert files == {p.name for p in out.glob("*.csv")}, "every table can be downloaded"
    ids = {a["id"] for _, a in page.tags if "id" in a}
    anchors = {h[1:] for h in hrefs if h.startswith("#")}
    assert anchors == ids


@pytest.mark.parametrize("name", ["de", "abundance", "forecast", "compare"])
def test_labels_stay_text(made, name):
    text = (made(name) / "report.html").read_text()
    assert text.count("<script>") == 1 and "alert(1)<" not in text
    if name != "compare":  # its models do not differ by cell type
        assert "Mono &lt;script&gt;alert(1)" in text


def findings(out):
    return plain(Page((out / "report.html").read_text()).sections["findings"])


def test_genes_fold_changes_and_q_come_first(made):
    out = made("de")
    said = findings(out)
    tests = pd.read_csv(out / "de.csv")
    called = tests[(tests["cell_type"] == "all") & (tests["q_value"] < 0.05)]
    up = int((called["log2_fold_change"] > 0).sum())
    counted = f"{len(called)} of {tests['gene'].nunique()} genes change in any cell type"
    assert len(called) > 3 and up > 3
    assert counted in said and f"({up} up, {len(called) - up} down)" in said
    own = tests[tests["cell_type"] != "all"].sort_values("p_value").iloc[0]
    effect = f"{own['log2_fold_change']:+.2f} [{own['ci_low']:+.2f}, {own['ci_high']:+.2f}]"
    same = f"{own['n_same_direction']:.0f} of {own['n_patients']:.0f}"
    row = f"{own['gene']} {own['cell_type']} {effect} {same} {own['q_value_overall']:.2g}"
    assert row in said and "PLANTED <b>" in said
    page = Page((out / "report.html").read_text())
    top = plain(" ".join(page.words))
    about = json.loads((out / "run.json").read_text())["about"]
    assert about.startswith("10 patients, 17 samples at DX and REL, ")
    assert top.index(about) < top.index(counted)
    assert "exchanged" in page.sections["sure"] and "Squair" in page.sections["methods"]


def test_cell_types_with_their_change_come_first(made):
    out = made("abundance")
    row = pd.read_csv(out / "abundance.csv").iloc[0]
    effect = f"{row['effect']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
    said = findings(out)
    assert row["cell_type"] in said and effect in said and f"{row['q_value']:.2g}" in said


def test_models_stand_next_to_clinical_covariates(made):
    out = made("outcome")
    said = findings(out)
    rows = pd.read_csv(out / "models.csv").query("metric == 'concordance'").set_index("model")
    for model in ("clinical", "composition", "clinical_and_composition"):
        r = rows.loc[model]
        known = f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        assert f"{model.replace('_', ' ')} {known}" in said
    r = rows.loc["composition"]
    assert f"{r['over_clinical']:+.2f} [{r['over_low']:+.2f}, {r['over_high']:+.2f}]" in said
    assert "≤ 0.2" in said and "Hazard ratios" in said
    assert "60 patients" in (out / "report.html").read_text()


def test_forecasts_say_what_they_are_worth(made):
    out = made("forecast")
    said = findings(out)
    judged = pd.read_csv(out / "evaluation.csv").query("cell_type == 'all'")
    ridge = judged[(judged["model"] == "ridge") & (judged["part"] == "log_ratio")].iloc[0]
    assert f"{ridge['error']:.3g} {ridge['skill_over_mean_shift']:+.2f}" in said
    shares = pd.read_csv(out / "composition.csv")
    best = judged[judged["part"] == "share"].sort_values("error")["model"].iloc[0]
    top = shares[shares["model"] == best].sort_values("share").iloc[-1]
    assert f"{top['patient']} {top['cell_type']} DX" in said and f"{top['share']:.1%}" in said
    assert said.index("held-out") < said.index(f"{top['patient']} {top['cell_type']}")


def test_models_stand_next_to_baselines(made):
    out = made("compare")
    said = findings(out)
    row = pd.read_csv(out / "differences.csv").iloc[0]
    assert f"Against {row['against']}, the best baseline: {row['model']} {row['result']}." in said
    assert f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]" in said
    assert "majority" in said


def test_notes_and_guesses_of_the_reader_are_on_the_page(made):
    out = made("de")
    page = Page((out / "report.html").read_text())
    notes = json.loads((out / "run.json").read_text())["read"]["notes"]
    said = plain(" ".join(page.words))
    assert any(note.startswith("dropped") for note in notes)
    assert all(plain(n.removeprefix("guessed").lstrip(" :")) in said for n in notes)
    assert "cell type from kind" in page.sections["cohort"]


def test_summary_says_where_the_page_is(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert main([*COMMANDS["abundance"].split(), "--out", "said", "--no-figures"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "report: said/report.html" and said[-2].startswith("results: said")
    assert not Page(Path("said/report.html").read_text()).of("img")


def test_no_report_leaves_none(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert (
        main([*COMMANDS["abundance"].split(), "--out", "none", "--no-report", "--no-figures"]) == 0
    )
    assert "report" not in capsys.readouterr().out and not list(Path("none").glob("*.html"))


def test_python_calls_leave_none_unless_asked(place):
    from longaml.experiment.abundance import run_abundance

    read = {"timepoints": ["DX", "REL"], "cell_type_key": "kind", "malignant_key": "none"}
    how = {"read": read, "permutations": 0, "figures": False}
    run_abundance(place / "cohort.h5ad", place / "python", **how)
    assert not (place / "python/report.html").exists()
    run_abundance(place / "cohort.h5ad", place / "asked", **how, report=True)
    assert (place / "asked/report.html").exists()


def test_longaml_report_makes_the_same_page_again(made, capsys):
    out = made("de")
    before = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_bytes() == before
    assert capsys.readouterr().out == f"wrote {out / 'report.html'}\n"
    assert report.write_report(out).notebook is None


def test_labels_in_doubt_and_long_tables(made, tmp_path):
    out = shutil.copytree(made("de"), tmp_path / "out")
    record = json.loads((out / "run.json").read_text())
    record["labels_in_doubt"] = [{"sample": "A1 <b>", "why": "x"}]
    (out / "run.json").write_text(json.dumps(record))
    tests = pd.read_csv(out / "de.csv")
    rows = tests[tests["cell_type"] != "all"].assign(q_value_overall=0.01, q_value=0.01)
    many = [rows.assign(gene=rows["gene"] + f"-{i}") for i in range(5)]
    pd.concat([tests, *many]).to_csv(out / "de.csv", index=False)
    text = command_report.write_page(out, "de").read_text()
    page = Page(text)
    said = plain(" ".join(page.words))
    assert "Labels in doubt: the patient or timepoint of A1 <b> may be wrong" in said
    assert re.search(r"The first 200 of \d{3} rows\. Every gene", said)


def test_a_comparison_in_the_folder_of_another_command_keeps_its_page(made, tmp_path, monkeypatch):
    out = shutil.copytree(made("de"), tmp_path / "out")
    before = (out / "report.html").read_bytes()
    shutil.copytree(made("compare"), tmp_path / "other")
    for file in ("comparison.csv", "differences.csv"):
        shutil.copy(tmp_path / "other" / file, out)
    shutil.copy(tmp_path / "other" / "run.json", out / "compare.json")
    assert command_report.write_page(out, "compare").name == "compare-report.html"
    assert (out / "report.html").read_bytes() == before


def test_a_page_that_fails_is_said_in_a_line(made, tmp_path):
    out = shutil.copytree(made("compare"), tmp_path / "out")
    (out / "differences.csv").unlink()
    line = command_report.page_or_say(out, "compare")
    assert line.startswith("no report (FileNotFoundError") and "tries again" in line
    assert "\n" not in line


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"command": "perturb", "status": "complete"}')
    with pytest.raises(ValueError, match="damaged: it has no inputs, params, seed, versions"):
        report.write_report(tmp_path)
