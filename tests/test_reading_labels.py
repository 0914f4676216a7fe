"""Labels as people write them: case and blanks, pseudo-donors, replicates, names that collide,
columns that are guessed, odd names of files; compared with plain pandas."""

import json
import logging
import math
from itertools import product

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import longaml as la
from longaml.cli import main
from longaml.core import InputError, slug
from longaml.pp.cells import cell_data, labelled_cells
from longaml.pp.names import NO_DONOR, clean_labels, joined_names, split_visits, timeline
from longaml.pp.preprocessing import sequences, timepoint_pairs
from longaml.tasks.coverage import coverage, gene_times
from longaml.tl.expression import de_table
from longaml.tl.network_changes import rank_network_change
from longaml.tl.networks import one_sample_a_visit
from longaml.tl.nuisances import explanations
from longaml.tl.permutation import (
    assignment_signs,
    design_of,
    paired_differences,
    paired_scorer,
    permute_samples,
)

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def cells(rows, n_genes=12, seed=0, **columns):
    "An AnnData of counts with one cell for every row: (patient, visit)."
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(rows, columns=["donor", "visit"]).assign(**columns)
    obs.index = [f"c{i}" for i in range(len(obs))]
    X = sp.csr_matrix(rng.poisson(3, (len(obs), n_genes)).astype(np.float32))
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"MT-{i}" for i in range(n_genes)]))


def cohort_rows(patients=("P1", "P2", "P3"), visits=("DX", "REL"), n=20):
    "Every patient at every visit, `n` cells each."
    return [(p, v) for p, v in product(patients, visits) for _ in range(n)]


def warned(adata, start):
    return [w for w in adata.uns["longaml"]["warnings"] if w.startswith(start)]


# ---------------------------------------------------------------- case and blanks
def test_case_and_blanks_are_merged_with_a_note(caplog):
    rows = cohort_rows()
    rows[:4] = [("P1 ", "Dx"), ("p1", "DX "), ("P1", "dx"), ("P1", " DX")]
    got = la.pp.as_cohort(cells(rows))
    assert list(got.obs["patient"].cat.categories) == ["P1", "P2", "P3"]
    assert list(got.obs["timepoint"].cat.categories) == ["DX", "REL"]
    assert got.obs["sample"].nunique() == 6
    plain = pd.DataFrame(rows).map(lambda v: v.strip().upper())
    assert got.obs["patient"].tolist() == plain[0].tolist()
    assert got.obs["timepoint"].tolist() == plain[1].tolist()
    (donor, visit) = warned(got, "merged")
    assert "'P1 ' -> 'P1'" in donor and "'donor'" in donor and "'Dx' -> 'DX'" in visit
    assert donor in caplog.text


def test_blanks_within_a_timepoint():
    visits = ["Day 0", "day0 ", "Day  0", "Day 14"]
    rows = [(p, v) for p in ("P1", "P2") for v in visits for _ in range(5)]
    got = la.pp.as_cohort(cells(rows), timepoints=["Day 0", "Day 14"])
    assert got.obs["timepoint"].value_counts().to_dict() == {"Day 0": 30, "Day 14": 10}
    other = la.pp.as_cohort(cells(rows), timepoints=["day0", "DAY 14"])
    assert list(other.obs["timepoint"].cat.categories) == ["day0", "DAY 14"]


ALIKE = {
    "a tab": ("P-1", "P-1\t"),
    "no-break blank": ("P-1", "P-1\u00a0"),
    "a byte-order mark": ("P-1", "\ufeffP-1"),
    "zero width": ("P-1", "P\u200b-1"),
    "en dash": ("P-1", "P\u20131"),
    "minus": ("P-1", "P\u22121"),
    "quotes": ("P-1", '"P-1"'),
    "full width": ("P-1", "\uff30-\uff11"),
    "two ways to write an accent": ("Z\u00fc", "Zu\u0308"),
    "numbers": (1, 1.0),
    "a number and a text": (1, "1"),
    "texts of numbers": ("1", "1.0"),
}


@pytest.mark.parametrize("kind", ALIKE)
@pytest.mark.parametrize("column", ["donor", "visit"])
def test_names_that_look_alike_are_one(kind, column):
    usual, other = ALIKE[kind]
    a = cells(cohort_rows(visits=("A", "B")))
    first = "P1" if column == "donor" else "A"
    values = a.obs[column].astype(object).to_numpy()
    at = values == first
    values[at] = [usual, usual, other, usual] * (at.sum() // 4)
    a.obs[column] = values
    order = [str(usual), "B"] if column == "visit" else ["A", "B"]
    got = la.pp.as_cohort(a, timepoints=order)
    role = "patient" if column == "donor" else "timepoint"
    plain = np.where(at, str(usual), values.astype(str))
    assert got.obs[role].astype(str).tolist() == plain.tolist()
    assert got.obs["sample"].nunique() == 6
    assert bool(warned(got, "merged")) == (str(usual) != str(other))
    assert (got.X != a.X).nnz == 0


def test_names_that_only_resemble_stay_apart():
    for names in (("1", "01"), ("P-1", "P_1"), ("P1", "P11"), ("10\u00b2", "102"), ("1.5", "15")):
        got = la.pp.as_cohort(cells(cohort_rows(names)))
        assert set(got.obs["patient"].cat.categories) == set(names), names
        assert not warned(got, "merged")


def test_patients_that_are_numbers():
    "A column of floats, because one patient is missing."
    a = cells(cohort_rows((1, 2, 3)))
    a.obs["donor"] = a.obs["donor"].astype(float)
    a.obs.iloc[::6, 0] = np.nan
    got = la.pp.as_cohort(a)
    assert list(got.obs["patient"].cat.categories) == ["1", "2", "3"] and not warned(got, "merged")
    assert got.n_obs == a.obs["donor"].notna().sum() == 100


def test_levels_that_no_row_has():
    a = cells(cohort_rows())
    a.obs["donor"] = pd.Categorical(a.obs["donor"], ["P9", "P3", "P1", "P2"])
    a.obs["visit"] = pd.Categorical(a.obs["visit"], ["REL", "never", "DX"], ordered=True)
    got = la.pp.as_cohort(a)
    assert list(got.obs["patient"].cat.categories) == ["P3", "P1", "P2"]
    assert list(got.obs["timepoint"].cat.categories) == ["REL", "DX"]
    assert got.obs["patient"].astype(str).tolist() == a.obs["donor"].astype(str).tolist()


def test_timepoints_that_are_one_after_cleaning():
    a = cells(cohort_rows(visits=("DX", "dx ", "REL")))
    with pytest.raises(InputError, match="names one twice: DX, dx , REL") as e:
        la.pp.as_cohort(a, timepoints=["DX", "dx ", "REL"])
    assert e.value.parameter == "timepoints"
    assert la.pp.as_cohort(a).obs["timepoint"].value_counts().to_dict() == {"DX": 120, "REL": 60}


def test_a_blank_between_digits_is_a_difference():
    rows = cohort_rows(("1 1", "11"))
    assert la.pp.as_cohort(cells(rows)).obs["patient"].nunique() == 2


def test_cell_types_are_merged():
    a = cells(cohort_rows())
    a.obs["cell_type"] = ["Mono", "mono ", "T", "nan"] * 30
    got = la.pp.as_cohort(a)
    assert got.obs["cell_type"].value_counts().to_dict() == {"Mono": 60, "T": 30, "unassigned": 30}
    a.obs["cell_type"] = ["all", "T"] * 60
    got = la.pp.as_cohort(a)
    assert set(got.obs["cell_type"]) == {"all (cell type)", "T"} and warned(got, "renamed")


def test_two_words_for_one_visit():
    rows = cohort_rows(visits=("DX", "REL")) + [("P4", v) for v in ("diagnosis", "REL")] * 9
    a = cells(rows)
    with pytest.raises(InputError, match="mean the same") as e:
        la.pp.as_cohort(a)
    assert "timepoints=['DX=diagnosis', 'REL']" in str(e.value)
    assert e.value.parameter == "timepoints"
    for given_names in (["DX=diagnosis", "REL"], {"DX": ["diagnosis"], "REL": []}):
        got = la.pp.as_cohort(a, timepoints=given_names)
        expected = a.obs["visit"].replace("diagnosis", "DX").value_counts().to_dict()
        assert got.obs["timepoint"].value_counts().to_dict() == expected
        assert warned(got, "merged: timepoints as named")
    apart = la.pp.as_cohort(a, timepoints=["diagnosis", "DX", "REL"])
    assert apart.obs["timepoint"].nunique() == 3
    with pytest.raises(InputError, match="'relapse' is not in.*Did you mean 'REL'"):
        la.pp.as_cohort(a, timepoints=["DX", "relapse"])
    with pytest.raises(InputError, match="names one twice"):
        la.pp.as_cohort(a, timepoints=["DX", "dx", "REL"])


def test_words_of_one_kind_have_their_order():
    rows = cohort_rows(visits=("Relapse", "Diagnosis", "complete remission"))
    order = list(la.pp.as_cohort(cells(rows)).obs["timepoint"].cat.categories)
    assert order == ["Diagnosis", "complete remission", "Relapse"]


def test_numbers_with_a_missing_value():
    a = cells(cohort_rows())
    a.obs["day"] = a.obs["visit"].map({"DX": 0, "REL": 14}).astype(float)
    a.obs.iloc[0, a.obs.columns.get_loc("day")] = np.nan
    got = la.pp.as_cohort(a, timepoint_key="day", timepoints=[0, 14])
    assert got.obs["timepoint"].value_counts().to_dict() == {"0": 59, "14": 60}


# ---------------------------------------------------------------- pseudo-donors
@pytest.mark.parametrize(
    "word", ["doublet", "unassigned", "nan", "None", "NA", "N/A", "", " ", "null", None, np.nan]
)
@pytest.mark.parametrize("column", ["donor", "visit"])
def test_what_is_no_patient_or_timepoint_is_dropped_and_counted(word, column, caplog):
    a = cells(cohort_rows())
    values = a.obs[column].astype(object).to_numpy()
    values[::7] = word
    a.obs[column] = values
    got = la.pp.as_cohort(a)
    left = np.arange(a.n_obs) % 7 != 0
    assert got.n_obs == left.sum() and got.obs["patient"].nunique() == 3
    assert (got.X != a.X[left]).nnz == 0
    (note,) = warned(got, "dropped")
    assert f"{(~left).sum()} of {a.n_obs} rows without a" in note and note in caplog.text
    assert repr(column) in note
    said = word.strip() if isinstance(word, str) else ""
    assert f"({said or 'no value'} {(~left).sum()})" in note


@pytest.mark.parametrize(
    "word",
    [
        *("Doublet", "MULTIPLET", "not_assigned", "n.a.", "missing", "Negative", "ambiguous"),
        *("doublet0/1", "Doublet_P1_P2", "-", "--", "?", ".", "\u2014", "\u200b", "#REF!", "amb"),
        *("unknown", "low_quality", "Not Called", "unassign", "not available"),
    ],
)
def test_what_demultiplexers_and_spreadsheets_write_is_no_patient(word):
    a = cells(cohort_rows())
    values = a.obs["donor"].to_numpy(object)
    values[::7] = word
    a.obs["donor"] = values
    got = la.pp.as_cohort(a)
    assert list(got.obs["patient"].cat.categories) == ["P1", "P2", "P3"]
    assert got.n_obs == (np.arange(120) % 7 != 0).sum() and warned(got, "dropped")


def test_demuxlet_writes_two_donors_of_a_doublet():
    rows = [(f"SNG-{p}", v) for p, v in cohort_rows()]
    rows[::10] = [("DBL-P1-P2-0.50", v) for _, v in rows[::10]]
    rows[1::10] = [("AMB-P1-P3-0.50", v) for _, v in rows[1::10]]
    got = la.pp.as_cohort(cells(rows))
    assert list(got.obs["patient"].cat.categories) == ["SNG-P1", "SNG-P2", "SNG-P3"]
    ids = la.pp.as_cohort(cells(cohort_rows(("AMB-1", "AMB-2"))))  # a hospital's initials
    assert ids.obs["patient"].nunique() == 2


def test_no_patient_at_all():
    a = cells(cohort_rows())
    a.obs["donor"] = "unassigned"
    with pytest.raises(InputError, match="none of 120 rows has a patient.*unassigned 120"):
        la.pp.as_cohort(a)


def test_pseudo_donors_of_a_categorical_with_a_name_of_the_user():
    a = cells(cohort_rows(visits=("none", "drug")))
    got = la.pp.as_cohort(a, timepoints=["none", "drug"])  # the user's word is a name
    assert got.obs["timepoint"].value_counts().to_dict() == {"none": 60, "drug": 60}


def screen(labels, **columns):
    rng = np.random.default_rng(1)
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    X = sp.csr_matrix(rng.poisson(2, (len(labels), 8)).astype(np.float32))
    var = pd.DataFrame(index=[f"G{i}" for i in range(8)])
    return ad.AnnData(X, obs=obs.assign(**columns), var=var)


def test_pseudo_perturbations_are_left_out():
    labels = ["control", "G1", "G2", "doublet", "nan", "unassigned", None, " G1"] * 10
    got = la.pp.as_perturbseq(screen(labels))
    expected = pd.Series(labels).str.strip().isin(["control", "G1", "G2"])
    assert got.n_obs == expected.sum()
    assert got.obs["perturbation"].value_counts().to_dict() == {"G1": 20, "control": 10, "G2": 10}


def test_labels_and_donors_of_cells(caplog):
    label = ["T", "T ", "B", "doublet", "nan", "b"] * 20
    donor = ["d1"] * 30 + ["d2"] * 30 + ["unassigned"] * 12 + ["D2 "] * 48
    a = screen(["x"] * 120, label=label, donor=donor)
    got = labelled_cells(a, label_key="label", patient_key="donor", min_cells=5)
    plain = pd.DataFrame({"label": label, "donor": donor})
    plain["label"] = plain["label"].str.strip().replace({"b": "B", "doublet": None, "nan": None})
    plain["donor"] = plain["donor"].str.strip().replace({"d2": "D2", "unassigned": None})
    plain = plain.dropna()
    assert got.obs["label"].tolist() == plain["label"].tolist()
    assert got.obs["patient"].tolist() == plain["donor"].tolist()
    assert "dropped: 12 of 120 cells without a patient in column 'donor'" in caplog.text
    assert "dropped: 40 of 120 cells without a label in column 'label'" in caplog.text
    data = cell_data(got, "label", groups="patient")
    assert set(data.groups) == {"d1", "D2"}
    a.obs["label"] = a.obs["label"].astype("category")
    assert sorted(set(cell_data(a, "label", groups="donor").groups)) == ["D2", "d1"]


# ---------------------------------------------------------------- names that collide
def test_names_of_samples_cannot_collide():
    rows = [("S1", "w_2"), ("S1", "w_1"), ("S1_w", "2"), ("S1_w", "w_1")] * 10
    a = cells(rows)
    got = la.pp.as_cohort(a, timepoints=["w_1", "w_2", "2"])
    assert got.obs["sample"].nunique() == 4
    table = got.obs[["patient", "timepoint", "sample"]].astype(str).drop_duplicates()
    assert len(table) == 4 and got.obs_names.is_unique


@QUICK
@given(st.lists(st.tuples(*[st.text("a_-. |1", min_size=1, max_size=4)] * 2), min_size=1))
def test_joined_names_are_one_to_one(pairs):
    table = pd.DataFrame(pairs, columns=["a", "b"])
    names = joined_names(table)
    assert names.groupby([table["a"], table["b"]]).nunique().max() == 1
    assert names.nunique() == len(table.drop_duplicates())


def test_one_patient_id_in_two_cohorts():
    a = cells(cohort_rows(n=10) + cohort_rows(n=10))
    a.obs["cohort"] = ["A"] * 60 + ["B"] * 60
    with pytest.raises(InputError, match="one id for two people") as e:
        la.pp.as_cohort(a)
    assert "patient_key='cohort+donor'" in str(e.value) and e.value.parameter == "patient_key"
    got = la.pp.as_cohort(a, patient_key="cohort+donor")
    assert got.obs["patient"].nunique() == 6 and got.obs["sample"].nunique() == 12
    assert (
        got.obs["patient"].astype(str).tolist() == (a.obs["cohort"] + "_" + a.obs["donor"]).tolist()
    )
    a.obs["cohort"] = np.where(a.obs["visit"] == "DX", "A", "B")  # one person in two studies
    assert warned(la.pp.as_cohort(a), "one patient id in several")


def test_batches_of_one_sample_are_named():
    a = cells(cohort_rows())
    a.obs["batch"] = ["b1", "b2"] * 60
    (note,) = warned(la.pp.as_cohort(a), "pooled")
    assert "column 'batch'" in note and "sample_key='batch' keeps them apart" in note
    assert la.pp.as_cohort(a, sample_key="batch").obs["sample"].nunique() == 12


def test_one_column_holds_patient_and_timepoint():
    a = cells(cohort_rows())
    a.obs["id"] = a.obs["donor"] + "_" + a.obs["visit"]
    got = la.pp.as_cohort(a, patient_key="id", timepoint_key="id")
    assert got.obs["patient"].tolist() == a.obs["donor"].tolist()
    assert got.obs["timepoint"].tolist() == a.obs["visit"].tolist()
    assert "P1_DX: P1, DX" in warned(got, "split")[0]
    with pytest.raises(InputError, match="names of patients hold the timepoint .such as P1_DX."):
        la.pp.as_cohort(a, patient_key="id")
    only = a[:, :]
    only.obs = a.obs[["id"]].copy()
    with pytest.raises(KeyError, match="patient_key='id' and timepoint_key='id'"):
        la.pp.as_cohort(only)
    a.obs["id"] = a.obs["donor"] + a.obs["visit"]
    with pytest.raises(InputError, match="are not a patient and a timepoint"):
        la.pp.as_cohort(a, patient_key="id", timepoint_key="id")
    assert split_visits(["w1|P 1", "w 2|P 1"], ["w1", "w2"])["w 2|P 1"] == ("P 1", "w 2")


def test_a_sample_column_that_contradicts():
    a = cells(cohort_rows())
    own = (a.obs["donor"] + "-" + a.obs["visit"]).to_numpy()
    own[:3] = "P2-DX"  # three cells of P1 in a sample of P2
    a.obs["sample"] = own
    with pytest.raises(InputError, match="contradicts patient or timepoint: P2-DX holds") as e:
        la.pp.as_cohort(a)
    assert e.value.parameter == "sample_key" and "sample_key='none'" in str(e.value)
    got = la.pp.as_cohort(a, sample_key="none")
    assert (
        got.obs["sample"].astype(str).tolist() == (a.obs["donor"] + "_" + a.obs["visit"]).tolist()
    )


def test_pools_of_several_donors():
    a = cells(cohort_rows(n=20))
    a.obs["sample"] = ["pool1", "pool2"] * 60
    got = la.pp.as_cohort(a)
    expected = a.obs["donor"] + "_" + a.obs["visit"] + "_" + a.obs["sample"]
    assert got.obs["sample"].astype(str).tolist() == expected.tolist()
    a.obs["sample"] = a.obs["visit"].map({"DX": "pool1", "REL": "pool2"})
    got = la.pp.as_cohort(a)
    assert got.obs["sample"].nunique() == 6 and not warned(got, "replicates")


# ---------------------------------------------------------------- replicates
def replicated(n_patients=6, seed=0, n=60, extra=("P1", "P2"), n_genes=30):
    "A cohort in which some patients have two samples at DX, with a real change in G0 to G4."
    rng = np.random.default_rng(seed)
    rows = []
    for i, v in product(range(n_patients), ("DX", "REL")):
        p = f"P{i + 1}"
        for k in range(1 + (p in extra and v == "DX")):
            rows += [(p, v, f"{p}{v}{k}")] * n
    obs = pd.DataFrame(rows, columns=["patient", "timepoint", "sample"])
    obs.index = [f"c{i}" for i in range(len(obs))]
    level = rng.gamma(2, 3, n_genes)[None] * np.ones((len(obs), 1))
    level[:, :5] *= np.where(obs["timepoint"] == "REL", 2.0, 1.0)[:, None]
    for rows_of in obs.groupby("sample").indices.values():
        level[rows_of] *= np.exp(rng.normal(0, 0.1, n_genes))
    X = sp.csr_matrix(rng.poisson(level).astype(np.float32))
    a = ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]))
    a.obs["cell_type"] = np.where(np.arange(len(obs)) % 2, "T", "B")
    return a


def test_replicates_are_kept_apart():
    a = replicated()
    got = la.pp.as_cohort(a)
    assert got.obs["sample"].astype(str).tolist() == a.obs["sample"].tolist()
    (note,) = warned(got, "replicates")
    assert "2 of 12 visits" in note
    a.obs = a.obs.rename(columns={"sample": "sample_id"})
    other = la.pp.as_cohort(a)
    assert set(other.obs["sample"]) - {f"P{i}_{t}" for i in range(1, 7) for t in ("DX", "REL")} == {
        "P1_DX_P1DX0",
        "P1_DX_P1DX1",
        "P2_DX_P2DX0",
        "P2_DX_P2DX1",
    }
    assert la.pp.as_cohort(other).obs.equals(other.obs)


def test_bulk_rows_of_one_visit_are_replicates():
    a = cells([r for p in "ABC" for r in [(p, "DX"), (p, "DX"), (p, "REL")]])
    got = la.pp.as_cohort(a)
    assert got.obs["sample"].nunique() == 9 and got.uns["longaml"]["rows"] == "bulk"
    assert warned(got, "replicates")[0].endswith("each is taken as a bulk sample of its own")


def test_bags_of_replicates_are_further_bags_of_the_visit():
    got = la.pp.as_cohort(replicated())
    bagged = la.pp.bags(got, bag_size=10, max_bags=2)
    pairs = timepoint_pairs(bagged, ("DX", "REL"))
    rows = sequences(bagged)
    names = bagged.obs["sample"].astype(str).to_numpy()
    for s in (pairs, rows):
        who = pd.Series(s.patients)[s.cell_types == "T"]
        assert (who.value_counts() >= 2).all()
        assert (s.x.shape[0] == len(s.samples)) and set(s.samples.ravel()) <= set(names) | {""}
    own = pairs.samples[(pairs.patients == "P1") & (pairs.cell_types == "T")]
    assert own.tolist() == [["P1DX0", "P1REL0"], ["P1DX1", "P1REL0"]]
    every = rows.samples[(rows.patients == "P1") & (rows.cell_types == "T"), 0]
    assert sorted(every) == ["P1DX0", "P1DX1"]  # rows with one visit only are left out
    x = sequences(bagged, complete=True)
    for i in np.flatnonzero(x.patients == "P1"):
        of = (names == x.samples[i, 0]) & (bagged.obs["cell_type"] == x.cell_types[i]).to_numpy()
        assert (bagged.X[of].toarray() == x.x[i, 0]).all(1).any()
    table = coverage(bagged).set_index("cell_type")
    assert table.loc["all", "patients"] == 6 and table.loc["T", "pairs"] == 12


def test_replicates_move_together_and_permutations_end():
    design = design_of(la.pp.as_cohort(replicated(3)))
    assert len(design) == 8
    perms = permute_samples(design, n=1000)
    assert (perms.possible, perms.distinct, len(perms)) == (8, 3, 3)
    few = permute_samples(design, n=2)
    assert len(few) == 2
    visit = design["patient"] + design["timepoint"].astype(str)
    for assignment in perms.assignments:
        given_times = pd.Series(assignment)
        assert (given_times.groupby(visit).nunique() == 1).all()
        both = given_times.groupby(design["patient"]).agg(set)
        assert all(times == {"DX", "REL"} for times in both)
    mirror = {tuple(min(tuple(c), tuple(1 - c))) for c in perms.codes}
    assert len(mirror) == 3
    assert tuple(design["timepoint"].cat.codes) not in {tuple(c) for c in perms.codes}


@QUICK
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=2, max_size=4))
def test_permutations_are_what_can_be_listed(patients):
    rows = [(f"P{i}", f"t{t}") for i, visits in enumerate(patients) for t in visits]
    design = pd.DataFrame(rows, columns=["patient", "timepoint"])
    design.index = [f"s{i}" for i in range(len(design))]
    times = sorted(design["timepoint"].unique())
    design["timepoint"] = pd.Categorical(design["timepoint"], times, ordered=True)
    visits = [sorted(set(v)) for v in patients]
    if max(map(len, visits)) < 2:
        with pytest.raises(ValueError, match="no patient has two visits"):
            permute_samples(design)
        return
    perms = permute_samples(design, n=30)
    possible = math.prod(math.factorial(len(v)) for v in visits)
    wanted = (possible // 2 if len(times) == 2 else possible) - 1
    assert len(perms) == min(30, wanted)
    assert len({tuple(c) for c in perms.codes}) == len(perms)
    own = design.groupby("patient")["timepoint"].agg(lambda t: set(t.cat.codes))
    for codes in perms.codes:
        by = pd.Series(codes, design.index).groupby(design["patient"]).agg(set)
        assert (by == own).all()


def plain_differences(bulk, contrast, cell_type):
    "By loops: the plain mean over replicates, then the mean over cell types by cells."
    x = bulk.X.toarray().astype(float)
    obs = bulk.obs.reset_index(drop=True)
    found = {}
    for patient in sorted(set(obs["patient"])):
        total = weight = 0.0
        for k in set(obs["cell_type"]) if cell_type == "all" else [cell_type]:
            rows = [
                np.flatnonzero(
                    (obs["patient"] == patient) & (obs["timepoint"] == t) & (obs["cell_type"] == k)
                )
                for t in contrast
            ]
            if all(map(len, rows)):
                n, m = (obs["n_cells"][r].sum() for r in rows)
                w = 1 / (1 / n + 1 / m)
                total = total + w * (x[rows[0]].mean(0) - x[rows[1]].mean(0))
                weight += w
        if weight:
            found[patient] = total / weight
    return pd.DataFrame(found, index=bulk.var_names).T


@pytest.mark.parametrize("cell_type", ["all", "T"])
def test_differences_average_replicates_with_equal_weights(cell_type):
    a = replicated()
    a = a[~((a.obs["sample"] == "P1DX1") & (np.arange(a.n_obs) % 3 > 0)).to_numpy()]
    bulk = la.pp.pseudobulk(la.pp.as_cohort(a), min_cells=5)
    found = paired_differences(bulk, ("REL", "DX"), cell_type=cell_type)
    plain = plain_differences(bulk, ("REL", "DX"), cell_type)
    pd.testing.assert_frame_equal(found, plain, check_dtype=False, rtol=1e-4, atol=1e-6)
    design = design_of(bulk, ("DX", "REL"))
    scorer = paired_scorer(found, ("REL", "DX"), design)
    perms = permute_samples(design, n=5)
    scores = scorer(perms.assignments)
    for i, codes in enumerate(perms.codes):
        moved = pd.Series(codes != design["timepoint"].cat.codes, design.index)
        sign = 1 - 2 * moved.groupby(design["patient"]).first().astype(int)
        d = found.to_numpy() * sign[found.index].to_numpy()[:, None]
        se = d.std(0, ddof=1) / np.sqrt(len(d))
        assert np.allclose(scores[i], np.abs(d.mean(0)) / (se + np.median(se[se > 0])))
    signs = assignment_signs(["P1DX0"], perms.assignments, "REL")
    assert set(signs.ravel()) <= {-1.0, 1.0}


def test_later_steps_take_replicates():
    got = la.pp.as_cohort(replicated())
    table = de_table(la.pp.pseudobulk(got, min_cells=5), min_patients=3)
    whole = table[table["cell_type"] == "all"]
    assert set(whole.head(4)["gene"]) <= {f"G{i}" for i in range(5)}
    assert (whole["patients"] == 6).all()
    alone = explanations(got, ("REL", "DX"))
    assert np.isfinite(alone.to_numpy()).all()
    once = got[~got.obs["sample"].isin(["P1DX1", "P2DX1"]).to_numpy()].copy()
    times = gene_times(la.pp.pseudobulk(got, min_cells=5), ["G0"])
    assert list(times.columns) == list(
        gene_times(la.pp.pseudobulk(once, min_cells=5), ["G0"]).columns
    )
    bagged = la.pp.bags(got, bag_size=5, max_bags=None)
    ranked = rank_network_change(
        bagged, la.pp.pseudobulk(got, min_cells=5), ("REL", "DX"), nulls=5, halves=2, genes=10
    )
    assert len(ranked.table) == 10
    one = one_sample_a_visit(bagged)
    assert one.obs["sample"].nunique() == 12 and one_sample_a_visit(la.pp.bags(once)).n_obs
    result = la.tasks.timepoint.evaluate(la.pp.bags(got, bag_size=10), models=["logistic"])
    assert len(result.to_frame())


def test_a_whole_run_with_replicates(tmp_path):
    path = la.pp.save_cohort(la.pp.as_cohort(replicated()), tmp_path / "r.h5ad")
    words = "--min-cells 5 --permutations 0 --out".split()
    assert main(["de", str(path), *words, str(tmp_path / "out")]) == 0
    cover = pd.read_csv(tmp_path / "out" / "coverage.csv")
    assert (cover["patients"] == 6).all()


# ---------------------------------------------------------------- guessed columns
def test_guessed_columns_are_said_and_recorded(tmp_path, capsys):
    a = replicated(4)
    a.obs = a.obs.rename(
        columns={"patient": "donor", "timepoint": "visit", "cell_type": "celltype"}
    )
    a.write_h5ad(tmp_path / "mine.h5ad")
    out = tmp_path / "out"
    words = "--min-cells 5 --permutations 0 --out".split()
    assert main(["de", str(tmp_path / "mine.h5ad"), *words, str(out)]) == 0
    said = capsys.readouterr().err
    assert "guessed by the names of columns: patient from column 'donor'" in said
    read = json.loads((out / "run.json").read_text())["read"]
    expected = {"patient": "donor", "timepoint": "visit", "cell_type": "celltype"}
    assert read["columns"] == expected
    assert any(note.startswith("guessed") for note in read["notes"])
    cohort = la.read_cohort(tmp_path / "mine.h5ad", patient_key="donor", timepoint_key="visit")
    assert cohort.uns["longaml"]["columns"] == expected
    assert "patient" not in warned(cohort, "guessed")[0].split(";")[0]
    again = la.read_cohort(la.pp.save_cohort(cohort, tmp_path / "again.h5ad"))
    assert again.uns["longaml"]["columns"]["patient"] == "patient"


# ---------------------------------------------------------------- dropped cell types
def test_cell_types_left_out_of_a_test_are_named(caplog):
    a = replicated(5)
    rare = (a.obs["patient"].isin(["P1", "P2"])).to_numpy() & (np.arange(a.n_obs) % 4 == 1)
    a.obs["cell_type"] = np.where(rare, "NK", a.obs["cell_type"])
    a.obs.iloc[:3, a.obs.columns.get_loc("cell_type")] = "mast"
    bulk = la.pp.pseudobulk(la.pp.as_cohort(a), min_cells=10)
    with caplog.at_level(logging.WARNING):
        table = la.tl.differential_expression(bulk)
    assert table.attrs["left_out"] == [
        {"contrast": "REL_vs_DX", "cell_type": "NK", "patients": 2},
        {"contrast": "REL_vs_DX", "cell_type": "mast", "patients": 0},
    ]
    assert caplog.text.count("not tested") == 1 and "REL_vs_DX, NK (2)" in caplog.text
    assert set(table["cell_type"]) == {"all", "B", "T"}


# ---------------------------------------------------------------- odd names
ODD = ["-", "+", "?", "", ".", "..", "_", "x" * 240, "x" * 241, "\u03b1" * 240, "a/b", "a:b", "a b"]


def test_odd_names_are_file_names(tmp_path):
    names = [slug(name) for name in ODD]
    assert len(set(names)) == len(ODD) and slug("REL_vs_DX") == "REL_vs_DX"
    for name in names:
        (tmp_path / f"volcano-{name}-{name}.png").write_text(name)
        assert name[0].isalnum() and len(name.encode()) <= 87
    assert len(list(tmp_path.iterdir())) == len(ODD)


def test_a_run_with_odd_names(tmp_path):
    a = replicated(4)
    types = {"B": "+" + "\u03b1" * 200, "T": "?"}
    a.obs["cell_type"] = a.obs["cell_type"].map(types)
    a.obs["timepoint"] = a.obs["timepoint"].map({"DX": "-", "REL": "y" * 240})
    a.write_h5ad(tmp_path / "odd.h5ad")
    out = tmp_path / "out"
    how = ["--timepoints", "-," + "y" * 240, "--min-cells", "5", "--permutations", "2"]
    how += ["--out", str(out)]
    assert main(["de", str(tmp_path / "odd.h5ad"), *how]) == 0
    assert len(list((out / "figures").glob("volcano-*.png"))) == 3


def test_timepoints_with_commas_on_the_command_line(tmp_path, capsys):
    a = replicated(4)
    a.obs["timepoint"] = a.obs["timepoint"].map({"DX": "day 0, pre", "REL": "day 7, post"})
    a.write_h5ad(tmp_path / "c.h5ad")
    source, names = str(tmp_path / "c.h5ad"), ["day 0, pre", "day 7, post"]
    for i, given_names in enumerate(
        (
            ["--timepoints", names[0], "--timepoints", names[1]],
            ["--timepoints", f'"{names[0]}","{names[1]}"'],
        )
    ):
        made = str(tmp_path / f"made{i}.h5ad")
        assert main(["convert", source, made, *given_names]) == 0
        assert list(ad.read_h5ad(made).obs["timepoint"].cat.categories) == names
    capsys.readouterr()
    assert main(["convert", source, str(tmp_path / "no.h5ad")]) == 2
    assert """--timepoints '"day 0, pre","day 7, post"' in order""" in capsys.readouterr().err
    assert main(["convert", source, str(tmp_path / "no.h5ad"), "--timepoints", "a,,b"]) == 2
    assert "not a list of names" in capsys.readouterr().err


def test_tabs_in_timepoints_on_the_command_line(tmp_path, capsys):
    a = replicated(4)
    a.obs["timepoint"] = a.obs["timepoint"].map({"DX": "day\t0", "REL": "day 7 "})
    a.write_h5ad(tmp_path / "c.h5ad")
    source, made = str(tmp_path / "c.h5ad"), str(tmp_path / "made.h5ad")
    assert main(["convert", source, made]) == 2
    said = capsys.readouterr().err
    assert "has the timepoints day 0, day 7, and nothing says" in said
    assert 'Pass --timepoints "day 0,day 7" in order of time' in said
    assert main(["convert", source, made, "--timepoints", "day 0,day 7"]) == 0
    found = ad.read_h5ad(made).obs["timepoint"].value_counts().to_dict()
    assert (
        found
        == a.obs["timepoint"].map({"day\t0": "day 0", "day 7 ": "day 7"}).value_counts().to_dict()
    )


def test_synonyms_on_the_command_line(tmp_path, capsys):
    a = replicated(4)
    a.obs["timepoint"] = np.where(
        (a.obs["patient"] == "P1") & (a.obs["timepoint"] == "DX"), "diagnosis", a.obs["timepoint"]
    )
    a.write_h5ad(tmp_path / "c.h5ad")
    made = str(tmp_path / "made.h5ad")
    assert main(["convert", str(tmp_path / "c.h5ad"), made]) == 2
    assert "--timepoints DX=diagnosis,REL in order of time" in capsys.readouterr().err
    assert (
        main(["convert", str(tmp_path / "c.h5ad"), made, "--timepoints", "DX=diagnosis,REL"]) == 0
    )
    assert list(ad.read_h5ad(made).obs["timepoint"].cat.categories) == ["DX", "REL"]


# ---------------------------------------------------------------- malignant
@pytest.mark.parametrize(
    "yes, no",
    [
        ("Blast", "Normal"),
        ("blasts", "healthy"),
        ("Tumor cells", "non-malignant"),
        ("Blast cell", "normal cells"),
        ("aneuploid", "diploid"),
        (1, 0),
    ],
)
def test_words_for_malignant(yes, no):
    a = replicated(4)
    a.obs["malignant"] = np.where(np.arange(a.n_obs) % 3 == 0, yes, no)
    got = la.pp.as_cohort(a)
    assert got.obs["malignant"].tolist() == (np.arange(a.n_obs) % 3 == 0).tolist()


@pytest.mark.parametrize(
    "values, yes",
    [
        (np.array([True, False]), [True, False]),
        (pd.array([True, None], dtype="boolean"), [True, None]),
        (
            pd.Categorical(["Malignant ", "normal"], ["unused", "normal", "Malignant "]),
            [True, False],
        ),
        (np.array([0.0, 1.0]), [False, True]),
        (np.array(["True", "False"]), [True, False]),
    ],
)
def test_forms_of_malignant(values, yes):
    a = replicated(4)
    a.obs["malignant"] = pd.Series(values).iloc[np.arange(a.n_obs) % 2].to_numpy()
    if isinstance(values, pd.Categorical):
        codes = values.codes[np.arange(a.n_obs) % 2]
        a.obs["malignant"] = pd.Categorical.from_codes(codes, values.categories)
    got = la.pp.as_cohort(a)
    found = got.obs["malignant"].astype(object)
    assert found.where(found.notna(), None).tolist() == [yes[i % 2] for i in range(a.n_obs)]
    kind = {True: " malignant", False: " normal", None: ""}
    types = [f"{t}{kind[yes[i % 2]]}" for i, t in enumerate(a.obs["cell_type"])]
    assert got.obs["cell_type"].astype(str).tolist() == types


def test_three_levels_of_malignant_are_refused():
    a = replicated(4)
    a.obs["malignant"] = np.arange(a.n_obs) % 3
    with pytest.raises(InputError, match="holds numbers from 0 to 2"):
        la.pp.as_cohort(a)


def test_scores_in_malignant(tmp_path, capsys):
    a = replicated(4)
    a.obs["malignant"] = np.linspace(0.05, 0.95, a.n_obs)
    with pytest.raises(InputError, match="holds numbers from 0.05 to 0.95") as e:
        la.pp.as_cohort(a)
    assert "malignant_key='none'" in str(e.value) and "> 0.5" in str(e.value)
    got = la.pp.as_cohort(a, malignant_key="none")
    assert set(got.obs["cell_type"]) == {"T", "B"} and "malignant" in got.obs
    a.write_h5ad(tmp_path / "m.h5ad")
    assert main(["convert", str(tmp_path / "m.h5ad"), str(tmp_path / "out.h5ad")]) == 2
    assert "--malignant-key none" in capsys.readouterr().err
    made = [str(tmp_path / "m.h5ad"), str(tmp_path / "out.h5ad")]
    assert main(["convert", *made, "--malignant-key", "none"]) == 0


# ---------------------------------------------------------------- everything at once
SPELLINGS = {
    "P1": ["P1", "P1 ", "p1", " P1"],
    "P2": ["P2", "p2 "],
    "P10": ["P10", "p 10"],
    None: ["doublet", "unassigned", "nan", "None", "NA", "", None],
}
VISITS = {"DX": ["DX", "Dx", " dx"], "REL": ["REL", "Rel "], None: ["NA", "none", None]}


@QUICK
@given(st.integers(0, 10**6), st.integers(80, 150), st.booleans(), st.booleans())
def test_all_kinds_at_once(seed, n, categorical, replicates):
    "Case, blanks, pseudo-donors and replicates, against plain pandas."
    rng = np.random.default_rng(seed)

    def draw(spellings, weights):
        truth = rng.choice(np.array(list(spellings), dtype=object), n, p=weights)
        usual = [s[0] for s in spellings.values() if s[0] not in ("doublet", "NA")]
        said = [
            spellings[t][0 if rng.random() < 0.7 else rng.integers(len(spellings[t]))]
            for t in truth
        ]
        return truth, said, usual

    who, donor, _ = draw(SPELLINGS, [0.3, 0.3, 0.3, 0.1])
    when, visit, _ = draw(VISITS, [0.45, 0.45, 0.1])
    # the usual spelling is the most frequent one
    a = cells(list(zip(donor, visit)), seed=seed)
    a.obs = a.obs.astype("category" if categorical else object)
    if replicates:
        a.obs["sample"] = [f"{p}-{t}-{k}" for p, t, k in zip(who, when, rng.integers(0, 2, n))]
    plain = pd.DataFrame({"patient": who, "timepoint": when, "row": np.arange(n)}).dropna()
    seen = plain.drop_duplicates(["patient", "timepoint"])["patient"].value_counts()
    if plain["timepoint"].nunique() < 2 or len(seen) < 2 or seen.max() < 2:
        return
    got = la.pp.as_cohort(a)
    as_key = got.obs["patient"].astype(str).str.replace(" ", "").str.upper()
    assert as_key.tolist() == plain["patient"].tolist()
    assert (
        got.obs["timepoint"].astype(str).str.strip().str.upper().tolist()
        == plain["timepoint"].tolist()
    )
    assert got.obs["patient"].nunique() == plain["patient"].nunique()
    assert got.obs["timepoint"].nunique() == plain["timepoint"].nunique()
    assert (got.X != a.X[plain["row"].to_numpy()]).nnz == 0
    samples = plain["patient"] + "-" + plain["timepoint"]
    if replicates:
        samples = a.obs["sample"].astype(str).to_numpy()[plain["row"]]
    assert got.obs["sample"].nunique() == len(set(samples))
    lost = sum(int(w.split()[1]) for w in warned(got, "dropped"))
    assert lost == n - len(plain)
    assert la.pp.as_cohort(got).obs.equals(got.obs)


@QUICK
@given(st.lists(st.sampled_from(sum(SPELLINGS.values(), [])), min_size=1, max_size=40))
def test_cleaning_against_pandas(names):
    column = pd.Series(names, dtype=object)
    found = clean_labels(column, NO_DONOR)
    words = {"doublet", "unassigned", "nan", "none", "na", ""}
    text = column.map(lambda v: "" if v is None else str(v)).str.strip()
    missing = text.str.lower().isin(words)
    assert found.values.isna().tolist() == missing.tolist()
    assert sum(found.missing.values()) == missing.sum()
    key = text[~missing].str.replace(" ", "").str.lower()
    assert found.values[~missing].groupby(key).nunique().le(1).all()
    assert found.values[~missing].nunique() == key.nunique()
    assert clean_labels(found.values, NO_DONOR).merged == {}


def test_a_timeline_has_no_ambiguous_contrasts():
    odd = ["B", "B_vs_B", "A_vs_B", "A"]
    with pytest.raises(InputError, match="two contrasts called 'A_vs_B_vs_B'"):
        timeline(pd.Series(odd), odd)
