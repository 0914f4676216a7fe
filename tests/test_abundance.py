"""Composition: whole commands on a cohort and on tables, wrong tables, what must not matter,
and error rates, power and effects on simulated and on real counts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from scipy.special import gammaln, softmax

import longaml as la
from longaml.cli import main
from longaml.core import InputError
from longaml.tl.cell_type_tests import (
    ABUNDANCE_COLUMNS,
    AbundanceOptions,
    comparisons,
    permuted_calls,
)
from longaml.tl.cell_type_tests import count_tests as rows_of
from longaml.tl.designs import with_timepoints
from longaml.tl.gene_tests import DEFAULT_DESIGN
from longaml.tl.log_ratios import log_ratios
from longaml.tl.sample_counts import counts_of_table, simulate_counts

TYPES = [f"type{i}" for i in range(8)]
IFN = "B cells,CD14+ Monocytes,CD4 T cells,CD8 T cells,Dendritic cells,FCGR3A+ Monocytes,"
IFN = (IFN + "Megakaryocytes,NK cells").split(",")


def run(*args):
    "The command in this process; its exit code."
    return main(["abundance", *map(str, args)])


def succeed(*args):
    assert run(*args) == 0


def refused(capsys, out, *args):
    "The one line with which the command refuses; nothing is left in `out`."
    capsys.readouterr()
    assert run(*args, "--out", out) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert not out.exists(), sorted(out.rglob("*"))
    return said[-1]


def test_a_table_with_as_many_processes(tmp_path):
    "Their number is no option of cohorts alone."
    simulate_counts(6).to_csv(tmp_path / "t.csv", index=False)
    given = ["--permutations", 0, "--no-figures"]
    for jobs in (1, 2):
        succeed(tmp_path / "t.csv", "--out", tmp_path / str(jobs), "--jobs", jobs, *given)
    one, two = (pd.read_csv(tmp_path / str(j) / "abundance.csv") for j in (1, 2))
    assert one.equals(two) and len(one) == 8


@pytest.fixture(scope="module")
def aml(shared_data):
    "The 75 samples, with malignant and other cells as two columns."
    table = pd.read_csv(shared_data / "aml_gse235063_libraries.csv")
    table["malignant"] = table["malignant_cells"]
    table["others"] = table["n_cells"] - table["malignant_cells"]
    return table


@pytest.fixture(scope="module")
def aml_types(aml):
    return list(aml.columns[12:33])


@pytest.fixture(scope="module")
def table_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "counts.csv"
    simulate_counts(10, seed=3, change=-2.5).to_csv(path, index=False)
    return path


# ---------------------------------------------------------------- the command


def check_folder(out, contrasts):
    "What a run leaves behind."
    table = pd.read_csv(out / "abundance.csv")
    assert list(table.columns) == ABUNDANCE_COLUMNS
    assert set(table["contrast"]) == contrasts
    assert ((table["ci_low"] < table["effect"]) & (table["effect"] < table["ci_high"])).all()
    assert table["p_value"].between(0, 1).all()
    assert (table["q_value"] >= table["p_value"] - 1e-12).all()
    assert (table["n_same_direction"] <= table["n_patients"]).all()
    audit = pd.read_csv(out / "audit.csv")
    assert {"permuted visits", "underpowered", "few cells", "other reference"} <= set(
        audit["check"]
    )
    figures = {p.stem for p in (out / "figures").glob("*.png")}
    assert figures == {"shares", "effects", "patients", "audit"}
    record = json.loads((out / "run.json").read_text())
    assert record["command"] == "abundance" and record["status"] == "complete"
    cover = pd.read_csv(out / "coverage.csv")
    assert list(cover.columns) == ["contrast", "cell_type", "tested", "why"]
    return table, audit, record


def test_a_table_becomes_a_folder(table_file, tmp_path, capsys):
    out = tmp_path / "out"
    succeed(table_file, "--out", out, "--permutations", 10)
    table, _, record = check_folder(out, {"REM_vs_DX"})
    assert table.iloc[0]["cell_type"] == "type2" and table.iloc[0]["effect"] < -1
    assert "guessed" in record["read"]["notes"][0]
    said = capsys.readouterr()
    assert said.out.startswith("guessed by the columns of the table: ")
    (line,) = [line for line in said.out.splitlines() if line.startswith("  type2 ")]
    row = table.iloc[0]
    assert f"  {row['effect']:+.2f}  " in line and line.endswith(f"  {row['q_value']:.2g}")
    composition = pd.read_csv(out / "composition.csv")
    source = pd.read_csv(table_file)
    assert (composition[TYPES].to_numpy() == source[TYPES].to_numpy()).all()


def test_a_cohort_becomes_a_folder(tmp_path):
    cohort = la.datasets.simulate_cohort("small", seed=4, n_patients=5, timepoints=("DX", "REL"))
    la.datasets.write_geo(cohort, tmp_path / "geo")
    out = tmp_path / "out"
    succeed(tmp_path / "geo", "--out", out, "--permutations", 6, "--reference", "median")
    table, audit, _ = check_folder(out, {"REL_vs_DX"})
    assert set(table["cell_type"]) == set(cohort.obs["cell_type"].unique())
    assert set(table["reference"]) == {"median"}
    few = audit.set_index("check").loc["underpowered"]
    assert few["status"] == "failed" and "5 patients" in few["text"]


def test_a_resumed_run_is_the_same(table_file, tmp_path):
    how = ["--out", tmp_path / "out", "--permutations", 5]
    succeed(table_file, *how)
    before = (tmp_path / "out" / "abundance.csv").read_bytes()
    succeed(table_file, *how, "--resume")
    assert (tmp_path / "out" / "abundance.csv").read_bytes() == before
    assert run(table_file, *how) == 2


def test_options_reach_the_test(table_file, tmp_path):
    how = "--method beta-binomial --permutations 0 --contrast REM_vs_DX --no-figures".split()
    succeed(table_file, "--out", tmp_path / "bb", *how)
    table = pd.read_csv(tmp_path / "bb" / "abundance.csv")
    assert set(table["method"]) == {"beta-binomial"} and set(table["reference"]) == {"rest"}
    audit = pd.read_csv(tmp_path / "bb" / "audit.csv").set_index("check")
    assert audit.loc["permuted visits", "status"] == "not assessed"
    how = ["--design", "~ patient + timepoint", "--contrast", "timepointREM", "--permutations", 0]
    how.append("--no-figures")
    succeed(table_file, "--out", tmp_path / "fixed", *how, "--reference", "type0")
    table = pd.read_csv(tmp_path / "fixed" / "abundance.csv")
    assert "type0" not in set(table["cell_type"]) and set(table["contrast"]) == {"timepointREM"}
    cover = pd.read_csv(tmp_path / "fixed" / "coverage.csv").set_index("cell_type")
    assert cover.loc["type0", "why"] == "it is the reference"


def test_the_reference_cohort_in_one_command(aml, shared_data, tmp_path, capsys):
    path = shared_data / "aml_gse235063_libraries.csv"
    said = refused(capsys, tmp_path / "no", path)
    assert "--cell-type-columns" in said and "Age_Months" in said and "GMP" in said
    how = ["--cell-type-columns", "HSC,GMP,Progenitor,Monocytes,NK,CD4.Naive,B.Cell"]
    succeed(path, "--out", tmp_path / "out", *how, "--permutations", 4)
    table, _, _ = check_folder(tmp_path / "out", {"REL_vs_DX", "REM_vs_DX", "REL_vs_REM"})
    assert "library" in str(json.loads((tmp_path / "out" / "run.json").read_text())["read"])
    fall = table[(table["contrast"] == "REM_vs_DX") & (table["cell_type"] == "Progenitor")].iloc[0]
    assert fall["ci_high"] < 0


# ---------------------------------------------------------------- wrong tables


def spoiled(table, **columns):
    return table.assign(**columns)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.assign(type1=-1), "a negative number; the first is '-1' of 'type1'"),
        (lambda t: t.assign(type1=0.25), "a fractional number"),
        (lambda t: t.assign(type1=[None, *t["type1"][1:]]), "no number"),
        (lambda t: t.assign(type1=["many", *t["type1"][1:]]), "'many' of 'type1'"),
        (lambda t: t.assign(type1=0), "have no cell in any of 20 samples: type1"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "P0_DX"),
        (lambda t: t[t["timepoint"] == "DX"], "one timepoint"),
        (lambda t: t.groupby("patient").head(1), "one timepoint"),
        (lambda t: t.iloc[[0, 3, 4, 7, 8, 11]], "none of 6 patients was seen at two timepoints"),
        (lambda t: t.iloc[:4], "2 patients have samples at REM; 3 are needed"),
        (lambda t: t.drop(columns="patient"), "no patient column"),
        (lambda t: t.drop(columns="type1"), "no cell type column 'type1'"),
    ],
)
def test_wrong_tables_are_refused_and_leave_nothing(change, said, tmp_path, capsys):
    path = tmp_path / "t.csv"
    change(simulate_counts(10, seed=3)).to_csv(path, index=False)
    line = refused(capsys, tmp_path / "out", path, "--cell-type-columns", ",".join(TYPES))
    assert said in line, line


@pytest.mark.parametrize(
    "args, said",
    [
        (["--cell-type-columns", "type0"], "needs at least 2"),
        (["--method", "dirichlet"], "expected one of: clr, beta-binomial"),
        (["--reference", "type9"], "Did you mean"),
        (["--method", "beta-binomial", "--reference", "median"], "--method clr"),
        (["--contrast", "REL_vs_DX"], "not of this cohort"),
        (["--contrast", "nothing"], "names no coefficient"),
        (["--design", "~ timepoint + age + (1|patient)"], "age"),
        (["--design", "~ timepoint +"], "is no formula"),
        (["--min-patients", "40"], "40 are needed"),
        (["--malignant-key", "x"], "--malignant-key"),
        (["--timepoints", "DX,REL"], "REL"),
    ],
)
def test_wrong_options_are_refused_and_leave_nothing(args, said, table_file, tmp_path, capsys):
    line = refused(capsys, tmp_path / "out", table_file, *args)
    assert said in line, line


def test_columns_are_guessed_only_where_it_is_clear():
    table = simulate_counts(4, seed=1)
    assert list(counts_of_table(table).counts) == TYPES
    for name, values in {
        "age_months": range(8),
        "n_cells": 500,
        "weeks": range(8),
        "everything": table[TYPES].sum(axis=1),
        "centre": 3,
    }.items():
        with pytest.raises(InputError, match=f"could be something else: {name}"):
            counts_of_table(table.assign(**{name: values}))
    kept = counts_of_table(table.assign(severity=range(8)), columns=["severity"])
    assert list(kept.counts) == TYPES and "severity" in kept.samples


def test_bulk_has_no_cells_to_count(shared_data):
    bulk = la.read_cohort(
        shared_data / "shock_bulk.h5ad", timepoint_key="time", timepoints=["T1", "T2", "T3"]
    )
    with pytest.raises(InputError, match="one row a sample"):
        la.tl.abundance(bulk)


# ---------------------------------------------------------------- what must not matter

PLAIN = simulate_counts(6, seed=7, change=-1.0, types=5)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.permutations(range(len(PLAIN))),
    columns=st.permutations(range(5)),
    method=st.sampled_from(["clr", "beta-binomial"]),
    reference=st.sampled_from(["mean", "median", "type1"]),
)
def test_order_of_samples_and_cell_types_does_not_matter(rows, columns, method, reference):
    how = {"method": method, "reference": reference if method == "clr" else None}
    names = TYPES[:5]
    first = la.tl.abundance(PLAIN, cell_type_columns=names, **how)
    moved = PLAIN.iloc[list(rows)]
    second = la.tl.abundance(moved, cell_type_columns=[names[i] for i in columns], **how)
    number = first.columns[[t.kind == "f" for t in first.dtypes]]
    a = first.set_index("cell_type").sort_index()[number]
    b = second.set_index("cell_type").sort_index()[number]
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_names_of_patients_and_types_do_not_matter():
    names = TYPES[:5]
    first = la.tl.abundance(PLAIN, cell_type_columns=names)
    other = PLAIN.rename(columns=dict(zip(names, "VWXYZ"))).replace({"P0": "zz", "P1": "aa"})
    second = la.tl.abundance(other, cell_type_columns=list("VWXYZ"))
    np.testing.assert_allclose(first["p_value"], second["p_value"], rtol=1e-4)


def test_exchanged_visits_turn_effects_round():
    other = PLAIN.assign(timepoint=PLAIN["timepoint"].map({"DX": "REM", "REM": "DX"}))
    for how in ({}, {"method": "beta-binomial"}):
        a, b = (
            la.tl.abundance(t, cell_type_columns=TYPES[:5], **how).set_index("cell_type")
            for t in (PLAIN, other)
        )
        np.testing.assert_allclose(a["effect"], -b["effect"].reindex(a.index), rtol=1e-3, atol=1e-4)


def test_two_types_are_one_test():
    table = PLAIN.assign(rest=PLAIN[TYPES[1:5]].sum(axis=1))
    mean = la.tl.abundance(table, cell_type_columns=["type0", "rest"])
    odds = la.tl.abundance(table, cell_type_columns=["type0", "rest"], reference="rest")
    assert np.ptp(mean["p_value"]) < 1e-6 and abs(mean["effect"].sum()) < 1e-6
    assert len(odds) == 1, "a type called rest is the reference"


def test_a_patient_seen_once_takes_part():
    once = pd.concat([PLAIN, simulate_counts(9, seed=2, types=5).iloc[[13]]])
    table = la.tl.abundance(once, cell_type_columns=TYPES[:5])
    plain = la.tl.abundance(PLAIN, cell_type_columns=TYPES[:5])
    assert (table["n_patients"] == 6).all()
    assert not np.allclose(table["effect"], plain["effect"])
    shares = la.tl.abundance(once, cell_type_columns=TYPES[:5], method="beta-binomial")
    alone = la.tl.abundance(PLAIN, cell_type_columns=TYPES[:5], method="beta-binomial")
    assert (shares["df"] == alone["df"]).all()


# ---------------------------------------------------------------- error rates and power


def p_values(n, seeds, change=0.0, how=None, design=DEFAULT_DESIGN, **kinds):
    "p of every type in simulated data sets (data sets, types); and Wilcoxon's."
    ours, signed = [], []
    for seed in seeds:
        counts = counts_of_table(
            simulate_counts(n, seed=seed, change=change, **kinds), cell_type_columns=TYPES
        )
        rows, _ = rows_of(
            counts, design, comparisons(None, ["DX", "REM"]), how or AbundanceOptions()
        )
        ours.append(rows["p_value"].to_numpy())
        shares = counts.shares().to_numpy()
        signed.append(stats.wilcoxon(shares[1::2] - shares[::2], axis=0, method="exact").pvalue)
    return np.array(ours), np.array(signed)


def called(p):
    return np.array([stats.false_discovery_control(row) < 0.1 for row in p])


@pytest.mark.parametrize(
    "design, how",
    [
        (DEFAULT_DESIGN, AbundanceOptions()),
        ("~ patient + timepoint", AbundanceOptions()),
        (DEFAULT_DESIGN, AbundanceOptions(random="consensus")),
        pytest.param(
            DEFAULT_DESIGN, AbundanceOptions(method="beta-binomial"), marks=pytest.mark.slow
        ),
    ],
    ids=["default", "fixed", "consensus", "beta-binomial"],
)
def test_nothing_changed_nothing_called(design, how):
    n = 25
    p, _ = p_values(12, range(500, 500 + n), how=how, design=design)
    assert called(p).any(1).sum() <= stats.binom.ppf(0.99, n, 0.1)
    # 8 types of a data set hang together: half as many independent tests as there are p-values
    assert (p < 0.05).mean() <= stats.binom.ppf(0.99, 4 * n, 0.05) / (4 * n)


def test_power_is_that_of_wilcoxon_or_more():
    p, signed = p_values(12, range(700, 725), change=-1.5)
    ours, theirs = called(p)[:, 2].mean(), called(signed)[:, 2].mean()
    assert ours >= theirs > 0.2, (ours, theirs)
    p, signed = p_values(5, range(700, 712), change=-3.0)
    assert called(signed)[:, 2].mean() == 0, "2 / 2**5 is more than 0.05"
    assert called(p)[:, 2].mean() > 0.5


def test_references_and_the_compositional_fallacy():
    # little noise: among eight types of which rare ones vary, the median itself follows the change
    # (with noise 0.2 and concentration 400: -1.76 for -2)
    found = {}
    quiet = {"noise": 0.02, "concentration": 40_000, "cells": (3000, 30_000)}
    for seed in range(8):
        table = simulate_counts(10, seed=900 + seed, change=-2.0, **quiet)
        for reference in ("mean", "median", "rest"):
            rows = la.tl.abundance(table, cell_type_columns=TYPES, reference=reference)
            effects = rows.set_index("cell_type")["effect"].reindex(TYPES)
            found.setdefault(reference, []).append(effects)
    mean = {k: np.mean(v, axis=0) for k, v in found.items()}
    others = [i for i in range(6) if i != 2]
    assert abs(mean["median"][2] + 2) < 0.2
    assert np.abs(mean["median"][others]).max() < 0.15
    assert np.abs(mean["mean"][others] - 0.25).max() < 0.15  # 2 / 8 types
    assert mean["rest"][others].mean() > np.abs(mean["median"][others]).max()


def test_log_ratios_know_their_variance():
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.3, 0.15, 0.04, 0.01])
    drawn = pd.DataFrame(rng.multinomial(600, share, 4000), columns=list("abcde"))
    for reference in ("mean", "rest", "a"):
        found = log_ratios(drawn, reference, expected=np.tile(600 * share, (4000, 1)))
        np.testing.assert_allclose(found.values.var(0), found.variance[0], rtol=0.2)


# ---------------------------------------------------------------- real counts


def blasts(aml, **how):
    return la.tl.abundance(
        aml, cell_type_columns=["malignant", "others"], contrast="REM_vs_DX", **how
    ).set_index("cell_type")


def test_blasts_fall_at_remission(aml, aml_types):
    for how in ({}, {"method": "beta-binomial"}, {"design": "~ patient + timepoint"}):
        fall = blasts(aml, **how).loc["malignant"]
        assert fall["ci_high"] < -2 and fall["p_value"] < 1e-6
        assert fall["mean_share_before"] > 0.7 and fall["mean_share_after"] < 0.1
        assert (fall["n_patients"], fall["n_same_direction"]) == (23, 22)
    rows = la.tl.abundance(aml, cell_type_columns=aml_types, contrast=["REM_vs_DX"])
    rows = rows.set_index("cell_type")
    assert (rows.loc[["HSC", "GMP", "Progenitor"], "ci_high"] < 0).all()
    assert (rows.loc[["NK", "CD4.Memory", "CD8.Effector"], "ci_low"] > 0).all()


def test_the_two_samples_that_are_probably_exchanged(aml):
    "AML1_DX and AML1_REM, see issue 17: the fall is larger, and of every patient, once corrected."
    other = {"AML1_DX": "REM", "AML1_REM": "DX"}
    corrected = aml.assign(timepoint=aml["library"].map(other).fillna(aml["timepoint"]))
    for how in ({}, {"method": "beta-binomial"}):
        before, after = (blasts(t, **how).loc["malignant"] for t in (aml, corrected))
        assert after["effect"] < before["effect"] and after["n_same_direction"] == 23
        if not how:  # the beta-binomial's interval is as wide as before
            width = [r["ci_high"] - r["ci_low"] for r in (before, after)]
            assert width[1] < width[0]


def test_a_covariate_and_patients_seen_at_two_of_three_visits(aml, aml_types):
    rows = la.tl.abundance(
        aml,
        "~ timepoint + Biopsy_Origin + (1|patient)",
        [("REL", "DX"), "Biopsy_Origin[T.Marrow]"],
        cell_type_columns=aml_types,
    )
    assert rows["contrast"].unique().tolist() == ["REL_vs_DX", "Biopsy_Origin[T.Marrow]"]
    origin = rows[rows["contrast"] != "REL_vs_DX"]
    assert origin["n_same_direction"].isna().all() and origin["effect"].notna().all()


def test_exchanged_visits_of_the_real_samples_give_no_excess(aml, aml_types):
    counts = counts_of_table(aml, cell_type_columns=aml_types)
    wanted = comparisons("REM_vs_DX", counts.timepoints)
    null = permuted_calls(counts, DEFAULT_DESIGN, wanted, AbundanceOptions(), n=40, seed=2)
    assert null.share().iloc[0] <= stats.binom.ppf(0.99, 40, 0.1) / 40
    assert np.nanmean(null.p_values < 0.05) < 0.07


@pytest.mark.slow
def test_exchanged_visits_of_the_real_samples_two_hundred_times(aml, aml_types):
    counts = counts_of_table(aml, cell_type_columns=aml_types)
    wanted = comparisons(None, counts.timepoints)
    null = permuted_calls(counts, DEFAULT_DESIGN, wanted, AbundanceOptions(), n=200, seed=3)
    assert (null.share() <= null.threshold()).all(), null.share()


def dirichlet_multinomial(y, design):
    "Coefficients (columns of the design, types) of a Dirichlet-multinomial regression, centred."
    n, k = y.shape
    p = design.shape[1]

    def lack(theta):
        share = softmax(design @ theta[:-1].reshape(p, k), axis=1)
        a = np.exp(theta[-1]) * share
        total = np.exp(theta[-1])
        value = gammaln(total) - gammaln(y.sum(1) + total) + (gammaln(y + a) - gammaln(a)).sum(1)
        return -value.sum() + 1e-4 * (theta[:-1] ** 2).sum()

    start = np.zeros(p * k + 1)
    start[:k] = np.log(y.mean(0) / y.sum(1).mean())
    start[-1] = 4.0
    found = optimize.minimize(lack, start, method="L-BFGS-B", options={"maxiter": 2000}).x
    beta = found[:-1].reshape(p, k)
    return beta - beta.mean(1, keepdims=True)


def test_directions_are_those_of_a_dirichlet_multinomial_fit(shared_data):
    table = pd.read_csv(shared_data / "ifn_cell_counts.csv")
    how = {"patient_key": "ind", "timepoint_key": "stim", "timepoints": ["ctrl", "stim"]}
    rows = la.tl.abundance(table, cell_type_columns=IFN, **how).set_index("cell_type").loc[IFN]
    stim = (table["stim"] == "stim").to_numpy(float)
    donors = pd.get_dummies(table["ind"]).to_numpy(float)
    beta = dirichlet_multinomial(table[IFN].to_numpy(float), np.column_stack([donors, stim]))
    effect = beta[-1] / np.log(2)
    clear = np.abs(rows["statistic"].to_numpy()) > 1
    assert clear.sum() >= 3
    assert (np.sign(effect) == np.sign(rows["effect"]))[clear].all()
    assert np.corrcoef(effect, rows["effect"])[0, 1] > 0.9
    guessed = la.tl.abundance(table, **how)
    assert set(guessed["cell_type"]) == set(IFN)


# ---------------------------------------------------------------- the contract


def test_a_cohort_and_its_table_agree():
    cohort = la.datasets.simulate_cohort("small", seed=2, n_patients=5, timepoints=("DX", "REL"))
    obs = cohort.obs
    wide = pd.crosstab(obs["sample"], obs["cell_type"])
    wide.columns = list(map(str, wide.columns))
    who = obs.drop_duplicates("sample").set_index("sample")[["patient", "timepoint"]]
    table = who.astype(str).join(wide).reset_index()
    a = la.tl.abundance(cohort)
    b = la.tl.abundance(table, cell_type_columns=list(wide.columns))
    pd.testing.assert_frame_equal(a, b, check_exact=False, rtol=1e-5, check_dtype=False)


def test_the_result_says_how_it_was_made():
    table = la.tl.abundance(PLAIN, cell_type_columns=TYPES[:5], reference="type1")
    assert list(table.columns) == ABUNDANCE_COLUMNS
    assert table.attrs["design"] == DEFAULT_DESIGN
    assert table.attrs["not_tested"] == [("REM_vs_DX", "type1", "it is the reference")]
    with pytest.raises(InputError, match="of a table"):
        cohort = la.datasets.simulate_cohort("small", seed=2, n_patients=3)
        la.tl.abundance(cohort, patient_key="x")


def test_the_command_is_listed():
    from longaml.experiment.driver import commands

    assert "abundance" in commands()
    assert "abundance" in la.tl.__all__
    assert callable(la.tl.abundance) and Path(la.tl.__path__[0]).name == "tl"


def test_patients_who_agree_are_no_proof_of_precision():
    "The same counts in every patient: the error is that of the cells, not zero."
    one = pd.DataFrame({"timepoint": ["DX", "REM"], "a": [40, 55], "b": [60, 45], "c": [30, 30]})
    table = pd.concat([one.assign(patient=f"P{i}") for i in range(5)], ignore_index=True)
    rows = la.tl.abundance(table, cell_type_columns=list("abc"), method="beta-binomial")
    assert (rows["standard_error"] > 0.05).all() and (rows["p_value"] > 1e-6).all()
    assert rows.set_index("cell_type").loc["a", "effect"] > 0


def test_a_design_may_name_the_visits_by_a_column_of_its_own():
    "Exchanged visits are exchanged in every column that says the same."
    found = counts_of_table(PLAIN.assign(visit=PLAIN["timepoint"]), cell_type_columns=TYPES[:5])
    samples = found.samples.assign(visit=found.samples["timepoint"])
    moved = with_timepoints(samples, {samples.index[0]: "REM"}, "~ visit + (1|patient)")
    assert moved["visit"].iloc[0] == moved["timepoint"].iloc[0] == "REM"
    assert (moved["visit"].iloc[1:] == samples["visit"].iloc[1:]).all()
