"""Rank-token Transformer of cell types.

Tokens are those of a dense reference, files survive interruption, the network reads sets, and the
command gives the same model twice.
"""

import os
import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tools import ROOT, python

import longaml as la
from longaml.cli import main
from longaml.core import rng_for
from longaml.models.celltype import CELLTYPE_TRAINING
from longaml.pp import token_data as td
from longaml.pp.formats import read_h5ad
from longaml.pp.tokens import Cells

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 10**6)


def matrix(seed, cells, genes, most=4, density=0.4):
    "Counts with many ties."
    rng = rng_for(seed, "matrix")
    x = rng.integers(1, most + 1, (cells, genes)) * (rng.random((cells, genes)) < density)
    return sp.csr_matrix(x.astype(np.float32)), la.pp.tokens.Vocabulary(
        [f"g{i}" for i in range(genes)], rng.choice([0.5, 1.0, 2.0], genes)
    )


@given(seed=SEEDS, cells=st.integers(1, 8), genes=st.integers(2, 30), k=st.integers(1, 40))
@FEW
def test_rank_tokens_are_those_of_a_dense_sort(seed, cells, genes, k):
    "Largest value over median first, ties in the order of the vocabulary, unexpressed never."
    x, vocab = matrix(seed, cells, genes)
    got = la.pp.rank_tokens(x, vocab, k)
    for row, v in zip(got, x.toarray()):
        want = sorted(
            (g for g in range(genes) if v[g] > 0), key=lambda g: (-v[g] / vocab.medians[g], g)
        )[:k]
        assert row.tolist() == [g + 4 for g in want] + [0] * (k - len(want))


@given(seed=SEEDS, cells=st.integers(1, 6), genes=st.integers(2, 40), bins=st.integers(2, 20))
@FEW
def test_value_bins_are_quantiles_of_the_cell(seed, cells, genes, bins):
    x, _ = matrix(seed, cells, genes, most=9)
    got = la.pp.tokens.value_bins(x, bins)
    for a, b in zip(x.indptr[:-1], x.indptr[1:]):
        if a == b:
            continue
        v = np.log1p(x.data[a:b])
        edges = np.quantile(v, np.arange(1, bins) / bins, method="lower")
        assert (
            (got[a:b] == 1 + (v[:, None] > edges).sum(1)).all()
            and got[a:b].min() == 1
            and got[a:b].max() <= bins
        )


@given(seed=SEEDS, context=st.integers(2, 20), kind=st.sampled_from(["rank", "bin"]))
@FEW
def test_tokens_are_those_of_now_and_then_only(seed, context, kind):
    "Half of the context each; <SEP> straight after the present; padding only at the end."
    x, vocab = matrix(seed, 5, 25)
    then = sp.vstack([x[2:], sp.csr_matrix((2, 25), dtype=np.float32)]).tocsr()
    how = la.pp.Encoding(kind, context, bins=4, previous=True)
    out = la.pp.tokens.encode(x, vocab, how, then)
    words = out if kind == "rank" else out[:, 0]
    now, before = (la.pp.rank_tokens(m, vocab, context // 2) for m in (x, then))
    for row, a, b in zip(words, now, before):
        want = [1, *a[a > 0], 2, *b[b > 0]]
        assert row.tolist() == want + [0] * (how.width - len(want))
    if kind == "bin":
        assert ((out[:, 1] > 0) == (words > 3)).all()


def test_log_normalised_cells_get_the_same_tokens():
    adata = la.datasets.simulate_types("distinct", seed=1, n_patients=2, n_genes=240, cells=3)
    logged = ad.AnnData(Cells(adata).rows(slice(None)).log1p(), obs=adata.obs, var=adata.var)
    vocab = la.pp.vocabulary(adata)
    np.testing.assert_allclose(la.pp.vocabulary(logged).medians, vocab.medians, rtol=1e-4)
    a, b = (
        la.pp.token_data.token_data(x, vocab, la.pp.Encoding(context=100)).tokens
        for x in (adata, logged)
    )
    assert (np.sort(a, 1) == np.sort(b, 1)).mean() > 0.98 and (
        a == b
    ).mean() > 0.9  # ties may fall otherwise after rounding


def test_the_users_own_layer_is_the_timepoint_before():
    adata = la.datasets.simulate_types("distinct", seed=1, n_patients=2, n_genes=240, cells=3)
    adata.layers["previous"] = adata.X[::-1].copy()
    vocab = la.pp.vocabulary(adata)
    own = la.pp.token_data.token_data(
        adata, vocab, la.pp.Encoding(context=20, previous=True)
    ).tokens
    given_ = la.pp.token_data.token_data(
        adata,
        vocab,
        la.pp.Encoding(context=20, previous=True),
        previous=la.pp.tokens.Previous(
            Cells(adata).rows(slice(None))[::-1], np.arange(adata.n_obs), list(adata.var_names)
        ),
    ).tokens
    assert (own == given_).all()
    with pytest.raises(ValueError, match="make it from the same cells"):
        la.pp.token_data.token_data(
            adata[:5],
            vocab,
            la.pp.Encoding(context=20, previous=True),
            previous=la.pp.tokens.Previous(adata.X, np.arange(adata.n_obs), list(adata.var_names)),
        )


def test_the_bag_before_is_of_the_last_observed_visit():
    "A timepoint is missing in a patient: the link goes over the gap, never to the future."
    adata = la.datasets.simulate_types(
        "distinct", seed=2, n_patients=3, n_genes=240, cells=16, timepoints=("DX", "REM", "REL")
    )
    adata = adata[
        ~((adata.obs["patient"] == "P2") & (adata.obs["timepoint"] == "REM")).to_numpy()
    ].copy()
    before = la.pp.tokens.previous_bags(adata)
    rows = np.flatnonzero(before.code >= 0)
    found = pd.DataFrame(
        {
            "now": adata.obs["sample"].astype(str).to_numpy()[rows],
            "then": before.samples[before.code[rows]],
        }
    ).drop_duplicates()
    assert set(map(tuple, found.to_numpy())) == {
        ("P1_REM", "P1_DX"),
        ("P1_REL", "P1_REM"),
        ("P3_REM", "P3_DX"),
        ("P3_REL", "P3_REM"),
        ("P2_REL", "P2_DX"),
    }


def test_clones_that_name_the_type_are_refused():
    adata = la.datasets.simulate_types("distinct", seed=2, n_patients=4, n_genes=240, cells=9)
    adata.obs["clone"] = adata.obs["cell_type"]
    with pytest.raises(
        ValueError, match="bags of the timepoint before would be drawn by the label"
    ):
        la.models.CellTypeClassifier(previous=True).fit(adata, "cell_type", groups="patient")


@given(
    seed=SEEDS,
    heads=st.sampled_from([1, 2, 4]),
    depth=st.integers(1, 3),
    bins=st.sampled_from([0, 5]),
    previous=st.booleans(),
)
@FEW
def test_the_network_reads_sets(seed, heads, depth, bins, previous):
    "The order of genes within a segment, and padding, change nothing."
    torch.manual_seed(seed % 10**5)
    net = la.models.celltype.CellTypeTransformer(
        la.models.celltype.CellTypeConfig(
            40, 3, width=8, heads=heads, depth=depth, bins=bins, previous=previous, start=False
        )
    ).eval()
    torch.nn.init.normal_(net.linear.weight)
    genes = 4 + torch.randperm(40)[:14]
    words = torch.cat(
        [
            torch.tensor([1]),
            genes[:8],
            torch.tensor([2] * previous, dtype=torch.long),
            genes[8 : 8 + 6 * previous],
        ]
    )
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(8), torch.arange(9, len(words))])
    if previous:
        order = torch.cat([order[:10], 10 + torch.randperm(6)])
    value = torch.randint(1, 6, words.shape) * (words > 3)

    def said(at, pad=0):
        rows = torch.stack([words[at], value[at]])[None]
        rows = torch.nn.functional.pad(rows, (0, pad))
        with torch.no_grad():
            return net(rows if bins else rows[:, 0]).numpy()

    one = said(torch.arange(len(words)))
    np.testing.assert_allclose(said(order), one, atol=1e-4)
    np.testing.assert_allclose(said(torch.arange(len(words)), 9), one, atol=1e-4)


def written(path, adata, vocab, **how):
    return la.pp.open_tokens(
        la.pp.write_tokens(
            adata,
            path,
            vocab,
            la.pp.Encoding(context=30),
            label_key="cell_type",
            groups="patient",
            **how,
        )
    ).tokens


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_interrupted_writer_goes_on(tmp_path, monkeypatch, stop):
    "Interrupted in any chunk; the chunks that were whole are not made again."
    adata = la.datasets.simulate_types("distinct", seed=1, n_patients=2, n_genes=240, cells=5)
    vocab = la.pp.vocabulary(adata)
    kept = td.encode
    calls = []

    def counted(*a):
        if len(calls) == stop and not counted.resumed:
            raise KeyboardInterrupt
        calls.append(1)
        return kept(*a)

    counted.resumed = False
    monkeypatch.setattr(td, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "t", adata, vocab, chunk=20)
    with pytest.raises(FileNotFoundError):
        la.pp.open_tokens(tmp_path / "t")
    counted.resumed = True
    tokens = written(tmp_path / "t", adata, vocab, chunk=20)
    assert len(calls) == -(-adata.n_obs // 20)
    assert (tokens == written(tmp_path / "whole", adata, vocab)).all()


def test_a_half_written_file_of_other_cells_is_not_taken_up(tmp_path, monkeypatch):
    adata = la.datasets.simulate_types("distinct", seed=1, n_patients=2, n_genes=240, cells=5)
    vocab = la.pp.vocabulary(adata)
    kept = td.encode
    calls = []

    def stop(*a):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return kept(*a)

    monkeypatch.setattr(td, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "t", adata, vocab, chunk=20)
    other = adata[::-1].copy()
    assert (
        written(tmp_path / "t", other, vocab, chunk=20) == written(tmp_path / "whole", other, vocab)
    ).all()


def test_training_from_disk_is_training_from_memory(tmp_path):
    adata = la.datasets.simulate_types("distinct", seed=1, n_patients=4, n_genes=240, cells=4)

    def net(**given):
        return la.models.CellTypeClassifier(
            context=40, how=la.models.Training(**{**vars(CELLTYPE_TRAINING), "epochs": 3})
        ).fit(adata, "cell_type", groups="patient", **given)

    a, b = net(), net(folder=tmp_path / "tokens")
    pd.testing.assert_frame_equal(a.fitted.history, b.fitted.history)
    assert a.predict_proba(adata).equals(b.predict_proba(adata))


def test_nothing_is_fitted_on_groups_that_neither_train_nor_stop():
    """Medians, vocabulary and class weights do not see them, whatever they hold.

    Cells without a label are no obstacle to groups given as an array.
    """
    adata = la.datasets.simulate_types("distinct", seed=1, n_patients=4, n_genes=240, cells=4)
    other = adata.copy()
    away = (adata.obs["patient"] == "P4").to_numpy()
    factor = np.where(away, 1 + rng_for(0).integers(0, 50, adata.n_obs), 1)
    other.X = sp.csr_matrix(other.X.toarray() * factor[:, None])
    other.obs.loc[away, "cell_type"] = "A1"

    def net(a, groups="patient"):
        return (
            la.models.CellTypeClassifier(
                context=40, how=la.models.Training(**{**vars(CELLTYPE_TRAINING), "epochs": 1})
            )
            .fit(a, "cell_type", groups=groups, train=["P1", "P2"], valid=["P3"])
            .fitted
        )

    a, b = net(adata), net(other)
    assert (
        a.genes == b.genes
        and a.preprocessing["medians"] == b.preprocessing["medians"]
        and a.history.equals(b.history)
    )
    missing = adata.copy()
    missing.obs.loc[away, "cell_type"] = np.nan
    assert net(missing, groups=missing.obs["patient"].astype(str).to_numpy()).history.equals(
        a.history
    )


def test_an_epoch_reads_every_row_once():
    data = la.pp.token_data.token_data(
        la.datasets.simulate_types("distinct", seed=1, n_patients=2, n_genes=240, cells=9),
        la.pp.tokens.Vocabulary([f"G{i:03d}" for i in range(240)], np.ones(240)),
        la.pp.Encoding(context=10),
    )
    data.block = 4
    data.window = 3
    first = data.order(1)
    second = data.order(2)
    assert (
        sorted(first) == sorted(second) == list(range(len(data)))
        and not (first == second).all()
        and (data.order(1) == first).all()
    )
    assert (
        max(np.ptp(part // 4) for part in np.array_split(first, len(first) // 12)) > 3
    )  # windows mix blocks from everywhere
    rows = data.batch(np.arange(len(data)))["tokens"]
    assert (rows[first[:7]].numpy() == data.tokens[first[:7]]).all()


# ------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    adata = la.datasets.simulate_types("distinct", seed=5, n_patients=5, n_genes=240, cells=4)
    adata.write_h5ad(folder / "cells.h5ad")
    adata[adata.obs["patient"] == "P1"].write_h5ad(folder / "new.h5ad")
    return folder


TRAIN = "--label-key cell_type --donor-key patient --context 60 --folds 2 --epochs 2"


def command(line):
    "The exit status of `longaml` with these options."
    return main(line.split())


def train(cells, out, *more):
    return command(f"celltype train {cells}/cells.h5ad --out {out} {TRAIN} {' '.join(more)}")


@pytest.fixture(scope="module")
def model(cells, tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "out"
    assert train(cells, out) == 0
    return out


def test_tables(model):
    e, p = pd.read_csv(model / "evaluation.csv"), pd.read_csv(model / "predictions.csv")
    assert set(e["model"]) == {
        "majority",
        "centroid",
        "logistic",
        "logistic_balanced",
        "transformer",
        "transformer_prior",
    } and set(e["metric"]) == {
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "recall",
        "recall_low",
        "recall_high",
    }
    assert set(e["unit"]) == {"all", *[f"P{i}" for i in range(1, 6)]}
    wide = e[(e["class"] == "all") & (e["unit"] == "all") & (e["metric"] == "accuracy")].set_index(
        "model"
    )["value"]
    assert wide["transformer"] > wide["majority"] + 0.3 and wide["logistic"] > 0.9
    assert (p.groupby("model").size() == len(set(p["cell"]))).all() and p["probability"].between(
        0, 1.000001
    ).all()
    assert sorted(x.name for x in model.iterdir()) == [
        "calibration.csv",
        "evaluation.csv",
        "figures",
        "model.pt",
        "predictions.csv",
        "report.html",
        "run.json",
        "steps",
        "steps.json",
        "timings.json",
    ]


def test_annotate(cells, model, tmp_path, capsys):
    capsys.readouterr()
    assert (
        command(
            f"celltype annotate {cells}/new.h5ad --model {model} --out {tmp_path}/named.h5ad "
            "--threshold 0.4"
        )
        == 0
    )
    assert (
        "cells named by a model of 6 types; 240 of its 240 genes are in the data"
        in capsys.readouterr().out
    )
    named, plain = ad.read_h5ad(tmp_path / "named.h5ad"), ad.read_h5ad(cells / "new.h5ad")
    assert (named.X != plain.X).nnz == 0 and list(named.obs.columns[:5]) == list(
        plain.obs.columns[:5]
    )
    assert (
        (named.obs["celltype_predicted"] == "unknown") == (named.obs["celltype_probability"] < 0.4)
    ).all()
    known = (named.obs["celltype_predicted"] != "unknown").to_numpy()
    assert (named.obs["celltype_predicted"].astype(str) == named.obs["cell_type"].astype(str))[
        known
    ].mean() > 0.8
    assert (
        command(f"celltype annotate {cells}/new.h5ad --model {model} --out {tmp_path}/named.h5ad")
        == 2
    )
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_annotate_by_how_common_types_are(cells, model, tmp_path, capsys):
    "Bayes' rule: probabilities move by the shares of the training cells, where it is asked for."
    new = ad.read_h5ad(cells / "new.h5ad")
    shares = ad.read_h5ad(cells / "cells.h5ad").obs["cell_type"].value_counts(normalize=True)
    alike, common = (
        la.models.celltype.celltype_proba(model, new, prior=p) for p in ("balanced", "training")
    )
    expected = alike * shares.reindex(alike.columns).to_numpy()
    assert np.allclose(common, expected.div(expected.sum(axis=1), axis=0), atol=1e-5)
    assert (
        command(
            f"celltype annotate {cells}/new.h5ad --model {model} --out {tmp_path}/n.h5ad "
            "--prior training"
        )
        == 0
    )
    assert np.allclose(
        ad.read_h5ad(tmp_path / "n.h5ad").obs["celltype_probability"], common.max(axis=1), atol=1e-5
    )
    capsys.readouterr()
    assert (
        command(
            f"celltype annotate {cells}/new.h5ad --model {model} --out {tmp_path}/m.h5ad "
            "--prior trained"
        )
        == 2
    )
    assert (
        "expected one of: balanced, training" in capsys.readouterr().err
        and not (tmp_path / "m.h5ad").exists()
    )


@pytest.mark.parametrize("prior", [{"A1": 1.0}, {"nobody": 1.0}, "same"])
def test_a_prior_that_names_other_types_is_refused(cells, model, prior):
    with pytest.raises(ValueError, match="prior"):
        la.models.celltype.celltype_proba(model, ad.read_h5ad(cells / "new.h5ad"), prior=prior)


def test_common_types_win_what_is_doubtful():
    """Two types that overlap, nine cells of one for one of the other.

    With the shares of the training cells more predictions are right; with types alike the rare one
    is found more often, as for logistic regression.
    """
    adata = la.datasets.simulate_types(
        "distinct", seed=8, n_patients=8, n_pairs=1, n_genes=160, cells=60, effect=0.25
    )
    rare = adata.obs["cell_type"] == adata.obs["cell_type"].cat.categories[0]
    keep = ~rare.to_numpy() | (np.arange(adata.n_obs) % 9 == 0)
    cells = la.pp.cells.labelled_cells(adata[keep].copy(), label_key="cell_type")
    away = cells.obs["patient"].isin(["P1", "P2", "P3"]).to_numpy()
    said = la.tasks.celltype.judge_celltypes(
        cells[~away],
        cells[away],
        models=["majority", "logistic", "logistic_balanced", "transformer", "transformer_prior"],
        settings={
            "context": 128,
            "how": la.models.Training(**{**vars(CELLTYPE_TRAINING), "epochs": 6}),
        },
    )
    s = la.tasks.celltype.celltype_scores(said).query("unit == 'all'")
    whole = s[s["class"] == "all"].pivot(index="model", columns="metric", values="value")
    assert (
        whole.loc["transformer_prior", "accuracy"] > whole.loc["transformer", "accuracy"]
        and whole.loc["logistic", "accuracy"] > whole.loc["logistic_balanced", "accuracy"]
    )
    assert (
        whole.loc["transformer", "balanced_accuracy"]
        > whole.loc["transformer_prior", "balanced_accuracy"]
    )
    error = la.tasks.cells.calibration_error(la.tasks.cells.calibration_table(said))
    assert (
        error["transformer_prior"] < error["transformer"]
    )  # these cells are as common as the training cells were
    assert list(la.tasks.celltype.like_for_like(said)["compared_with"]) == [
        "logistic",
        "logistic_balanced",
    ]


def test_places_through_the_command(cells, tmp_path):
    assert command(f"celltype train {cells}/cells.h5ad --out {tmp_path}/m {TRAIN} --positions") == 0
    net = la.models.load(tmp_path / "m" / "model.pt").model
    assert net.config.positions and tuple(net.places.weight.shape) == (
        net.config.positions,
        net.config.width,
    )
    e = (
        pd.read_csv(tmp_path / "m" / "evaluation.csv")
        .query("unit == 'all' and metric == 'accuracy'")
        .set_index("model")["value"]
    )
    assert e["transformer"] > e["majority"] + 0.3


def test_positions_distinguish_what_presence_cannot():
    "Two types, the same genes in another order: presence predicts at chance, positions do not."
    rng = np.random.default_rng(0)
    n, genes = 240, 40
    y = np.repeat(["a", "b"], n // 2)
    mean = np.where((y == "a")[:, None] == (np.arange(genes) < 20)[None], 60, 20)
    x = rng.poisson(mean) + 1  # every gene is there in every cell
    adata = ad.AnnData(
        sp.csr_matrix(x.astype(np.float32)),
        obs=pd.DataFrame(
            {"label": y, "patient": np.tile([f"P{i}" for i in range(6)], n // 6)},
            index=[f"c{i}" for i in range(n)],
        ),
        var=pd.DataFrame(index=[f"G{i}" for i in range(genes)]),
    )
    cells = la.pp.cells.labelled_cells(adata, label_key="label")
    away = cells.obs["patient"].isin(["P0", "P1"]).to_numpy()
    how = la.models.Training(**{**vars(CELLTYPE_TRAINING), "epochs": 3})
    right = {}
    for places in (False, True):
        said = la.tasks.celltype.judge_celltypes(
            cells[~away],
            cells[away],
            models=["transformer"],
            settings={"context": genes, "positions": places, "token_dropout": 0.0, "how": how},
        )
        right[places] = (said["truth"] == said["predicted"]).mean()
    assert right[True] > 0.9 and right[False] < 0.7


def test_genes_that_the_model_does_not_know_are_counted(cells, model, tmp_path, capsys):
    odd = ad.read_h5ad(cells / "new.h5ad")[:, :100].copy()
    odd.var_names = [*odd.var_names[:90], *[f"new{i}" for i in range(10)]]
    odd.write_h5ad(tmp_path / "odd.h5ad")
    capsys.readouterr()
    assert (
        command(
            f"celltype annotate {tmp_path}/odd.h5ad --model {model} --out {tmp_path}/named.h5ad"
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "90 of its 240 genes are in the data" in said and "do not trust these names" in said


@pytest.mark.slow  # every command has one driver; test_cohort_runs.py does this for run
def test_killed_in_the_last_training_and_resumed(cells, model, tmp_path):
    "SIGKILL after an epoch of the kept model: the same model and the same tables come out."
    out = tmp_path / "out"
    code = """
import sys, time, longaml.models.training as t
kept = t._Progress.add
def slow(self, *a):
    kept(self, *a)
    if self.path: time.sleep(1)
t._Progress.add = slow
from longaml.cli import main
sys.exit(main(sys.argv[1:]))
"""
    run = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "celltype",
            "train",
            str(cells / "cells.h5ad"),
            "--out",
            str(out),
            *TRAIN.split(),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 180
    while not (out / "training.part.pt").exists() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert (out / "training.part.pt").exists() and not (out / "model.pt").exists()
    assert train(cells, out, "--resume") == 0
    for name in ("evaluation.csv", "predictions.csv", "calibration.csv"):
        assert (out / name).read_bytes() == (model / name).read_bytes()
    a, b = la.models.load(out / "model.pt"), la.models.load(model / "model.pt")
    assert all(
        torch.equal(x, y)
        for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values())
    )
    assert (
        a.history.equals(b.history)
        and a.preprocessing["temperature"] == b.preprocessing["temperature"]
    )
    assert not list(out.glob("training*")) and not (out / "tokens").exists()


@pytest.mark.parametrize(
    "args, said",
    [
        (["--label-key", "celltype"], "Did you mean 'cell_type'?"),
        (["--label-key", "cell_type", "--encoding", "ranks"], "expected one of: rank, bin"),
        (["--label-key", "cell_type", "--donor-key", "donor"], "no patient column 'donor'"),
        (["--label-key", "cell_type", "--timepoints", "DX,REL"], "with --previous only"),
        (["--label-key", "cell_type", "--use-rep", "X_pca"], "key of obsm is 'X_pca'"),
        (
            ["--label-key", "cell_type", "--previous", "--clone-key", "cell_type"],
            "gives its cell_type away",
        ),
    ],
)
def test_mistakes_leave_nothing(cells, tmp_path, capsys, args, said):
    assert (
        main(
            ["celltype", "train", str(cells / "cells.h5ad"), "--out", str(tmp_path / "out"), *args]
        )
        == 2
    )
    told = capsys.readouterr().err
    errors = [line for line in told.splitlines() if "warning: " not in line]
    assert said in told and len(errors) == 1 and not (tmp_path / "out").exists()


def test_the_timepoint_before_through_the_command(tmp_path, capsys):
    "Types that converge are distinguished with the clone's earlier cells, in held-out donors."
    adata = la.datasets.simulate_types(
        "ambiguous", seed=6, n_patients=6, n_genes=240, n_pairs=2, cells=10
    )
    adata.write_h5ad(tmp_path / "c.h5ad")
    visits = "--timepoint-key timepoint --timepoints DX,REL --clone-key clone"
    how = f"--patient-key patient {visits}"
    assert (
        command(
            f"celltype train {tmp_path}/c.h5ad --label-key cell_type --donor-key patient "
            f"--previous {visits} --context 200 --folds 2 --epochs 3 --out {tmp_path}/m"
        )
        == 0
    )
    p = pd.read_csv(tmp_path / "m" / "predictions.csv")
    late = p["cell"].str.contains("_REL:")
    right = (p["truth"] == p["predicted"])[late].groupby(p["model"]).mean()
    assert (
        right["transformer"] > right["transformer_base"] + 0.15
        and right["logistic_previous"] > right["logistic"] + 0.15
    )
    assert abs(right["clone"] - 0.25) < 0.15  # the names of clones give nothing away
    assert (
        command(
            f"celltype annotate {tmp_path}/c.h5ad --model {tmp_path}/m {how} --out "
            f"{tmp_path}/n.h5ad"
        )
        == 0
    )
    named = ad.read_h5ad(tmp_path / "n.h5ad").obs
    assert (named["celltype_predicted"].astype(str) == named["cell_type"].astype(str))[
        (named["timepoint"] == "REL").to_numpy()
    ].mean() > 0.7


def test_kang_with_few_tokens(shared_data):
    "Real cells, control to stimulated, 64 genes a cell: far above the majority, and calibrated."
    kang = read_h5ad(shared_data / "kang_ifnb.h5ad")
    parts = [
        la.pp.cells.labelled_cells(
            kang[(kang.obs["condition"] == c).to_numpy()].copy(), label_key="cell_type"
        )
        for c in ("control", "stimulated")
    ]
    said = la.tasks.celltype.judge_celltypes(
        *parts,
        models=["majority", "logistic", "transformer"],
        settings={
            "context": 64,
            "how": la.models.Training(**{**vars(CELLTYPE_TRAINING), "epochs": 6}),
        },
    )
    right = (said["truth"] == said["predicted"]).groupby(said["model"]).mean()
    assert right["transformer"] > right["majority"] + 0.25
    assert (
        la.tasks.cells.calibration_error(la.tasks.cells.calibration_table(said))["transformer"]
        < 0.15
    )


@pytest.mark.slow
def test_benchmark():
    done = python("tests/benchmarks/bench_tokens.py", "--quick", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tokens agree" in done.stdout and done.stdout.count("one epoch of") == 2
