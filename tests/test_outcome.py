"""Outcomes of patients: the command on tables and cohorts, real data, bad input, what must not
matter.
"""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import longaml as la
from longaml.cli import main
from longaml.core import rng_for
from longaml.models.outcomes import Block, OutcomeModel, Patients
from longaml.tasks.outcome import Judging, evaluate_outcome, held_out_risks
from longaml.tl.survival import concordance, time_to_event, usable_pairs

TYPES = ["GMP", "HSC", "Mono", "T"]
TIMED = ["--time", "days", "--event", "first_event"]
QUICK = "--folds 4 --repeats 1 --permutations 9 --no-figures".split()


def clinic_of(n=60, seed=0):
    rng = rng_for(seed, "clinic", n)
    logs = rng.normal(size=(n, 4))
    time = rng.exponential(400 * np.exp(-(logs[:, 0] - logs.mean(1))))
    stop = rng.uniform(200, 1500, n)
    table = pd.DataFrame(rng.poisson(np.exp(logs + 4)), columns=TYPES)
    return table.assign(
        patient=[f"P{i:02d}" for i in range(n)],
        age=rng.integers(1, 18, n),
        sex=rng.choice(["f", "m"], n),
        days=np.minimum(time, stop).round(),
        first_event=np.where(time <= stop, "Relapse", "Censored"),
        response=np.where(time > 300, "good", "poor"),
    )


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    path = tmp_path_factory.mktemp("clinic") / "clinic.csv"
    clinic_of().to_csv(path, index=False)
    return path


def outcome(path, out, *args):
    return main([str(a) for a in ("outcome", path, "--out", out, *args)])


def numbers(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.csv"))}


# ---- the command


def test_a_table_and_as_many_processes(clinic, tmp_path):
    "The same bytes with one process, with two, and when nothing had to be computed again."
    blocks = ["--covariates", "age,sex", "--cell-type-columns", ",".join(TYPES)]
    for jobs in "12":
        args = [*TIMED, *blocks, *QUICK, "--jobs", jobs]
        assert outcome(clinic, tmp_path / jobs, *args) == 0
    one, two = numbers(tmp_path / "1"), numbers(tmp_path / "2")
    assert one.keys() == two.keys() and len(one) == 6
    assert [k for k in one if one[k] != two[k]] == []
    assert outcome(clinic, tmp_path / "1", *args, "--resume") == 0
    assert numbers(tmp_path / "1") == one
    models = pd.read_csv(tmp_path / "1" / "models.csv")
    assert set(models["metric"]) == {
        *("concordance", "concordance_uno", "auroc", "brier", "integrated_brier")
    }
    evaluation = pd.read_csv(tmp_path / "1" / "evaluation.csv")
    assert list(evaluation) == "model repeat fold metric value chance".split()
    predictions = pd.read_csv(tmp_path / "1" / "predictions.csv")
    assert predictions.groupby("model")["patient"].nunique().eq(60).all()


def test_classes_and_figures(clinic, tmp_path, capsys):
    args = ["--endpoint", "response", "--cell-type-columns", ",".join(TYPES)]
    assert outcome(clinic, tmp_path / "out", *args, *QUICK[:-1]) == 0
    said = capsys.readouterr().out
    assert "held-out auroc" in said and "odds ratio" in said
    drawn = {p.stem for p in (tmp_path / "out" / "figures").iterdir()}
    assert drawn == {"models", "calibration", "effects"}
    models = pd.read_csv(tmp_path / "out" / "models.csv")
    assert list(models["model"].unique()) == ["marginal", "composition"]


def test_a_cohort(tmp_path, capsys):
    "Composition and expression of the first timepoint; the outcome comes from obs."
    cohort = la.datasets.simulate_cohort("small", seed=3, n_patients=20, n_genes=100, n_drivers=6)
    code = cohort.obs["patient"].cat.codes.to_numpy().astype(int)
    rng = rng_for(0, "outcomes")
    cohort.obs["days"] = rng.exponential(300, 20).round()[code]
    cohort.obs["relapse"] = rng.integers(0, 2, 20)[code]
    cohort.obs["age"] = rng.integers(1, 18, 20)[code]
    la.pp.save_cohort(cohort, tmp_path / "c.h5ad")
    args = "--time days --event relapse --covariates age".split()
    assert outcome(tmp_path / "c.h5ad", tmp_path / "out", *args, *QUICK) == 0
    models = pd.read_csv(tmp_path / "out" / "models.csv")
    every = {"marginal", "clinical", "composition", "clinical_and_composition"}
    every |= {"pseudobulk", "clinical_and_pseudobulk"}
    assert set(models["model"]) == every | {"cell_states", "clinical_and_cell_states"}
    assert "20 patients" in capsys.readouterr().out
    cohort.obsm["X_pca"] = rng.normal(size=(cohort.n_obs, 4))
    la.pp.save_cohort(cohort, tmp_path / "e.h5ad")
    sets = tmp_path / "sets.gmt"
    sets.write_text("mine\tsome genes\t" + "\t".join(cohort.var_names[:40]) + "\n")
    more = ["--use-rep", "X_pca", "--gene-sets", sets, "--models", "embedding,gene_sets"]
    assert outcome(tmp_path / "e.h5ad", tmp_path / "more", *args, *more, *QUICK) == 0
    assert "X_pca is transductive" in capsys.readouterr().out
    models = pd.read_csv(tmp_path / "more" / "models.csv")
    assert set(models["model"]) == {"marginal", "clinical", "embedding", "gene_sets"}
    assert set(models.loc[models["transductive"], "model"]) == {"embedding"}
    anew = ["--use-rep", "pca", "--models", "fold_pca", "--permutations", "0"]
    assert outcome(tmp_path / "c.h5ad", tmp_path / "anew", *args, *QUICK, *anew) == 0
    assert "transductive" not in capsys.readouterr().out
    models = pd.read_csv(tmp_path / "anew" / "models.csv")
    assert set(models["model"]) == {"marginal", "clinical", "fold_pca"}
    cohort.obs["relapse"] = np.arange(cohort.n_obs) % 2
    la.pp.save_cohort(cohort, tmp_path / "d.h5ad")
    assert outcome(tmp_path / "d.h5ad", tmp_path / "no", *args, *QUICK) == 2
    assert "2 values for patient" in capsys.readouterr().err


def test_cells_that_networks_read(tmp_path, capsys):
    "Contributions of cells and what their types say, of a cohort with diagnosis samples alone."
    cohort = la.datasets.outcomes.simulate_outcomes(
        "rare", seed=3, n_patients=24, n_cells=60, n_genes=100
    )
    path = la.pp.save_cohort(cohort, tmp_path / "c.h5ad")
    args = "--time days --event event --models clinical_and_attention --covariates log(wbc)".split()
    quick = "--folds 3 --repeats 1 --permutations 1".split()
    out = tmp_path / "out"
    assert outcome(path, out, *args, *quick) == 0
    assert "by the cells of one type alone" in capsys.readouterr().out
    models = pd.read_csv(out / "models.csv")
    assert set(models["model"]) == {"marginal", "clinical", "clinical_and_attention"}
    assert models["p_adds"].notna().any()
    cells = pd.read_csv(out / "cells.csv")
    names = la.read_cohort(path, longitudinal=False).obs_names
    assert set(cells["cell"]) <= set(names) and cells["patient"].nunique() == 24
    assert cells.groupby("patient")["attention"].sum().round(6).eq(1).all()
    types = pd.read_csv(out / "cell_types.csv")
    assert set(types["cell_type"]) == set(cells["cell_type"])
    assert types["p_value"].between(0, 1).all()
    for name in ("cells", "cell-types"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 5_000


@pytest.fixture(scope="module")
def at_diagnosis(tmp_path_factory):
    "A cohort of two visits, and the same cells of the first visit alone."
    cohort = la.datasets.simulate_cohort("small", seed=3, n_patients=20, n_genes=100, n_drivers=6)
    code = cohort.obs["patient"].cat.codes.to_numpy().astype(int)
    cohort.obs["days"] = rng_for(0, "outcomes").exponential(300, 20).round()[code]
    cohort.obs["relapse"] = (code % 3 > 0).astype(int)
    folder = tmp_path_factory.mktemp("diagnosis")
    la.pp.save_cohort(cohort, folder / "both.h5ad")
    alone = cohort[(cohort.obs["timepoint"] == "DX").to_numpy()].copy()
    la.pp.save_cohort(alone, folder / "alone.h5ad")
    alone.obs = alone.obs.drop(columns="timepoint").rename(columns={"days": "time"})
    alone.uns.clear()
    alone.write_h5ad(folder / "unnamed.h5ad")
    names = {"time": "days", "relapse": "time"}
    obs = alone.obs.rename(columns=names)
    alone.obs = obs.assign(time=pd.Categorical(obs["time"], [0, 1], ordered=True))
    alone.write_h5ad(folder / "event.h5ad")
    return folder


def test_one_visit_of_each_patient(at_diagnosis, tmp_path, capsys):
    "The later visits that a cohort lacks change nothing, nor does a column of timepoints."
    models = ["--models", "composition,pseudobulk,cell_states", *QUICK]
    for name in ("both", "alone"):
        args = ["--time", "days", "--event", "relapse", *models]
        assert outcome(at_diagnosis / f"{name}.h5ad", tmp_path / name, *args) == 0
    assert numbers(tmp_path / "both") == numbers(tmp_path / "alone")
    capsys.readouterr()
    args = ["--time", "time", "--event", "relapse", *models]
    assert outcome(at_diagnosis / "unnamed.h5ad", tmp_path / "guessed", *args) == 2
    said = capsys.readouterr().err
    assert "column 'time' has the timepoints" in said and "--timepoint-key none" in said
    args[3] = "time"
    args[1] = "days"
    assert outcome(at_diagnosis / "event.h5ad", tmp_path / "guessed", *args) == 2
    assert "timepoints are read from it too" in capsys.readouterr().err
    args[1], args[3] = "time", "relapse"
    told = ["--timepoint-key", "none"]
    assert outcome(at_diagnosis / "unnamed.h5ad", tmp_path / "told", *args, *told) == 0
    assert "one visit" in capsys.readouterr().out
    assert numbers(tmp_path / "told") == numbers(tmp_path / "both")


def test_one_visit_is_no_change(at_diagnosis, tmp_path):
    "What compares visits says so, in a command and in Python."
    for command in "de abundance run network forecast".split():
        args = [command, at_diagnosis / "alone.h5ad", "--out", tmp_path / command]
        assert main([str(a) for a in args]) == 2
        assert not (tmp_path / command).exists()
    cohort = la.read_cohort(at_diagnosis / "alone.h5ad", longitudinal=False)
    assert list(cohort.obs["timepoint"].cat.categories) == ["DX"]
    bags = la.pp.bags(cohort, bag_size=5)
    bulk = la.pp.pseudobulk(cohort, min_cells=5)
    tasks = la.tasks
    for work in (
        lambda: la.tl.de(cohort),
        lambda: la.tl.de(cohort, "~ timepoint"),
        lambda: la.tl.abundance(cohort),
        lambda: tasks.timepoint.evaluate(bags, models="logistic"),
        lambda: tasks.timepoint.rank(bags, bulk),
        lambda: tasks.forecast.predict(cohort),
        lambda: tasks.forecast.predict(cohort, to="DX"),
        lambda: tasks.cell_sets.visit_pairs(cohort),
    ):
        with pytest.raises(la.core.InputError, match="one timepoint|needs at least"):
            work()


def test_visits_in_the_names_of_patients(at_diagnosis):
    "Who was seen twice is not two people, wherever longitudinal=False."
    cohort = la.read_cohort(at_diagnosis / "both.h5ad")
    cohort.obs["donor"] = [
        f"{p}_{t}" for p, t in zip(cohort.obs["patient"], cohort.obs["timepoint"])
    ]
    how = {"patient_key": "donor", "longitudinal": False}
    with pytest.raises(la.core.InputError, match="names of patients hold the timepoint"):
        la.pp.as_cohort(cohort, **how)


BAD = {
    "event without time": (["--event", "first_event"], "--time"),
    "time without event": (["--time", "days"], "--event"),
    "nothing": ([], "--endpoint"),
    "no such column": (["--time", "dayz", "--event", "first_event"], "Did you mean 'days'?"),
    "more than two classes": (["--endpoint", "age"], "two are compared"),
    "the outcome as covariate": ([*TIMED, "--covariates", "days"], "sounds like follow-up|outcome"),
    "no such model": ([*TIMED, "--models", "composition"], "lack"),
    "too many folds": ([*TIMED, "--folds", "50"], "50 folds"),
    "a timepoint": ([*TIMED, "--at", "DX"], "one row per patient"),
    "an embedding": ([*TIMED, "--use-rep", "X_pca"], "one row per patient"),
    "an option of cohorts": ([*TIMED, "--layer", "counts"], "is of a cohort"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, clinic, tmp_path, capsys):
    args, words = BAD[case]
    assert outcome(clinic, tmp_path / "no", *args, *QUICK[2:]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and re.search(words, said), said
    assert not (tmp_path / "no").exists()


CHANGED = {
    "negative times": (lambda t: t.assign(days=-t["days"]), "negative"),
    "all censored": (lambda t: t.assign(first_event="Censored"), "all are censored"),
    "few events": (lambda t: t.assign(first_event=["Relapse"] * 4 + ["Censored"] * 56), "4 of 60"),
    "one time": (lambda t: t.assign(first_event="Relapse", days=7), "every event is at 7"),
    "patients twice": (lambda t: pd.concat([t, t.head(3)]), "several rows"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_bad_tables(case, tmp_path, capsys):
    change, words = CHANGED[case]
    change(clinic_of()).to_csv(tmp_path / "c.csv", index=False)
    assert outcome(tmp_path / "c.csv", tmp_path / "no", *TIMED, *QUICK) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_missing_outcomes_are_counted(tmp_path, capsys):
    table = clinic_of()
    table.loc[:4, "days"] = np.nan
    table.to_csv(tmp_path / "c.csv", index=False)
    args = [*TIMED, "--cell-type-columns", ",".join(TYPES), *QUICK]
    assert outcome(tmp_path / "c.csv", tmp_path / "out", *args) == 0
    got = capsys.readouterr()
    assert "55 patients" in got.out and "left out: 5 patients without an outcome" in got.out


# ---- what must not matter


def patients(n=50, seed=0):
    table = clinic_of(n, seed)
    blocks = {"composition": Block(table[TYPES].to_numpy(float), TYPES, "composition")}
    seen = (table["first_event"] == "Relapse").to_numpy()
    return Patients(table["patient"].to_numpy(), time_to_event(table["days"], seen), blocks)


def test_held_out_patients_do_not_reach_their_own_prediction():
    "Neither their outcome nor their features change what is learnt."
    data = patients()
    folds = Judging(n_folds=5, repeats=1).folds(50)
    held = folds[0] == 2
    model = OutcomeModel(["composition"])
    before = held_out_risks(model, data, folds)[0]
    block = data.blocks["composition"]
    values = block.values.copy()
    values[np.flatnonzero(held)[0]] = [1, 1, 1, 900]
    moved = Patients(data.names, data.outcome, {"composition": Block(values, TYPES, block.kind)})
    after = held_out_risks(model, moved, folds)[0]
    others = np.flatnonzero(held)[1:]
    assert np.array_equal(before.risk[0, others], after.risk[0, others])
    assert before.deviation[0, 2] == after.deviation[0, 2]


def test_the_unit_of_time():
    "Months for days: the same concordance."
    data = patients()
    months = time_to_event(data.outcome.time / 30.4, data.outcome.event)
    again = Patients(data.names, months, data.blocks)
    found = [
        evaluate_outcome(d, n_folds=5, repeats=1, permutations=0).models for d in (data, again)
    ]
    pair = [f[f["metric"] == "concordance"]["value"].to_numpy() for f in found]
    assert np.allclose(*pair)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.booleans(), st.integers(-4, 4)), min_size=2, max_size=25
    )
)
def test_concordance_of_any_cohort(rows):
    "Against counting pairs one by one; reversed risks have the rest."
    time, event, risk = (np.array(c) for c in zip(*rows))
    pairs = usable_pairs(time_to_event(time, event))
    right = total = 0.0
    for i in range(len(rows)):
        for j in range(len(rows)):
            first = event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j]))
            if first:
                total += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 * (risk[i] == risk[j])
    found = float(concordance(risk, pairs))
    if total == 0:
        assert np.isnan(found)
        return
    assert np.isclose(found, right / total)
    assert np.isclose(found + float(concordance(-risk, pairs)), 1)


# ---- real data


def test_target(shared_data, tmp_path, capsys):
    "Composition orders 287 children by their events; overall survival is refused as covariate."
    path = shared_data / "target_pedaml_composition.csv"
    types = list(pd.read_csv(path).columns[10:])
    args = "--time event_free_days --event first_event --no-figures --permutations 19".split()
    args += ["--models", "composition", "--covariates", "log(wbc)"]
    args += ["--cell-type-columns", ",".join(types)]
    assert outcome(path, tmp_path / "out", *args) == 0
    models = pd.read_csv(tmp_path / "out" / "models.csv")
    row = models[models["metric"] == "concordance"].set_index("model").loc["composition"]
    assert row["low"] > 0.5 and row["p_value"] == 0.05  # above all of 19 permutations
    effects = pd.read_csv(tmp_path / "out" / "effects.csv").query("adjusted_for != adjusted_for")
    assert effects.set_index("feature").loc["GMP-like", "ci_high"] < 1
    capsys.readouterr()
    leaking = ["--covariates", "overall_days", "--cell-type-columns", ",".join(types)]
    assert outcome(path, tmp_path / "no", *args[:4], *leaking) == 2
    assert "sounds like follow-up" in capsys.readouterr().err
