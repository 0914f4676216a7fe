"""How the tests run: one thread each, no progress bars, slow ones on request, the tests of one
file in one worker.
"""

import compileall
import os
from pathlib import Path

import pytest

# before numpy or torch is imported, here and in every process a test starts
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    NUMBA_NUM_THREADS="1",
    LONGAML_PROGRESS="0",
    LONGAML_JOBS="1",
    MPLBACKEND="agg",
)
ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LONGAML_DATA") or ROOT.parent / "shared" / "data").resolve()
if DATA.is_dir():
    os.environ["LONGAML_DATA"] = str(DATA)  # notebooks are run on a copy elsewhere


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    "Compile the package once: copies of it take the compiled modules along."
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(ROOT / "longaml", quiet=1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay in one worker, so that what they share is made once (the site: those of
    two files); notebooks are spread over both.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            if file.endswith(("test_docs.py", "test_site.py")):
                return "site"
            return nodeid if file.endswith("test_notebooks.py") else file

    return ByFile(config, log)


def pytest_make_parametrize_id(config, val, argname):
    """Bytes are named by their argument: pytest writes them out, and packed bytes hold the time,
    so that two workers would not agree on a test's name.
    """
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(config, items):
    "Leave slow tests out unless asked for."
    if config.getoption("--slow"):
        return
    slow = [i for i in items if i.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [i for i in items if not i.get_closest_marker("slow")]


@pytest.fixture(scope="session")
def shared_data():
    "The folder of real data sets; the test is skipped where there is none."
    if not DATA.is_dir():
        pytest.skip(
            f"no real data: {ROOT.name}/../shared/data is not there; "
            "put it there or name its folder in LONGAML_DATA"
        )
    return DATA


@pytest.fixture(scope="session")
def top(tmp_path_factory):
    "A copy of the repository, for the site."
    from tools import copy_tree

    return copy_tree(tmp_path_factory.mktemp("site") / "longaml")


@pytest.fixture(scope="session")
def site(top):
    "The folder of the rendered pages."
    from test_docs import build

    return build(top)
