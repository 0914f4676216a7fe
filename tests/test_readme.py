"""The two commands of the README do what it says, from a clean clone (slow: each makes an
environment), and what it shows is what its commands print.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tools import NBS, ROOT, cells, copy_tree, texts

sys.path.insert(0, str(ROOT / ".ci"))
from readability import grade, prose  # noqa: E402

DATA = Path(os.environ.get("LONGAML_DATA", ROOT / "../shared/data")).resolve()
HARDEST = 9.0  # years of school, of the README: what a newspaper asks for
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.fixture
def clone(tmp_path):
    """What a clone would hold: every file of the repository that git does not ignore, committed
    or not.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    top = copy_tree(tmp_path / "longaml")
    if listed.returncode == 0:  # a repository: nothing that only this machine has
        keep = set(listed.stdout.split("\0"))
        for p in [p for p in top.rglob("*") if p.is_file()]:
            if p.relative_to(top).as_posix() not in keep:
                p.unlink()
    return top


def shell(
    command,  # a block of the README
    top,  # the clone
):  # the finished process
    "Run a block as a reader would: in a shell, at the top of the clone, outside any environment."
    env = {
        k: v
        for k, v in os.environ.items()
        if k
        not in (
            "VIRTUAL_ENV",
            "PYTHONPATH",
            "LONGAML_PROGRESS",
            "PYTEST_CURRENT_TEST",
            "PYTEST_ADDOPTS",
            "PYTEST_XDIST_WORKER",
        )
    }
    return subprocess.run(
        ["bash", "-ec", command], cwd=top, env=env, capture_output=True, text=True, timeout=1500
    )


def test_readme_has_two_commands():
    assert len(BLOCKS) == 2 and all(len(b.strip().splitlines()) == 1 for b in BLOCKS)
    assert (
        "longaml demo" in BLOCKS[0]
        and "[dev]" in BLOCKS[1]
        and BLOCKS[1].rstrip().endswith("pytest")
    )


@pytest.mark.slow
def test_first_command_runs_the_demo(clone):
    done = shell(BLOCKS[0], clone)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    tables = {p.name for p in clone.rglob("*.csv") if ".venv" not in p.parts}
    assert {"ranking.csv", "evaluation.csv", "audit.csv"} <= tables


@pytest.mark.slow
def test_second_command_installs_what_the_tests_need(clone):
    """The tests are collected, not run: this is one of them. Collecting imports every test file,
    and .ci/run runs them all from such an environment.
    """
    done = shell(BLOCKS[1].rstrip() + " --slow --collect-only -q", clone)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "tests/test_readme.py::test_first_command_runs_the_demo" in done.stdout


@pytest.mark.skipif(not DATA.exists(), reason=f"no data in {DATA}")
def test_every_output_of_the_readme_is_current(monkeypatch):
    "The index page, of which the README is made, is run again; every text that it shows is equal."
    monkeypatch.chdir(NBS)
    monkeypatch.setenv("LONGAML_DATA", str(DATA))
    names: dict = {}
    shown = 0
    for cell in [c for c in cells("index.ipynb") if c.kind == "code"]:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(cell.code, str(cell), "exec"), names)
        printed = [o for o in cell.outputs if o.output_type == "stream"]
        stored = "".join(t for o in printed for t in texts(o))
        assert said.getvalue() == stored, f"{cell}\n{said.getvalue()}"
        shown += "hide" not in cell.flags and bool(stored)
    commands = re.findall(r"^\$ longaml (\w+)", (ROOT / "README.md").read_text(), re.M)
    assert commands == ["de", "abundance", "outcome", "compare"] and shown == 5


def test_a_grade_is_that_of_flesch_and_kincaid():
    "Six words of one syllable in one sentence: 0.39 * 6 + 11.8 - 15.59."
    assert grade("The cat sat on the mat.") == pytest.approx(-1.45)
    assert grade("Reproducible documentation necessitates methodology.") > 20


def test_the_readme_is_easy_to_read():
    assert grade(prose(ROOT / "README.md")) < HARDEST
    assert "longaml" in prose(NBS / "index.ipynb") and "```" not in prose(ROOT / "README.md")
