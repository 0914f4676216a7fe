"""Rank tokens against a dense argsort; tokens read from disk against tokens in memory.

    python tests/benchmarks/bench_tokens.py           # see below
    python tests/benchmarks/bench_tokens.py --quick   # small cases, for the tests

Cases: 5,000 cells x 20,000 genes, 5% filled; 200,000 cells of 256 tokens.
Tokens: each side runs in a process of its own, which reads the sparse counts from a file and is
then timed; peak memory is that of the process above what it had before. The dense side fills the
matrix, divides by the medians, and sorts every row with numpy's stable argsort. Both must give the
same tokens.
Loader: one epoch of batches of 128 through la.pp.token_data.TokenData, from a memory map of a file
and from the same array in memory, in the order that training uses. The file was just written, so
that it lies in the system's cache where that has room: the cost shown is that of the memory map,
not of a slow disk. A third line reads the memory map in a fully random order.
The exit status is 1 where sides differ. Threads are as the environment says (OMP_NUM_THREADS).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("LONGAML_PROGRESS", "0")

import numpy as np  # noqa: E402
import scipy.sparse as sp  # noqa: E402
from rows import row  # noqa: E402

from longaml.core import rng_for  # noqa: E402
from longaml.pp.token_data import TokenData  # noqa: E402
from longaml.pp.tokens import Encoding, Vocabulary, rank_tokens  # noqa: E402

TOP = 2048


def peak():
    "Peak memory of this process so far, in MiB."
    try:
        return (
            next(
                int(line.split()[1])
                for line in open("/proc/self/status")
                if line.startswith("VmHWM")
            )
            / 1024
        )
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def dense_tokens(x, medians, k):
    "Fill, divide, sort every gene of every cell; drop those that are not expressed."
    filled = x.toarray()
    order = np.argsort(-(filled / medians), axis=1, kind="stable")[:, :k]
    there = np.take_along_axis(filled, order, 1) > 0
    out = np.zeros((len(filled), k), np.uint16)
    out[:, : order.shape[1]] = np.where(there, order + 4, 0)
    return out


def side(name, folder):
    "One side, in this process: seconds and MiB as a line of JSON; the tokens in a file."
    x, medians = sp.load_npz(folder / "counts.npz"), np.load(folder / "medians.npy")
    vocab = Vocabulary([f"G{i}" for i in range(x.shape[1])], medians)
    rank_tokens(x[:50], vocab, TOP)
    dense_tokens(x[:50], medians, TOP)  # warm
    before, start = peak(), time.perf_counter()
    tokens = rank_tokens(x, vocab, TOP) if name == "sparse" else dense_tokens(x, medians, TOP)
    print(json.dumps({"seconds": time.perf_counter() - start, "mib": peak() - before}))
    np.save(folder / f"{name}.npy", tokens)


def encoding(cells, genes):
    "Both sides; whether they differ."
    rng = rng_for(0, "bench tokens")
    filled = rng.random((cells, genes), dtype=np.float32) < 0.05
    x = sp.csr_matrix(filled, dtype=np.float32)
    x.data[:] = rng.integers(1, 40, x.nnz)
    del filled
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        sp.save_npz(folder / "counts.npz", x)
        np.save(folder / "medians.npy", rng.uniform(0.5, 20, genes))
        told = {
            n: json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--side", n, str(folder)],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout
            )
            for n in ("sparse", "dense")
        }
        same = np.array_equal(np.load(folder / "sparse.npy"), np.load(folder / "dense.npy"))
    what = f"rank tokens, {cells:,} x {genes:,}, 5% filled"
    for key, unit in (("seconds", "s"), ("mib", "MiB")):
        a, b = told["sparse"][key], told["dense"][key]
        ratio = b / max(a, 0.1 if key == "mib" else 1e-9)
        print(
            f"{what}: sparse rows {a:.2f} {unit}, dense argsort {b:.2f} {unit}: {ratio:.1f} times"
        )
        row(
            what,
            ("sparse rows", max(a, 0.1) if key == "mib" else a),
            ("dense argsort", b),
            unit=unit,
            differs=0 if same else 1,
        )
    print(f"  tokens {'agree' if same else 'DIFFER'}")
    return not same


def epoch(data, order):
    "Seconds of one epoch of batches, and a checksum of what was read."
    batch = data.batch(np.arange(len(data)))["tokens"]
    total = 0
    start = time.perf_counter()
    for rows in np.array_split(order, -(-len(order) // 128)):
        total += int(batch[rows].sum())
    return time.perf_counter() - start, total


def loader(cells, width):
    "From disk and from memory; whether they differ."
    rng = rng_for(0, "bench loader")
    vocab = Vocabulary([f"G{i}" for i in range(20_000)], np.ones(20_000))
    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / "tokens.npy"
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(cells, width))
        for i in range(0, cells, 10_000):
            out[i : i + 10_000] = rng.integers(4, 20_000, (min(10_000, cells - i), width))
        out.flush()
        del out

        def data(tokens):
            return TokenData(
                tokens,
                np.zeros(cells, int),
                np.full(cells, "a"),
                vocab,
                Encoding(context=width),
                ["a", "b"],
            )

        disk = data(np.load(path, mmap_mode="r"))
        memory = data(np.load(path))
        times = {}
        for name, d_, order in (
            ("disk", disk, disk.order(1)),
            ("memory", memory, memory.order(1)),
            ("disk, fully random", disk, rng.permutation(cells)),
        ):
            epoch(d_, order[:2000])
            times[name], total = epoch(d_, order)
            if name == "disk":
                first = total
            if total != first:
                print(f"loader: {name} read something else")
                return True
    what = f"one epoch of {cells:,} cells x {width} tokens"
    for name in ("memory", "disk, fully random"):
        speed = cells / times["disk"]
        print(
            f"{what}: from disk in blocks {times['disk']:.2f} s ({speed:,.0f} cells a second), "
            f"{name} {times[name]:.2f} s: {times[name] / times['disk']:.2f} times"
        )
    row(what, ("disk, shuffled blocks", times["disk"]), ("in memory", times["memory"]), differs=0)
    row(
        what,
        ("disk, shuffled blocks", times["disk"]),
        ("disk, fully random", times["disk, fully random"]),
        differs=0,
    )
    return False


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--quick", action="store_true", help="small cases, for the tests")
    p.add_argument("--side", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    given = p.parse_args()
    if given.side:
        return side(given.side[0], Path(given.side[1]))
    bad = [
        encoding(*((300, 2000) if given.quick else (5000, 20_000))),
        loader(*((3000, 64) if given.quick else (200_000, 256))),
    ]
    return 1 if any(bad) else 0


if __name__ == "__main__":
    sys.exit(main())
