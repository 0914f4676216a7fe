"Malformed input of embeddings that are fitted in every fold."

from importlib.util import find_spec

import numpy as np
import pytest
import scipy.sparse as sp

from longaml.core import InputError
from longaml.datasets.cohort import simulate_cohort
from longaml.datasets.outcomes import simulate_outcomes
from longaml.models.fold_pca import with_fold_pca
from longaml.pp.embedding import CellPCA, bags_with, embed
from longaml.pp.preprocessing import bags
from longaml.tasks.outcome import evaluate_outcome
from longaml.tasks.outcome_data import outcome_of_cohort
from longaml.tasks.timepoint import evaluate


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort("small", seed=2, n_patients=6, n_genes=200, n_cells=30)


@pytest.fixture(scope="module")
def folds(cohort):
    return {p: i % 3 for i, p in enumerate(cohort.obs["patient"].cat.categories)}


def not_counts(cohort):
    found = cohort.copy()
    found.uns["longaml"] = {**found.uns["longaml"], "input_kind": "lognorm"}
    return found


def test_an_unknown_method_is_refused(cohort, folds):
    with pytest.raises(InputError, match="umap.*pca, scvi") as e:
        embed(cohort, "umap", folds)
    assert e.value.parameter == "method"


def test_folds_need_every_patient_and_two_folds(cohort, folds):
    first = next(iter(folds))
    lacking = {p: f for p, f in folds.items() if p != first}
    with pytest.raises(InputError, match=f"folds lack {first}") as e:
        embed(cohort, "pca", lacking)
    assert e.value.parameter == "folds"
    with pytest.raises(InputError, match="one fold"):
        embed(cohort, "pca", dict.fromkeys(folds, 1))


def test_too_few_cells_are_refused(cohort):
    with pytest.raises(InputError, match="1 cells.*no principal components"):
        embed(cohort[:1].copy())
    with pytest.raises(InputError, match="no principal components"):
        CellPCA.of(sp.csr_matrix((5, 0)))


def test_values_that_are_no_counts_are_refused(cohort, folds):
    with pytest.raises(InputError, match="counts"):
        embed(not_counts(cohort), "pca", folds)


@pytest.mark.skipif(find_spec("scvi") is not None, reason="scvi-tools is installed")
def test_scvi_names_the_extra(cohort, folds):
    with pytest.raises(ImportError, match=r"longaml\[embeddings\]"):
        embed(cohort, "scvi", folds)


def test_outcomes_of_values_that_are_no_counts(folds):
    made = simulate_outcomes("null", seed=3, n_patients=30, n_cells=25, n_genes=60)
    rng = np.random.default_rng(0)
    made.obsm["X_own"] = rng.normal(size=(made.n_obs, 3))
    data = outcome_of_cohort(made, time="days", event="event", use_rep="X_own")
    both = evaluate_outcome(
        with_fold_pca(data), ["embedding", "fold_pca"], n_folds=3, repeats=1, permutations=0
    )
    assert set(both.models["model"]) == {"marginal", "embedding", "fold_pca"}
    with pytest.raises(InputError, match="fold_pca") as e:
        evaluate_outcome(data, ["fold_pca"], n_folds=3, repeats=1, permutations=0)
    assert e.value.parameter == "models"
    bare = outcome_of_cohort(not_counts(made), time="days", event="event")
    with pytest.raises(InputError, match="counts"):
        with_fold_pca(bare)


def test_bags_hold_the_mean_of_their_cells(cohort):
    given = cohort.copy()
    given.obsm["X_one"] = np.ones((given.n_obs, 2))
    for values in (given.obsm["X_one"], sp.csr_matrix(given.obsm["X_one"])):
        given.obsm["X_one"] = values
        assert np.allclose(bags_with(given, "X_one").obsm["X_one"], 1)
    with pytest.raises(InputError, match="key of obsm is 'X_two'; expected one of: X_one") as e:
        bags_with(given, "X_two")
    assert e.value.parameter == "use_rep"
    with pytest.raises(InputError, match=r"la.pp.embedding.bags_with\(cohort, 'X_one'\)"):
        evaluate(bags(given), models=["logistic"], use_rep="X_one")


def test_an_embedding_that_knows_the_visit_is_flagged():
    "Nothing changes between the visits; what is fitted in each fold finds nothing."
    made = simulate_cohort(
        "null",
        seed=3,
        n_patients=12,
        n_genes=100,
        n_cells=80,
        missing=0.0,
        timepoints=("DX", "REL"),
    )
    rng = np.random.default_rng(0)
    later = (made.obs["timepoint"] == "REL").to_numpy()
    made.obsm["X_tuned"] = rng.normal(size=(made.n_obs, 3)) + later[:, None]
    found = evaluate(bags_with(made, "X_tuned"), models=["logistic"], use_rep="X_tuned")
    table = found.summary().set_index("model")
    assert list(table.index[table["transductive"]]) == ["logistic_on_X_tuned"]
    assert table["mean"]["logistic_on_X_tuned"] > 0.95
    assert (table["mean"][["logistic", "fold_pca"]] < 0.75).all()
    assert found.best().name != "logistic_on_X_tuned"
