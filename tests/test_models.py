"The contract of models: every registered model of timepoints and of changes, and one's own."

import inspect
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import own_models
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from tools import ROOT, python

import longaml as la
from longaml.core import rng_for
from longaml.models.checkpoints import network_for
from longaml.models.contract import KINDS, MODEL_TASKS, ModelSpec, Settings, names, register, specs
from longaml.models.forecasters import Forecasts, forecaster
from longaml.models.own_models import knockout_contributions, resolve, resolve_all
from longaml.models.stacking import fit_many, orders_of
from longaml.models.training import Job, Training
from longaml.tasks import timepoint
from longaml.tasks.forecast import held_out_change

OWN = ROOT / "tests" / "own_models.py"
TIMEPOINT = [s for s in specs("timepoint") if s.kind != "ranking"]
CHANGE = specs("forecast")
NETWORKS = specs("timepoint", network=True)
SHORT = Training(epochs=4, patience=4, device="cpu")


def ids(entries):
    return [s.name for s in entries]


def made(seed=0, rows=(2, 3, 2, 2, 3, 2, 2, 2), times=2, genes=10, signal=1.5):
    "Sequences by hand: centred bags of patients, genes of which a third change."
    r = rng_for(seed, "contract")
    n = sum(rows)
    patients = np.repeat([f"P{i}" for i in range(len(rows))], rows)
    changing = signal * (np.arange(genes) % 3 == 0)
    x = r.normal(size=(n, times, genes)) + np.arange(times)[:, None] * changing
    x = (x - x.mean(1, keepdims=True)).astype(np.float32)
    timepoints = [f"T{t}" for t in range(times)]
    return la.pp.preprocessing.Sequences(
        x=x,
        mask=np.ones((n, times), bool),
        y=np.tile(np.arange(times), (n, 1)),
        patients=patients,
        cell_types=np.where(np.arange(n) % 2, "B", "T"),
        samples=np.char.add(patients[:, None] + "_", timepoints),
        timepoints=timepoints,
        genes=[f"G{i}" for i in range(genes)],
        technical=r.normal(size=(n, times, 3)).astype(np.float32),
        notes={"task": "timepoint", "bag_size": 20, "input_kind": "counts"},
        level=np.ones(genes, np.float32),
    )


def changes(seed=0, patients=8, genes=6):
    "Forecasts by hand: the change of each gene falls with its baseline expression."
    r = rng_for(seed, "changes")
    n = 2 * patients
    x = r.normal(size=(n, 3, genes)).astype(np.float32)
    mask = np.tile([True, True, False], (n, 1))
    mask[1::4, 1] = False
    x[~mask] = 0
    own = np.where(mask[:, 1, None], x[:, 1], x[:, 0])
    return Forecasts(
        x=x,
        mask=mask,
        own=own,
        change=-0.5 * own + 0.1 * r.normal(size=(n, genes)),
        origin=np.where(mask[:, 1], "T1", "T0"),
        patients=np.repeat([f"P{i}" for i in range(patients)], 2),
        cell_types=np.tile(["B", "T"], patients),
        timepoints=["T0", "T1", "T2"],
        genes=[f"G{i}" for i in range(genes)],
        at=2,
        notes={"task": "forecast", "target": "T2"},
    )


def short(spec):
    "An unfitted model of a spec that trains for a few epochs on the CPU."
    model = spec.made()
    given = model.get_params()
    quick = {"training": SHORT, "how": SHORT, "device": "cpu"}
    return model.set_params(**{k: v for k, v in quick.items() if k in given})


def short_forecaster(spec):
    model = forecaster(spec, device="cpu")
    return model.set_params(how=SHORT) if spec.network else model


def take(sets, order):
    "Rows with their visits in another order."
    parts = ("x", "mask", "y", "samples", "technical")
    return replace(sets, **{k: getattr(sets, k)[:, order] for k in parts})


# ---- the registry


def test_the_registry_keeps_the_order_of_tables():
    assert names("timepoint")[:6] == (
        "majority", "patient_cell_type", "technical", "logistic", "bayesian_ridge", "nmf",
    )  # fmt: skip
    assert names("timepoint", kind="baseline") == ("majority", "patient_cell_type", "technical")
    assert names("timepoint", network=True) == ("transformer", "lstm", "bilstm", "scbmlp")
    assert names("forecast") == (
        "no_change", "mean_shift", "baseline_expression", "ridge", "transformer", "lstm", "bilstm",
    )  # fmt: skip
    assert set(names("timepoint", default=True)) == {
        "majority", "patient_cell_type", "technical", "logistic", "paired_de", "transformer",
    }  # fmt: skip


@pytest.mark.parametrize("entry", specs(), ids=lambda s: f"{s.name}-{s.tasks[0]}")
def test_entries_are_complete(entry):
    assert entry.kind in KINDS and set(entry.tasks) <= set(MODEL_TASKS) and entry.place < 1000
    assert entry.label and entry.sentence.endswith(".")
    assert not entry.stacks or entry.network
    assert (entry.kind == "ranking") == (entry.ranker is not None)
    if entry.network:
        assert entry.config is not None and entry.citation


def test_a_name_is_given_once():
    other = ModelSpec("logistic", ("timepoint",), make=dict)
    with pytest.raises(ValueError, match="is taken by L2-regularised"):
        register(other)
    with pytest.raises(ValueError, match="Did you mean 'logistic'"):
        resolve("logistics", "timepoint")
    with pytest.raises(ValueError, match="has no part in the task 'forecast'"):
        resolve("logistic", "forecast")


# ---- timepoints


@pytest.mark.parametrize("spec", TIMEPOINT, ids=ids(TIMEPOINT))
def test_probabilities(spec):
    "Shapes, sums, rows by themselves and in another order, the same seed."
    sets = made()
    test = made(1)
    model = short(spec).fit(sets, seed=3)
    p = model.predict_proba(test)
    assert p.shape == (*test.mask.shape, 2)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    order = rng_for(0, "rows").permutation(len(test))
    np.testing.assert_allclose(model.predict_proba(test.take(order)), p[order], atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(test.take([4])), p[[4]], atol=1e-5)
    again = short(spec).fit(sets, seed=3).predict_proba(test)
    np.testing.assert_array_equal(again, p)


@pytest.mark.parametrize("spec", TIMEPOINT, ids=ids(TIMEPOINT))
def test_a_row_of_bags_has_no_order(spec):
    "Bags stand in the order of time; in another order each gets the same probabilities."
    test = made(1, times=3)
    model = short(spec).fit(made(times=3), seed=1)
    order = np.array([2, 0, 1])
    p = model.predict_proba(test)
    np.testing.assert_allclose(model.predict_proba(take(test, order)), p[:, order], atol=1e-4)


@pytest.mark.parametrize("spec", TIMEPOINT, ids=ids(TIMEPOINT))
def test_clone_and_repr(spec):
    model = short(spec)
    copy = clone(model)
    assert type(copy) is type(model) and copy is not model
    assert repr(copy) == repr(model) and type(model).__name__ in repr(model)
    assert isinstance(model, Settings) or hasattr(model, "get_params")
    with pytest.raises((ValueError, TypeError), match="colour"):
        model.set_params(colour=1).fit(made())


@pytest.mark.parametrize(
    "spec", [s for s in TIMEPOINT if s.ranks], ids=ids(s for s in TIMEPOINT if s.ranks)
)
def test_genes_keep_their_names(spec):
    "A model that ranks genes finds the changing ones, whatever their order."
    sets = made(rows=(3,) * 10, signal=3.0)
    order = rng_for(0, "genes").permutation(len(sets.genes))
    changing = np.arange(len(sets.genes)) % 3 == 0
    for data, which in (
        (sets, changing),
        (sets.with_genes(np.array(sets.genes)[order]), changing[order]),
    ):
        if spec.network:
            fitted = la.models.fit(
                partial(network_for, spec, data), data, how=replace(SHORT, epochs=30)
            )
            c = la.models.attribution.contributions(fitted, data)
        else:
            c = spec.maker(ranking=True)().fit(data).contributions(data)
        assert c.shape == (len(data), len(data.genes))
        assert c.mean(0)[which].min() > c.mean(0)[~which].max()


@pytest.mark.parametrize("spec", TIMEPOINT, ids=ids(TIMEPOINT))
def test_shuffled_labels_are_at_chance(spec):
    "Ten cohorts of unrelated labels: the mean accuracy is within three standard errors of 1/2."
    found = []
    for seed in range(10):
        sets = made(seed, signal=0.0)
        folds = la.pp.patient_folds(sets.patients, n_folds=2)
        p = la.models.baselines.held_out_proba(partial(short, spec), sets, folds, seed=seed)
        found.append(la.models.baselines.patient_accuracy(sets, p).mean())
    bags = 10 * sets.mask.sum()
    assert abs(np.mean(found) - 0.5) < 3 * np.sqrt(0.25 / (bags / 2)) + 1e-9


@pytest.mark.parametrize("spec", NETWORKS, ids=ids(NETWORKS))
def test_a_missing_visit_changes_no_other(spec):
    "What stands in a masked visit cannot matter, and its own output is zero."
    sets = made(times=3)
    model = network_for(spec, sets).eval()
    x = torch.as_tensor(sets.x)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[::2, 1] = False
    noise = torch.where(mask[..., None], x, 100 + x)
    with torch.no_grad():
        a, b = model(x, mask), model(noise, mask)
        pair = model(x[::2][:, [0, 2]], mask[::2][:, [0, 2]])
    torch.testing.assert_close(a[mask], b[mask], atol=1e-4, rtol=1e-4)
    assert (a[~mask] == 0).all()
    torch.testing.assert_close(a[::2][:, [0, 2]], pair, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", NETWORKS, ids=ids(NETWORKS))
def test_save_and_load(spec, tmp_path):
    sets = made()
    fitted = la.models.fit(partial(network_for, spec, sets), sets, how=SHORT)
    back = la.models.load(la.models.save(fitted, tmp_path / "m.pt"))
    np.testing.assert_array_equal(back.predict(sets), fitted.predict(sets))
    assert back.genes == sets.genes and back.how == SHORT
    shuffled = sets.with_genes(sets.genes[::-1])
    np.testing.assert_allclose(back.predict(shuffled), fitted.predict(sets), atol=1e-6)
    with pytest.raises(ValueError, match="are not in the data"):
        back.predict(sets.with_genes(sets.genes[2:]))


@pytest.mark.parametrize("spec", [s for s in NETWORKS if s.stacks], ids=ids(NETWORKS))
def test_stacked_fits_are_single_fits(spec):
    "Without dropout, to rounding."
    sets = made()
    fields = spec.config.__dataclass_fields__
    calm = {k: 0.0 for k in fields if k.startswith("dropout")}
    make = partial(network_for, spec, sets, **calm)
    jobs = [Job(tuple(f"P{i}" for i in range(8) if i % 3 != k), seed=k) for k in range(3)]
    together = fit_many(make, sets, jobs, how=SHORT)
    alone = fit_many(make, sets, jobs, how=SHORT, stacks=False)
    for a, b in zip(together, alone):
        np.testing.assert_allclose(a.predict(sets), b.predict(sets), atol=1e-4)


@pytest.mark.parametrize("name", ["transformer", "lstm", "bilstm"])
def test_embeddings(name):
    "The last layer's input: its linear map and the skip give the logits; zero at missing visits."
    sets = made(times=3)
    sets.mask[0, 1] = False
    fitted = short(resolve(name, "timepoint")).fit(made(times=3)).fitted
    h = fitted.embed(sets)
    assert h.shape[:2] == sets.mask.shape and (h[0, 1] == 0).all()
    net = fitted.model.eval()
    with torch.no_grad():
        out = net.head(torch.as_tensor(h)) + net.skip(torch.as_tensor(sets.x))
    keep = sets.mask
    np.testing.assert_allclose(out.numpy()[keep], fitted.predict(sets)[keep], atol=1e-4)


# ---- changes


@pytest.mark.parametrize("spec", CHANGE, ids=ids(CHANGE))
def test_changes(spec):
    "Shapes, rows by themselves, seeds; the visit that is to be predicted is never read."
    f = changes()
    test = changes(1)
    model = short_forecaster(spec).fit(f, seed=2)
    p = model.predict(test)
    assert p.shape == test.change.shape and np.isfinite(p).all()
    order = rng_for(0, "rows").permutation(len(test))
    np.testing.assert_allclose(model.predict(test.take(order)), p[order], atol=1e-5)
    hidden = replace(test, change=np.zeros_like(test.change))
    np.testing.assert_array_equal(model.predict(hidden), p)
    again = short_forecaster(spec).fit(f, seed=2).predict(test)
    np.testing.assert_array_equal(again, p)
    assert repr(clone(short_forecaster(spec))) == repr(short_forecaster(spec))


@pytest.mark.parametrize("spec", CHANGE, ids=ids(CHANGE))
def test_a_masked_input_is_not_read(spec):
    f = changes()
    model = short_forecaster(spec).fit(f)
    noise = replace(f, x=np.where(f.mask[..., None], f.x, 50).astype(np.float32))
    np.testing.assert_allclose(model.predict(noise), model.predict(f), atol=1e-5)


# ---- one's own


@pytest.fixture(scope="module")
def cohort():
    return la.datasets.simulate_cohort(
        "small", seed=4, n_patients=10, n_genes=120, n_drivers=8, n_cells=120
    )


@pytest.fixture(scope="module")
def bagged(cohort):
    return la.pp.bags(cohort)


MINE = [
    "logistic",
    f"{OWN}:TinyGRU",
    own_models.Dense,
    ("pipeline", own_models.PIPELINE),
    own_models.Constant,
    own_models.Position,
    ("by_place", own_models.PositionObject),
    own_models.LabelReader,
]


def test_own_models_are_evaluated(bagged, caplog):
    with caplog.at_level(logging.INFO, logger="longaml"):
        result = timepoint.evaluate(bagged, models=MINE)
    loops = [r.message for r in caplog.records if "in a loop" in r.message]
    assert len(loops) == 1 and "TinyGRU" in loops[0]
    accuracy = result.summary().set_index("model")["mean"]
    asked = ["logistic", "TinyGRU", "Dense", "pipeline", "Constant", "Position", "by_place"]
    assert list(accuracy.index) == [*names("timepoint", kind="baseline"), *asked, "LabelReader"]
    assert set(result.predictions["model"]) == set(accuracy.index)
    assert accuracy[["Dense", "pipeline"]].min() > 0.6
    cheats = ["Constant", "Position", "by_place", "LabelReader"]
    np.testing.assert_allclose(accuracy[cheats], 0.5, atol=1e-9)


def test_own_models_rank_genes(cohort, bagged):
    bulk = la.pp.pseudobulk(cohort)
    kind = cohort.uns["truth"]["kind"]
    for model in (own_models.TinyGRU, own_models.Dense, ("pipeline", own_models.PIPELINE)):
        ranked = timepoint.rank(bagged, bulk, model=model, nulls=3, halves=2, k=10).table
        spec = resolve(model, "timepoint")
        assert set(ranked["model"]) == {spec.name} and len(ranked) == 120
        drivers = ranked.set_index("gene")["rank"][kind[kind == "marginal"].index]
        assert drivers.mean() < 60


def test_a_model_that_reads_no_gene_ranks_none(cohort, bagged):
    bulk = la.pp.pseudobulk(cohort)
    for model in (own_models.Constant, own_models.Position):
        table = timepoint.rank(bagged, bulk, model=model, nulls=3, halves=2, k=10).table
        assert table["score"].nunique() == 1 and (table["q_value"] > 0.9).all()


def test_the_constant_model_fails_the_checks(cohort, bagged):
    bulk = la.pp.pseudobulk(cohort)
    result = timepoint.evaluate(bagged, models=[own_models.Constant])
    ranked = timepoint.rank(bagged, bulk, model=own_models.Constant, nulls=3, halves=2, k=10)
    found = ranked.audit(cohort, evaluation=result.evaluation).set_index("check")["status"]
    assert found["chance level"] == found["constant"] == "failed"


def test_own_models_forecast():
    f = changes(patients=10)
    from sklearn.linear_model import Ridge

    for model in (own_models.TinyGRU, ("sklearn_ridge", Ridge())):
        found = held_out_change(model, f, device="cpu")
        assert found.change.shape == f.change.shape and np.isfinite(found.change).all()
    error = ((found.change - f.change) ** 2).mean() / (f.change**2).mean()
    assert error < 0.5


def test_knockouts_of_a_logistic_regression_are_its_terms():
    sets = made()
    model = la.models.Logistic(c=1.0).fit(sets)
    np.testing.assert_allclose(
        knockout_contributions(model, sets), model.contributions(sets), atol=1e-6
    )


def test_what_an_own_model_must_be(tmp_path):
    class Bare(torch.nn.Module):
        def __init__(self, size):
            super().__init__()

        def forward(self, x):
            return x

    class Unfit:
        pass

    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module\n")
    cases = {
        "no file": "no_such.py:Net",
        "defines no 'TinyGRUU'.* Did you mean 'TinyGRU'": f"{OWN}:TinyGRUU",
        "names no class": str(OWN),
        "cannot be imported: ModuleNotFoundError": f"{broken}:Net",
        "expected __init__": Bare,
        "has no fit": Unfit,
        "pass the class itself": own_models.TinyGRU(3, 2),
        "registered model": ("logistic", own_models.PIPELINE),
    }
    for message, model in cases.items():
        with pytest.raises(ValueError, match=message):
            resolve(model, "timepoint")
    with pytest.raises(ValueError, match="more than once"):
        resolve_all([own_models.PIPELINE, own_models.PIPELINE], "timepoint")
    with pytest.raises(ValueError, match="task of an own model"):
        resolve(own_models.PIPELINE, "celltype")


def test_an_edited_file_is_another_model(tmp_path):
    "The origin of a model from a file changes with the file, not with its place."
    text = inspect.getsource(own_models)
    origins = []
    for name, content in (("a", text), ("b", text), ("a", text + "\n# edited\n")):
        (tmp_path / f"{name}.py").write_text(content)
        origins.append(resolve(f"{tmp_path / name}.py:TinyGRU", "timepoint").origin)
    assert origins[0] == origins[1] != origins[2]


def test_configured_networks_and_all_patients(cohort, bagged):
    result = timepoint.evaluate(bagged, models=[la.models.Transformer(width=8)])
    best = result.best("transformer")
    cells = best.embed(cohort)
    seen = cohort.obs["timepoint"].isin(["DX", "REL"]).to_numpy()
    assert cells.shape == (cohort.n_obs, 8) and np.isfinite(cells[seen]).all()
    assert np.isnan(cells[~seen]).all() and best.embed(bagged).shape == (bagged.n_obs, 8)
    assert isinstance(result.to_frame(), pd.DataFrame)
    with pytest.raises(ValueError, match="is not among the models"):
        result.best("lstm")


@pytest.mark.parametrize("visits", [2, 3, 4, 5, 7])
def test_a_set_is_read_in_orders_that_favour_no_position(visits):
    "A network that reads in order must not learn from where a bag stands, however many visits."
    orders = orders_of(visits)
    assert all(sorted(order) == list(range(visits)) for order in orders)
    counts = [np.bincount(column, minlength=visits) for column in orders.T]
    assert (np.array(counts) == len(orders) / visits).all()


def test_the_logistic_benchmark_agrees_with_itself():
    done = python("tests/benchmarks/bench_logistic.py", "--quick", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times less time" in done.stdout
