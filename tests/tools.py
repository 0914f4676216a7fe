"""What the tests of the house share: where things are, how notebooks are read, and how a command
runs on a copy of the repository.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import forked
import nbformat

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
SKIP = {
    ".git",
    ".venv",
    "__pycache__",
    ".ipynb_checkpoints",
    ".pytest_cache",
    ".hypothesis",
    ".ruff_cache",
    ".quarto",
    ".mypy_cache",
    ".device",
    "_proc",
    "_docs",
    "build",
    "dist",
    "longaml-demo",
}


@dataclass
class Cell:
    "A cell of a notebook, with what the tests ask of it."

    nb: str  # path of the notebook under nbs/
    index: int  # position in the notebook
    kind: str  # code, markdown or raw
    source: str
    outputs: list

    @property
    def flags(self):
        return {
            m[1]: m[2].strip() for m in re.finditer(r"^#\|\s*([\w-]+):?(.*)$", self.source, re.M)
        }

    @property
    def code(self):
        lines = self.source.splitlines()
        return "\n".join(line for line in lines if not line.startswith(("#|", "%", "!")))

    @property
    def exported(self):
        return self.kind == "code" and bool({"export", "exports", "exporti"} & self.flags.keys())

    def __str__(self):
        return (
            f"{self.nb} cell {self.index} ({next(iter(self.code.strip().splitlines()), '')[:60]})"
        )


def notebooks(
    root=ROOT,  # top of the repository
) -> list:  # paths under nbs/, in order
    "Every notebook of the project."
    return sorted(
        p.relative_to(root / "nbs").as_posix()
        for p in (root / "nbs").rglob("*.ipynb")
        if not SKIP & set(p.parts)
    )


def cells(
    nb,  # path under nbs/
    root=ROOT,  # top of the repository
) -> list:
    "The cells of a notebook."
    read = nbformat.read(root / "nbs" / nb, as_version=4)
    return [
        Cell(nb, i, c.cell_type, c.source, c.get("outputs", [])) for i, c in enumerate(read.cells)
    ]


def all_cells():
    return [c for nb in notebooks() for c in cells(nb)]


def texts(
    output,  # a stored output
) -> list:  # its texts, whatever their type
    "Every text of a stored output: what was printed, a value's repr, HTML."
    data = [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return [
        v if isinstance(v, str) else "".join(v)
        for v in [output.get("text", ""), *output.get("traceback", []), *data]
        if v
    ]


def copy_tree(
    to,  # folder to make
    root=ROOT,  # top of the repository
):  # the folder
    """Copy what belongs to the repository: no environment, nothing built, and of the caches only
    the compiled modules of the package, which are good while their sources are unchanged.
    """
    package = Path(root, "longaml")

    def ignore(folder, names):
        drop = SKIP - {"__pycache__"} if Path(folder).is_relative_to(package) else SKIP
        made = [n for n in names if n in drop or n.endswith((".egg-info", ".part"))]
        return [*made, "nbdev.yml"] if Path(folder).name == "nbs" else made

    shutil.copytree(root, to, ignore=ignore)
    return Path(to)


def snapshot(
    root,  # top of a copy
) -> dict:  # content by path
    "Every file of a copy of the repository, as bytes."
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and not SKIP & set(p.relative_to(root).parts)
    }


def changed(
    before,  # an earlier `snapshot`
    after,  # a later one
) -> list:  # paths that came, went or changed
    "The paths that differ between two snapshots."
    return sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))


def environment(
    top,  # a copy of the repository: its `longaml` is the one imported
    **more,  # more variables
) -> dict:  # variables by name
    "The environment of a process that runs on a copy of the repository."
    where = {
        "PYTHONPATH": str(top),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    drop = {"PYTEST_CURRENT_TEST", "IN_TEST"}  # nbdev exports nothing where IN_TEST is set
    return {k: v for k, v in os.environ.items() if k not in drop} | where | more


def python_code(
    code,  # Python code
    *args,  # its arguments
    cwd,  # folder to run in
    timeout=300,  # seconds
    **env,  # more environment variables
) -> subprocess.CompletedProcess:
    """Run code on a copy of the repository in a process that starts with PyTorch, scanpy and the
    like imported.
    """
    return forked.run_code(code, *args, place=cwd, env=environment(cwd, **env), timeout=timeout)


def python(
    *args,  # arguments of the interpreter
    cwd,  # folder to run in: its `longaml` is the one imported
    timeout=300,  # seconds
    **env,  # more environment variables
) -> subprocess.CompletedProcess:
    "Run this Python on a copy of the repository; standard output and error are kept apart."
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=environment(cwd, **env),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
