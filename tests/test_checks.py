"Checks of rankings: chance, constant and input-independent models; tables that scanpy reads whole."

import numpy as np
import pandas as pd
import pytest

import longaml as la
from longaml.core import InputError, rng_for
from longaml.datasets.cohort import simulate_cohort
from longaml.pp.preprocessing import bags, pseudobulk, timepoint_pairs
from longaml.tl.checks import CHECKS, Check, Evidence, finding, input_change, run_checks
from longaml.tl.expression import as_scanpy, de_table
from longaml.tl.permutation import design_of
from longaml.tl.ranking import GeneChanges, RankingOptions, Stability, rank_scorer

ORDER = pd.DataFrame({"gene": list("ABCDEF"), "score": [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]})


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort("small", seed=5, n_patients=10, n_genes=120, n_drivers=4)


def accuracies(values):
    return pd.DataFrame({"value": values, "chance": 0.5})


def status_of(evidence):
    return run_checks(evidence).set_index("check")["status"]


# ---------------------------------------------------------------- chance


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("value", [0.5, 0.75, 1.0])
def test_no_accuracy_of_fewer_than_six_patients_passes(n, value):
    spread = value + 0.01 * np.arange(n) * (value < 1)  # with and without ties
    evidence = Evidence(ORDER, n, accuracy=accuracies(spread))
    assert status_of(evidence)["chance level"] == "failed"


def test_accuracy_above_chance_passes_and_chance_fails():
    gain = rng_for(1).normal(0, 0.1, 40)
    cases = {
        "passed": accuracies([1.0] * 8),
        "failed": accuracies(0.5 + gain - gain.mean()),
    }
    for expected, accuracy in cases.items():
        found = status_of(Evidence(ORDER, len(accuracy), accuracy=accuracy))
        assert found["chance level"] == expected
    below = status_of(Evidence(ORDER, 8, accuracy=accuracies([0.2] * 8)))
    assert below["chance level"] == "failed"


def test_what_is_not_given_is_not_assessed():
    found = run_checks(Evidence(ORDER, 12)).set_index("check")
    for name in ("chance level", "input-independent", "unstable", "explained by depth"):
        assert found.loc[name, "status"] == "not assessed"
    assert found.loc["chance level", "text"] == "not assessed"
    none = pd.DataFrame({"value": [], "chance": []})
    assert status_of(Evidence(ORDER, 12, accuracy=none))["chance level"] == "not assessed"


# ---------------------------------------------------------------- a constant model


def test_a_constant_model_is_ranked_and_fails_its_checks(cohort):
    sets = timepoint_pairs(bags(cohort), ("DX", "REL"))

    def predict(s):
        return np.full((len(s), 2), 0.5)

    def score(assignments, *, seed=0):
        return np.zeros((len(assignments), cohort.n_vars))

    design = design_of(cohort, ("DX", "REL"))
    both = design.groupby("patient", observed=True)["timepoint"].transform("size") == 2
    design = design[both]
    patients = design["patient"].unique()
    changes = pd.DataFrame(
        rng_for(0).normal(size=(len(patients), cohort.n_vars)),
        index=patients,
        columns=cohort.var_names,
    )
    level = np.asarray(cohort.X.mean(0)).ravel()
    names = {"model": "constant", "contrast": "REL_vs_DX"}
    genes = GeneChanges(design, changes, level)
    ranked = rank_scorer(score, genes, **names, options=RankingOptions(nulls=4, halves=4))
    assert len(ranked.table) == cohort.n_vars
    assert (ranked.table["p_value"] == 1).all() and (ranked.table["q_value"] == 1).all()
    assert ranked.table["stability"].isna().all()
    evaluation = accuracies([0.5] * len(patients)).assign(**names, metric="balanced_accuracy")
    found = ranked.audit(
        cohort,
        evaluation=evaluation,
        input_changes={"constant": input_change(predict, sets)},
    ).set_index("check")["status"]
    for name in ("chance level", "constant", "input-independent", "no gene passes"):
        assert found[name] == "failed", name


def test_stability_is_not_measured_below_three_patients(cohort):
    patients = list(cohort.obs["patient"].cat.categories[:2])
    design = pd.DataFrame(
        {
            "patient": np.repeat(patients, 2),
            "timepoint": pd.Categorical(["DX", "REL"] * 2, ["DX", "REL"], ordered=True),
        },
        index=pd.Index([f"{p}_{t}" for p in patients for t in ("DX", "REL")], name="sample"),
    )
    changes = pd.DataFrame(rng_for(0).normal(size=(2, 6)), patients, list("ABCDEF"))

    def score(assignments, *, seed=0):
        return np.abs(rng_for(seed, len(assignments)).normal(size=(len(assignments), 6)))

    genes = GeneChanges(design, changes, np.arange(6.0))
    ranked = rank_scorer(score, genes, model="m", contrast="REL_vs_DX")
    assert not ranked.stability.measured and ranked.stability.to_dict() == {"patients": 2}
    assert ranked.table["stability"].isna().all()


def test_a_row_of_stability_has_no_frequency():
    found = Stability(0.5, 0.4, 0.6, 0.1, 0.0, 0.2, np.zeros(3), patients=8, k=2, n=4)
    index = ["index", "low", "high", "null_index", "null_low", "null_high"]
    assert list(found.to_dict()) == [*index, "patients", "k", "n"]


def test_a_check_is_added_in_one_place():
    def few_genes(evidence, threshold):
        n = len(evidence.ranking)
        return finding(n < threshold, n, threshold, f"{n} genes")

    check = Check("few genes", "genes", 10, "fewer than 10 genes", few_genes)
    found = run_checks(Evidence(ORDER, 12), [*CHECKS, check])
    assert found.iloc[-1].tolist() == ["few genes", "failed", 6, 10, "6 genes"]


# ---------------------------------------------------------------- scanpy


@pytest.fixture(scope="module")
def table(cohort):
    return de_table(pseudobulk(cohort))


def test_scanpy_reads_every_group_whole(cohort, table, tmp_path):
    sc = pytest.importorskip("scanpy")
    import anndata

    data = cohort.copy()
    data.uns["rank_genes_groups"] = as_scanpy(table)
    data.write_h5ad(tmp_path / "cells.h5ad")
    for adata in (data, anndata.read_h5ad(tmp_path / "cells.h5ad")):
        groups = adata.uns["rank_genes_groups"]["names"].dtype.names
        pairs = table[["contrast", "cell_type"]].drop_duplicates()
        assert list(groups) == [f"{c}, {k}" for c, k in pairs.to_numpy()]
        assert len(groups) > 2 and "REL_vs_DX, all" in groups
        frame = sc.get.rank_genes_groups_df(adata, group=None)
        assert len(frame) == len(groups) * table["gene"].nunique()
        columns = ["scores", "logfoldchanges", "pvals", "pvals_adj"]
        assert np.isfinite(frame[columns].to_numpy(float)).all()
        of_group = sc.get.rank_genes_groups_df(adata, group="REL_vs_DX, all").set_index("names")
        rows = table[(table["contrast"] == "REL_vs_DX") & (table["cell_type"] == "all")]
        rows = rows.set_index("gene").loc[of_group.index]
        ours = rows[["statistic", "log2_fold_change", "p_value", "q_value"]]
        np.testing.assert_allclose(of_group[columns], ours)
        assert of_group["scores"].is_monotonic_decreasing


def test_scanpy_draws_it(cohort, table):
    sc = pytest.importorskip("scanpy")
    import matplotlib.pyplot as plt

    data = cohort.copy()
    data.uns["rank_genes_groups"] = as_scanpy(table)
    axes = sc.pl.rank_genes_groups(data, n_genes=5, show=False)
    assert len(axes) == table.groupby(["contrast", "cell_type"]).ngroups
    assert axes[0].get_title().startswith("REL_vs_DX, all")
    plt.close("all")


def test_results_stay_with_the_cohort(cohort, tmp_path):
    "Tables under `key_added` come back from a saved cohort; scanpy reads what `de` wrote."
    sc = pytest.importorskip("scanpy")
    data = cohort.copy()
    genes = la.tl.de(data, key_added="de")
    la.tl.de(data, key_added="rank_genes_groups")
    types = la.tl.abundance(data, key_added="abundance")
    sets = {"first": list(data.var_names[:40]), "second": list(data.var_names[40:90])}
    enriched = la.tl.enrich(data, sets, key_added="gene_sets")
    path = la.pp.save_cohort(data, tmp_path / "cohort.h5ad")
    back = la.read_cohort(path)
    written = sc.read_h5ad(path)
    for key, table in {"de": genes, "abundance": types, "gene_sets": enriched}.items():
        assert written.uns["longaml"]["results"][key]["design"] == genes.attrs["design"]
        for column in table:
            found, ours = written.uns[key][column], table[column]
            if pd.api.types.is_numeric_dtype(ours):
                np.testing.assert_array_equal(found.to_numpy(float), ours.to_numpy(float))
            else:
                assert found.astype(str).tolist() == ours.astype(str).tolist()
    frame = sc.get.rank_genes_groups_df(written, group="REL_vs_DX, all")
    ours = genes[(genes["contrast"] == "REL_vs_DX") & (genes["cell_type"] == "all")]
    own = ours.set_index("gene").loc[frame["names"], "p_value"]
    np.testing.assert_allclose(frame["pvals"], own)
    pd.testing.assert_frame_equal(la.tl.de(back), genes)  # a saved table changes nothing
    with pytest.raises(InputError, match="uns of an AnnData"):
        la.tl.abundance(la.tl.sample_counts.counts_of_cohort(data), key_added="abundance")


def test_genes_that_were_not_tested_have_no_missing_values(cohort):
    sc = pytest.importorskip("scanpy")
    some = pd.DataFrame(
        {
            "contrast": "REL_vs_DX",
            "cell_type": ["T cell", "T cell", "B cell"],
            "gene": cohort.var_names[[0, 1, 0]],
            "statistic": [np.nan, -2.0, 3.0],
            "log2_fold_change": [0.1, -1.0, 1.0],
            "p_value": [np.nan, 0.04, 0.01],
            "q_value": [np.nan, 0.08, 0.02],
        }
    )
    data = cohort.copy()
    data.uns["rank_genes_groups"] = as_scanpy(some)
    frame = sc.get.rank_genes_groups_df(data, group=None).set_index(["group", "names"])
    first, second = cohort.var_names[:2]
    assert frame.notna().all().all()
    assert frame.loc[("REL_vs_DX, B cell", second), "pvals"] == 1
    assert frame.loc[("REL_vs_DX, T cell", first), "scores"] == 0
    assert frame.loc[("REL_vs_DX, T cell", second), "scores"] == -2


def test_a_ranking_of_models_is_grouped_by_model(cohort):
    sc = pytest.importorskip("scanpy")
    one = pd.DataFrame(
        {
            "model": "logistic",
            "contrast": "REL_vs_DX",
            "gene": cohort.var_names[:4],
            "score": [4.0, 3.0, 2.0, 1.0],
            "log2_fold_change": 1.0,
            "p_value": 0.1,
            "q_value": 0.2,
        }
    )
    data = cohort.copy()
    data.uns["rank_genes_groups"] = as_scanpy(one)
    assert list(sc.get.rank_genes_groups_df(data, group="REL_vs_DX")["scores"]) == [4, 3, 2, 1]
    data.uns["rank_genes_groups"] = as_scanpy(pd.concat([one, one.assign(model="lstm")]))
    groups = data.uns["rank_genes_groups"]["scores"].dtype.names
    assert groups == ("REL_vs_DX, logistic", "REL_vs_DX, lstm")
    again = la.tl.checks.as_ranking(sc.get.rank_genes_groups_df(data, group=groups[1]))
    np.testing.assert_array_equal(again["score"], one["score"])
    with pytest.raises(ValueError, match="appears twice in 'REL_vs_DX'"):
        as_scanpy(pd.concat([one, one]))
