"Perturbations: nothing leaks, the closed form is a minimum, the command fills its tables."

import json
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
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from tools import ROOT, python

import longaml as la
from longaml.cli import main
from longaml.core import rng_for
from longaml.models.contract import fresh, names, spec, specs
from longaml.models.lgem import LGEMConfig, solve_lgem
from longaml.models.perturbation import (
    PerturbationConfig,
    PerturbationTransformer,
    perturbation_loss,
)
from longaml.models.response_scores import held_out_responses
from longaml.models.responses import MeanResponse, perturbation_folds

FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 10**6)
TINY = dict(
    n_genes=60,
    n_regulators=10,
    n_programmes=3,
    n_pairs=10,
    n_cells=25,
    n_control=120,
    umis=600,
    not_read=1,
    unmeasured=2,
    unexpressed=3,
)
SIMPLE = {s.name: s.make for s in specs("perturbation", kind="baseline")}
PREDICTORS = {
    **SIMPLE,
    "lgem": lambda: la.models.LinearResponse(missing="mean"),
    "lgem trained": lambda: la.models.LinearResponse(
        k=3,
        ridge=0.1,
        variant="learnable_nonlinear",
        missing="mean",
        how=la.models.Training(epochs=3, device="cpu"),
    ),
}


@pytest.fixture(scope="module")
def screen():
    return la.datasets.simulate_perturbseq("small", seed=3, **TINY)


@pytest.fixture(scope="module")
def learn(screen):
    return la.pp.pseudobulk_perturbations(la.pp.perturbations.control_halves(screen)[0])


@pytest.mark.parametrize("name", PREDICTORS)
@settings(FEW, max_examples=4)
@given(seed=SEEDS)
def test_a_held_out_change_is_not_seen(name, learn, seed):
    "Whatever a held-out perturbation did, its own prediction stays the same to the last bit."
    fold = perturbation_folds(learn.obs_names, seed=seed % 7)[0]
    other = learn.copy()
    held = np.isin(learn.obs_names, list(fold.test))
    for layer in other.layers:
        other.layers[layer][held] = 100 * rng_for(seed).normal(size=(held.sum(), learn.n_vars))
    a, b = (held_out_responses(PREDICTORS[name], x, [fold])[0] for x in (learn, other))
    pd.testing.assert_frame_equal(a, b)


def quick(**options):
    return la.models.CrossAttention(
        **{"epochs": 2, "max_bags": 1, "width": 8, "missing": "mean", "device": "cpu", **options}
    )


@settings(FEW, max_examples=3)
@given(seed=SEEDS)
def test_cross_attention_never_meets_a_held_out_cell(screen, learn, seed):
    "Counts and changes of what is held out may be anything: the same predictions to the last bit."
    fold = perturbation_folds(learn.obs_names, seed=seed % 7)[0]
    spoilt = screen.copy()
    other = learn.copy()
    held = np.isin(learn.obs_names, list(fold.test))
    rows = screen.obs["perturbation"].isin(list(fold.test)).to_numpy()
    X = spoilt.X.toarray()
    X[rows] = rng_for(seed).poisson(5, X[rows].shape)
    spoilt.X = sp.csr_matrix(X)
    for layer in other.layers:
        other.layers[layer][held] = 100 * rng_for(seed).normal(size=(held.sum(), learn.n_vars))
    a, b = (
        held_out_responses(quick, x, [fold], cells=c)[0]
        for x, c in ((learn, screen), (other, spoilt))
    )
    pd.testing.assert_frame_equal(a, b)


@given(seed=SEEDS)
@FEW
def test_masked_genes_count_for_nothing(seed):
    """What stands in an unmeasured gene changes neither prediction nor loss, and gets no gradient.

    Nor do its row of the embedding (unless perturbed) and of the readout.
    """
    torch.manual_seed(seed % 1000)
    rng = rng_for(seed)
    config = PerturbationConfig(n_genes=7, members=2, width=8, dropout=0.0)
    net = PerturbationTransformer(config)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.as_tensor(rng.random((5, 7)), dtype=torch.float32)
    y = torch.as_tensor(rng.random((5, 7)), dtype=torch.float32)
    measured = torch.ones(5, 7, dtype=torch.bool)
    measured[:, [2, 4]] = False
    tokens = torch.as_tensor(rng.choice([0, 1, 3, 5, 6], (5, 2)))
    other = torch.where(measured, x, torch.as_tensor(50 * rng.random((5, 7)), dtype=torch.float32))
    x.requires_grad_()
    out = net(x, measured, tokens)
    assert torch.equal(out, net(other, measured, tokens))
    perturbation_loss(out, {"change": y, "measured": measured}).sum().backward()
    assert x.grad[~measured].abs().max() == 0
    assert x.grad[measured].abs().max() > 0
    assert net.readout.grad[[2, 4]].abs().max() == 0
    assert net.offset.grad[[2, 4]].abs().max() == 0


@given(seed=SEEDS)
@FEW
def test_the_order_of_members_does_not_matter(seed):
    torch.manual_seed(seed % 1000)
    net = PerturbationTransformer(PerturbationConfig(n_genes=9, members=3, width=8)).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.rand(4, 9)
    tokens = torch.as_tensor(rng_for(seed).permutation(9)[None, :3]).repeat(4, 1)
    with torch.no_grad():
        one = net(x, x >= 0, tokens)
        other = net(x, x >= 0, tokens[:, [2, 0, 1]])
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_cross_attention_knows_whom_it_does_not_know(screen, learn, tmp_path):
    model = quick().fit(learn, screen)
    read = next(g for g in learn.var_names if g.startswith("GENE"))
    assert list(model.flagged(["NOBODY", f"{read}+NOBODY", read])) == [True, True, False]
    np.testing.assert_allclose(
        model.predict(["NOBODY"]),
        MeanResponse().fit(learn).predict(["NOBODY"]),
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="NOBODY"):
        quick(missing="error").fit(learn, screen).predict([f"{read}+NOBODY"])
    restored = la.models.load(la.models.save(model.fitted, tmp_path / "cross.pt"))
    np.testing.assert_array_equal(restored.predict(model.pairs), model.fitted.predict(model.pairs))


QUICK = {"cross_attention": {"epochs": 1, "max_bags": 1, "width": 8, "device": "cpu"}}


@pytest.mark.parametrize("name", names("perturbation"))
def test_every_registered_predictor_keeps_the_contract(name, screen, learn):
    "Predictions of the right shape, the same from the same seed, whatever was fitted before."
    model = spec(name, "perturbation")
    fold = perturbation_folds(learn.obs_names, genes=learn.var_names)[0]
    asked = list(fold.test)

    def predicted(unfitted):
        return unfitted.fit(learn[fold.train].copy(), screen, seed=3).predict(asked)

    made = model.make(**QUICK.get(name, {}))
    before = repr(made)
    again = fresh(made)
    table = predicted(made)
    assert repr(again) == before
    assert list(table.index) == asked
    assert list(table.columns) == list(learn.var_names)
    assert np.isfinite(table.to_numpy()).all()
    pd.testing.assert_frame_equal(table, predicted(again))
    assert made.flagged(asked).shape == (len(asked),)
    assert model.title and model.sentence and model.citation


@pytest.mark.parametrize(
    "name", [*SIMPLE, "lgem"]
)  # the initial weights of a trained one follow the order of genes
def test_predictors_do_not_care_about_the_order(name, learn):
    "Perturbations and genes in another order: the same predictions."
    fold = perturbation_folds(learn.obs_names)[0]
    rng = rng_for(5)
    moved = learn[rng.permutation(learn.n_obs)][:, rng.permutation(learn.n_vars)].copy()
    asked = list(fold.test)
    a = PREDICTORS[name]().fit(learn[fold.train].copy()).predict(asked)
    b = (
        PREDICTORS[name]()
        .fit(moved[[p for p in moved.obs_names if p in fold.train]].copy())
        .predict(asked[::-1])
        .loc[asked, a.columns]
    )
    np.testing.assert_allclose(a, b, atol=1e-8)


@given(
    seed=SEEDS,
    genes=st.integers(4, 30),
    perturbations=st.integers(3, 12),
    k=st.integers(1, 3),
    size=st.integers(1, 3),
)
@FEW
def test_closed_form_is_kronecker_least_squares(seed, genes, perturbations, k, size):
    rng = rng_for(seed)
    Y = rng.normal(size=(genes, perturbations))
    G = rng.normal(size=(genes, k))
    P = rng.normal(size=(perturbations, size))
    assume(np.linalg.cond(G) < 50 and np.linalg.cond(P) < 50)
    whole = np.linalg.lstsq(np.kron(G, P), Y.ravel(), rcond=None)[0].reshape(k, size)
    np.testing.assert_allclose(solve_lgem(Y, G, P, ridge=0), whole, atol=1e-6)


@given(seed=SEEDS, lg=st.floats(0.01, 100), lp=st.floats(0.01, 100))
@FEW
def test_closed_form_is_the_minimum_of_its_penalty(seed, lg, lp):
    "The gradient of the stated loss is zero there, and the loss is convex."
    rng = rng_for(seed)
    Y, G, P = (torch.as_tensor(rng.normal(size=s)) for s in ((25, 9), (25, 4), (9, 3)))
    W = torch.as_tensor(
        solve_lgem(Y.numpy(), G.numpy(), P.numpy(), ridge=(lg, lp))
    ).requires_grad_()
    loss = (
        ((Y - G @ W @ P.T) ** 2).sum()
        + lp * ((G @ W) ** 2).sum()
        + lg * ((W @ P.T) ** 2).sum()
        + lg * lp * (W**2).sum()
    )
    loss.backward()
    assert float(W.grad.abs().max()) < 1e-9 * (1 + lg) * (1 + lp) * float(Y.abs().sum())


@given(seed=SEEDS, alpha=st.floats(0.01, 100))
@FEW
def test_closed_form_is_ridge_on_either_side(seed, alpha):
    rng = rng_for(seed)
    Y = rng.normal(size=(20, 7))
    G = rng.normal(size=(20, 3))
    P = rng.normal(size=(7, 4))
    ridge = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky")
    of_genes = solve_lgem(Y, G, np.eye(7), ridge=(alpha, 0))
    np.testing.assert_allclose(of_genes, ridge.fit(G, Y).coef_.T, atol=1e-6)
    of_perturbations = solve_lgem(Y, np.eye(20), P, ridge=(0, alpha))
    np.testing.assert_allclose(of_perturbations, ridge.fit(P, Y.T).coef_, atol=1e-6)


@given(seed=SEEDS)
@settings(FEW, max_examples=6)
def test_network_and_matrix_are_equal(seed):
    rng = rng_for(seed)
    G = rng.normal(size=(30, 4))
    P = rng.normal(size=(8, 3))
    W = rng.normal(size=(4, 3))
    b = rng.normal(size=30)
    net = la.models.lgem.LGEM(LGEMConfig(30, 4, 3)).double().started(G, W)
    net.b.copy_(torch.as_tensor(b))
    with torch.no_grad():
        out = net(torch.as_tensor(P)).numpy()
    np.testing.assert_allclose(out, (G @ W @ P.T).T + b, atol=1e-12)


def test_a_trained_lgem_survives_its_file(learn, tmp_path):
    model = la.models.LinearResponse(
        k=3,
        ridge=0.1,
        variant="learnable",
        missing="mean",
        how=la.models.Training(epochs=3, device="cpu"),
    ).fit(learn)
    fitted = next(iter(model.parts.values())).fitted
    read = la.models.load(la.models.save(fitted, tmp_path / "lgem.pt"))
    assert read.genes == list(learn.var_names)
    p = torch.randn(5, 3)
    with torch.no_grad():
        assert torch.equal(read.model(p), fitted.model(p))


@given(seed=SEEDS, n_folds=st.integers(2, 8))
@FEW
def test_folds_hold_genes_out(seed, n_folds):
    rng = rng_for(seed)
    genes = [f"G{i}" for i in range(9)]
    names = sorted(
        {"+".join(sorted(rng.permutation(genes)[: rng.integers(1, 4)])) for _ in range(30)}
        | set(genes)
    )
    folds = perturbation_folds(names, n_folds=n_folds, seed=seed)
    held = [g for f in folds for g in f.held]
    assert sorted(held) == genes  # every gene once
    for f in folds:
        assert sorted([*f.train, *f.test]) == names  # nothing is lost
        for p in f.train:
            assert not f.held & set(p.split("+"))  # nothing that hits a held-out gene trains
        for p, s in f.test.items():
            seen = [m not in f.held for m in p.split("+")]
            if len(seen) == 1:
                assert s == "single" and not seen[0]
            else:
                assert s == (
                    "combination_both_seen"
                    if all(seen)
                    else "combination_one_seen"
                    if any(seen)
                    else "combination_none_seen"
                )


@given(seed=SEEDS)
@settings(FEW, max_examples=5)
def test_pseudobulk_does_not_care_about_the_order_of_cells(screen, seed):
    "Control draws differ, so changes differ by noise only; what has no draws is the same."
    moved = screen[rng_for(seed).permutation(screen.n_obs)].copy()
    a = la.pp.pseudobulk_perturbations(screen)
    b = la.pp.pseudobulk_perturbations(moved)
    assert list(a.obs_names) == list(b.obs_names)
    np.testing.assert_allclose(a.layers["z"], b.layers["z"], atol=1e-8)
    np.testing.assert_allclose(a.var["control"], b.var["control"], atol=1e-5)
    assert np.nanmean(np.abs(a.layers["change"] - b.layers["change"])) < 0.5 * np.nanmean(
        np.abs(a.layers["change"])
    )


def test_log_normalised_values_are_taken_as_they_are(screen):
    "A screen of normalised values: the change is the difference of means."
    import scanpy as sc

    one = screen[(screen.obs["batch"] == "batch1").to_numpy()].copy()
    del one.varm["measured"]
    sc.pp.normalize_total(one, target_sum=1e4)
    sc.pp.log1p(one)
    read = la.pp.as_perturbseq(one)
    assert read.uns["longaml"]["input_kind"] == "lognorm"
    bulk = la.pp.pseudobulk_perturbations(read, min_cells=1)
    p = bulk.obs_names[0]
    want = np.asarray(
        one[(one.obs["perturbation"] == p).to_numpy()].X.mean(0)
        - one[(one.obs["perturbation"] == "control").to_numpy()].X.mean(0)
    ).ravel()
    np.testing.assert_allclose(bulk[p].layers["change"][0], want, atol=1e-5)


def with_value(screen, value):
    "A screen with one count replaced."
    a = screen.copy()
    a.X[0, 0] = value
    return a


def only(screen, labels):
    "The cells with some labels."
    return screen[screen.obs["perturbation"].isin(labels).to_numpy()].copy()


def renamed(screen, label):
    "A screen in which REG1 has another label."
    a = screen.copy()
    a.obs["perturbation"] = a.obs["perturbation"].astype(str).replace("REG1", label)
    return a


def without_column(screen):
    "A screen without the column of perturbations."
    a = screen.copy()
    a.obs = a.obs.rename(columns={"perturbation": "guide"})
    return a


def with_repeated_genes(screen):
    "A screen in which two genes have one name."
    a = screen.copy()
    a.var_names = ["SAME", "SAME", *a.var_names[2:]]
    return a


SPOILED = {
    "negative": lambda s: with_value(s, -1.0),
    "fractional": lambda s: with_value(s, 1.5),
    "nan": lambda s: with_value(s, np.nan),
    "one perturbation": lambda s: only(s, ["control", "REG1"]),
    "only control": lambda s: only(s, ["control"]),
    "no control": lambda s: only(s, set(s.obs["perturbation"]) - {"control"}),
    "no column": without_column,
    "empty member": lambda s: renamed(s, "REG1+"),
    "twice the same": lambda s: renamed(s, "REG1+REG1"),
}


FAULTS = {
    "negative": "values below zero are scaled",
    "fractional": "fractional counts",
    "nan": "missing or infinite",
    "one perturbation": "one perturbation next to the control",
    "only control": "no perturbation next to the control",
    "no control": "no cell has the control label 'control'",
    "no column": "no perturbation column 'perturbation'",
    "empty member": "'REG1+' has an empty member",
    "twice the same": "names a member twice",
}


def test_repeated_genes_are_made_unique(screen):
    "The first of them keeps the name, so a perturbed gene is one gene."
    got = la.pp.as_perturbseq(with_repeated_genes(screen))
    assert list(got.var_names[:2]) == ["SAME", "SAME-1"] and got.n_vars == screen.n_vars


@pytest.mark.parametrize("how", FAULTS)
def test_a_wrong_screen_is_refused(how, screen):
    with pytest.raises((ValueError, KeyError), match=FAULTS[how].replace("+", r"\+")):
        la.pp.as_perturbseq(SPOILED[how](screen))


@pytest.mark.parametrize(
    "how", [f for f in FAULTS if f != "repeated genes"]
)  # which the format's own reader tells of first
def test_the_command_refuses_it_in_one_line_and_leaves_nothing(how, screen, tmp_path, capsys):
    path = tmp_path / "screen.h5ad"
    out = tmp_path / "out"
    SPOILED[how](screen).write_h5ad(path)
    assert main(["perturb", str(path), "--out", str(out), "--models", "mean"]) == 2
    err = capsys.readouterr().err
    said = FAULTS[how].replace("control label", "--control label")
    assert said in err and err.count("\n") == 1 and not out.exists()


def test_members_that_nobody_knows(learn):
    fitted = la.models.LinearResponse(k=3, ridge=0.1).fit(learn)
    hidden = next(p for p in learn.obs_names if "+" not in p and p not in learn.var_names)
    for name, named in ((hidden, hidden), ("REG1+NOBODY", "NOBODY"), ("NOBODY", "NOBODY")):
        with pytest.raises(
            ValueError, match=f"{named} are not among the {learn.n_vars} genes that are read out"
        ):
            fitted.predict([name])
    lenient = la.models.LinearResponse(k=3, ridge=0.1, missing="mean").fit(learn)
    np.testing.assert_array_equal(
        lenient.flagged(["REG1", hidden, "REG1+NOBODY"]),
        [not {"REG1"} <= set(learn.var_names), True, True],
    )
    np.testing.assert_allclose(
        lenient.predict([hidden]), MeanResponse().fit(learn).predict([hidden])
    )


@pytest.fixture(scope="module")
def path(screen, tmp_path_factory):
    out = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    other = screen.copy()
    other.obs = pd.DataFrame(
        {
            "guide": screen.obs["perturbation"]
            .astype(str)
            .str.replace("+", "_")
            .replace("control", "NTC"),
            "lane": screen.obs["batch"].astype(str),
        }
    )
    other.write_h5ad(out)
    return out


ARGS = [
    "--perturbation-key",
    "guide",
    "--control",
    "NTC",
    "--batch-key",
    "lane",
    "--separator",
    "_",
    "--models",
    "lgem",
]


@pytest.fixture(scope="module")
def run(path, tmp_path_factory):
    out = tmp_path_factory.mktemp("perturb") / "out"
    assert main(["perturb", str(path), *ARGS, "--out", str(out)]) == 0
    return out


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_the_command_fills_its_tables(run, screen):
    table = pd.read_csv(run / "evaluation.csv")
    assert list(table.columns) == ["model", "split", "perturbation", "metric", "value"]
    assert set(table["model"]) == {"no_change", "mean", "additive", "nearest", "lgem", "split_half"}
    assert set(table["metric"]) == {
        "l2",
        "l2_without_target",
        "pearson",
        "pearson_without_target",
        "pearson_perturbed",
        "centroid_accuracy",
        "direction",
    }
    assert not table.duplicated(["model", "split", "perturbation", "metric"]).any()
    assert (
        table.query("model == 'mean' and metric == 'pearson_perturbed'")["value"].abs().max() < 1e-9
    )
    assert (
        table.query("model == 'no_change' and metric in ['pearson', 'direction']")["value"]
        .dropna()
        .eq(0)
        .all()
    )
    hidden = set(screen.uns["truth"].query("kind == 'single'").index) - set(screen.var_names)
    assert set(table.query("split == 'not_read_out'")["perturbation"]) >= hidden
    predictions = ad.read_h5ad(run / "predictions.h5ad")
    assert predictions.obs.query("model == 'lgem' and flagged")["split"].unique().tolist() == [
        "not_read_out"
    ]
    assert np.isfinite(predictions.X).all()
    record = json.loads((run / "run.json").read_text())
    assert (
        record["status"] == "complete"
        and record["command"] == "perturb"
        and record["params"]["read"]["separator"] == "_"
    )
    assert len(list((run / "figures").glob("*.png"))) >= 8


def test_scores_can_be_had_again_from_the_predictions(run):
    "evaluation.csv says what predictions.h5ad holds."
    table = pd.read_csv(run / "evaluation.csv")
    p = ad.read_h5ad(run / "predictions.h5ad")
    rows = p[((p.obs["model"] == "lgem") & (p.obs["split"] == "single")).to_numpy()]
    said = table.query("model == 'lgem' and split == 'single' and metric == 'l2'").set_index(
        "perturbation"
    )["value"]
    for name, x, y in zip(rows.obs["perturbation"], rows.X, rows.layers["observed"]):
        assert np.sqrt(np.nansum((x - y) ** 2)) == pytest.approx(said[name], rel=1e-4)


@pytest.mark.slow  # every command has one driver; test_cohort_runs.py does this for run
def test_same_seed_same_bytes_and_another_seed_differs(run, path, tmp_path):
    again = tmp_path / "again"
    assert main(["perturb", str(path), *ARGS, "--out", str(again)]) == 0
    a = files(run)
    b = files(again)
    assert a.keys() == b.keys()
    assert [
        k for k in a if a[k] != b[k] and k not in ("timings.json", "run.json", "predictions.h5ad")
    ] == []
    assert main(["perturb", str(path), *ARGS, "--out", str(tmp_path / "other"), "--seed", "1"]) == 0
    assert files(tmp_path / "other")["evaluation.csv"] != a["evaluation.csv"]


@pytest.mark.slow  # every command has one driver; test_cohort_runs.py does this for run
def test_a_killed_run_goes_on(run, path, tmp_path):
    "Killed after its first step, resumed: the same tables; finished steps are kept."
    out = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from longaml.cli import main; sys.exit(main(sys.argv[1:]))",
            "perturb",
            str(path),
            *ARGS,
            "--out",
            str(out),
        ],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    limit = time.monotonic() + 120
    while (
        not list(out.glob("steps/predict/*.npz"))
        and job.poll() is None
        and time.monotonic() < limit
    ):
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    kept = {p: p.stat().st_mtime_ns for p in out.glob("steps/predict/*.npz")}
    assert kept
    assert main(["perturb", str(path), *ARGS, "--out", str(out), "--resume"]) == 0
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    for name in ("evaluation.csv", "comparison.csv", "strata.csv"):
        assert (out / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize(
    "args,said",
    [
        (["--control", "ctrl"], "no cell has the --control label 'ctrl'"),
        (["--perturbation-key", "gide"], "Did you mean 'guide'?"),
        (["--batch-key", "lan"], "Did you mean 'lane'?"),
        (["--models", "gears"], "model is 'gears'"),
        (["--folds", "1"], "--folds is"),
        (["--folds", "many"], "--folds is"),
        (["--min-cells", "100000"], "Lower --min-cells"),
        (["--device", "tpu"], "device is 'tpu'"),
    ],
)
def test_wrong_options(args, said, path, tmp_path, capsys):
    assert main(["perturb", str(path), *ARGS, "--out", str(tmp_path / "out"), *args]) == 2
    err = capsys.readouterr().err
    assert (
        said in err
        and "_key=" not in err
        and "control=" not in err
        and not (tmp_path / "out").exists()
    )


def test_the_benchmark_agrees_with_itself():
    done = python("tests/benchmarks/bench_lgem.py", "--quick", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("times less time") == 2


INTERFERON = ["STAT1", "IFNGR1", "IFNGR2", "JAK2"]
KNOWN = ["STAT1", "PSMB9", "UBE2L6"]
READ_OUT = ["STAT1", "STAT2", "STAT3", "JAK2", "IFNGR2", "NFKBIA", "CMTM6", "UBE2L6", "TNFRSF14"]


@pytest.fixture(scope="module")
def thp1(shared_data):
    cells = ad.read_h5ad(shared_data / "thp1_crispr.h5ad")
    cells = cells[(cells.obs["grna_umi"] >= 5) & (cells.obs["grna_frac"] > 0.7)].copy()
    assert cells.n_obs == 17678
    return la.pp.as_perturbseq(
        cells, perturbation_key="target", control="non-targeting", batch_key="rep"
    )


def test_thp1_interferon_knockouts_lower_their_targets(thp1):
    bulk = la.pp.pseudobulk_perturbations(thp1)
    change, q = (
        pd.DataFrame(bulk.layers[k], bulk.obs_names, bulk.var_names) for k in ("change", "q_value")
    )
    assert (change.loc[INTERFERON, KNOWN] < -0.4).all().all() and (
        q.loc[INTERFERON, KNOWN] < 1e-6
    ).all().all()
    others = change.drop(index=INTERFERON)[KNOWN]
    assert (others.median().abs() < 0.1).all()


def test_thp1_leave_one_out_covers_what_is_read_out(thp1):
    learn, judge = (
        la.pp.pseudobulk_perturbations(h) for h in la.pp.perturbations.control_halves(thp1)
    )
    folds = perturbation_folds(learn.obs_names, n_folds="leave_one_out", genes=learn.var_names)
    predicted, flagged = held_out_responses(
        lambda: la.models.LinearResponse(k=5, ridge=1.0, missing="mean"), learn, folds
    )
    flags = flagged.droplevel("fold")
    assert (
        sorted(flags.index[~flags]) == sorted(READ_OUT)
        and int(flags.sum()) == 16
        and flags["IFNGR1"]
    )
    split = {p: s for f in folds for p, s in f.test.items()}
    assert all((split[p] == "not_read_out") == flags[p] for p in split)
    mean, _ = held_out_responses(MeanResponse, learn, folds)
    pd.testing.assert_frame_equal(predicted[flagged], mean[flagged])
    with pytest.raises(ValueError, match="IFNGR1 are not among the 299 genes"):
        la.models.LinearResponse(k=5, ridge=1.0).fit(learn).predict(["IFNGR1"])


@pytest.mark.slow
def test_thp1_by_the_command_with_every_model(shared_data, thp1, tmp_path):
    "Real data, the default models: tables for both kinds of split."
    path = tmp_path / "thp1.h5ad"
    out = tmp_path / "out"
    thp1.write_h5ad(path)
    assert main(["perturb", str(path), "--control", "non-targeting", "--out", str(out)]) == 0
    table = pd.read_csv(out / "comparison.csv")
    assert set(table["split"]) == {"single", "not_read_out"} and {"lgem", "cross_attention"} <= set(
        table["model"]
    )
    rows = table.query(
        "split == 'single' and metric == 'l2_without_target' and model in ['additive', 'mean']"
    )
    assert (rows["better_than_mean"].abs() < 1e-9).all() and (rows["perturbations"] == 9).all()
