"""Labels in doubt: exchanged visits and patients are found, clean cohorts raise no alarm, and
corrections are applied where a cohort is read.
"""

import json
import logging
from functools import cache

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import longaml as la
from longaml.core import UNS, InputError
from longaml.pp import plausibility
from longaml.pp.identity import SEX_GENES, sample_sums, sex_calls
from longaml.pp.relabel import read_relabel

CELLS = 60  # per sample: small cohorts


@cache
def simulated(seed, preset="small", n_cells=CELLS, **how):
    "A clean cohort with a sex for every patient: uneven patients are women."
    cohort = la.datasets.simulate_cohort(preset, seed=seed, n_cells=n_cells, **how)
    return with_sexes(cohort, seed)


def with_sexes(cohort, seed):
    "Counts of sex-linked genes as in blood: XIST in women; RPS4Y1 and DDX3Y in men."
    number = cohort.obs["patient"].astype(str).str.extract(r"(\d+)", expand=False).astype(int)
    female = (number % 2 == 1).to_numpy()
    rng = np.random.default_rng(seed)
    rates = {
        "XIST": np.where(female, 1.0, 0.002),
        "RPS4Y1": np.where(female, 0.005, 1.0),
        "DDX3Y": np.where(female, 0.0, 0.2),
    }
    linked = np.column_stack([rng.poisson(rate) for rate in rates.values()])
    both = AnnData(
        sp.hstack([cohort.X, sp.csr_matrix(linked.astype(np.float32))], format="csr"),
        obs=cohort.obs,
        uns=cohort.uns,
    )
    both.var_names = [*cohort.var_names, *rates]
    return both


def exchanged(cohort, *pairs):
    "The cohort with the labels of two samples exchanged."
    out = cohort.copy()
    names = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    sample = cohort.obs["sample"].astype(str).replace(names)
    label = cohort.obs.drop_duplicates("sample").set_index("sample")
    out.obs["sample"] = pd.Categorical(sample, cohort.obs["sample"].cat.categories)
    for column in ("patient", "timepoint"):
        kind = cohort.obs[column].cat
        new = sample.map(label[column].astype(str))
        out.obs[column] = pd.Categorical(new, kind.categories, ordered=kind.ordered)
    return out


def samples_of(cohort):
    "One row per sample, by name."
    return cohort.obs.drop_duplicates("sample").set_index("sample")[["patient", "timepoint"]]


def without_sex(cohort):
    return cohort[:, ~cohort.var_names.isin(list(SEX_GENES))].copy()


# ---------------------------------------------------------------- what must be found


def test_clean_cohorts_raise_no_alarm():
    alarms = [seed for seed in range(20) if la.pp.check_labels(simulated(seed))]
    assert len(alarms) <= 1, alarms


def test_exchanged_visits_are_found():
    found = 0
    for seed in range(10):
        cohort = simulated(seed)
        visits = samples_of(cohort).astype(str)
        both = visits.pivot_table(index="patient", columns="timepoint", aggfunc="size")
        patient = both.dropna(subset=["DX", "REM"]).index[seed % 5]
        pair = (f"{patient}_DX", f"{patient}_REM")
        labels = la.pp.check_labels(exchanged(cohort, pair))
        right = any(
            set(e.samples) == set(pair) and plausibility.SHARE in e.checks for e in labels.exchanges
        )
        found += right and set(labels.samples()) == set(pair)
    assert found >= 9, found


def two_patients(cohort, seed, other_sex):
    "Two samples at one timepoint, of patients of one sex or two."
    rows = samples_of(cohort).astype(str)
    time = ("DX", "REM", "REL")[seed % 3]
    at = rows[rows["timepoint"] == time]
    number = at["patient"].str[3:].astype(int)
    first = at.index[seed % 4]
    differs = (number % 2 != number[first] % 2) == other_sex
    others = at.index[differs & (at.index != first)]
    return first, others[seed % len(others)]


def test_exchanged_patients_are_found_by_expression():
    found = 0
    for seed in range(10):
        cohort = without_sex(simulated(seed))
        pair = two_patients(cohort, seed, other_sex=False)
        labels = la.pp.check_labels(exchanged(cohort, pair))
        assert plausibility.SEX in labels.not_assessed
        named = any(set(e.samples) == set(pair) for e in labels.exchanges)
        found += named and set(pair) <= set(labels.samples())
    assert found >= 9, found


def test_exchanged_patients_are_found_by_sex():
    "Where expression says nothing: visits differ as much as patients (preset null)."
    found = 0
    for seed in range(10):
        cohort = simulated(seed, preset="null", n_cells=30)
        pair = two_patients(cohort, seed, other_sex=True)
        labels = la.pp.check_labels(exchanged(cohort, pair))
        frame = labels.to_frame()
        by_sex = set(frame.loc[frame["check"] == plausibility.SEX, "sample"])
        found += set(pair) <= by_sex
    assert found >= 9, found


def test_of_several_exchanges_no_innocent_is_named():
    cohort = simulated(3, missing=0.0)
    pairs = [("AML1_DX", "AML3_DX"), ("AML5_REM", "AML9_REL")]
    labels = la.pp.check_labels(exchanged(cohort, *pairs))
    found = {frozenset(e.samples) for e in labels.exchanges}
    assert found and found <= {frozenset(p) for p in pairs}
    assert set(labels.samples()) <= {sample for pair in pairs for sample in pair}


def test_two_visits_leave_it_open_which_were_exchanged():
    cohort = without_sex(simulated(0, preset="two_timepoints"))
    pair = ("AML2_after", "AML5_after")
    labels = la.pp.check_labels(exchanged(cohort, pair))
    both = {frozenset(pair), frozenset({"AML2_before", "AML5_before"})}
    assert {frozenset(e.samples) for e in labels.exchanges} == both


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["small", "two_timepoints", "bulk", "null", "easy"])
def test_alarms_and_power_over_many_cohorts(preset):
    size = {"n_genes": 400, "n_drivers": 12, "n_patients": 12} if preset == "easy" else {}
    cells = 50 if preset == "bulk" else CELLS
    alarms, found = [], []
    for seed in range(100, 140):
        cohort = la.datasets.simulate_cohort(preset, seed=seed, n_cells=cells, **size)
        alarms.append(bool(la.pp.check_labels(cohort)))
        last = [s for s in samples_of(cohort).index if s.endswith(cohort.obs["timepoint"].max())]
        pair = tuple(np.random.default_rng(seed).choice(last, 2, replace=False))
        labels = la.pp.check_labels(exchanged(cohort, pair))
        found.append(set(pair) <= set(labels.samples()))
    assert sum(alarms) <= 2, sum(alarms)
    assert preset == "null" or sum(found) >= 36, sum(found)


# ---------------------------------------------------------------- the reference cohort


def test_the_reference_cohort(shared_data):
    table = pd.read_csv(shared_data / "aml_gse235063_libraries.csv")
    labels = la.pp.check_labels(table)
    assert set(labels.samples()) == {"AML1_DX", "AML1_REM", "AML7_DX", "AML11_REL", "AML21_REM"}
    (exchange,) = labels.exchanges
    assert exchange.samples == ("AML1_DX", "AML1_REM")
    assert exchange.checks == (plausibility.METADATA, plausibility.SHARE)
    frame = labels.to_frame().set_index(["sample", "check"])
    assert list(frame.columns) == ["patient", "timepoint", "found", "expected", "suggestion"]
    said = frame["suggestion"]
    assert said["AML1_DX", "malignant share"] == "very probably exchanged with AML1_REM"
    assert said["AML1_REM", "sample metadata"] == "very probably exchanged with AML1_DX"
    odd = said[["AML7_DX", "AML11_REL", "AML21_REM"]]
    assert (odd == "no exchange explains it: check the sample").all() and len(odd) == 3
    found = frame["found"].xs("malignant share", level="check")
    own = table.set_index("library")
    for sample, text in found.items():
        row = own.loc[sample]
        assert f"({row.malignant_cells:,} of {row.n_cells:,} cells)" in text
    assert labels.relabel == "gse235063"
    shipped = read_relabel("gse235063").table
    assert labels.corrections().to_dict() == shipped.to_dict()
    without = la.pp.check_labels(table.drop(columns="stage_in_metadata"))
    assert without.samples() == labels.samples()
    assert "possibly exchanged with AML1_REM" in without.to_frame()["suggestion"].tolist()


def test_the_correction_leaves_nothing_but_the_odd_ones(shared_data):
    table = pd.read_csv(shared_data / "aml_gse235063_libraries.csv").drop(columns="library")
    right, notes = read_relabel("gse235063").apply(table, la.pp.labels.ColumnKeys())
    assert len(notes) == 2 and len(table) == len(right)
    labels = la.pp.check_labels(right)
    assert set(labels.samples()) == {"AML7_DX", "AML11_REL", "AML21_REM"}
    assert not labels.exchanges


# ---------------------------------------------------------------- the checks one by one


def rows(*visits):
    "Samples: patient, timepoint, cells, malignant cells."
    return pd.DataFrame(visits, columns=["patient", "timepoint", "n_cells", "malignant_cells"])


def many(n=4):
    "Patients with plain malignant shares."
    return [
        (f"P{i}", t, 1000, k) for i in range(n) for t, k in (("DX", 800), ("REM", 5), ("REL", 700))
    ]


@pytest.mark.parametrize(
    ("visit", "in_doubt"),
    [
        (("Q", "DX", 1000, 20), True),
        (("Q", "REM", 1000, 400), True),
        (("Q", "REL", 1000, 90), True),
        (("Q", "DX", 1000, 150), False),
        (("Q", "REM", 1000, 150), False),
        (("Q", "DX", 3, 0), False),  # three cells say nothing
        (("Q", "DX", 0, 0), False),
        (("Q", "REM", np.nan, np.nan), False),
    ],
)
def test_malignant_share(visit, in_doubt):
    labels = la.pp.check_labels(rows(*many(), visit))
    assert bool(labels) == in_doubt
    assert not labels.exchanges


def test_malignant_share_follows_what_is_usual_in_the_cohort():
    sorted_cells = [(p, t, n, 990) for p, t, n, _ in many()]  # blasts only, at all visits
    assert not la.pp.check_labels(rows(*sorted_cells, ("Q", "REM", 1000, 950)))
    blood = [(p, t, n, {"DX": 140, "REM": 5, "REL": 130}[t]) for p, t, n, _ in many()]
    assert not la.pp.check_labels(rows(*blood, ("Q", "DX", 1000, 80)))
    named = {"DX": "before", "REM": "during", "REL": "after"}
    other = rows(*many(), ("Q", "before", 1000, 0), ("Q", "during", 1000, 800))
    other["timepoint"] = other["timepoint"].replace(named)
    labels = la.pp.check_labels(other)
    assert [e.samples for e in labels.exchanges] == [("Q_before", "Q_during")]


def test_columns_that_do_not_describe_the_visit_are_left_alone():
    table = rows(*many()).drop(columns=["n_cells", "malignant_cells"])
    whole = {"P0": "Relapsed", "P1": "Censored", "P2": "Relapsed", "P3": "Relapsed"}
    words = {"DX": "Diagnosis", "REM": "Remission", "REL": "Relapse"}
    before = {"DX": "none", "REM": "DX", "REL": "REM"}
    table["Treatment_Outcome"] = table["patient"].map(whole)
    table["visit_before"] = table["timepoint"].map(before)
    table["age"] = range(len(table))
    labels = la.pp.check_labels(table)
    assert not labels and "no column names the stage" in labels.not_assessed["sample metadata"]
    table["status"] = table["timepoint"].map(words)
    table.loc[4, "status"] = "in relapse"
    labels = la.pp.check_labels(table)
    assert labels.samples() == ["P1_REM"] and not labels.exchanges
    assert labels.doubts[0].found == "status says REL"
    assert labels.doubts[0].suggestion == "possibly of REL: check the sample"


def test_a_cohorts_own_timepoints_are_recognised():
    visits = [(p, t) for p in "ABC" for t in ("week 0", "week 4")]
    table = pd.DataFrame(visits, columns=["patient", "timepoint"])
    table["file"] = [f"{p}-{t.replace(' ', '').upper()}.h5" for p, t in visits]
    assert not la.pp.check_labels(table)
    table.loc[[0, 1], "file"] = table.loc[[1, 0], "file"].to_numpy()
    labels = la.pp.check_labels(table)
    assert [e.samples for e in labels.exchanges] == [("A_week 0", "A_week 4")]


def test_sex_calls():
    cohort = simulated(0)
    calls = sex_calls(sample_sums(cohort))
    number = calls.index.str.extract(r"AML(\d+)_", expand=False).astype(int)
    assert calls["call"].tolist() == np.where(number % 2 == 1, "female", "male").tolist()
    counts = pd.DataFrame(cohort.X.toarray(), columns=cohort.var_names)
    by_hand = counts.groupby(cohort.obs["sample"].to_numpy())[["XIST", "RPS4Y1", "DDX3Y"]].sum()
    total = counts.sum(axis=1).groupby(cohort.obs["sample"].to_numpy()).sum()
    want = by_hand["XIST"] / total * 1e6
    np.testing.assert_allclose(calls["XIST"], want[calls.index])
    by_id = cohort.copy()
    by_id.var_names = [SEX_GENES.get(g, g) for g in cohort.var_names]
    pd.testing.assert_frame_equal(sex_calls(sample_sums(by_id)), calls)


def test_sex_that_the_metadata_say():
    cohort = simulated(0).copy()
    number = cohort.obs["patient"].astype(str).str[3:].astype(int)
    cohort.obs["Sex"] = np.where(number % 2 == 1, "F", "M")
    assert not la.pp.check_labels(cohort)
    cohort.obs.loc[number == 4, "Sex"] = "F"
    labels = la.pp.check_labels(cohort)
    assert {d.patient for d in labels.doubts} == {"AML4"}
    assert all(d.expected == "female as the metadata say" for d in labels.doubts)


def test_lognormalised_values_are_checked_too():
    cohort = simulated(1).copy()
    depth = np.asarray(cohort.X.sum(1)).ravel()
    cohort.X = sp.csr_matrix(cohort.X.multiply(1e4 / depth[:, None])).log1p()
    cohort.uns[UNS] = dict(cohort.uns[UNS]) | {"input_kind": "lognorm"}
    assert not la.pp.check_labels(cohort)
    pair = two_patients(cohort, 1, other_sex=True)
    assert set(pair) <= set(la.pp.check_labels(exchanged(cohort, pair)).samples())


# ---------------------------------------------------------------- corrections


@pytest.fixture(scope="module")
def cohort():
    return simulated(0, missing=0.0, n_patients=5, n_cells=30)


@pytest.fixture(scope="module")
def wrong(cohort, tmp_path_factory):
    "A folder in the GEO layout: AML2's DX and REM exchanged, as are their names in the metadata."
    folder = tmp_path_factory.mktemp("geo")
    la.datasets.write_geo(exchanged(cohort, ("AML2_DX", "AML2_REM")), folder)
    return folder


CSV = "sample,patient,timepoint\nAML2_DX,AML2,REM\nAML2_REM,AML2,DX\n"


def sums(cohort):
    "Counts of every sample and gene."
    names = [f"{p}_{t}" for p, t in zip(cohort.obs["patient"], cohort.obs["timepoint"])]
    table = pd.DataFrame(cohort.X.toarray(), columns=cohort.var_names)
    return table.groupby(names).sum().sort_index(axis=1)


def test_relabel_gives_the_right_cohort(cohort, wrong, tmp_path):
    file = tmp_path / "corrections.csv"
    file.write_text(CSV)
    before = la.read_cohort(wrong)
    assert la.pp.check_labels(before).samples() == ["AML2_DX", "AML2_REM"]
    right = la.read_cohort(wrong, relabel=file)
    want = sums(cohort)
    pd.testing.assert_frame_equal(sums(right)[want.columns], want, check_dtype=False)
    assert not sums(before).equals(sums(right))
    label = right.obs["patient"].astype(str) + "_" + right.obs["timepoint"].astype(str)
    assert (right.obs["sample"].astype(str) == label).all()
    assert all(n.startswith(f"{s}:") for n, s in zip(right.obs_names, right.obs["sample"]))
    notes = [n for n in right.uns[UNS]["warnings"] if n.startswith("relabelled")]
    assert [n.split(" (")[0] for n in notes] == ["relabelled: AML2_DX", "relabelled: AML2_REM"]
    stage = right.obs.loc[right.obs["sample"] == "AML2_REM", "stage_in_metadata"]
    assert set(stage) == {"AML2_DX"}  # the metadata are kept as they are
    assert not la.pp.check_labels(right)  # and are settled by the correction
    saved = la.pp.save_cohort(right, tmp_path / "right.h5ad")
    assert not la.pp.check_labels(la.read_cohort(saved))


def test_relabel_comes_before_the_choice_of_timepoints(wrong, cohort):
    table = pd.DataFrame(
        [("AML2_DX", "AML2", "REM"), ("AML2_REM", "AML2", "DX")],
        columns=["sample", "patient", "timepoint"],
    )
    right = la.read_cohort(wrong, relabel=table, timepoints=["DX", "REL"])
    want = sums(cohort)
    want = want[~want.index.str.endswith("REM")]
    pd.testing.assert_frame_equal(sums(right)[want.columns], want, check_dtype=False)


def test_relabel_of_an_h5ad(cohort, tmp_path):
    file = la.pp.save_cohort(exchanged(cohort, ("AML2_DX", "AML2_REM")), tmp_path / "c.h5ad")
    (tmp_path / "c.csv").write_text(CSV.replace(",", ";"))
    right = la.read_cohort(file, relabel=tmp_path / "c.csv")
    want = sums(cohort)
    pd.testing.assert_frame_equal(sums(right)[want.columns], want, check_dtype=False)
    said = "\n".join(right.uns[UNS]["warnings"])
    assert "relabelled: AML2_DX" in said and "is AML2 at REM now, as c.csv says" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sample,patient\nAML2_DX,AML2\n", "has no column timepoint"),
        ("sample,patient,timepoint\n", "names no sample"),
        ("sample,patient,timepoint\nAML2_DX,AML2,REM\n", "where AML2_REM is already"),
        ("sample,patient,timepoint\nAML2_XX,AML2,REM\n", "Did you mean 'AML2_DX'"),
        (CSV + "AML2_DX,AML3,REM\n", "names AML2_DX twice"),
        (None, "which is no file; expected a CSV with the columns sample, patient, timepoint"),
    ],
)
def test_relabel_refuses(wrong, tmp_path, text, words):
    file = tmp_path / "corrections.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=words) as error:
        la.read_cohort(wrong, relabel=file)
    assert error.value.parameter == "relabel"


def test_the_shipped_file_is_installed():
    import setuptools

    said = {}
    root = la.__path__[0]
    original = setuptools.setup
    try:
        setuptools.setup = lambda **how: said.update(how)
        source = f"{root}/../setup.py"
        exec(compile(open(source).read(), source, "exec"), {"__file__": source})
    finally:
        setuptools.setup = original
    assert "corrections/*.csv" in said["package_data"]["longaml.pp"]
    assert "longaml/pp/corrections" in open(f"{root}/../MANIFEST.in").read()


# ---------------------------------------------------------------- commands


def test_commands_name_samples_in_doubt(wrong, tmp_path, caplog):
    out = tmp_path / "wrong"
    with caplog.at_level(logging.WARNING, "longaml"):
        result = la.experiment.run_de(wrong, out, min_cells=5)
    assert "label in doubt: AML2_DX (AML2, DX): 0" in caplog.text
    assert "nothing was changed; relabel='FILE'" in caplog.text
    said = json.loads((out / "run.json").read_text())["labels_in_doubt"]
    assert {row["sample"] for row in said} == {"AML2_DX", "AML2_REM"}
    assert list(said[0]) == [
        *("sample", "patient", "timepoint", "check", "found", "expected", "suggestion")
    ]
    assert pd.read_csv(out / "labels_in_doubt.csv")["sample"].tolist() == [
        row["sample"] for row in said
    ]
    assert result["summary"].startswith("labels in doubt: AML2_DX, AML2_REM (")


def test_every_cohort_command_checks_labels_and_takes_corrections(cohort):
    "Every command that reads patients and timepoints reads with `relabel`, and is checked."
    from longaml.experiment import driver

    for name, command in driver.commands().items():
        options = set(command.Config.options())
        if {"patient_key", "timepoint_key"} <= options:
            assert "relabel" in options, name
    swapped = exchanged(cohort, ("AML2_DX", "AML2_REM"))
    for data in (swapped, {"cohort": swapped}):
        assert driver.label_check(data).samples() == ["AML2_DX", "AML2_REM"]
    assert driver.label_check(cohort[:, :5].to_df()) is None


def test_commands_apply_corrections(wrong, tmp_path, caplog):
    from longaml.cli import main

    file = tmp_path / "corrections.csv"
    file.write_text(CSV)
    out = tmp_path / "right"
    given = ["de", str(wrong), "--out", str(out), "--min-cells", "5", "--relabel", str(file)]
    given += ["--permutations", "0", "--no-figures"]
    with caplog.at_level(logging.WARNING, "longaml"):
        assert main(given) == 0
    run = json.loads((out / "run.json").read_text())
    assert run["labels_in_doubt"] == []
    assert not (out / "labels_in_doubt.csv").exists()
    assert [row["timepoint"] for row in run["params"]["read"]["relabel"]] == ["REM", "DX"]
    assert "relabelled: AML2_DX" in caplog.text and "in doubt" not in caplog.text
    audit = pd.read_csv(out / "audit.csv")
    assert not audit["check"].str.startswith("relabelled").any()
    file.write_text(CSV.replace("AML2", "AML3"))
    assert main([*given, "--resume"]) == 2  # other corrections are another run
    assert main(["convert", str(wrong), str(tmp_path / "c.h5ad"), "--relabel", "gse23"]) == 2


def test_the_report_says_it_first(tmp_path):
    from longaml.experiment.report import report_cells

    labels = la.pp.check_labels(rows(*many(), ("Q", "DX", 90, 0), ("Q", "REM", 90, 80)))
    params = {"task": "timepoint", "models": [], "nulls": 20, "n_genes": 100}
    run = {"params": params, "inputs": [], "versions": {"longaml": "0"}, "seed": 0}

    def heads(run):
        (tmp_path / "run.json").write_text(json.dumps(run))
        found = [c.source.splitlines()[0] for c in report_cells(tmp_path) if c.kind == "markdown"]
        return [line for line in found if line.startswith("## ")]

    assert heads(run)[0] == "## At a glance"
    frame = labels.to_frame()
    frame.to_csv(tmp_path / "labels_in_doubt.csv", index=False)
    run["labels_in_doubt"] = frame.to_dict("records")
    assert heads(run)[:2] == ["## Labels in doubt", "## At a glance"]
    text = "\n".join(c.source for c in report_cells(tmp_path))
    assert "Q_DX and Q_REM may be wrong. Nothing was changed" in text
