"Methods that need an extra; the development environment has them, a user's may not."

import numpy as np
import pandas as pd
import pytest

import longaml as la
from longaml.core import rng_for


@pytest.fixture(scope="module")
def blasts():
    cohort = la.datasets.simulate_cohort("small", seed=2, n_genes=200, n_drivers=8)
    return cohort, la.pp.pseudobulk(cohort, downsampled=False)


def test_deseq2_agrees_with_the_paired_test_on_planted_drivers(blasts):
    pytest.importorskip("pydeseq2")
    cohort, bulk = blasts
    found = la.tl.deseq2(bulk, ("REL", "DX"), cell_type="HSC malignant").set_index("gene")
    truth = cohort.uns["truth"].loc[found.index]
    planted = truth["kind"] == "marginal"
    ours = la.tl.expression.moderated_t(
        la.tl.permutation.paired_differences(
            la.pp.pseudobulk(cohort), ("REL", "DX"), cell_type="HSC malignant"
        )[list(found.index)]
    )[0]
    assert list(found.columns) == [
        "contrast",
        "cell_type",
        "patients",
        "log2_fold_change",
        "statistic",
        "p_value",
        "q_value",
    ]
    assert (
        np.corrcoef(found["log2_fold_change"][planted], truth["log2_fold_change"][planted])[0, 1]
        > 0.9
    )
    assert np.corrcoef(found["statistic"], ours)[0, 1] > 0.7


def test_deseq2_refuses_a_cell_type_that_is_not_there(blasts):
    pytest.importorskip("pydeseq2")
    with pytest.raises(ValueError, match="Did you mean 'HSC malignant'"):
        la.tl.deseq2(blasts[1], ("REL", "DX"), cell_type="HSC malignat")


def test_a_missing_extra_is_named(monkeypatch, blasts):
    monkeypatch.setitem(__import__("sys").modules, "pydeseq2", None)
    with pytest.raises(ImportError, match=r"longaml\[deseq2\]"):
        la.tl.deseq2(blasts[1], ("REL", "DX"), cell_type="HSC malignant")


def test_activities_of_planted_targets():
    pytest.importorskip("decoupler")
    from longaml.tl.activity import activity

    cohort = la.datasets.simulate_cohort("small", seed=1, n_patients=10, n_genes=300, n_drivers=20)
    truth = cohort.uns["truth"]
    drivers = truth[truth["driver"] & (truth["log2_fold_change"] != 0)]
    parts = [
        pd.DataFrame(
            {
                "source": "planted",
                "target": drivers.index,
                "weight": np.sign(drivers["log2_fold_change"]),
            }
        )
    ]
    rng = rng_for(0, "factors")
    others = cohort.var_names.difference(drivers.index)
    for i in range(19):
        targets = rng.choice(others, 20, replace=False)
        parts.append(pd.DataFrame({"source": f"factor {i}", "target": targets, "weight": 1.0}))
    network = pd.concat(parts)
    for method in ("ulm", "waggr"):
        found = activity(cohort, network, contrast=("REL", "DX"), method=method)
        first = found[found["cell_type"] == "HSC malignant"].iloc[0]
        assert first["source"] == "planted" and first["direction"] == "up"
        assert first["ci_low"] < first["effect"] < first["ci_high"] and first["q_value"] < 0.01


def test_the_extra_of_activities_is_named(monkeypatch, blasts):
    from longaml.tl.activity import activity

    monkeypatch.setitem(__import__("sys").modules, "decoupler", None)
    network = pd.DataFrame({"source": "a", "target": list(blasts[0].var_names[:5])})
    with pytest.raises(ImportError, match=r"longaml\[activity\]"):
        activity(blasts[0], network)


def test_deseq2_takes_a_patient_once():
    """Replicate samples of a patient at one visit are one observation, as their sum is: counted
    as rows of their own, they made z-scores about 1.15 times too large (11.2 for 9.8).
    """
    pytest.importorskip("pydeseq2")
    from test_reading_labels import replicated

    apart = replicated(n=30)
    pooled = apart.copy()
    pooled.obs["sample"] = pooled.obs["patient"] + "_" + pooled.obs["timepoint"]
    found = [
        la.tl.deseq2(
            la.pp.pseudobulk(la.pp.as_cohort(a), min_cells=5, downsampled=False),
            ("REL", "DX"),
            cell_type="T",
        )
        for a in (apart, pooled)
    ]
    assert (found[0]["patients"] == 6).all()
    np.testing.assert_allclose(found[0]["statistic"], found[1]["statistic"], rtol=1e-6)
