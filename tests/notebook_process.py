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
    env: dict[str, str],  # the environment, with `top` as PYTHONPATH
    said: Path,  # file for what it writes to standard error
) -> None:
    "In a forked process: run a notebook with the `longaml` of the copy; exit 1 where it fails."
    for stream, file in ((1, os.devnull), (2, said)):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), stream)
    os.chdir(top)
    os.environ.clear()
    os.environ.update(env)
    sys.dont_write_bytecode = True  # read from the environment before the fork
    from nbdev.config import get_config
    from nbdev.test import test_nb

    flags = get_config().tst_flags.split()
    ok, _ = test_nb(Path("nbs", nb).absolute(), skip_flags=flags, basepath=top)
    import longaml

    assert Path(longaml.__file__).parents[1] == top, f"{nb} ran with {longaml.__file__}"
    sys.exit(not ok)
