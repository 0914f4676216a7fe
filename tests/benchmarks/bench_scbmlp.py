"""The bilinear MLP: its spectrum and its training against dense alternatives.

    python tests/benchmarks/bench_scbmlp.py           # see below
    python tests/benchmarks/bench_scbmlp.py --quick   # small cases, for the tests

Cases: 3,000 and 20,000 genes, hidden 64; 2,700 cells x 10,000 genes, density 0.07.
Spectrum: the low-rank form against a dense eigendecomposition of the same random network; both must
agree. The dense side builds Q (genes x genes) and calls numpy's eigh. The 20,000 genes are
decomposed in a process of their own, whose peak memory is printed.
Training: each side runs in a process of its own, which reads the sparse data from a file, trains
one epoch to warm up, and is then timed; peak memory is that of the process above what it had before
it trained. Same network (hidden 32, the default), same batches of 128 cells in the same order, same
AdamW: all sides must end at the same loss.
  sparse rows    la.models.fit with ScBMLP on CellData
  anndata items  torch Dataset whose item is adata[i].X, filled; DataLoader; plain loop
  matrix items   the same, with an item cut from the sparse matrix itself
  dense matrix   the same, from a matrix that was filled once
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
from dataclasses import replace

os.environ.setdefault("LONGAML_PROGRESS", "0")

import anndata  # noqa: E402
import numpy as np  # noqa: E402
import scipy.sparse as sp  # noqa: E402
import torch  # noqa: E402
from rows import row  # noqa: E402

from longaml.core import rng_for  # noqa: E402
from longaml.models.quadratic import interactions, top_pairs  # noqa: E402
from longaml.models.scbmlp import (  # noqa: E402
    SCBMLP_TRAINING,
    ScBMLP,
    ScBMLPConfig,
    class_loss,
)
from longaml.models.training import fit  # noqa: E402
from longaml.pp.cells import CellData, Rows  # noqa: E402

LARGEST = 1e-5  # relative difference of eigenvalues that is still agreement
LOSSES = 1e-3  # relative difference of the last epoch's loss that is still agreement
CLASSES, HIDDEN, BATCH = 8, 64, 128


def peak():
    "Peak memory of this process so far, in MiB; getrusage would count what the parent had."
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


def network(genes, hidden=HIDDEN):
    "A network with random weights."
    torch.manual_seed(0)
    return ScBMLP(ScBMLPConfig(genes, CLASSES, hidden=hidden, gain=1.0))


def dense_spectrum(net):
    "Eigenvalues of Q, built."
    W, V, P = (t.detach().double().numpy() for t in (net.W, net.V, net.P))
    Q = (W.T * P[0]) @ V
    values, vectors = np.linalg.eigh((Q + Q.T) / 2)
    order = np.argsort(-np.abs(values))[: 2 * len(W)]
    return values[order], vectors[:, order]


def spectrum(genes, hidden):
    "Time both decompositions; the relative difference."
    net = network(genes, hidden)
    start = time.perf_counter()
    values, vectors = dense_spectrum(net)
    slow = time.perf_counter() - start
    times = []
    for _ in range(5):
        start = time.perf_counter()
        form = interactions(net, 0)
        times.append(time.perf_counter() - start)
    far = max(
        np.abs(form.values - values).max() / np.abs(values).max(),
        np.abs(np.abs((form.vectors * vectors).sum(0)) - 1).max(),
    )
    row(
        f"spectrum of a bilinear MLP, {genes:,} genes, hidden {hidden}",
        ("low rank", np.median(times)),
        ("dense eigendecomposition", slow),
        differs=far,
    )
    fast = np.median(times)
    print(
        f"spectrum, {genes:,} genes, hidden {hidden}: dense {slow:.2f} s; low rank {fast:.3f} s; "
        f"{slow / fast:,.0f} times less time; largest difference of a value or vector {far:.1e}",
        flush=True,
    )
    return far > LARGEST


def large(genes, hidden):
    "The low-rank form and the strongest pairs at many genes, in this process: what a child prints."
    before = peak()
    net = network(genes, hidden)
    start = time.perf_counter()
    form = interactions(net, 0)
    middle = time.perf_counter()
    pairs = top_pairs(net, 0, 20)
    return {
        "seconds": middle - start,
        "pairs": time.perf_counter() - middle,
        "before": before,
        "peak": peak(),
        "values": len(form.values),
        "best": float(pairs["interaction"].iloc[0]),
    }


def cells(n, genes):
    "Sparse cells whose class can be learnt."
    rng = rng_for(0, "bench cells")
    y = rng.integers(0, CLASSES, n)
    x = sp.random(
        n,
        genes,
        0.07,
        format="csr",
        dtype=np.float32,
        random_state=0,
        data_rvs=lambda k: rng.gamma(2.0, 0.5, k).astype(np.float32),
    )
    x.data *= 1 + 0.2 * (x.indices % CLASSES == np.repeat(y, np.diff(x.indptr)))
    return x, y


class Items(torch.utils.data.Dataset):
    "One filled row an item."

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        row = self.x[i].X if isinstance(self.x, anndata.AnnData) else self.x[i]
        return torch.from_numpy(row.toarray().ravel() if sp.issparse(row) else row), self.y[i]


class Order(torch.utils.data.Sampler):
    "The batches of `fit`."

    def __init__(self, n):
        self.n, self.epoch = n, 0

    def __len__(self):
        return -(-self.n // BATCH)

    def __iter__(self):
        self.epoch += 1
        order = rng_for(0, "rows", self.epoch).permutation(self.n)
        return iter([list(rows) for rows in np.array_split(order, len(self))])


def train(side, file, epochs):
    "Train one side in this process: what a child prints."
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 0)) or torch.get_num_threads())
    x, y = sp.load_npz(file), np.load(file + ".npy")
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).step()  # loads what an optimizer needs
    if side == "anndata items":
        items = anndata.AnnData(x)
    before = peak()
    items = {
        "anndata items": lambda: items,
        "matrix items": lambda: x,
        "dense matrix": lambda: x.toarray(),
        "sparse rows": lambda: None,
    }[side]()

    def run(e):
        return ours(x, y, e) if items is None else plain(Items(items, y), x, y, e)

    run(1)
    start = time.perf_counter()
    last = run(epochs)
    return {
        "seconds": (time.perf_counter() - start) / epochs,
        "memory": peak() - before,
        "loss": float(last),
    }


def ours(x, y, epochs):
    "la.models.fit on sparse rows; the last loss."
    n, genes = x.shape
    data = CellData(
        x, y, np.full(n, "all"), [str(g) for g in range(genes)], [str(k) for k in range(CLASSES)]
    )
    how = replace(SCBMLP_TRAINING, epochs=epochs, batch_size=BATCH, device="cpu")
    fitted = fit(
        lambda: ScBMLP(ScBMLPConfig(genes, CLASSES)),
        data,
        loss=class_loss,
        how=how,
        train=["all"],
        valid=(),
    )
    return fitted.history["train_loss"].iloc[-1]


def plain(items, x, y, epochs):
    "The plain loop over a DataLoader; the last loss."
    n, genes = x.shape
    torch.manual_seed(0)
    net, how = ScBMLP(ScBMLPConfig(genes, CLASSES)), SCBMLP_TRAINING
    net.calibrate({"x": Rows(x)}, torch.full((n,), 1 / n, dtype=torch.float64))
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=how.lr, weight_decay=how.weight_decay, eps=how.eps
    )
    loader = torch.utils.data.DataLoader(items, batch_sampler=Order(n))
    for _ in range(epochs):
        total = 0.0
        for part, label in loader:
            loss = torch.nn.functional.cross_entropy(net(part), label, reduction="sum") / n
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total


def child(*what):
    "Run a part of this file in a process of its own; what it printed."
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(what)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def training_rows(size, ours, name, other):
    "Time and memory of a side of the training beside la.models.fit on sparse rows."
    for what, key, unit in (
        ("an epoch of a bilinear MLP", "seconds", "s"),
        ("memory of training a bilinear MLP", "memory", "MiB"),
    ):
        row(
            f"{what}, {size}",
            ("sparse rows", ours[key]),
            (name, other[key]),
            unit=unit,
            differs=abs(ours["loss"] - other["loss"]),
        )


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="small cases, for the tests")
    parse.add_argument("--child", help=argparse.SUPPRESS)
    given = parse.parse_args()
    if given.child:
        name, *rest = json.loads(given.child)
        return print(json.dumps({"large": large, "train": train}[name](*rest)))
    quick = given.quick
    print(f"torch {torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} threads")
    wrong = spectrum(*((300, 8) if quick else (3000, HIDDEN)))
    genes, hidden = (2000, 8) if quick else (20_000, HIDDEN)
    r = child("large", genes, hidden)
    n_pairs = genes * (genes - 1) // 2
    print(
        f"low rank, {genes:,} genes, hidden {hidden}: spectrum {r['seconds']:.2f} s, 20 strongest "
        f"of {n_pairs:,} pairs {r['pairs']:.2f} s; peak memory of the process {r['peak']:,.0f} MiB "
        f"({r['before']:,.0f} of them before, for the samples)",
        flush=True,
    )
    n, genes, epochs = (200, 300, 2) if quick else (2700, 10_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "cells.npz")
        x, y = cells(n, genes)
        sp.save_npz(file, x, compressed=False)
        np.save(file + ".npy", y)
        sides = {
            s: child("train", s, file, epochs)
            for s in ("sparse rows", "anndata items", "matrix items", "dense matrix")
        }
    sparse = (x.data.nbytes + x.indices.nbytes) / 2**20
    print(
        f"training, {n:,} x {genes:,}, density 0.07, hidden 32, batches of {BATCH}, {epochs} "
        f"epochs; the sparse matrix takes {sparse:.0f} MiB, filled {n * genes * 4 / 2**20:.0f} MiB"
    )
    for s, r in sides.items():
        ratio = r["seconds"] / sides["sparse rows"]["seconds"]
        print(
            f"  {s:<13} {r['seconds']:7.3f} s an epoch ({ratio:.1f} x), peak memory "
            f"{r['memory']:5.0f} MiB above what was there before, last loss {r['loss']:.5f}",
            flush=True,
        )
        if s != "sparse rows":
            training_rows(f"{n:,} cells x {genes:,} genes", sides["sparse rows"], s, r)
        wrong |= not abs(r["loss"] - sides["sparse rows"]["loss"]) <= LOSSES * abs(r["loss"])
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
