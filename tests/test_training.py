"""Networks by property: batched and single fits, sets without order, contributions that add up,
and files that cannot be trusted.
"""

import copy
import gzip
import pickle
import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tools import ROOT, python
from torch import nn

import longaml as la
from longaml.core import rng_for
from longaml.models.training import step_rows

FEW = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
MORE = settings(FEW, max_examples=40)
SEEDS = st.integers(0, 10**6)


def made(seed=0, rows=(2, 3, 1, 2, 2, 3), times=2, genes=12, missing=0.0):
    """Sequences by hand: patients with these numbers of rows, genes of which a third change,
    visits missing at random.
    """
    r = rng_for(seed, "made")
    n = sum(rows)
    patients = np.repeat([f"P{i}" for i in range(len(rows))], rows)
    mask = r.random((n, times)) >= missing
    mask[:, :2] = True
    y = np.where(mask, np.arange(times), -1)
    x = r.normal(size=(n, times, genes)) + 1.5 * np.arange(times)[:, None] * (
        np.arange(genes) % 3 == 0
    )
    x = np.where(
        mask[..., None],
        x - (x * mask[..., None]).sum(1, keepdims=True) / mask.sum(1)[:, None, None],
        0,
    ).astype(np.float32)
    names = [f"T{t}" for t in range(times)]
    return la.pp.preprocessing.Sequences(
        x=x,
        mask=mask,
        y=y,
        patients=patients,
        cell_types=np.full(n, "all"),
        samples=np.where(mask, np.char.add(patients[:, None] + "_", names), ""),
        timepoints=names,
        genes=[f"G{i}" for i in range(genes)],
        technical=np.zeros((n, times, 3), np.float32),
        notes={"task": "timepoint", "bag_size": 20, "input_kind": "counts"},
        level=np.ones(genes, np.float32),
    )


def small(data, **config):
    return lambda: la.models.build(
        "transformer", data, **{"width": 8, "heads": 2, "dropout": 0.0, **config}
    )


def state(fitted):
    return {k: v.clone() for k, v in fitted.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(v, state(b)[k]) for k, v in state(a).items())


# ---- attention


@st.composite
def attending(draw):
    "Queries, keys, values and a mask; the last row of more than one is masked everywhere."
    n, heads, q, k, size = (draw(st.integers(1, m)) for m in (4, 3, 5, 5, 6))
    g = torch.Generator().manual_seed(draw(SEEDS))
    mask = torch.tensor(
        draw(st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=n, max_size=n))
    )
    if n > 1:
        mask[-1] = False
    spread = draw(st.sampled_from([0.1, 1.0, 10.0]))
    return [
        torch.randn(n, heads, rows, size, generator=g).mul(spread).requires_grad_()
        for rows in (q, k, k)
    ], mask


@MORE
@given(attending(), st.booleans())
def test_fused_attention_is_its_matrix_form(given_, masked):
    (q, k, v), mask = given_
    mask = mask if masked else None
    fused = la.models.stacking.attention(q, k, v, mask=mask)
    with la.models.stacking.matrix_form():
        plain = la.models.stacking.attention(q, k, v, mask=mask)
    out, share = la.models.stacking.attention(q, k, v, mask=mask, weights=True)
    for other in (plain, out):
        torch.testing.assert_close(other, fused, atol=1e-4, rtol=1e-4)
    for a, b in zip(
        *(torch.autograd.grad(o.sin().sum(), (q, k, v), retain_graph=True) for o in (fused, plain))
    ):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    there = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool) if mask is None else mask
    assert (share * ~there[:, None, None]).abs().max() == 0  # nothing attends to a missing visit
    torch.testing.assert_close(
        share.sum(-1), there.any(-1).float()[:, None, None].expand(share.shape[:-1])
    )
    assert fused[~there.any(-1)].eq(0).all() and torch.isfinite(fused).all()


# ---- many fits as one


@st.composite
def several(draw, pieces=1):
    """Data, jobs and a Training: every patient trains, stops or sits out each job, whose labels
    may be swapped; with more pieces, rows come in that many steps.
    """
    rows = draw(st.lists(st.integers(1, 4), min_size=4, max_size=7))
    data = made(
        draw(SEEDS),
        rows,
        times=draw(st.integers(2, 3)),
        genes=draw(st.integers(3, 15)),
        missing=draw(st.sampled_from([0.0, 0.4])),
    )
    names = np.unique(data.patients)
    relabelled = draw(st.booleans())
    jobs = []
    for _ in range(draw(st.integers(2, 5))):
        role = draw(
            st.lists(st.sampled_from("ttvo"), min_size=len(rows), max_size=len(rows)).filter(
                lambda r: "t" in r
            )
        )
        swapped = np.isin(
            data.patients,
            names[draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))],
        )[:, None] & (data.y >= 0)
        who = {r: tuple(map(str, names[np.array(role) == r])) for r in "tv"}
        jobs.append(
            la.models.training.Job(
                who["t"],
                who["v"],
                draw(SEEDS),
                np.where(swapped, np.array([1, 0, 2])[data.y], data.y) if relabelled else None,
            )
        )
    how = la.models.Training(
        epochs=draw(st.integers(1, 15)),
        patience=draw(st.integers(1, 4)),
        lr=draw(st.sampled_from([0.03, 0.3])),
        weight_decay=draw(st.sampled_from([0.0, 0.5])),
        eps=1.0,
        batch_size=None if pieces == 1 else -(-len(data) // pieces),
        device="cpu",
    )
    return data, jobs, how


def singly(data, job, how, make):
    return la.models.fit(
        make,
        data if job.y is None else replace(data, y=job.y),
        train=job.train,
        valid=job.valid,
        seed=job.seed,
        how=how,
    )


def distinguished(history):
    "Whether no two epochs are so close in validation loss that rounding decides which is better."
    v = history["valid_loss"].to_numpy()
    return np.isnan(v).all() or all(abs(v[i] - v[:i].min()) > 1e-5 for i in range(1, len(v)))


def agrees(data, jobs, how):
    """Every fit of one call is what it is alone: when it stops, which epoch it keeps, its losses,
    its predictions.
    """
    make = small(data)
    alone = [singly(data, j, how, make) for j in jobs]
    if not all(distinguished(f.history) for f in alone):
        return
    for f, a in zip(la.models.stacking.fit_many(make, data, jobs, how=how), alone, strict=True):
        assert (f.best_epoch, len(f.history), f.train, f.valid, f.seed) == (
            a.best_epoch,
            len(a.history),
            a.train,
            a.valid,
            a.seed,
        )
        np.testing.assert_allclose(f.history.to_numpy(), a.history.to_numpy(), atol=1e-4)
        np.testing.assert_allclose(f.predict(data), a.predict(data), atol=1e-3)


@FEW
@given(several())
def test_many_fits_are_each_fit_alone(given_):
    agrees(*given_)


@FEW
@given(several(pieces=2))
def test_many_fits_in_steps_are_each_fit_alone(given_):
    "With rows in two steps; both hold rows of every job."
    data, jobs, how = given_
    for j in jobs:
        assume(
            all(
                len(step_rows(len(data), np.isin(data.patients, j.train), how.batch_size, e)) == 2
                for e in range(1, how.epochs + 1)
            )
        )
    agrees(data, jobs, how)


def test_a_step_without_rows_of_a_fit():
    """One patient trains the first job, and most steps hold none of its rows: those steps must
    not move its weights.
    """
    data = made(rows=(1, 3, 3, 3, 3))
    agrees(
        data,
        [
            la.models.training.Job(("P0",), seed=1),
            la.models.training.Job(("P1", "P2", "P3"), seed=2),
        ],
        la.models.Training(epochs=3, batch_size=2, device="cpu"),
    )


def test_steps_need_no_more_than_their_fit():
    "The same first job with different other jobs, with steps of a few rows."
    data = made(rows=(1, 3, 3, 3, 3))
    how = la.models.Training(epochs=3, batch_size=2, device="cpu")
    first = la.models.training.Job(("P0",), seed=1)
    a, b = (
        la.models.stacking.fit_many(
            small(data), data, [first, la.models.training.Job(other, seed=2)], how=how
        )[0]
        for other in (("P1",), ("P1", "P2", "P3", "P4"))
    )
    np.testing.assert_allclose(a.predict(data), b.predict(data), atol=1e-4)


@FEW
@given(several(), SEEDS)
def test_a_patient_changes_only_the_fits_it_is_in(given_, seed):
    """Data and labels of patients who neither train nor stop the first job are replaced: its
    weights are the same to the last bit.
    """
    data, jobs, how = given_
    out = ~np.isin(data.patients, jobs[0].train + jobs[0].valid)
    assume(out.any())
    r = rng_for(seed, "others")
    x = np.where(out[:, None, None], 100 * r.normal(size=data.x.shape), data.x).astype(np.float32)

    def others(y):
        return np.where(out[:, None] & (y >= 0), r.integers(0, data.y.max() + 1, y.shape), y)

    changed = [replace(j, y=None if j.y is None else others(j.y)) for j in jobs]
    a = la.models.stacking.fit_many(small(data), data, jobs, how=how)[0]
    b = la.models.stacking.fit_many(
        small(data), replace(data, x=x, y=others(data.y)), changed, how=how
    )[0]
    assert same(a, b) and a.best_epoch == b.best_epoch
    pd.testing.assert_frame_equal(a.history, b.history)


@FEW
@given(several(), st.randoms())
def test_the_order_of_jobs_does_not_matter(given_, random):
    data, jobs, how = given_
    order = random.sample(range(len(jobs)), len(jobs))
    fits = la.models.stacking.fit_many(small(data), data, jobs, how=how)
    mixed = la.models.stacking.fit_many(
        small(data), data, [jobs[i] for i in order], how=how, at_once=2
    )
    assume(all(distinguished(f.history) for f in fits))
    for i, f in zip(order, mixed):
        np.testing.assert_allclose(f.predict(data), fits[i].predict(data), atol=1e-3)


def test_fits_leave_no_trace():
    """Not in the data, nor in anybody's random numbers; and a model that is handed over stays as
    it was.
    """
    data = made()
    kept = made()
    model = small(data, dropout=0.5)()
    before = copy.deepcopy(model.state_dict())
    theirs = (torch.random.get_rng_state(), np.random.get_state()[1].copy())
    a, b = (la.models.fit(model, data, epochs=3, device="cpu") for _ in range(2))
    la.models.stacking.fit_many(
        model,
        data,
        [la.models.training.Job(("P0", "P1"), ("P2",)), la.models.training.Job(("P3",))],
        epochs=3,
        device="cpu",
    )
    assert same(a, b) and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (
        torch.equal(torch.random.get_rng_state(), theirs[0])
        and (np.random.get_state()[1] == theirs[1]).all()
    )
    for k in ("x", "mask", "y", "patients"):
        np.testing.assert_array_equal(getattr(data, k), getattr(kept, k))


class Loops(nn.Module):
    "Has an operation without a batching rule."

    def __init__(self, genes):
        super().__init__()
        self.linear = nn.Linear(genes, 2)

    def forward(self, x):
        return self.linear(x) + torch.histc(self.linear.bias * 0, 2)


def test_a_batching_fallback_is_an_error():
    "Also where warnings are silenced, and every time; a single fit may use such an operation."
    data = made()
    la.models.fit(lambda: Loops(12), data, epochs=1, device="cpu")
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(UserWarning, match="performance drop|batching rule"):
                la.models.stacking.fit_many(
                    lambda: Loops(12),
                    data,
                    [la.models.training.Job(("P0",)), la.models.training.Job(("P1",))],
                    epochs=1,
                    device="cpu",
                )


MISSING = [
    d
    for d, there in (
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
    )
    if not there
]


@pytest.mark.parametrize("device", [*MISSING, *(f"{d}:0" for d in MISSING), "tpu", "", "gpu"])
def test_devices_that_are_not_there(device, saved, tmp_path):
    data = made()
    said = (
        "is not available on this machine; available: .*cpu"
        if device.split(":")[0] in MISSING
        else "expected one of: cpu, cuda, mps"
    )
    for call in (
        lambda: la.models.fit(small(data), data, epochs=1, device=device),
        lambda: la.models.stacking.fit_many(
            small(data), data, [la.models.training.Job(("P0",))], device=device
        ),
        lambda: la.models.load(saved, device=device),
        lambda: la.experiment.run_cohort("nowhere", tmp_path / "out", device=device),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    assert not (tmp_path / "out").exists()


# ---- the Transformer


NEVER = st.just(0)


@st.composite
def transformers(draw, times=NEVER, smooth=False):
    """A Transformer of any shape with a mask and an input; its linear skip is not zero, as after
    training. Smooth: in double precision, and wide, as the norm of two numbers is a step.
    """
    T = draw(st.integers(2, 5))
    heads = draw(st.sampled_from([1, 2, 4]))
    config = la.models.transformer.TransformerConfig(
        n_genes=draw(st.integers(1, 9)),
        n_outputs=draw(st.integers(2, 4)),
        width=heads * draw(st.integers(1, 4)) * (8 if smooth else 2),
        heads=heads,
        depth=draw(st.integers(1, 3)),
        expand=draw(st.integers(1, 3)),
        n_times=T * draw(times),
        skip=draw(st.booleans()),
        gain=1.0,
    )
    torch_seed = draw(SEEDS)
    n = draw(st.integers(1, 4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed)
        model = la.models.TemporalTransformer(config).eval()
        if config.skip:
            nn.init.normal_(model.skip.linear.weight, std=0.5)
        x = torch.randn(n, T, config.n_genes)
        y = torch.randint(config.n_outputs, (n, T))
    mask = torch.tensor(
        draw(st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=n, max_size=n))
    )
    if smooth:
        model = model.double()
        x = x.double()
    for p in model.parameters():
        p.requires_grad_(False)
    return model, x * mask[..., None], mask, torch.where(mask, y, -1)


CLOSE = dict(atol=1e-4, rtol=1e-3)


@MORE
@given(transformers(), st.randoms())
def test_visits_are_an_unordered_set(given_, random):
    model, x, mask, _ = given_
    order = random.sample(range(x.shape[1]), x.shape[1])
    logits, share = model(x, mask, weights=True)
    mixed, mixed_share = model(x[:, order], mask[:, order], weights=True)
    torch.testing.assert_close(mixed, logits[:, order], **CLOSE)
    torch.testing.assert_close(mixed_share, share[..., order, :][..., order], **CLOSE)
    torch.testing.assert_close(model(x, mask), logits, **CLOSE)


@MORE
@given(transformers(times=st.integers(0, 1)), SEEDS)
def test_a_masked_visit_changes_only_its_absence(given_, seed):
    """What stands in it does not matter; without time embedding the row without it gives the
    same; a row that is masked everywhere gives zeros.
    """
    model, x, mask, _ = given_
    logits = model(x, mask)
    noise = 100 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(model(torch.where(mask[..., None], x, noise), mask), logits, **CLOSE)
    assert (logits[~mask] == 0).all() and torch.isfinite(logits).all()
    for row, m, own in zip(x, mask, logits):
        if m.any() and not model.config.n_times:
            torch.testing.assert_close(model(row[None, m], m[None, m])[0], own[m], **CLOSE)


@MORE
@given(transformers(times=st.integers(0, 1)))
def test_rows_do_not_know_each_other(given_):
    model, x, mask, _ = given_
    torch.testing.assert_close(
        torch.cat([model(a[None], m[None]) for a, m in zip(x, mask)]), model(x, mask), **CLOSE
    )


# ---- importance


def margin(model, x, mask, y):
    return la.models.attribution.set_answer(model(x, mask), y)


@FEW
@given(transformers(times=st.integers(0, 1), smooth=True))
def test_contributions_add_up(given_):
    "Integrated gradients are complete, and a visit that is not there contributes nothing."
    model, x, mask, y = given_
    c = la.models.integrated_gradients(model, x, mask, y, steps=256)
    change = margin(model, x, mask, y) - margin(model, 0 * x, mask, y)
    torch.testing.assert_close(c.sum((1, 2)), change, atol=1e-3, rtol=1e-3)
    assert (c[~mask] == 0).all()


@FEW
@given(transformers(times=st.integers(0, 1)), st.integers(1, 30), st.data())
def test_fast_knockouts_are_slow_ones(given_, at_once, data):
    model, x, mask, y = given_
    G = x.shape[2]
    groups = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=G, max_size=G), min_size=1, max_size=5))
    )
    groups[0] = True  # all genes at once

    def slowly(which):
        return torch.stack(
            [margin(model, x, mask, y) - margin(model, x * ~g, mask, y) for g in which], 1
        )

    torch.testing.assert_close(
        la.models.knockout(model, x, mask, y, at_once=at_once),
        slowly(torch.eye(G, dtype=torch.bool)),
        **CLOSE,
    )
    torch.testing.assert_close(
        la.models.knockout(model, x, mask, y, groups=groups, at_once=at_once),
        slowly(groups),
        **CLOSE,
    )
    assert not [
        h for m in model.modules() for h in m._forward_hooks
    ]  # nothing is left on the model


# ---- genes by name


@pytest.fixture(scope="module")
def fits():
    "One network per held-out pair of patients."
    data = made()
    return la.models.attribution.held_out_fits(
        small(data),
        data,
        la.models.attribution.fold_jobs(data, la.pp.patient_folds(data.patients, n_folds=3)),
        how=la.models.Training(epochs=5, device="cpu"),
    )[0]


def test_genes_in_another_order_give_the_same_predictions(fits):
    data = made()
    for other in (
        data.with_genes(data.genes[::-1]),
        replace(
            data,
            x=np.concatenate([data.x[..., :1] + 1, data.x], -1),
            genes=["another", *data.genes],
            level=None,
        ),
    ):
        for f in fits:
            np.testing.assert_array_equal(f.predict(other), f.predict(data))


@pytest.mark.parametrize(
    "genes,said",
    [
        (["G0", "G2"], "10 of the 12 genes"),
        (
            [f"G{i}" for i in range(12) if i not in (3, 7)],
            r"2 of the 12 genes that this model reads are not in the data \(10 genes\): G3, G7\.",
        ),
    ],
)
def test_missing_genes_are_named(genes, said, fits):
    data = made().with_genes(genes)
    for call in (
        fits[0].predict,
        fits[0].predict_proba,
        lambda d: la.models.attribution.contributions(fits[0], d),
        lambda d: la.models.attribution.score_fits(fits, d),
    ):
        with pytest.raises(ValueError, match=said):
            call(data)


def test_contributions_follow_the_genes_of_the_data(fits):
    "Columns are the genes of the sequences that are predicted, in their order."
    data = made()
    turned = data.with_genes(data.genes[::-1])
    for method in ("gradients", "knockout"):
        np.testing.assert_allclose(
            la.models.attribution.contributions(fits[0], turned, method=method),
            la.models.attribution.contributions(fits[0], data, method=method)[:, ::-1],
            atol=1e-5,
        )
    first = torch.arange(12)[None] < 4
    np.testing.assert_allclose(
        la.models.attribution.contributions(
            fits[0], turned, method="knockout", groups=first.flip(1)
        ),
        la.models.attribution.contributions(fits[0], data, method="knockout", groups=first),
        atol=1e-5,
    )


def test_a_ranking_of_trained_networks_names_the_right_genes(fits):
    data = made()
    a, b = (
        la.models.rank_genes(fits, d, nulls=2, halves=2, k=3).table.set_index("gene")[
            "log2_fold_change"
        ]
        for d in (data, data.with_genes(data.genes[::-1]))
    )
    np.testing.assert_allclose(a.sort_index(), b.sort_index())
    own = la.models.attribution.score_fits(fits, data)
    np.testing.assert_allclose(
        la.models.attribution.score_fits(fits, data.with_genes(data.genes[::-1])),
        own[::-1],
        atol=1e-5,
    )


# ---- files that cannot be trusted


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "A checkpoint as la.models.save writes it."
    data = made()
    return la.models.save(
        la.models.fit(small(data), data, epochs=2, device="cpu"),
        tmp_path_factory.mktemp("saved") / "model.pt",
    )


@pytest.fixture
def content(saved):
    return torch.load(saved, weights_only=True)


def rejected(path, said=""):
    "la.models.load refuses the file with a ValueError that names it."
    with pytest.raises(ValueError) as e:
        la.models.load(path)
    assert str(path) in str(e.value) and re.search(said, str(e.value)), e.value


def test_a_checkpoint_comes_back(saved):
    data = made()
    f = la.models.load(str(saved))
    assert (
        same(f, la.models.fit(small(data), data, epochs=2, device="cpu"))
        and f.genes == data.genes
        and not f.model.training
        and f.preprocessing == data.notes
    )
    pd.testing.assert_frame_equal(
        la.models.load(la.models.save(f, saved.parent / "again.pt")).history, f.history
    )


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        la.models.load(tmp_path / "nowhere.pt")


def test_a_checkpoint_cut_anywhere(saved, tmp_path):
    whole = saved.read_bytes()
    path = tmp_path / "cut.pt"
    for n in (0, 1, 4, 100, len(whole) // 2, len(whole) - 200, len(whole) - 1):
        path.write_bytes(whole[:n])
        rejected(path, "is not a longaml model; expected a file written by la.models.save")


@pytest.mark.parametrize(
    "write",
    [
        lambda p: p.write_text("gene,score\nFLT3,1\n"),
        lambda p: p.write_bytes(gzip.compress(b"x")),
        lambda p: p.mkdir(),
        lambda p: np.savez(p.open("wb"), a=np.arange(3)),
        lambda p: torch.save({"weights": {}}, p),
        lambda p: torch.save([1, 2], p),
        lambda p: torch.save(torch.zeros(3), p),
        lambda p: torch.save({"format": "longaml checkpoint 0"}, p),
        lambda p: torch.save({"format": 1}, p),
        lambda p: torch.save(
            la.models.TemporalTransformer(la.models.transformer.TransformerConfig(3, 2)), p
        ),
        lambda p: torch.save(nn.Linear(2, 2).state_dict(), p),
    ],
    ids=(
        "csv gzip folder npz no-format list tensor other-format number-format module state-dict"
    ).split(),
)
def test_other_files(write, tmp_path):
    write(tmp_path / "other.pt")
    rejected(
        tmp_path / "other.pt", "is not a longaml model; expected a file written by la.models.save"
    )


class Trap:
    "Makes a file where it is unpickled."

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class Trapped(nn.Linear):
    "A module with something in its luggage."

    def __getstate__(self):
        return self.__dict__ | {"more": Trap(self.path)}


def trapped(path):
    module = Trapped(2, 2)
    module.path = str(path)
    return module


@pytest.mark.parametrize(
    "how", ["pickle", "module", "state", "model", "config", "weights", "legacy"]
)
def test_no_code_of_a_file_is_run(how, content, tmp_path):
    sprung = tmp_path / "sprung"
    path = tmp_path / "trap.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Trap(sprung), protocol=2))
    elif how == "module":
        torch.save(trapped(sprung), path)
    elif how == "legacy":
        torch.save({**content, "model": Trap(sprung)}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({**content, how: Trap(sprung)}, path)
    rejected(path, "is not a longaml model")
    assert not sprung.exists()
    if how == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert sprung.exists()  # the trap was live


@pytest.mark.parametrize(
    "name", ["perceiver", "os", "transfomer", "../transformer", "", 3, ["transformer"]]
)
def test_only_registered_models_are_built(name, content, tmp_path):
    torch.save({**content, "model": name}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match="expected one of: bilstm"):
        la.models.load(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "change", [lambda c: c | {"colour": 1}, lambda c: {k: v for k, v in c.items() if k != "width"}]
)
def test_a_config_that_does_not_fit(change, content, tmp_path):
    torch.save({**content, "config": change(content["config"])}, tmp_path / "m.pt")
    rejected(tmp_path / "m.pt", "does not fit this version of transformer: (colour|width)")


def without(c, key):
    return {k: v for k, v in c.items() if k != key}


def weights(**change):
    return lambda c: (
        c | {"weights": {**c["weights"], **{k.replace("__", "."): v for k, v in change.items()}}}
    )


DAMAGED = {
    "no model": lambda c: without(c, "model"),
    "no config": lambda c: without(c, "config"),
    "no weights": lambda c: without(c, "weights"),
    "no genes": lambda c: without(c, "genes"),
    "no options": lambda c: without(c, "how"),
    "a config that is a list": lambda c: c | {"config": [1, 2]},
    "a width that is text": lambda c: c | {"config": c["config"] | {"width": "8"}},
    "a width for other heads": lambda c: c | {"config": c["config"] | {"width": 7}},
    "options unknown": lambda c: c | {"how": c["how"] | {"colour": 1}},
    "a ragged history": lambda c: c | {"history": {"epoch": [1], "train_loss": [1.0, 2.0]}},
    "weights of another shape": weights(head__weight=torch.zeros(3, 3)),
    "weights lacking": lambda c: c | {"weights": without(c["weights"], "head.weight")},
    "weights too many": weights(more=torch.zeros(1)),
    "weights that are not numbers": weights(head__weight=torch.full((2, 8), np.nan)),
    "genes too few": lambda c: c | {"genes": c["genes"][:5]},
}


@pytest.mark.parametrize("what", DAMAGED)
def test_inconsistent_checkpoints(what, content, tmp_path):
    torch.save(DAMAGED[what](content), tmp_path / "m.pt")
    rejected(tmp_path / "m.pt")


def test_a_checkpoint_with_flipped_bits(saved, content, tmp_path):
    "A few bytes in the middle of the weights: an .npz would notice by its CRC."
    whole = saved.read_bytes()
    part = content["weights"]["project.linear.weight"].numpy().tobytes()
    at = whole.index(part) + len(part) // 2
    (tmp_path / "m.pt").write_bytes(
        whole[:at] + bytes(b ^ 255 for b in whole[at : at + 8]) + whole[at + 8 :]
    )
    rejected(tmp_path / "m.pt")


# ---- gene sets

GMT = b"HYPOXIA\thttps://example.org\tVEGFA\tCA9\tVEGFA\nAPOPTOSIS\tna\tBAX\n"
SETS = {"HYPOXIA": ["VEGFA", "CA9"], "APOPTOSIS": ["BAX"]}


@pytest.mark.parametrize(
    "name,written",
    [
        ("a.gmt", GMT),
        ("a.gmt", GMT.rstrip(b"\n")),
        ("a.gmt", GMT.replace(b"\n", b"\r\n")),
        ("a.gmt", b"\n" + GMT.replace(b"\nAPO", b"\n\nAPO")),
        ("a.gmt", GMT.replace(b"BAX", b"BAX\t\t")),
        ("a.gmt.gz", gzip.compress(GMT)),
        ("a.gmt.gz", gzip.compress(GMT.replace(b"\n", b"\r\n"))),
    ],
    ids="plain no-last-newline crlf blank-lines empty-fields gz gz-crlf".split(),
)
def test_gmt(name, written, tmp_path):
    (tmp_path / name).write_bytes(written)
    assert (
        la.pp.gene_sets.read_gene_sets(tmp_path / name)
        == la.pp.gene_sets.read_gene_sets(str(tmp_path / name))
        == SETS
    )


@pytest.mark.parametrize(
    "written,said",
    [
        (b"", "a.gmt holds no gene sets"),
        (b"\n \n", "a.gmt holds no gene sets"),
        (b"HYPOXIA\n", r"line 1 of a.gmt has 1 tab-separated fields \(HYPOXIA\)"),
        (b"HYPOXIA VEGFA CA9\n", "line 1 of a.gmt has 1 tab"),
        (GMT + b"EMPTY\tna\n", "line 3 of a.gmt has 2 tab-separated fields"),
        (GMT + b"HYPOXIA\tna\tCA9\n", "line 3 of a.gmt repeats the gene set 'HYPOXIA'"),
        *((w, "at least one gene") for w in (b"HYPOXIA\tna\t\n", b"HYPOXIA\tna\t\t\n")),
    ],
    ids="empty blank one-column spaces two-columns repeated no-gene no-genes".split(),
)
def test_malformed_gmt(written, said, tmp_path):
    for name, data in (("a.gmt", written), ("a.gmt.gz", gzip.compress(written))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=said.replace("a.gmt", re.escape(name))):
            la.pp.gene_sets.read_gene_sets(tmp_path / name)


def test_gene_sets_of_other_names(tmp_path):
    (tmp_path / "a.gmt").write_bytes(GMT)
    with pytest.raises(ValueError, match="use the same gene names in both"):
        la.models.rank_genes("transformer", made(), method="knockout", groups=tmp_path / "a.gmt")
    with pytest.raises(FileNotFoundError, match="nowhere.gmt"):
        la.pp.gene_sets.read_gene_sets(tmp_path / "nowhere.gmt")


# ---- the benchmark


@pytest.mark.slow
def test_the_benchmark_agrees():
    "A small run of it: both sides in one process, a ratio, and the same networks."
    done = python("tests/benchmarks/bench_training.py", "--quick", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (
        re.search(r"^  ratio +\d+\.\d\d x less time$", done.stdout, re.M)
        and "1 of " in done.stdout.splitlines()[0]
    )
    differs, largest = map(
        float,
        re.search(
            r"largest difference of a logit (\S+) \(largest logit (\S+)\)", done.stdout
        ).groups(),
    )
    assert differs <= 1e-3 < 0.1 < largest
