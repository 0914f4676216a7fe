"""What the process of one notebook does: forked from one that has imported the large packages, it
runs the notebook with the `longaml` of a copy of the repository.
"""

import os
import sys
from pathlib import Path

PRELOADED = "nbdev.test torch scanpy sklearn.pipeline seaborn statsmodels.api formulaic".split()


def execute(
    nb: str,  # path under nbs/
    top: Path,  # the copy of the repository to run in
    said: Path,  # file for what it writes to standard error
) -> None:
    "In a forked process: run a notebook with the `longaml` of the copy."
    errors = os.open(said, os.O_CREAT | os.O_WRONLY)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(errors, 2)
    os.chdir(top)
    sys.dont_write_bytecode = True
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    os.environ.update(PYTHONPATH=str(top), PATH=path, PYTHONDONTWRITEBYTECODE="1")
    from nbdev.config import get_config
    from nbdev.test import test_nb

    cfg = get_config()
    ok, _ = test_nb(Path("nbs", nb).absolute(), skip_flags=cfg.tst_flags.split(), basepath=top)
    import longaml

    if not ok or Path(longaml.__file__).parents[1] != top:
        print(f"{nb} did not run with the longaml of {top}", file=sys.stderr)
        sys.exit(1)
