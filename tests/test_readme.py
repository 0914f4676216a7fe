"""The two commands of the README do what it says, from a clean clone. Slow: each makes an
environment.
"""

import os
import re
import subprocess

import pytest
from tools import ROOT, copy_tree

pytestmark = pytest.mark.slow
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


def test_first_command_runs_the_demo(clone):
    done = shell(BLOCKS[0], clone)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    tables = {p.name for p in clone.rglob("*.csv") if ".venv" not in p.parts}
    assert {"ranking.csv", "evaluation.csv", "audit.csv"} <= tables


def test_second_command_installs_what_the_tests_need(clone):
    """The tests are collected, not run: this is one of them. Collecting imports every test file,
    and .ci/run runs them all from such an environment.
    """
    done = shell(BLOCKS[1].rstrip() + " --slow --collect-only -q", clone)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "tests/test_readme.py::test_first_command_runs_the_demo" in done.stdout
