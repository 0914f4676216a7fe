"""Pieces of work in several processes: the same bytes for any number of processes, whatever happens
to one of them.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pandas as pd
import pytest

import longaml as la
from longaml.cli import main
from longaml.core import InputError, log, parallel_map, workers
from longaml.experiment.results import load_result
from longaml.models.baselines import gene_chooser, maker_of
from longaml.models.contract import spec as spec_of
from longaml.models.contract import specs
from longaml.models.own_models import resolve

OWN = Path(__file__).parent / "own_models.py"


def numbers(out):
    "Every file of a run as bytes; of steps, the results without the seconds they took."

    def content(path):
        if path.name == "comparison.csv":
            return pd.read_csv(path).drop(columns="seconds").to_csv()
        if path.suffix != ".npz":
            return path.read_bytes()
        value = load_result(path)["value"]
        if isinstance(value, dict):
            value.pop("seconds", None)
        return repr(value)

    return {
        p.relative_to(out).as_posix(): content(p)
        for p in Path(out).rglob("*")
        if p.is_file() and p.name not in ("timings.json", ".lock")
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    "A folder in the GEO layout."
    out = tmp_path_factory.mktemp("simulated") / "cohort"
    size = "--preset small --patients 6 --genes 100 --cells 120 --drivers 6 --seed 2"
    assert main(["simulate", str(out), *size.split()]) == 0
    return out


@pytest.mark.parametrize(
    "command",
    [
        f"run --models paired_de,{OWN}:Dense --nulls 3 --halves 3 --no-report",
        pytest.param(
            "run --task timepoint,forecast --models logistic,transformer --nulls 4 --no-report",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "compare --tasks timepoint,forecast --models logistic,ridge", marks=pytest.mark.slow
        ),
        "de --permutations 4",
    ],
)
def test_two_processes_give_the_bytes_of_one(command, cohort, tmp_path):
    name, *options = command.split()
    for jobs in "12":
        where = [str(cohort), "--out", str(tmp_path / jobs)]
        assert main([name, *where, *options, "--no-figures", "--jobs", jobs]) == 0
    one, two = numbers(tmp_path / "1"), numbers(tmp_path / "2")
    assert one.keys() == two.keys() and len(one) > 3
    assert [k for k in one if one[k] != two[k]] == []


def test_an_engine_gives_the_bytes_of_one_process(cohort, tmp_path):
    "Two processes of dask, started by the command."
    pytest.importorskip("distributed")
    options = "--models logistic --nulls 4 --halves 3 --timepoints DX,REL --no-report --no-figures"
    for name, how in {"1": "--jobs 1", "dask": "--jobs 2 --backend dask"}.items():
        where = [str(cohort), "--out", str(tmp_path / name)]
        assert main(["run", *where, *options.split(), *how.split()]) == 0
    one, two = numbers(tmp_path / "1"), numbers(tmp_path / "dask")
    assert one.keys() == two.keys() and len(one) > 3
    assert [k for k in one if one[k] != two[k]] == []


def test_an_address_without_an_engine_is_refused(cohort, tmp_path, capsys):
    where = [str(cohort), "--out", str(tmp_path / "out")]
    assert main(["run", *where, "--scheduler", "tcp://localhost:1"]) == 2
    said = capsys.readouterr().err
    assert "--backend dask" in said and not list((tmp_path / "out").glob("*.csv"))


def dies_once(folder):
    "A piece of work that kills its process the first time that it is done."

    def work(i):
        mark = Path(folder, f"{i}")
        if i == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return i**2

    return work


def test_a_killed_process_changes_nothing(tmp_path, caplog):
    log.propagate = True
    with workers(2):
        assert list(parallel_map(dies_once(tmp_path), range(5))) == [0, 1, 4, 9, 16]
    assert "it is done again" in caplog.text


def test_a_piece_that_always_kills_its_process_is_an_error(tmp_path):
    def work(i):
        os.kill(os.getpid(), signal.SIGKILL)

    with workers(2), pytest.raises(RuntimeError, match="fewer at once"):
        list(parallel_map(work, range(3)))


def test_an_error_is_the_same_in_another_process():
    def work(i):
        if i == 3:
            raise InputError("no such column", parameter="layer")
        return i

    done = []
    with workers(2), pytest.raises(InputError, match="no such column") as e:
        for value in parallel_map(work, range(5)):
            done.append(value)
    assert e.value.parameter == "layer" and done == [0, 1, 2][: len(done)]


def test_what_a_piece_does_to_its_data_stays_with_it():
    "Large arrays are read from one copy; a change is the change of one piece."
    data = np.zeros(1_000_000)

    def work(i):
        data[:] += i
        return float(data[0])

    with workers(2):
        found = list(parallel_map(work, [1.0, 2.0, 3.0]))
    assert found == [1.0, 2.0, 3.0] and data[0] == 0.0


def test_words_of_a_piece_are_said_here_in_order(caplog):
    def work(i):
        log.warning("piece %s", i)

    log.propagate = True
    with workers(2):
        list(parallel_map(work, range(4)))
    said = [r.getMessage() for r in caplog.records if "piece" in r.getMessage()]
    assert said == [f"piece {i}" for i in range(4)]


@pytest.mark.slow
def test_interrupted_and_resumed(cohort, tmp_path):
    "Ctrl-C reaches every process of a terminal: none stays, and what was done is used again."
    how = "--models paired_de --nulls 4 --halves 20 --jobs 2 --no-figures --no-report --out"
    args = ["run", str(cohort), *how.split()]
    code = "import sys; from longaml.cli import main; sys.exit(main())"
    call = [sys.executable, "-c", code, *args, str(tmp_path / "out")]
    where = {"env": os.environ | {"LONGAML_PROGRESS": "0"}, "start_new_session": True}
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(call, stderr=said, stdout=said, **where)
    steps = tmp_path / "out" / "steps"
    until = time.monotonic() + 120
    while not list(steps.rglob("half-0002*.npz")) and time.monotonic() < until:
        assert process.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    text = (tmp_path / "said").read_text()
    assert "--resume" in text and "Traceback" not in text, text
    left = ["ps", "-o", "pid=,stat=,args=", "-s", str(process.pid)]
    until = time.monotonic() + 20
    while found := subprocess.run(left, capture_output=True, text=True).stdout.strip():
        assert time.monotonic() < until, found
        time.sleep(0.2)
    done = list(steps.rglob("half-*.npz"))
    before = {p: p.stat().st_mtime_ns for p in done}
    assert 3 <= len(done) < 40
    assert main([*args, str(tmp_path / "out"), "--resume"]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in done}
    assert main([*args, str(tmp_path / "whole")]) == 0
    assert numbers(tmp_path / "out") == numbers(tmp_path / "whole")


def elsewhere(value):
    "A value as another process gets it."
    return cloudpickle.loads(cloudpickle.dumps(value))


@pytest.mark.parametrize("spec", specs(), ids=lambda s: f"{s.name}-{s.tasks[0]}")
def test_registered_models_are_known_in_other_processes(spec):
    "A copy of an entry is not taken for a model of the user's, which would be fitted otherwise."
    for task in spec.tasks:
        copy = resolve(elsewhere(spec), task)
        assert (copy.kind, copy.origin, copy.config) == (spec.kind, spec.origin, spec.config)
        assert type(copy.make) is type(spec.make) and copy.network is spec.network


def test_the_choice_of_genes_goes_to_other_processes():
    "Where a cohort has more genes than a fit reads."
    cohort = la.datasets.simulate_cohort("small", n_patients=4, n_genes=120, n_drivers=6, seed=1)
    bagged = la.pp.bags(cohort)
    choose = gene_chooser(bagged, 50)
    patients = tuple(sorted(set(bagged.obs["patient"].astype(str))))[:3]
    copy = elsewhere(choose)
    assert len(copy(patients)) == 50 and copy(patients) == choose(patients)
    make = elsewhere(maker_of(spec_of("logistic"), choose))
    assert make().choose(patients) == choose(patients)
