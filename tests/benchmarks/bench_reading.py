"""Reading Matrix Market files: la.read_cohort, SciPy's reader, and dense CSV files.

    python tests/benchmarks/bench_reading.py           # 6 samples of 800 cells x 20,000 genes
    python tests/benchmarks/bench_reading.py --quick   # 6 x 40 cells x 500 genes, for the tests

Counts in 5% and in 20% of the matrix, written as gzipped Matrix Market files with their genes,
barcodes and metadata (the layout of GSE235063). All sides read the same counts, each in a process
of its own, and must find the same sum and number of counts:

- la.read_cohort, which also reads genes, barcodes and metadata, checks every line, and makes a
  cohort of it;
- scipy.io.mmread of every file, and one CSR matrix of all cells;
- the dense-CSV way (at 5%): one table of genes x cells per sample, read with pandas and
  concatenated. Writing these files is not timed.

SciPy and longaml take turns, REPEATS times; the page gets the fastest of each. The ratio of every
turn is printed. Peak memory is what the process took above its imports (from /proc, so Linux
only), and is also printed as a multiple of the CSR matrix.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import row

QUICK = "--quick" in sys.argv
SAMPLES, CELLS, GENES = (6, 40, 500) if QUICK else (6, 800, 20_000)
REPEATS = 1 if QUICK else 3
SIZE = f"{SAMPLES} samples x {CELLS} cells x {GENES:,} genes"
LONGAML, SCIPY, CSV = "la.read_cohort", "scipy.io.mmread, one CSR matrix", "dense CSV files, pandas"


def peak(key):
    "Memory of this process in MiB: now (VmRSS) or at most so far (VmHWM)."
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        found = next(line for line in lines if line.startswith(key))
        return int(found.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read_with(name, folder):
    "The sum and the number of the counts, read one way."
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp
    from scipy.io import mmread

    if name == CSV:
        tables = [pd.read_csv(p, index_col=0) for p in sorted(folder.glob("*.csv"))]
        counts = pd.concat(tables, axis=1).to_numpy()
        return float(counts.sum()), int(np.count_nonzero(counts))
    if name == SCIPY:
        samples = [mmread(p).T.tocsr() for p in sorted((folder / "geo").glob("*.mtx.gz"))]
        X = sp.vstack(samples, format="csr")
    else:
        from longaml.pp.reading import read_cohort

        X = read_cohort(folder / "geo").X
    return float(X.sum(dtype=np.float64)), int(X.nnz)


def side(name, folder):
    "Read one way, in this process; prints seconds, MiB and a checksum."
    import pandas  # noqa: F401
    import scipy.io  # noqa: F401

    import longaml.pp.reading  # noqa: F401
    from longaml.core import log

    log.setLevel("ERROR")
    before = peak("VmRSS")
    start = time.perf_counter()
    total, entries = read_with(name, Path(folder))
    seconds = time.perf_counter() - start
    used = peak("VmHWM") - before
    found = {"seconds": seconds, "peak_mib": used, "total": total, "entries": entries}
    print(json.dumps(found))


def simulated(density):
    "A cohort of counts in random places."
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp

    from longaml.core import rng_for

    rows = [(p, t, i) for p in ("AML1", "AML2") for t in ("DX", "REM", "REL") for i in range(CELLS)]
    obs = pd.DataFrame(
        {
            "patient": pd.Categorical([p for p, _, _ in rows]),
            "timepoint": pd.Categorical(
                [t for _, t, _ in rows], ["DX", "REM", "REL"], ordered=True
            ),
            "sample": [f"{p}_{t}" for p, t, _ in rows],
            "cell_type": "all",
        },
        index=[f"{p}_{t}:CELL{i:05d}" for p, t, i in rows],
    )
    X = sp.random_array(
        (len(obs), GENES),
        density=density,
        format="csr",
        rng=rng_for(0, "benchmark"),
        data_sampler=lambda size: rng_for(1, "benchmark").geometric(0.4, size).astype("float32"),
    )
    genes = pd.DataFrame(index=[f"GENE{i:05d}" for i in range(GENES)])
    return ad.AnnData(sp.csr_matrix(X), obs=obs, var=genes)


def write_csv(cohort, folder):
    "A table of genes x cells for every sample."
    for k, sample in enumerate(dict.fromkeys(cohort.obs["sample"])):
        cells = slice(k * CELLS, (k + 1) * CELLS)
        dense = cohort.X[cells].toarray().T.astype(int).tolist()
        with open(folder / f"{sample}.csv", "w") as out:
            out.write(",".join(["", *cohort.obs_names[cells]]) + "\n")
            lines = zip(cohort.var_names, dense)
            out.writelines(f"{gene},{','.join(map(str, row))}\n" for gene, row in lines)


def measured(name, folder):
    "What `side` prints, from a process of its own."
    env = {**os.environ, "LONGAML_PROGRESS": "0"}
    command = [sys.executable, __file__, name, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return json.loads(done.stdout)


def fastest(turns):
    "The turn that took the least time, with the least memory of all."
    best = dict(min(turns, key=lambda turn: turn["seconds"]))
    best["peak_mib"] = min(turn["peak_mib"] for turn in turns)
    return best


def shown(name, found, csr):
    print(
        f"  {name:32s} {found['seconds']:6.2f} s   peak {found['peak_mib']:6.0f} MiB "
        f"({found['peak_mib'] / csr:4.1f} x CSR)"
    )


def compare(what, ours, other, name):
    "Both rows of a comparison, and its ratios."
    assert (ours["total"], ours["entries"]) == (other["total"], other["entries"]), (
        f"{LONGAML} and {name} read different counts"
    )
    for kind, key, unit in (("reading", "seconds", "s"), ("memory of reading", "peak_mib", "MiB")):
        row(f"{kind} {what}", (LONGAML, ours[key]), (name, other[key]), unit=unit, differs=0)
    print(
        f"  against {name}: {other['seconds'] / ours['seconds']:.2f} x less time, "
        f"{other['peak_mib'] / ours['peak_mib']:.2f} x less memory"
    )


def at(density, folder, with_csv):
    "All sides at one density."
    from longaml.datasets.writers import write_geo

    cohort = simulated(density)
    write_geo(cohort, folder / "geo")
    if with_csv:
        write_csv(cohort, folder)
    turns = {SCIPY: [], LONGAML: []}
    for _ in range(REPEATS):
        for name, found in turns.items():
            found.append(measured(name, folder))
    ours, scipy = fastest(turns[LONGAML]), fastest(turns[SCIPY])
    csr = (8 * ours["entries"] + 4 * SAMPLES * CELLS) / 2**20
    what = f"{SIZE}, {density:.0%} filled"
    print(f"{what}: {ours['entries']:,} counts (CSR {csr:.0f} MiB)")
    shown(LONGAML, ours, csr)
    shown(SCIPY, scipy, csr)
    compare(what, ours, scipy, SCIPY)
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(turns[LONGAML], turns[SCIPY])]
    print(f"  time as a multiple of SciPy's, turn by turn: {', '.join(f'{r:.2f}' for r in ratios)}")
    if with_csv:
        dense = measured(CSV, folder)
        shown(CSV, dense, csr)
        compare(what, ours, dense, CSV)


def main():
    "Two densities, each in a folder of its own."
    for density, with_csv in ((0.05, True), (0.2, False)):
        with tempfile.TemporaryDirectory() as folder:
            at(density, Path(folder), with_csv)


if __name__ == "__main__":
    side(*sys.argv[1:]) if len(sys.argv) > 2 else main()
