"""Matrices that stay in files: the same results, byte for byte, and the input is not touched."""

import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import longaml as la
from longaml.cli import main
from longaml.pp.values import in_file

COMMANDS = {
    "de": "de COHORT --out OUT --permutations 0 --no-figures",
    "abundance": "abundance COHORT --out OUT --no-figures",
    "audit": "audit RANKING --cohort COHORT --out OUT",
    "run": "run COHORT --out OUT --models logistic,paired_de --nulls 2 --halves 2 --no-report",
    "compare": "compare COHORT --out OUT --models logistic --tasks timepoint,forecast",
    "network": "network COHORT --out OUT --nulls 2",
    "modules": "modules COHORT --out OUT --label-key cell_type --nulls 2 --genes 60 --pair-genes 9",
    "celltype": "celltype train COHORT --out OUT --label-key cell_type --folds 2 --epochs 2",
    "perturb": "perturb SCREEN --out OUT --models nearest",
    "convert": "convert COHORT OUT",
}
SLOW = COMMANDS.keys() - {"de", "convert"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    a = la.datasets.simulate_cohort("small", seed=4, n_patients=6, n_genes=150, n_drivers=8)
    a.layers["other"] = 2 * a.X
    return la.pp.save_cohort(a, tmp_path_factory.mktemp("cohort") / "c.h5ad")


@pytest.fixture(scope="module")
def files(cohort, tmp_path_factory):
    "The inputs of the commands."
    place = tmp_path_factory.mktemp("inputs")
    screen = la.datasets.simulate_perturbseq(n_genes=80, n_regulators=10, n_pairs=6, n_cells=30)
    screen.write_h5ad(place / "screen.h5ad")
    genes = [
        "gene,score",
        *(f"{g},{i % 7}" for i, g in enumerate(la.read_cohort(cohort).var_names)),
    ]
    (place / "ranking.csv").write_text("\n".join(genes))
    return {"COHORT": cohort, "SCREEN": place / "screen.h5ad", "RANKING": place / "ranking.csv"}


def tables(folder):
    "Tables as text, without the seconds that models took."
    found = {}
    for path in sorted(folder.rglob("*.csv")):
        table = pd.read_csv(path, dtype=str)
        found[path.name] = table.drop(columns="seconds", errors="ignore").to_csv()
    return found


def left_behind():
    return set(Path(tempfile.gettempdir()).glob(f"longaml-rows-{os.getpid()}-*"))


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in COMMANDS]
)
def test_the_same_bytes(command, files, tmp_path, monkeypatch):
    before = {p: p.read_bytes() for p in files.values()}
    made = []
    keep = la.pp.values.RowFile.matrix
    monkeypatch.setattr(
        la.pp.values.RowFile, "matrix", lambda *a, **k: made.append(1) or keep(*a, **k)
    )
    monkeypatch.setenv("LONGAML_JOBS", "1")
    for name, large in (("memory", str(1 << 60)), ("files", "0")):
        monkeypatch.setenv("LONGAML_LARGE", large)
        out = tmp_path / name / ("c.h5ad" if command == "convert" else "")
        (tmp_path / name).mkdir()
        given = files | {"OUT": out}
        assert main([str(given.get(word, word)) for word in COMMANDS[command].split()]) == 0
        assert bool(made) == (name == "files")
    if command == "convert":
        mine, theirs = (la.read_cohort(tmp_path / n / "c.h5ad") for n in ("files", "memory"))
        assert (mine.X != theirs.X).nnz == 0 and mine.obs.equals(theirs.obs)
    else:
        assert tables(tmp_path / "files") == tables(tmp_path / "memory") != {}
    assert before == {p: p.read_bytes() for p in before}


FORMS = ["csr", "csc", "dense", "corrected", "logs", "some patients"]
QUICK = {("csr", "zarr"), *((form, "h5ad") for form in FORMS)}


@pytest.mark.parametrize(
    "form,ending",
    [
        pytest.param(*both, marks=[] if both in QUICK else [pytest.mark.slow])
        for both in itertools.product(FORMS, ["h5ad", "zarr"])
    ],
)
def test_a_cohort_is_read_as_in_memory(form, ending, cohort, tmp_path, monkeypatch):
    a = la.read_cohort(cohort)
    how = {}
    if form == "csc":
        a.X = sp.csc_matrix(a.X)
    elif form == "dense":
        a.X = a.X.toarray()
    elif form == "corrected":
        a.X = a.X * np.float32(0.83)
        how = {"counts": "round"}
    elif form == "logs":
        a.X = sp.csr_matrix(la.pp.normalize(a).X / np.log(2), dtype=np.float32)
    elif form == "some patients":
        a.obs["timepoint"] = a.obs["timepoint"].astype(str).replace("REM", "unassigned")
        how = {"timepoints": ["DX", "REL"]}
    a.uns = {}
    path = tmp_path / f"a.{ending}"
    a.write_h5ad(path) if ending == "h5ad" else a.write_zarr(path)
    monkeypatch.setattr(la.pp.values, "PART", 5000)
    monkeypatch.setattr(la.pp.formats, "PART", 5000)
    found = []
    for large in (1 << 60, 0):
        monkeypatch.setenv("LONGAML_LARGE", str(large))
        found.append(la.read_cohort(path, **how))
    memory, files = found
    assert in_file(files.X) and not in_file(memory.X)
    for part in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(files.X, part), getattr(memory.X, part)), part
    assert files.obs.equals(memory.obs) and files.X.dtype == memory.X.dtype == np.float32
    assert files.uns["longaml"]["warnings"] == memory.uns["longaml"]["warnings"]
    assert (files.layers["other"] != memory.layers["other"]).nnz == 0
    mine, theirs = (la.pp.bags(c, bag_size=5) for c in (files, memory))
    assert (mine.X != theirs.X).nnz == 0
    kept = left_behind()
    assert kept
    del files, found, mine
    assert not left_behind() & kept


def test_no_room_is_said_before_anything_is_written(cohort, monkeypatch):
    monkeypatch.setenv("LONGAML_LARGE", "0")
    few = type("Usage", (), {"free": 10})
    monkeypatch.setattr(la.pp.values.shutil, "disk_usage", lambda place: few)
    before = left_behind()
    with pytest.raises(la.core.InputError, match="TMPDIR"):
        la.read_cohort(cohort)
    assert left_behind() == before
