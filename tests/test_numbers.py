"""Numbers come from outputs: what README and the pages say with decimals or percent was computed
in a cell of the page, or is a level that the page sets; and the benchmarks page shows what the
benchmarks command wrote.
"""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from tools import NBS, ROOT, all_cells, cells, notebooks, texts

sys.path.insert(0, str(ROOT / "tests/benchmarks"))
import run_all  # noqa: E402

NUMBER = re.compile(r"(?<![\w./\[-])[-+]?(\d+(?:,\d{3})*(?:\.\d+)?)(\s?%)?(?!\w|\.\d)")
NOT_PROSE = re.compile(
    r"`[^`]*`|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)|https?://\S+|arXiv:? ?\d+\.\d+|doi:? \S+|Python "
    r"\d\.\d+|Apache 2\.0|version \S+|sections? [\d.]+",
    re.I,
)
LEVELS = {
    "95%",
    "0.05",
    "0.1",
    "0.5",
}  # conventional levels and chance, which a page may name without computing them


def prose(source):
    "The lines of a markdown text that are prose or table: (line, is it a table's)."
    fence = False
    for line in source.splitlines():
        if line.lstrip().startswith("```"):
            fence = not fence
        elif not fence:
            yield NOT_PROSE.sub(" ", line), line.startswith("|")


def exact(text):
    "Numbers of a text that claim a precision: decimals and percentages."
    for number, percent in NUMBER.findall(text):
        if "." in number or percent:
            yield number.replace(",", "") + ("%" if percent else "")


def supported(number, known):
    "Whether a value among those known rounds to the number."
    digits = len(number.rstrip("%").partition(".")[2])
    scale = [1, 100] if number.endswith("%") else [1]
    return any(
        abs(round(v * s, digits) - float(number.rstrip("%"))) < 1e-9 for v in known for s in scale
    )


def known(nb):
    "Every number in the code and in the stored outputs of a notebook."
    text = "\n".join(
        [c.source for c in cells(nb) if c.kind == "code"]
        + [t for c in cells(nb) for o in c.outputs for t in texts(o)]
    )
    return {
        abs(float(v.replace(",", "")))
        for v in re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?", text)
    }


def unsupported(nb):
    "Numbers of a notebook's prose that no cell of it gives."
    values = known(nb)
    return [
        f"{nb} cell {c.index}: {n} in {line.strip()[:90]!r}"
        for c in cells(nb)
        if c.kind == "markdown"
        for line, _ in prose(c.source)
        for n in exact(line)
        if n not in LEVELS and not supported(n, values)
    ]


ALLOWED = {  # what a page quotes from a publication's protocol, or says to explain a word
    "tutorials/10_what_the_published_rankings_measure.ipynb": {"70%", "15%"},
    "published/800_trajectories.ipynb": {"0.001"},
}


@pytest.mark.parametrize("nb", notebooks())
def test_numbers_in_prose_were_computed(nb):
    bad = [b for b in unsupported(nb) if not any(f": {n} in " in b for n in ALLOWED.get(nb, ()))]
    assert not bad, "\n".join(bad)


def test_exact_numbers_are_seen():
    assert list(exact("Accuracy 0.97, 12% more, 3 patients, 1,032.5 cells")) == [
        "0.97",
        "12%",
        "1032.5",
    ]
    assert (
        supported("0.97", {0.9712})
        and supported("12%", {0.1234})
        and not supported("0.97", {0.9612})
    )
    assert not list(
        exact(NOT_PROSE.sub(" ", "`q < 0.3`, Apache 2.0, [x](y_0.5.html), arXiv 2508.13199"))
    )


RESULT = re.compile(
    r"^[-+]?\d[\d,]*\.\d+(\s?(%|s|ms|x|MiB|GiB))?(\s?(\(|to|±|\+/-).*)?$|^[-+]?\d+(\.\d+)?\s?(%|s|ms|x|MiB|GiB)$"
)


def typed(source):
    "Cells of a markdown table that hold a result and nothing else."
    return [
        cell.strip()
        for line in source.splitlines()
        if line.startswith("|")
        for cell in line.strip("|").split("|")
        if RESULT.match(cell.strip().strip("*`"))
    ]


def test_no_results_table_is_typed_by_hand():
    pages = {f"{c.nb} cell {c.index}": c.source for c in all_cells() if c.kind == "markdown"} | {
        p.name: p.read_text()
        for p in [*NBS.rglob("*.qmd"), ROOT / "README.md", ROOT / "CHANGELOG.md"]
    }
    bad = {name: found for name, text in pages.items() if (found := typed(text))}
    assert not bad, f"results typed into tables; show them by a cell: {bad}"


def test_a_typed_result_is_seen():
    assert typed(
        "| model | accuracy |\n|---|---|\n| LSTM | 0.93 |\n| Transformer | **12%** |\n| x | 0.93 "
        "(0.90 to 0.95) |"
    ) == ["0.93", "**12%**", "0.93 (0.90 to 0.95)"]
    assert not typed(
        "| mask | (n, 3) |\n| alpha | at q < 0.1 |\n| folds | 5 |\n| arXiv | Smyth 2004 |"
    )


def blocks(markdown):
    return re.findall(r"^```\w*\n(.*?)^```$", markdown, re.M | re.S)


def squeeze(text):
    "A text without nbdev's flags, every run of blanks as one space."
    lines = [line for line in text.splitlines() if not line.startswith("#|")]
    return re.sub(r"\s+", " ", "\n".join(lines)).strip()


def test_numbers_of_the_readme_are_outputs():
    """README.md is made from index.ipynb (another test compares); here: outside its blocks it
    claims no precise number, and each block is code or a stored output of that notebook.
    """
    readme = (ROOT / "README.md").read_text()
    index = cells("index.ipynb")
    stored = "\n".join(
        [c.source for c in index] + [t for c in index for o in c.outputs for t in texts(o)]
    )
    assert not [
        n
        for line, _ in prose(readme)
        for n in exact(re.sub(r"<!--.*?-->", "", line))
        if n not in LEVELS
    ]
    assert blocks(readme) and all(squeeze(b) in squeeze(stored) for b in blocks(readme))


# ---------------------------------------------------------------- the benchmarks page

TABLE = json.loads(run_all.TABLE.read_text())


class Rows(HTMLParser):
    "The rows of the tables of a page, as texts."

    def __init__(self, text):
        super().__init__()
        self.rows = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")
        if self.inside:
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data.strip()

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.inside = False


def shown():
    """The rows of the last table of the benchmarks page, and the functions that its hidden cell
    writes numbers with.
    """
    page = cells("benchmarks.ipynb")
    html = [
        t for c in page for o in c.outputs for t in texts(o) if "<table" in t and "wrapped" in t
    ]
    made = {}
    source = next(c.code for c in page if "def with_unit" in c.code)
    exec("import numpy as np\n" + source[: source.index("rows = ")], made)
    return Rows(html[-1]).rows[1:], made["with_unit"]


def test_the_benchmarks_page_shows_what_the_command_wrote():
    rows, with_unit = shown()
    wrote = [r for t in TABLE.values() for r in t["rows"]]
    assert len(rows) == len(wrote) > 0
    for (what, ours, other, ratio, _), r in zip(rows, wrote, strict=True):
        assert (
            what.lower() == r["what"].lower()
            and ours == f"{r['longaml']}: {with_unit(r['longaml_value'], r['unit'])}"
        )
        assert other.startswith(f"{r['other']}: {with_unit(r['other_value'], r['unit'])}") and (
            r["scaled"] in other
        )
        assert ratio == (f"{r['ratio']:,.0f}" if r["ratio"] >= 20 else f"{r['ratio']:.1f}")
        assert r["ratio"] == pytest.approx(r["other_value"] / r["longaml_value"])


def test_every_benchmark_is_on_the_page_in_full_size():
    assert set(TABLE) == set(run_all.benchmarks()), "run: python tests/benchmarks/run_all.py"
    assert all(
        t["rows"] and t["processor"] and t["date"] and t["versions"]["torch"]
        for t in TABLE.values()
    )
    assert not (small := [n for n, t in TABLE.items() if t["quick"]]), (
        f"the page shows quick runs of {small}; run on an idle machine: python "
        "tests/benchmarks/run_all.py"
    )


def test_the_command_runs_a_benchmark_and_keeps_the_others(tmp_path):
    out = tmp_path / "table.json"
    out.write_text(json.dumps({"reading": {"quick": True, "rows": ["kept"]}, "gone": {}}))
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests/benchmarks/run_all.py"),
            "--quick",
            "--only",
            "lgem",
            "--out",
            str(out),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    table = json.loads(out.read_text())
    assert set(table) == {"lgem", "reading"} and table["reading"]["rows"] == ["kept"]
    assert (
        table["lgem"]["quick"]
        and table["lgem"]["rows"][0]["ratio"] > 0
        and table["lgem"]["versions"]["numpy"]
    )


def test_a_benchmark_that_fails_has_no_rows(tmp_path):
    failing = tmp_path / "bench_x.py"
    failing.write_text("import sys; sys.exit(1)")
    assert run_all.run(failing, True, {"PATH": "", "OMP_NUM_THREADS": "1"}) is None
    with pytest.raises(SystemExit, match="no benchmark nothing"):
        run_all.chosen(["nothing"], run_all.benchmarks())
