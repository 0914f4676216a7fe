"""The published protocol: all patients as one fit, and all knockouts in one pass, against loops.

    python tests/benchmarks/bench_published.py           # 10 patients x 5,000 genes
    python tests/benchmarks/bench_published.py --quick   # 2 patients x 92 genes, for the tests

Both sides run in one process. One side of the training is `fit_published`; the other is a loop over
patients and batches of networks made of PyTorch's own layers (nn.MultiheadAttention,
nn.LayerNorm, nn.LSTM) and torch.optim.Adam, without the published data loader, which would cost it
more. Both train 5 of the 50 epochs; every epoch costs the same. Nothing is dropped out, so that
losses and outputs must agree: both sides are trained once more in double precision, and the exit
status is 1 where they differ. (In single precision, rounding grows from step to step; how far is
printed too.)
One side of the knockouts is `published_knockouts`; the other runs all genes again for every gene.
Where that loop is timed on some genes only, the line says so. Threads are as the environment says
(OMP_NUM_THREADS).
"""

import argparse
import os
import sys
import time
from dataclasses import replace

os.environ.setdefault("LONGAML_PROGRESS", "0")

import numpy as np
import torch
from rows import row
from torch import nn

from longaml.core import rng_for
from longaml.published.networks import (
    METRICS,
    PUBLISHED_MODELS,
    PublishedFit,
    Schedule,
    fit_published,
    fresh_networks,
    train_alone,
)
from longaml.published.protocol import accuracy_f1, published_knockouts
from longaml.published.trajectories import Trajectories

LARGEST = 1e-6  # difference of a loss, an output or a knockout that is still agreement


def made(patients, genes, seed=0):
    "Trajectories as skewed as mean counts are, with random labels."
    rng = rng_for(seed, "bench")
    level = np.exp(
        rng.normal(-2, 1.6, (patients, genes, 1)) + rng.normal(0, 0.4, (patients, genes, 3))
    )
    x = (level - level.min(1, keepdims=True)) / np.ptp(level, axis=1)[:, None]
    return Trajectories(
        torch.as_tensor(x, dtype=torch.float32),
        torch.as_tensor(rng.integers(0, 3, (patients, genes))),
        level.mean(2),
        [f"P{i}" for i in range(patients)],
        [f"G{i}" for i in range(genes)],
        ["DX", "REL", "REM"],
        None,
    )


class Attention(nn.Module):
    "nn.MultiheadAttention with the weights of a published Transformer, and what comes after it."

    def __init__(self, net):
        super().__init__()
        self.attention = nn.MultiheadAttention(1, 1, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(1, eps=1e-6) for _ in range(2)])
        self.inner = net.inner
        self.outer = net.outer
        self.head = net.head
        with torch.no_grad():
            for name in ("weight", "bias"):
                getattr(self.attention, f"in_proj_{name}").copy_(getattr(net.qkv, name))
                getattr(self.attention.out_proj, name).copy_(getattr(net.out, name))

    def forward(self, x):
        h = self.norms[0](self.attention(x, x, x, need_weights=False)[0] + x)
        h = self.norms[1](h + self.outer(torch.relu(self.inner(h))))
        return self.head(h.mean(1)).softmax(-1)


class Recurrent(nn.Module):
    "nn.LSTM with the weights of a layer, or of two, one for each direction."

    def __init__(self, layer):
        super().__init__()
        both = hasattr(layer, "forwards")
        parts = {"": layer.forwards, "_reverse": layer.backwards} if both else {"": layer}
        inputs = parts[""].weight_ih.shape[1]
        self.lstm = nn.LSTM(inputs, parts[""].width, batch_first=True, bidirectional=both)
        with torch.no_grad():
            for end, part in parts.items():
                for k, p in part.named_parameters():
                    getattr(self.lstm, f"{k}_l0{end}").copy_(p)

    def forward(self, x):
        return self.lstm(x)[0]


def plain(model, net):
    "The same network of PyTorch's own layers."
    if model == "transformer":
        return Attention(net)
    net.lstm = Recurrent(net.lstm)
    if model == "bilstm":
        net.second = Recurrent(net.second)
    return net


def timed(side):
    "The result and the seconds of a side; the best of three where it takes less than 3 s."
    seconds = []
    while not seconds or (len(seconds) < 3 and seconds[0] < 3):
        start = time.perf_counter()
        result = side()
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


def both(model, data, epochs):
    "Train both forms: seconds of each, and the largest difference of a loss or an output."
    one, ours = timed(
        lambda: fit_published(data, model, epochs=epochs, dropout=False, device="cpu")
    )

    def alone():
        networks = fresh_networks(model, data.patients, dropout=False)
        return [
            train_alone(plain(model, n), x[..., None], y, data.splits, Schedule(epochs))
            for n, x, y in zip(networks, data.x, data.y)
        ]

    many, theirs = timed(alone)
    with torch.no_grad():
        out = torch.stack([n(x[..., None]) for (n, _), x in zip(many, data.x)])
    history = np.array([h for _, h in many])
    losses = [METRICS.index(k) for k in ("loss", "val_loss")]
    differs = np.abs(one.history - history)[..., losses].max()
    return ours, theirs, max(float(differs), float((one.outputs() - out).abs().max()))


def training(model, data, epochs):
    "Time both forms of training; their largest difference in double precision, after one epoch."
    # warms up: the step is traced once
    fit_published(data, model, epochs=1, dropout=False, device="cpu")
    ours, theirs, rounded = both(model, data, epochs)
    torch.set_default_dtype(torch.float64)
    try:
        _, _, differs = both(model, replace(data, x=data.x.double()), 1)
    finally:
        torch.set_default_dtype(torch.float32)
    what = f"{len(data.patients)} patients x {len(data.genes):,} genes, {epochs} epochs"
    row(
        f"published {model}: {what}",
        ("all patients as one fit", ours),
        ("one by one, PyTorch's own layers", theirs),
        differs=differs,
    )
    print(f"{model}: {what} of {-(-data.splits[0] // 16)} steps")
    print(f"  as one      {ours:8.2f} s")
    print(f"  one by one  {theirs:8.2f} s")
    print(f"  ratio       {theirs / ours:8.2f} x less time")
    print(
        f"  largest difference of a loss or an output {differs:.1e} "
        f"(in single precision {rounded:.1e})",
        flush=True,
    )
    return differs


def loop(net, x, y, genes):
    "The published knockouts: for every gene, all genes again."
    rows = []
    with torch.no_grad():
        base = net(x[..., None])
        accuracy, f1 = accuracy_f1(y, base)
        for g in genes:
            without = x.clone()
            without[g] = 0
            out = net(without[..., None])
            accuracy_after, f1_after = accuracy_f1(y, out)
            change = float((out - base)[g].abs().mean())
            rows.append((accuracy - accuracy_after, f1 - f1_after, change))
    return np.array(rows)


def knockouts(model, data, genes):
    "Time both forms of the knockouts of one patient; the largest difference."
    one = replace(
        data, x=data.x[:1], y=data.y[:1], level=data.level[:1], patients=data.patients[:1]
    )
    networks = fit_published(one, model, epochs=1, device="cpu").networks
    fit = PublishedFit(model, networks, np.zeros((1, 0, 4)), one)
    total = len(data.genes)
    published_knockouts(fit)
    fast, ours = timed(lambda: published_knockouts(fit))
    slow, theirs = timed(lambda: loop(fit.networks[0], one.x[0], one.y[0].numpy(), range(genes)))
    columns = ["accuracy_drop", "f1_drop", "output_change"]
    differs = float(np.abs(fast[columns].to_numpy()[:genes] - slow).max())
    whole = genes == total
    how = "all of them" if whole else f"{genes} of them in {theirs:.2f} s, scaled"
    theirs *= total / genes
    row(
        f"published {model}: knockouts of {total:,} genes",
        ("one pass", ours),
        ("all genes again for every gene", theirs),
        differs=differs,
        scaled="" if whole else f"{genes} of {total:,} genes",
    )
    print(f"{model}: knockouts of {total:,} genes (the loop: {how})")
    print(f"  one pass    {ours:8.4f} s")
    print(f"  loop        {theirs:8.2f} s")
    print(f"  ratio       {theirs / ours:8.0f} x less time")
    print(f"  largest difference {differs:.1e}", flush=True)
    return differs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="few patients and genes: whether both sides agree"
    )
    parser.add_argument(
        "--epochs", type=int, default=5, help="epochs of both sides (published: 50)"
    )
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} threads")
    data = made(2, 92) if args.quick else made(10, 5000)
    differs = [training(m, data, 2 if args.quick else args.epochs) for m in PUBLISHED_MODELS]
    differs += [
        knockouts(m, data, 92 if args.quick else 5000 if m == "transformer" else 100)
        for m in PUBLISHED_MODELS
    ]
    if not max(differs) <= LARGEST:
        sys.exit(f"the two sides differ by {max(differs):.1e}; at most {LARGEST:g} is agreement")


if __name__ == "__main__":
    main()
