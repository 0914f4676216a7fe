"""Gene modules from the weights of a bilinear MLP.

The form is exact, sparse rows are never filled, nulls keep what they should, and the command fills
its tables.
"""

import json

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
from longaml.models.training import Training
from longaml.pp.cells import Rows
from longaml.pp.preprocessing import normalize
from longaml.tasks.module_tests import permute_genes

FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 10**6)


def network(seed, genes, hidden, outputs, bias):
    torch.manual_seed(seed % 10**5)
    net = la.models.ScBMLP(
        la.models.scbmlp.ScBMLPConfig(
            genes, outputs, hidden=hidden, bias=bias, centred=bias, gain=1.0
        )
    ).double()
    if bias:
        torch.nn.init.normal_(net.constants)
        net.mean.normal_()
        net.scale.uniform_(0.5, 2)
        net.spread.uniform_(0.5, 2)
    return net


@given(seed=SEEDS, genes=st.integers(3, 40), hidden=st.integers(1, 6), bias=st.booleans())
@FEW
def test_the_form_is_the_network(seed, genes, hidden, bias):
    "Spectrum, vectors and output against the dense matrix, for any direction of outputs."
    net = network(seed, genes, hidden, 3, bias)
    u = rng_for(seed).normal(size=3)
    W, V, P = (t.detach().numpy() for t in (net.W, net.V, net.P))
    unit = (net.scale * net.spread).numpy()  # weights are read on genes over their spread
    Q = np.einsum("h,hi,hj->ij", u @ P, W * unit, V * unit)
    Q = (Q + Q.T) / 2
    form = la.models.interactions(net, u)
    dense = np.linalg.eigvalsh(Q)
    np.testing.assert_allclose(form.vectors @ np.diag(form.values) @ form.vectors.T, Q, atol=1e-5)
    np.testing.assert_allclose(
        np.sort(form.values),
        np.sort(dense[np.argsort(-np.abs(dense))[: len(form.values)]]),
        atol=1e-5,
    )
    x = torch.randn(9, genes, dtype=torch.float64)
    with torch.no_grad():
        said = net(x).numpy() @ u
    z = ((x - net.mean) / net.spread).numpy()
    np.testing.assert_allclose(form(z), said, atol=1e-5)
    if not bias:
        np.testing.assert_allclose(
            np.einsum("ni,ij,nj->n", x.numpy(), Q, x.numpy()), said, atol=1e-5
        )


@given(seed=SEEDS)
@FEW
def test_folding_the_output_into_the_maps_is_another_network(seed):
    net = network(seed, 12, 4, 2, False)
    W, V, p = net.W.detach().numpy(), net.V.detach().numpy(), net.P[0].detach().numpy()
    folded = np.einsum("h,hi,hj->ij", p**2, W, V)
    x = torch.randn(50, 12, dtype=torch.float64)
    with torch.no_grad():
        said = net(x)[:, 0].numpy()
    assert (
        np.abs(np.einsum("ni,ij,nj->n", x.numpy(), folded, x.numpy()) - said).max()
        > 1e-3 * np.abs(said).max()
    )


@given(seed=SEEDS, genes=st.integers(4, 30), block=st.integers(1, 40), n=st.integers(1, 12))
@FEW
def test_top_pairs_are_the_largest_of_the_dense_matrix(seed, genes, block, n):
    net = network(seed, genes, 3, 2, False)
    W, V, p = net.W.detach().numpy(), net.V.detach().numpy(), net.P[1].detach().numpy()
    Q = np.einsum("h,hi,hj->ij", p, W, V)
    all_pairs = np.abs((Q + Q.T)[np.triu_indices(genes, 1)])
    found = la.models.top_pairs(net, 1, n, block=block)
    np.testing.assert_allclose(found["interaction"].abs(), np.sort(all_pairs)[::-1][:n], atol=1e-9)
    assert (
        not found.duplicated(["gene_a", "gene_b"]).any()
        and (found["gene_a"] != found["gene_b"]).all()
    )


@given(seed=SEEDS, centred=st.booleans())
@FEW
def test_sparse_rows_are_the_filled_rows(seed, centred):
    "Products, gradients and moments of rows that are never filled."
    rng = rng_for(seed)
    x = sp.random(20, 12, 0.3, format="csr", dtype=np.float32, random_state=seed % 10**6)
    sample = rng.integers(0, 3, 20)
    means = (
        rng.normal(size=(3, 12)).astype(np.float32) if centred else np.zeros((3, 12), np.float32)
    )
    filled = x.toarray() - means[sample]
    rows = Rows(x, sample, torch.as_tensor(means) if centred else None)
    some = rng.integers(0, 20, 7)
    scale = rng.random(12).astype(np.float32)
    B = torch.as_tensor(rng.normal(size=(12, 4)).astype(np.float32)).requires_grad_()
    out = (rows[some] * torch.as_tensor(scale)) @ B
    np.testing.assert_allclose(
        out.detach().numpy(), (filled[some] * scale) @ B.detach().numpy(), atol=1e-4
    )
    out.square().sum().backward()
    want = 2 * (filled[some] * scale).T @ out.detach().numpy()
    np.testing.assert_allclose(B.grad.numpy(), want, atol=1e-3)
    w = rng.dirichlet(np.ones(20))
    mean, variance = rows.moments(torch.as_tensor(w))
    np.testing.assert_allclose(mean, w @ filled, atol=1e-5)
    np.testing.assert_allclose(variance, w @ filled**2 - (w @ filled) ** 2, atol=1e-4)


@given(seed=SEEDS)
@FEW
def test_permuted_genes_keep_every_stratum(seed):
    rng = rng_for(seed)
    x = rng.normal(size=(40, 5))
    strata = rng.integers(0, 4, 40)
    out = permute_genes(x, strata, rng)
    for s in range(4):
        np.testing.assert_array_equal(np.sort(out[strata == s], 0), np.sort(x[strata == s], 0))
    assert not np.array_equal(out, x)


@pytest.fixture(scope="module")
def cohort():
    return la.datasets.simulate_cohort(
        "small", seed=2, n_patients=6, n_cells=70, n_genes=120, n_drivers=6, composition=0.0
    )


def test_the_matrix_is_never_filled(cohort, monkeypatch):
    "Training and prediction on sparse cells, while filling a sparse matrix of genes is forbidden."
    cells = normalize(cohort)

    def forbidden(self, *a, **k):
        raise AssertionError("the matrix was filled")

    for kind in (sp.csr_matrix, sp.csr_array):
        monkeypatch.setattr(kind, "toarray", forbidden)
        monkeypatch.setattr(kind, "todense", forbidden)
    model = la.models.ScBMLPClassifier(
        hidden=4, how=Training(epochs=2, batch_size=64, device="cpu")
    ).fit(cells, "base_cell_type", groups="patient")
    assert set(model.predict(cells)) <= set(cells.obs["base_cell_type"].astype(str))


def test_a_network_survives_its_file(cohort, tmp_path):
    cells = normalize(cohort)
    model = la.models.ScBMLPClassifier(
        hidden=4, how=Training(epochs=2, batch_size=64, device="cpu")
    ).fit(cells, "base_cell_type", groups="patient")
    read = la.models.load(la.models.save(model.fitted, tmp_path / "scbmlp.pt"))
    a, b = (la.models.interactions(m, "T") for m in (model.fitted, read))
    np.testing.assert_array_equal(a.values, b.values)
    assert read.genes == list(cells.var_names) and a.output == b.output == "T"


def test_a_held_out_patient_is_not_seen(cohort):
    "Counts of a held-out patient may be anything: the same weights."
    cells = normalize(cohort)
    other = cells.copy()
    who = (cells.obs["patient"] == "AML1").to_numpy()
    X = other.X.toarray()
    X[who] = rng_for(0).random(X[who].shape)
    other.X = sp.csr_matrix(X)
    rest = sorted(set(cells.obs["patient"]) - {"AML1"})
    fits = [
        la.models.ScBMLPClassifier(hidden=4, how=Training(epochs=2, batch_size=64, device="cpu"))
        .fit(c, "base_cell_type", groups="patient", train=rest)
        .fitted
        for c in (cells, other)
    ]
    for a, b in zip(*(f.model.state_dict().values() for f in fits)):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def path(cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells = cohort[cohort.obs["base_cell_type"].isin(["T", "B", "Mono"]).to_numpy()].copy()
    cells.obs = pd.DataFrame(
        {
            "type": cells.obs["base_cell_type"].astype(str),
            "donor": cells.obs["patient"].astype(str),
            "lane": cells.obs["sample"].astype(str),
        }
    )
    del cells.uns["truth"]
    cells.write_h5ad(out)
    return out


ARGS = "--label-key type --patient-key donor --sample-key lane --nulls 3 --pair-genes 20".split()


@pytest.fixture(scope="module")
def run(path, tmp_path_factory):
    out = tmp_path_factory.mktemp("modules") / "out"
    assert main(["modules", str(path), *ARGS, "--out", str(out)]) == 0
    return out


def test_the_command_fills_its_tables(run):
    modules, pairs, evaluation = (
        pd.read_csv(run / f"{n}.csv") for n in ("modules", "pairs", "evaluation")
    )
    assert {"output", "module", "eigenvalue", "spectrum_share", "p_value", "gene", "weight"} <= set(
        modules.columns
    )
    assert {"output", "gene_a", "gene_b", "interaction", "p_value", "q_value"} <= set(pairs.columns)
    assert set(modules["output"]) == set(pairs["output"]) == {"T", "B", "Mono"}
    assert set(evaluation["model"]) == {"majority", "logistic", "scbmlp"} and np.allclose(
        evaluation.loc[evaluation["metric"] == "balanced_accuracy", "chance"], 1 / 3
    )
    each = evaluation[evaluation["unit"] != "all"]
    assert (each.groupby("model")["unit"].nunique() == 6).all() and set(each["metric"]) == {
        "accuracy"
    }  # the spread over patients
    whole = evaluation[(evaluation["unit"] == "all") & (evaluation["metric"] == "accuracy")]
    for model, accuracy in whole.set_index("model")["value"].items():
        own = each[each["model"] == model]
        assert np.average(own["value"], weights=own["cells"]) == pytest.approx(accuracy)
    assert "95% interval over patients" in "\n".join(
        json.loads((run / "run.json").read_text())["results"]["summary"]
    )
    for t in (modules, pairs):
        assert (
            t["p_value"].between(0, 1).all()
            and t["q_value"].between(0, 1).all()
            and (t["p_value"] > 0).all()
        )
    assert (modules.groupby(["output", "module"])["gene"].nunique() == 20).all()
    record = json.loads((run / "run.json").read_text())
    assert (
        record["status"] == "complete"
        and record["command"] == "modules"
        and len(list((run / "figures").glob("*.png"))) == 9
    )


@pytest.mark.slow  # every command has one driver; test_cohort_runs.py does this for run
def test_same_seed_same_tables_and_resume(run, path, tmp_path):
    again = tmp_path / "again"
    for extra in ([], ["--resume"]):
        assert main(["modules", str(path), *ARGS, "--out", str(again), *extra]) == 0
        for name in ("modules.csv", "pairs.csv", "evaluation.csv"):
            assert (again / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize(
    "args,said",
    [
        (["--label-key", "typ"], "Did you mean 'type'?"),
        (["--patient-key", "door"], "Did you mean 'donor'?"),
        (["--sample-key", "lan"], "Did you mean 'lane'?"),
        (["--pair-genes", "501"], "--pair-genes"),
        (["--nulls", "0"], "--nulls"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--label-key", "donor"], "all cells of a sample have the same donor"),
    ],
)
def test_wrong_options(args, said, path, tmp_path, capsys):
    assert main(["modules", str(path), *ARGS, "--out", str(tmp_path / "out"), *args]) == 2
    err = capsys.readouterr().err
    assert said in err and "_key=" not in err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_benchmark_agrees_with_itself():
    done = python("tests/benchmarks/bench_scbmlp.py", "--quick", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times" in done.stdout


def test_timepoints_are_distinguished_like_the_other_models():
    "Bags one by one, in the folds of every other model: better than patient and cell type."
    sets, proba, fits = la.tasks.timepoint.predict_timepoint(
        la.pp.bags(la.datasets.simulate_cohort("small", seed=2)),
        ("DX", "REL"),
        models=["majority", "patient_cell_type", "scbmlp"],
    )
    table = la.tasks.timepoint.evaluation_table(sets, proba)
    mean = table[table["metric"] == "balanced_accuracy"].groupby("model")["value"].mean()
    assert {"majority", "patient_cell_type", "scbmlp"} <= set(mean.index) and mean["scbmlp"] > mean[
        "patient_cell_type"
    ] + 0.1
    for f in fits["scbmlp"]:
        assert f.seen and f.genes == list(sets.genes)


def test_it_has_no_forecast(tmp_path, capsys):
    out = str(tmp_path / "out")
    args = ["run", "cohort", "--out", out, "--models", "scbmlp", "--task", "forecast"]
    assert main(args) == 2
    assert "scbmlp reads one bag at a time" in capsys.readouterr().err
    own = tmp_path / "mine.py"
    own.write_text(
        "from sklearn.linear_model import LogisticRegression\nPIPELINE = LogisticRegression()\n"
    )
    for named in ("logistic", f"{own}:PIPELINE"):  # would be fitted nowhere
        args[args.index("--models") + 1] = named
        assert main(args) == 2
        assert "has no task but timepoint" in capsys.readouterr().err
