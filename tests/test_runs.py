"Run directories: kill points, damaged files, folders that must not be used."

import ast
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import longaml
from longaml.experiment.results import checksum, load_result, save_result
from longaml.experiment.store import Run, Store, code_hash

ENV = {**os.environ, "PYTHONPATH": str(Path(longaml.__file__).parents[1])}
# the process kills itself at the n-th call of one of the functions through which a run touches the
# disk, before it, or half-way through a write
SCRIPT = """
import os, signal, sys
import numpy as np, pandas as pd
import longaml.core, longaml.experiment.store as runs
from longaml.core import rng_for
out, where, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = 0
def die_at(f, half=False):
    def g(*args, **kw):
        global calls
        calls += 1
        if calls == n:
            if half: args[0].write(b"PK half of a file"); args[0].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return f(*args, **kw)
    return g
if where == "rename": longaml.core.os.replace = die_at(os.replace)
if where == "write": np.savez = die_at(np.savez, half=True)
if where == "work": rng_for = die_at(rng_for)
run = runs.Run(out, command="run", params={"nulls": 4}, seed=1, resume=True)
genes = [f"G{i}" for i in range(50)]
draw = lambda *name: rng_for(1, *name).normal(size=50)
score = run.step("score", lambda: pd.DataFrame({"gene": genes, "score": draw("score")}))
null = [
    run.step(f"null/{b}", lambda: {"scores": draw("null", b)})["scores"] for b in range(4)
]
above = sum(n >= score["score"].to_numpy() for n in null)
run.table("ranking.csv", score.assign(p_value=(1 + above) / 5))
run.table("evaluation.csv", score.head(3))
run.finish()
"""


def execute(out, where="nowhere", n=0):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(out), where, str(n)],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=120,
    )


def files(out):
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in Path(out).rglob("*")
        if p.is_file() and p.name != "timings.json"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    done = execute(out)
    assert done.returncode == 0, done.stderr
    return files(out)


@pytest.mark.parametrize(
    "where,n",
    [
        ("work", 1),
        ("work", 3),
        ("write", 1),
        ("write", 4),
        ("rename", 1),
        ("rename", 2),
        ("rename", 6),
        ("rename", 12),
        ("rename", 13),
        ("rename", 14),
    ],
)
def test_killed_and_resumed(tmp_path, whole, where, n):
    out = tmp_path / "out"
    killed = execute(out, where, n)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    for p in out.rglob("*.npz"):
        load_result(p)  # whatever is there under its final name is complete
    for p in out.rglob("*.json"):
        json.loads(p.read_text())
    for p in out.rglob("*.csv"):
        assert p.read_bytes() == whole[p.name]
    assert execute(out).returncode == 0
    assert files(out) == whole  # same names, same bytes, no .part files


def start(out, resume=False, seed=0, inputs=(), store=None, **params):
    how = dict(seed=seed, inputs=inputs, resume=resume, store=store)
    return Run(out, command="run", params=params, **how)


@pytest.fixture
def out(tmp_path):
    with start(tmp_path / "out", nulls=20, keys={"patient": "p"}) as run:
        run.step("a", lambda: [1, 2])
    return tmp_path / "out"


def test_refuses_a_folder_in_use(out):
    before = files(out)
    with pytest.raises(FileExistsError, match="not empty.*resume=True"):
        start(out, nulls=20)
    assert files(out) == before


@pytest.mark.parametrize(
    "change,named",
    [
        (dict(nulls=30), "nulls was 20 .* is 30"),
        (dict(nulls=20.5), "nulls"),
        (dict(seed=1), "seed was 0 .* is 1"),
        (dict(keys={"patient": "q"}), "keys"),
        (dict(more=1), "more was None"),
        (dict(inputs=[__file__]), "number of inputs was 0 .* is 1"),
    ],
)
def test_refuses_another_run(out, change, named):
    before = files(out)
    with pytest.raises(ValueError, match=named):
        start(out, **{"resume": True, "nulls": 20, "keys": {"patient": "p"}, **change})
    assert files(out) == before


def test_refuses_another_command(out):
    with pytest.raises(ValueError, match="command was 'run' .* is 'audit'"):
        Run(out, command="audit", params={"nulls": 20, "keys": {"patient": "p"}}, resume=True)


def test_params_compare_as_stored(tmp_path):
    start(tmp_path / "out", tp=("DX", "REL"), n=np.int64(3), dest=Path("x")).step("a", lambda: 1)
    assert (
        start(tmp_path / "out", resume=True, tp=["DX", "REL"], n=3, dest="x").step(
            "a", lambda: 1 / 0
        )
        == 1
    )


def test_refuses_a_changed_input(tmp_path):
    folder = tmp_path / "cohort"
    folder.mkdir()
    (folder / "a.mtx").write_text("1")
    start(tmp_path / "out", inputs=[folder]).step("a", lambda: 1)
    start(tmp_path / "out", inputs=[folder], resume=True)
    (folder / "a.mtx").write_text("2")
    with pytest.raises(ValueError, match="checksum of the input"):
        start(tmp_path / "out", inputs=[folder], resume=True)


def test_output_inside_the_input_folder(tmp_path):
    "Results next to the matrices they came from must not count as a changed input."
    (tmp_path / "a.mtx").write_text("1")
    start(tmp_path / "out", inputs=[tmp_path]).step("a", lambda: 1)
    assert start(tmp_path / "out", inputs=[tmp_path], resume=True).step("a", lambda: 1 / 0) == 1


def test_missing_input_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        start(tmp_path / "out", inputs=[tmp_path / "none.h5ad"])
    assert list(tmp_path.iterdir()) == []


def test_a_failing_first_step_leaves_nothing(tmp_path):
    with start(tmp_path / "deep" / "out") as run, pytest.raises(ZeroDivisionError):
        run.step("a", lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_later_step_keeps_the_earlier(out):
    run = start(out, resume=True, nulls=20, keys={"patient": "p"})
    with pytest.raises(ZeroDivisionError):
        run.step("b", lambda: 1 / 0)
    assert [p.stem.split("-")[0] for p in out.rglob("*.npz")] == ["a"]


@pytest.mark.parametrize("place", ["file/out", "file"])
def test_a_file_in_the_way(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="is a file|cannot write"):
        start(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


def test_unwritable(tmp_path):
    """A folder without write permission; root may write anywhere, so it tries a place where nobody
    may."""
    parent = tmp_path / "locked"
    parent.mkdir()
    parent.chmod(0o500)
    where = Path("/proc/longaml-out") if os.geteuid() == 0 else parent / "out"
    if os.geteuid() == 0 and not Path("/proc/self").exists():
        pytest.skip("root, and no /proc here")
    with pytest.raises(OSError, match="cannot write to"):
        start(where)
    parent.chmod(0o700)
    assert list(parent.iterdir()) == []


def test_foreign_folder_is_not_resumed(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="no run.json"):
        start(tmp_path, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("there", [False, True])
def test_resume_of_nothing_starts(tmp_path, there):
    if there:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / ".run.json.123.part").write_text("half")
    run = start(tmp_path / "out", resume=True)
    assert run.step("a", lambda: 7) == 7
    run.finish()
    assert not list((tmp_path / "out").glob(".*"))


def test_damaged_manifest(out):
    (out / "run.json").write_text('{"command": "ru')
    with pytest.raises(ValueError, match="damaged"):
        start(out, resume=True, nulls=20)


def test_damaged_timings_decide_nothing(out):
    (out / "timings.json").write_text("[[[")
    start(out, resume=True, nulls=20, keys={"patient": "p"}).step("b", lambda: 3)
    assert list(json.loads((out / "timings.json").read_text())) == ["b"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[: len(b) // 2],
        lambda b: b"not a zip",
        lambda b: b.replace(b"\x01", b"\x07"),
    ],
)
def test_damaged_step_is_computed_again(out, damage, caplog):
    (step,) = (out / "steps").glob("a-*.npz")
    step.write_bytes(damage(step.read_bytes()))
    with caplog.at_level(logging.WARNING, "longaml"):
        assert start(out, resume=True, nulls=20, keys={"patient": "p"}).step("a", lambda: [3]) == [
            3
        ]
    assert "'a' is damaged" in caplog.text
    assert load_result(step)["value"] == [3]


def test_pickles_are_not_loaded(out, tmp_path):
    "A step file from someone else must not run code."

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    (step,) = (out / "steps").glob("a-*.npz")
    with open(step, "wb") as f:
        np.savez(f, tree=np.array([Evil()], dtype=object), allow_pickle=True)
    assert start(out, resume=True, nulls=20, keys={"patient": "p"}).step("a", lambda: [3]) == [3]
    assert not (tmp_path / "owned").exists()


def test_other_versions_are_recorded(out, monkeypatch, caplog):
    monkeypatch.setattr("longaml.experiment.store.versions", lambda: {"python": "9.9"})
    with caplog.at_level(logging.WARNING, "longaml"):
        record = start(out, resume=True, nulls=20, keys={"patient": "p"}).finish()
    assert (
        record["resumed_with"] == {"python": "9.9"}
        and record["versions"]["numpy"] == np.__version__
    )
    assert "other software versions" in caplog.text


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(),
        pd.DataFrame(index=["a", "b"]),
        pd.DataFrame({"x": []}),
        pd.DataFrame(np.eye(3, dtype="float32")),
        pd.DataFrame({"x": [1, 2]}, index=pd.Index([3, 5], name="n")),
        pd.DataFrame([[1, 2.5]], columns=["a", "a"]),
        pd.DataFrame(
            {"x": np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-300, 200, 0.5)}
        ),
        pd.DataFrame(
            {
                "x": [np.inf, -np.inf, np.nan, 5e-324],
                "y": ["é", "", None, "nan"],
                "z": pd.array([True, None, False, True], dtype="boolean"),
            }
        ),
        pd.DataFrame({"t": pd.to_datetime(["2020-01-01", None])}),
        pd.DataFrame({"s": pd.array(["a", None], dtype="string")}),
        pd.DataFrame(
            {"c": pd.Categorical([2, None, 1], [2, 1])}, index=pd.CategoricalIndex(["u", "v", "u"])
        ),
    ],
    ids=range(11),
)
def test_tables_come_back_exactly(tmp_path, frame):
    save_result(tmp_path / "t.npz", frame)
    pd.testing.assert_frame_equal(
        load_result(tmp_path / "t.npz"),
        frame,
        check_exact=True,
        check_column_type=True,
        check_index_type=True,
    )


def test_nested_values_come_back(tmp_path):
    value = {
        "a": [1, 2.5, None, "x", {"m": np.eye(2, dtype="int8")}],
        "table": pd.DataFrame({"x": [0.1]}),
        "empty": {},
        "array": np.array("scalar"),
        "tree": np.float32(0.1),
    }
    save_result(tmp_path / "v.npz", value)
    back = load_result(tmp_path / "v.npz")
    assert (
        back["a"][:4] == value["a"][:4]
        and back["a"][4]["m"].dtype == np.int8
        and back["empty"] == {}
        and back["tree"] == np.float32(0.1)
    )
    assert back["array"] == "scalar" and back["table"]["x"].iloc[0] == 0.1


@pytest.mark.parametrize(
    "value,named",
    [
        (object(), "object cannot be stored"),
        ({1: 2}, "text keys"),
        (np.array([None]), "Python objects"),
        (pd.Series([1]), "Series cannot"),
        (pd.DataFrame({"x": [object()]}), "object cannot"),
        (pd.DataFrame({"x": [1]}, index=pd.MultiIndex.from_tuples([("a", 1)])), "reset_index"),
    ],
)
def test_unstorable_results_are_refused(tmp_path, value, named):
    run = start(tmp_path / "out")
    with pytest.raises(TypeError, match=named):
        run.step("a", lambda: value)
    assert not list((tmp_path / "out").rglob("*.npz")) and not list(
        (tmp_path / "out").rglob("*.part")
    )


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../b", "a b", ".hidden", "a/"])
def test_step_names(tmp_path, name):
    with pytest.raises(ValueError, match="step name"):
        start(tmp_path / "out").step(name, lambda: 1)


def test_checksum_sees_names_and_order(tmp_path):
    for name, text in (("b", "1"), ("a", "2")):
        (tmp_path / name).write_text(text)
    first = checksum(tmp_path)
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    assert checksum(tmp_path) != first


def test_table_is_written_whole(tmp_path):
    run = start(tmp_path / "out")
    run.table("t.csv", pd.DataFrame({"x": [1.0]}))

    class Broken(pd.DataFrame):
        def to_csv(self, path, **kw):
            Path(path).write_text("x\nhalf")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        run.table("t.csv", Broken({"x": [2.0]}))
    assert (tmp_path / "out" / "t.csv").read_text() == "x\n1\n"


# ---- one process at a time


HOLD = """
import sys, time
from longaml.experiment.store import Run
with Run(sys.argv[1], command="run", params={}, resume=True) as run:
    run.step("a", lambda: 1)
    print("holding", flush=True)
    sys.stdin.readline()
    run.step("b", lambda: 2)
    run.finish()
"""


def test_a_second_process_is_refused(tmp_path):
    """While one process writes, another gets a clear message and changes nothing; then the first
    one ends as it would have."""
    out = tmp_path / "out"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)],
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "holding\n"
    before = files(out)
    with pytest.raises(BlockingIOError, match="in use by another process.*another folder"):
        start(out, resume=True)
    assert files(out) == before
    first.communicate("go on\n", timeout=60)
    assert first.returncode == 0
    assert json.loads((out / "run.json").read_text())["status"] == "complete"
    assert not list(out.glob(".*"))
    assert start(out, resume=True).step("b", lambda: 1 / 0) == 2


def test_a_killed_process_leaves_no_lock(tmp_path):
    out = tmp_path / "out"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)],
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "holding\n"
    first.kill()
    first.communicate(timeout=60)
    with start(out, resume=True) as run:
        assert run.step("a", lambda: 1 / 0) == 1
        run.finish()
    assert not list(out.glob(".*"))


# ---- results by content


HOW = dict(code="0f1e", inputs="a cohort", params={"model": "nmf", "n_genes": 2000})


def test_two_commands_share_a_step(tmp_path):
    with start(tmp_path / "run", store=tmp_path / "store") as run:
        assert run.shared(**HOW)("evaluate/nmf", lambda: [0.8]) == [0.8]
    with Run(tmp_path / "other", command="compare", params={}, store=tmp_path / "store") as other:
        assert other.shared(**HOW)("evaluate/nmf", lambda: 1 / 0) == [0.8]
        assert other.index.store.computed == 0
        other.finish()
    assert not (tmp_path / "other" / "steps").exists()


@pytest.mark.parametrize(
    "change", [dict(code="0f1f"), dict(inputs="another"), dict(params={"model": "lstm"})]
)
def test_anything_that_decides_a_result_gives_another(tmp_path, change):
    with start(tmp_path / "out") as run:
        run.shared(**HOW)("evaluate/nmf", lambda: 1)
    with start(tmp_path / "out", resume=True) as run:
        assert run.shared(**(HOW | change))("evaluate/nmf", lambda: 2) == 2
    with start(tmp_path / "out", resume=True) as run:
        assert run.shared(**HOW)("evaluate/nmf", lambda: 1 / 0) == 1


def test_a_command_joins_the_folder_of_another(out):
    before = files(out)
    with Run(out, command="compare", params={}, renew=True) as other:
        other.step("a", lambda: "mine")
        other.finish()
    after = files(out)
    assert before.items() <= after.items()
    assert json.loads(after["compare.json"])["command"] == "compare"
    assert start(out, resume=True, nulls=20, keys={"patient": "p"}).step("a", lambda: 3) == [1, 2]


def test_a_store_without_a_folder_keeps_nothing(tmp_path):
    from longaml.experiment.store import Address

    store, address = Store(), Address("a", "0", None, {}, 0)
    assert [store.get(address, lambda v=v: v) for v in (1, 2)] == [1, 2] and store.computed == 2


def test_the_code_of_a_result_is_what_it_needs(tmp_path, monkeypatch):
    """A module that is imported, directly or not, changes the hash; a comment, or another module,
    does not."""
    import longaml.experiment.store as store

    package = tmp_path / "longaml"
    (package / "tl").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "tl" / "__init__.py").write_text("")
    (package / "core.py").write_text("x = 1\n")
    (package / "tl" / "a.py").write_text("from ..core import x\n")
    (package / "tl" / "b.py").write_text("def f():\n    from .a import x\n")
    (package / "tl" / "c.py").write_text("import numpy\n")
    (package / "d.py").write_text("from longaml import tl\n")
    monkeypatch.setattr(store, "_package", lambda: package)

    def forget():
        for cached in (code_hash, store._needed, store._imported):
            cached.cache_clear()

    def hashes():
        forget()
        return {m: code_hash(f"longaml.{m}") for m in ("core", "tl.a", "tl.b", "tl.c", "d")}

    before = hashes()
    assert len(set(before.values())) == 5
    (package / "core.py").write_text("# how many\nx = 1\n")
    assert hashes() == before
    (package / "core.py").write_text("x = 2\n")
    after = hashes()
    assert {m for m in before if before[m] != after[m]} == {"core", "tl.a", "tl.b", "d"}
    monkeypatch.undo()
    forget()


def parsed_imports(module, path):
    "What the modules of longaml import, by Python's own parser."
    import longaml.experiment.store as store

    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            inner = {f"{base}.{a.name}" for a in node.names}
            named = {m for m in inner if store._source(m)}
            found |= named if base == "longaml" or named else {base}
    return {m for m in found if store._source(m)}


def test_imports_are_read_as_python_reads_them():
    import longaml.experiment.store as store

    package = Path(longaml.__file__).parent
    count = 0
    for path in package.rglob("*.py"):
        name = ".".join(["longaml", *path.relative_to(package).with_suffix("").parts])
        parsed = parsed_imports(name, path)
        count += len(parsed)
        assert store._imported(name, path) == parsed, name
    assert count > 300
