"""Reading the GEO layout against the dense-CSV way: 6 samples of 800 cells x 20,000 genes.

    python tests/benchmarks/bench_reading.py           # 6 samples of 800 cells x 20,000 genes
    python tests/benchmarks/bench_reading.py --quick   # 6 x 40 cells x 500 genes, for the tests

Both sides read the same counts, each in a process of its own. The dense-CSV way is one table of
genes x cells per sample, read with pandas and concatenated. Peak memory is what the process took
above its imports (from /proc, so Linux only).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import row

QUICK = "--quick" in sys.argv
SAMPLES, CELLS, GENES, DENSITY = (6, 40, 500, 0.08) if QUICK else (6, 800, 20_000, 0.08)
READERS = {"longaml.read_cohort": "geo", "dense CSV": "csv"}


def peak(key):
    "A line of this process's memory status, in MiB."
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith(key))
    return int(found.split()[1]) / 1024


def side(name, folder):
    "Read one way, in this process; prints seconds, MiB and a checksum."
    import anndata  # noqa: F401
    import numpy as np
    import pandas as pd

    from longaml.core import log
    from longaml.pp.reading import read_cohort

    log.setLevel("ERROR")
    before = peak("VmRSS")
    start = time.perf_counter()
    if name == "geo":
        X = read_cohort(Path(folder) / "geo.tar").X
        total = float(X.sum(dtype=np.float64))
        entries = int(X.nnz)
    else:
        table = pd.concat(
            [pd.read_csv(p, index_col=0) for p in sorted(Path(folder).glob("*.csv"))], axis=1
        )
        total = float(table.to_numpy().sum())
        entries = int(np.count_nonzero(table.to_numpy()))
    seconds = time.perf_counter() - start
    used = peak("VmHWM") - before
    found = {"seconds": seconds, "peak_mib": used, "total": total, "entries": entries}
    print(json.dumps(found))


def build(folder):
    "The same counts on disk, twice."
    import anndata as ad
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp

    from longaml.core import rng_for
    from longaml.datasets.writers import write_geo

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
    X = sp.csr_matrix(
        sp.random_array(
            (len(obs), GENES),
            density=DENSITY,
            format="csr",
            rng=rng_for(0, "benchmark"),
            data_sampler=lambda size: (
                rng_for(1, "benchmark").geometric(0.4, size).astype(np.float32)
            ),
        )
    )
    genes = [f"GENE{i:05d}" for i in range(GENES)]
    write_geo(
        ad.AnnData(X, obs=obs, var=pd.DataFrame(index=genes)), Path(folder) / "geo.tar", tar=True
    )
    for k, s in enumerate(dict.fromkeys(obs["sample"])):
        dense = X[k * CELLS : (k + 1) * CELLS].toarray().T.astype(int).tolist()
        with open(Path(folder) / f"{s}.csv", "w") as out:
            out.write(",".join(["", *obs.index[k * CELLS : (k + 1) * CELLS]]) + "\n")
            out.writelines(f"{g},{','.join(map(str, row))}\n" for g, row in zip(genes, dense))


def measured(name, folder):
    "What `side` prints, from a process of its own."
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LONGAML_PROGRESS": "0"}
    command = [sys.executable, __file__, name, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return json.loads(done.stdout)


def main():
    "Both ways on the same counts, and their rows for the page."
    with tempfile.TemporaryDirectory() as folder:
        build(folder)
        results = {label: measured(name, folder) for label, name in READERS.items()}
        disk = {
            "longaml.read_cohort": (Path(folder) / "geo.tar").stat().st_size,
            "dense CSV": sum(p.stat().st_size for p in Path(folder).glob("*.csv")),
        }
    ours, dense = (results[k] for k in READERS)
    assert ours["total"] == dense["total"] and ours["entries"] == dense["entries"], (
        "the two sides read different counts"
    )
    csr = 8 * ours["entries"] / 2**20
    size = f"{SAMPLES} samples x {CELLS} cells x {GENES:,} genes"
    for what, key, unit in (("reading", "seconds", "s"), ("memory of reading", "peak_mib", "MiB")):
        row(
            f"{what} {size}",
            ("la.read_cohort, GEO files", ours[key]),
            ("dense CSV files, pandas", dense[key]),
            unit=unit,
            differs=0,
        )
    print(
        f"{SAMPLES} samples x {CELLS} cells x {GENES:,} genes, "
        f"{ours['entries']:,} counts (CSR {csr:.0f} MiB)"
    )
    for label, r in results.items():
        print(
            f"{label:20s} {r['seconds']:7.1f} s   peak {r['peak_mib']:7.0f} MiB "
            f"({r['peak_mib'] / csr:4.1f} x CSR)   on disk {disk[label] / 2**20:6.0f} MiB"
        )
    print(
        f"{'ratio':20s} {dense['seconds'] / ours['seconds']:7.1f} x less time, "
        f"{dense['peak_mib'] / ours['peak_mib']:.1f} x less memory"
    )


if __name__ == "__main__":
    side(*sys.argv[1:]) if len(sys.argv) > 2 else main()
