"""A cohort of the reference cohort's size, its matrix in files against in memory: the same tables.

    python tests/benchmarks/bench_memory.py              # 75 samples, 331,000 cells, 25,000 genes
    python tests/benchmarks/bench_memory.py --quick      # 75 samples, 9,000 cells, 2,000 genes
    python tests/benchmarks/bench_memory.py --times 3    # three times as many cells of each sample

The cohort is written to disk block by block (25 patients, three visits, ten cell types, about 1,440
genes found in a cell), and `longaml de` reads it in processes of its own: once with the matrix in
files (as for any matrix of more than 1 GiB), once in memory. The time is that of the command, the
memory is the largest resident set that the system reports for it. The exit status is 1 where a
table of the two differs in a byte. One thread each (OMP_NUM_THREADS=1).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem
from bench_jobs import LONGAML, differing
from rows import row

TABLE = 1 << 20  # entries of the table that genes are drawn from


def profiles(n_genes, n_types, rng):
    "Tables of genes, as often as their RNA: one for each cell type."
    level = rng.gamma(0.25, size=n_genes)
    for _ in range(n_types):
        own = level * rng.lognormal(0, 0.6, n_genes)
        yield rng.choice(n_genes, TABLE, p=own / own.sum()).astype(np.int32)


def write_cohort(path, *, n_cells, n_genes, depth, n_types, seed=0):
    "Counts of 75 samples, a sample at a time, in a compressed h5ad."
    rng = np.random.default_rng(seed)
    tables = list(profiles(n_genes, n_types, rng))
    whole = {"chunks": (1 << 18,), "compression": "gzip", "compression_opts": 1, "shuffle": True}
    obs, ends = [], [0]
    visits = [(f"P{i:02d}", t) for i in range(25) for t in ("DX", "REM", "REL")]
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        X = file.create_group("X")
        parts = {
            "data": X.create_dataset("data", (0,), np.float32, maxshape=(None,), **whole),
            "indices": X.create_dataset("indices", (0,), np.int32, maxshape=(None,), **whole),
        }
        for patient, time_point in visits:
            n = n_cells // len(visits)
            kind = rng.integers(n_types, size=n)
            drawn = rng.poisson(depth * rng.lognormal(0, 0.3, n)) + 1
            cell = np.repeat(np.arange(n, dtype=np.int32), drawn)
            gene = np.empty(len(cell), np.int32)
            for k, table in enumerate(tables):
                own = np.repeat(kind == k, drawn)
                gene[own] = table[rng.integers(TABLE, size=own.sum())]
            counts = sp.coo_matrix((np.ones(len(cell), np.float32), (cell, gene)), (n, n_genes))
            counts = counts.tocsr()  # adds up what was drawn several times
            for name, dataset in parts.items():
                dataset.resize((ends[-1] + counts.nnz,))
                dataset[ends[-1] :] = getattr(counts, name)
            ends.extend(counts.indptr[1:] + ends[-1])
            names = [f"T{k}" for k in kind]
            obs.append(pd.DataFrame({"patient": patient, "timepoint": time_point, "type": names}))
        shape = (len(ends) - 1, n_genes)
        X.create_dataset("indptr", data=np.array(ends, np.int64))
        X.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        table = pd.concat(obs, ignore_index=True).astype("category")
        table.index = pd.Index([f"c{i}" for i in range(len(table))])
        write_elem(file, "obs", table)
        write_elem(file, "var", pd.DataFrame(index=[f"G{i:05d}" for i in range(n_genes)]))
    return ends[-1]


def measured(large, cohort, out, command, options):
    "Seconds and peak memory (GiB) of a command on the cohort."
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "LONGAML_PROGRESS": "0",
        "LONGAML_LARGE": str(large),
    }
    start = time.perf_counter()
    call = [*LONGAML, command, cohort, "--out", out, "--timepoints", "DX,REM,REL"]
    call += ["--cell-type-key", "type", *options]
    process = subprocess.Popen([str(c) for c in call], stdout=subprocess.DEVNULL, env=env)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"longaml {command} failed")
    return time.perf_counter() - start, used.ru_maxrss / 2**20


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="a small case")
    parse.add_argument("--times", type=int, default=1, help="times as many cells of a sample")
    parse.add_argument("--cells", type=int, help="cells; the default is that of the cohort")
    parse.add_argument("--only-files", action="store_true", help="not in memory")
    parse.add_argument("--command", default="de", help="of longaml")
    parse.add_argument("options", nargs="*", help="of the command, after --")
    given = parse.parse_args()
    n_cells = (given.cells or (9_000 if given.quick else 331_000)) * given.times
    n_genes, depth, n_types = (2_000, 200, 3) if given.quick else (25_000, 1_750, 10)
    options = given.options or ["--no-figures", "--permutations", "0"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        size = {"n_cells": n_cells, "n_genes": n_genes, "depth": depth, "n_types": n_types}
        values = write_cohort(place / "c.h5ad", **size)
        what = f"longaml {given.command}, {n_cells:,} cells, {n_genes:,} genes"
        print(f"{what}: {values:,} values", flush=True)
        found = {}
        for name, large in (("in files", 0), ("in memory", 1 << 60)):
            if name == "in files" or not given.only_files:
                how = (large, place / "c.h5ad", place / name, given.command, options)
                found[name] = measured(*how)
                print("  {:<12}{:8.1f} s {:8.2f} GiB".format(name, *found[name]), flush=True)
        if given.only_files:
            return 0
        lost = differing(place / "in files", place / "in memory")
    files, memory = found["in files"], found["in memory"]
    for i, unit in enumerate(("s", "MiB")):
        scale = 1 if unit == "s" else 1024
        sides = (("matrix in files", files[i] * scale), ("matrix in memory", memory[i] * scale))
        row(what, *sides, unit=unit, differs=len(lost))
    print(
        f"  {memory[1] / files[1]:.2f} times less memory; {files[0] / memory[0]:.2f} times the time"
    )
    print(f"  tables that differ: {', '.join(lost) or 'none'}")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
