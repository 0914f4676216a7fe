"Methods that need an extra; the development environment has them, a user's may not."

import numpy as np
import pytest

import longaml as la


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


@pytest.mark.xfail(strict=True, reason="deseq2 takes replicate samples of a visit as further pairs")
def test_deseq2_takes_a_patient_once():
    """Replicate samples of a patient at one visit are one observation, as their sum is: counted
    as rows of their own, they make z-scores about 1.15 times too large (11.2 for 9.8).
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
