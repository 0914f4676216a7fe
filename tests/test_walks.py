"""Adding a model and adding a command take one notebook each: the diffs of the contributing page,
applied to a copy.
"""

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from tools import cells, changed, copy_tree, python_code, snapshot

EXPORT = "from nbdev.doclinks import nbdev_export; nbdev_export()"
COMMAND = "import sys; from longaml.cli import main; sys.exit(main(sys.argv[1:]))"


def diffs() -> dict[str, str]:
    "Path of a new notebook -> its content, from the contributing page."
    page = "\n".join(c.source for c in cells("contributing.ipynb") if c.kind == "markdown")
    found = {}
    for block in re.findall(r"^```diff\n(.*?)^```$", page, re.M | re.S):
        first, *lines = block.splitlines()
        found[first.removeprefix("+++ ")] = "\n".join(line[1:] for line in lines)
    return found


def write_notebook(path: Path, text: str) -> None:
    "A notebook of a text: the title, then a cell from each directive to the next."
    title, *code = re.split(r"^(?=#\| )", text, flags=re.M)
    made = [new_markdown_cell(title.strip()), *(new_code_cell(c.strip()) for c in code)]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=made), path)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the repository with both notebooks, exported, and a small cohort."
    top = copy_tree(tmp_path_factory.mktemp("walks") / "longaml")
    before = snapshot(top)
    for path, text in diffs().items():
        write_notebook(top / path, text)
    done = python_code(EXPORT, cwd=top)
    assert done.returncode == 0, done.stderr
    modules = {"longaml/models/nearest_mean.py", "longaml/experiment/sizes.py"}
    touched = set(changed(before, snapshot(top)))
    assert touched == {*diffs(), *modules, "longaml/_modidx.py"}
    run(top, "simulate", "cohort", "--preset", "small", "--patients", 6, "--cells", 60)
    return top


def run(top: Path, *args: object) -> str:
    "What a command prints, run on the copy."
    done = python_code(COMMAND, *args, cwd=top)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_model_is_one_notebook(copy):
    assert "nearest_mean" in " ".join(run(copy, "run", "--help").split())
    quick = "--timepoints DX,REL --models logistic,nearest_mean --nulls 1 --halves 2".split()
    run(copy, "run", "cohort", "--out", "out", *quick)
    models = pd.read_csv(copy / "out/evaluation.csv")["model"].unique()
    assert {"majority", "logistic", "nearest_mean"} <= set(models)
    page = re.sub(r"<[^>]+>", "", (copy / "out/report.html").read_text())
    assert "assigned to the nearest mean profile (Tibshirani et al., 2002)" in " ".join(
        page.split()
    )
    code = "from longaml.models.contract import spec; print(spec('nearest_mean').label)"
    assert python_code(code, cwd=copy).stdout.strip() == "nearest mean profile"


def test_a_command_is_one_notebook(copy):
    assert "Cells of every sample." in run(copy, "--help")
    told = run(copy, "sizes", "cohort", "--out", "sizes", "--least", 10_000)
    table = pd.read_csv(copy / "sizes/sizes.csv")
    assert f"{len(table)} of {len(table)} samples have fewer than 10000 cells" in told
    assert (copy / "sizes/run.json").exists()
    assert "--least N" in run(copy, "sizes", "--help")
    done = python_code(COMMAND, "sizes", "cohort", "--out", "x", "--least", -1, cwd=copy)
    assert done.returncode == 2 and "--least" in done.stderr and not (copy / "x").exists()
