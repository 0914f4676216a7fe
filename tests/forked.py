"""Processes that start with the large packages imported: importing PyTorch, scanpy and what reads
notebooks takes seconds, most of what the tests run less. One process of each worker imports them
and is forked for every run; the project itself is imported anew.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

PRELOADED = (
    "nbdev.test nbformat nbclient nbconvert filelock torch scanpy sklearn.pipeline seaborn "
    "statsmodels.api formulaic typer rich.table jinja2 networkx matplotlib.pyplot "
    "torch._dynamo"  # which the first optimiser imports
).split()


def _enter(place: Path, env: dict[str, str], out: Path, err: Path) -> None:
    "In the new process: what it says goes to two files; its folder, variables and import path."
    for stream, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), stream)
    os.chdir(place)
    os.environ.clear()
    os.environ.update(env)
    sys.path.insert(0, env["PYTHONPATH"])


def _code(place: Path, env: dict[str, str], out: Path, err: Path, code: str, args: list) -> None:
    "Run Python code as `python -c` does."
    _enter(place, env, out, err)
    sys.argv = ["-c", *args]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), main.__dict__)
    sys.exit(0)


def _notebook(place: Path, env: dict[str, str], out: Path, err: Path, nb: str) -> None:
    "Run a notebook with the `longaml` of the copy; exit 1 where it fails."
    _enter(place, env, out, err)
    from nbdev.config import get_config
    from nbdev.test import test_nb

    flags = get_config().tst_flags.split()
    ok, _ = test_nb(Path("nbs", nb).absolute(), skip_flags=flags, basepath=place)
    import longaml

    assert Path(longaml.__file__).parents[1] == place, f"{nb} ran with {longaml.__file__}"
    sys.exit(not ok)


def _ended(
    target: Callable, what: str, place: Path, env: dict[str, str], timeout: float, *args: object
) -> subprocess.CompletedProcess:
    "Run a function in a forked process, at most `timeout` seconds: how it ended and what it said."
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = fork.Process(target=target, args=(place, env, out, err, *args))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(what, timeout)
        said = [p.read_text() if p.exists() else "" for p in (out, err)]
    return subprocess.CompletedProcess(what, process.exitcode, *said)


def run_code(
    code: str,  # Python code
    *args: object,  # its arguments
    place: Path,  # folder to run in
    env: dict[str, str],  # variables; PYTHONPATH is the folder whose `longaml` is imported
    timeout: float = 300,  # seconds
) -> subprocess.CompletedProcess:
    "Run code in a forked process, as `python -c`; standard output and error are kept apart."
    return _ended(_code, code, place, env, timeout, code, [str(a) for a in args])


def run_notebook(
    nb: str,  # path under nbs/
    top: Path,  # the copy of the repository to run in
    env: dict[str, str],  # the environment, with `top` as PYTHONPATH
    timeout: float,  # seconds
) -> subprocess.CompletedProcess:
    "Run a notebook in a forked process, as nbdev_test does."
    return _ended(_notebook, nb, top, env, timeout, nb)
