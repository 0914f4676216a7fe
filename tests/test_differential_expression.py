"""`longaml de` as a whole: designs, contrasts, the older test, values without counts, errors, and
real data.
"""

import json

import numpy as np
import pandas as pd
import pytest

import longaml as la
from longaml.cli import main
from longaml.experiment.de import run_de
from longaml.tl import gene_tests
from longaml.tl.expression import de_table
from longaml.tl.gene_test_checks import exchanges_of, gene_test_stability, least_excess

COLUMNS = (
    "contrast cell_type gene log2_fold_change standard_error ci_low ci_high statistic df p_value "
    "q_value mean_expression n_patients n_same_direction q_value_overall"
).split()


def bulk_cohort(n_patients: int = 8, times: tuple = ("0", "2"), n_genes: int = 80):
    "Counts of pigs of two lines at some hours, one row a sample; ten genes rise in line L."
    rng = np.random.default_rng(7)
    obs = pd.DataFrame(
        [(p, t) for p in range(n_patients) for t in times], columns=["pig", "hour"]
    ).assign(line=lambda d: np.where(d["pig"] % 2, "L", "H"), weight=lambda d: 20 + d["pig"] * 1.5)
    level = rng.normal(5, 1, n_genes) + rng.normal(0, 0.3, (n_patients, n_genes))[obs["pig"]]
    rise = (obs["hour"] == times[-1]).to_numpy() & (obs["line"] == "L").to_numpy()
    level[:, :10] += 2 * rise[:, None]
    level += rng.normal(0, 0.2, level.shape)
    counts = rng.poisson(np.exp(level)).astype(np.float32)
    obs["pig"] = "pig" + obs["pig"].astype(str)
    obs.index = obs["pig"] + "_" + obs["hour"]
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])
    return la.pp.cohort.AnnData(counts, obs.assign(cell_type="blood"), var)


@pytest.fixture(scope="module")
def pigs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pigs") / "pigs.h5ad"
    data = bulk_cohort()
    data.obs["hour"] = data.obs["hour"].astype(int)  # timepoints that are numbers
    data.write_h5ad(path)
    return path


PIGS = "--patient-key pig --timepoint-key hour --timepoints 0,2 --permutations 3".split()


def test_a_design_with_a_covariate_and_a_coefficient(pigs, tmp_path):
    "Columns under the user's names; the timepoint's column is a factor also where it has numbers."
    out = tmp_path / "out"
    given = ["--design", "~ line * hour + weight + (1|pig)", "--contrast", "lineL:hour2"]
    assert main(["de", str(pigs), *PIGS, *given, "--out", str(out)]) == 0
    de = pd.read_csv(out / "de.csv")
    assert list(de.columns) == COLUMNS and set(de["contrast"]) == {"lineL:hour2"}
    assert set(de.loc[de["q_value"] < 0.05, "gene"]) >= {f"GENE{i}" for i in range(10)}
    assert de["log2_fold_change"].iloc[:10].mean() == pytest.approx(2 / np.log(2), abs=0.5)
    audit = pd.read_csv(out / "audit.csv").set_index("check")
    permuted = audit.loc["permuted visits"]
    assert permuted["status"] == "not assessed" and "no pair of timepoints" in permuted["text"]
    assert audit.loc["explained by abundance", "status"] == "passed"
    assert audit.loc["explained by depth", "status"] == "not assessed"
    cover = pd.read_csv(out / "coverage.csv")
    assert cover["patients"].tolist() == [8] and cover["patients_both"].isna().all()
    params = json.loads((out / "run.json").read_text())["params"]
    assert params["design"] == given[1] and params["contrast"] == ["lineL:hour2"]


def test_contrasts_may_be_given_several_times(pigs, tmp_path):
    out = tmp_path / "out"
    given = ["--design", "~ line * timepoint + (1|patient)", "--contrast", "2,0"]
    more = ["--contrast", "lineL", "--contrast", "lineL:timepoint[T.2]"]
    assert main(["de", str(pigs), *PIGS, *given, *more, "--out", str(out)]) == 0
    de = pd.read_csv(out / "de.csv")
    assert list(de["contrast"].unique()) == ["2_vs_0", "lineL", "lineL:timepoint[T.2]"]
    status = pd.read_csv(out / "audit.csv").set_index(["contrast", "check"])["status"]
    assert status[("2_vs_0", "permuted visits")] in ("passed", "failed")
    assert status[("lineL", "permuted visits")] == "not assessed"
    assert len(list((out / "figures").glob("volcano-*.png"))) == 3


def test_coefficients_tested_together(tmp_path, capsys):
    "An F-test has no fold change: no volcano, no direction, and no gene sets."
    bulk_cohort(times=("0", "2", "6")).write_h5ad(tmp_path / "pigs.h5ad")
    out, together = tmp_path / "out", "lineL:hour2 and lineL:hour6"
    given = ["--design", "~ line * hour + (1|pig)", "--contrast", together, "--contrast", "hour2"]
    read = "--patient-key pig --timepoint-key hour --timepoints 0,2,6 --permutations 0".split()
    command = ["de", str(tmp_path / "pigs.h5ad"), *read, *given]
    assert main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    de = pd.read_csv(out / "de.csv").set_index("contrast").loc[together]
    assert set(de.loc[de["q_value"] < 0.05, "gene"]) == {f"GENE{i}" for i in range(10)}
    assert de["log2_fold_change"].isna().all() and (de["statistic"] > 0).all()
    assert f"{together}: of 80 genes 10 change in blood at 5% FDR, 10 at 10% FDR" in said
    first = said.split(f"first genes of {together}\n")[1].splitlines()[:6]
    assert first[0].split() == ["gene", "F", "q"] and "nan" not in said
    assert [line.split()[0] for line in first[1:]] == list(de.sort_values("p_value")["gene"][:5])
    assert [p.name for p in (out / "figures").glob("volcano-*")] == ["volcano-hour2-blood.png"]
    own = la.tl.de(
        la.read_cohort(
            tmp_path / "pigs.h5ad",
            patient_key="pig",
            timepoint_key="hour",
            timepoints=["0", "2", "6"],
        ),
        given[1],
        ["lineL:hour2", "lineL:hour6"],
    )
    np.testing.assert_allclose(de["statistic"], own["statistic"], rtol=1e-6)
    sets = str(planted_sets(tmp_path))
    assert main([*command, "--gene-sets", sets, "--out", str(tmp_path / "sets")]) == 2
    assert "gene sets have one direction" in capsys.readouterr().err


def test_a_contrast_that_a_cell_type_lacks_takes_no_other_along(tmp_path):
    "Blasts are not seen at remission: their relapse is compared with diagnosis all the same."
    cohort = la.datasets.simulate_cohort("small", seed=2, n_patients=9, n_genes=150, n_drivers=10)
    pair = ("REL", "DX")
    both = la.tl.de(cohort, contrast=[("timepointREM",), pair])
    alone = la.tl.de(cohort, contrast=[pair])
    both = both[both["contrast"] == "REL_vs_DX"].reset_index(drop=True)
    assert "HSC malignant" in set(alone["cell_type"])
    pd.testing.assert_frame_equal(both, alone)


@pytest.mark.parametrize(
    "given, said",
    [
        (["--design", "~ hour + diet + (1|pig)"], "no --design column 'diet'"),
        (["--design", "~ hour + (1|pig", "--contrast", "hour2"], "--design"),
        (["--contrast", "hour24"], "'hour24' names no coefficient"),
        (["--design", "~ line + (1|pig)"], "Name one with --contrast CONTRAST"),
        (["--design", "~ pig + hour + line"], "cannot be estimated: "),
        (["--design", "~ hour", "--method", "downsampled"], "leave out --design FORMULA"),
        (["--method", "paired"], "--method is 'paired'; expected one of: linear, downsampled"),
        (["--method", "downsampled", "--factors", "1"], "--factors and fdr are of linear models"),
        (["--fdr", "by"], "--fdr is 'by'; expected one of: bh, storey"),
        (["--factors", "12"], "--factors is 12, and the design leaves"),
        (
            ["--contrast", "lineL", "--method", "downsampled"],
            "--contrast is lineL; the downsampled",
        ),
    ],
)
def test_errors_leave_nothing_behind(pigs, given, said, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["de", str(pigs), *PIGS, *given, "--out", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_values_without_counts_fall_back_with_a_note(tmp_path, capsys):
    data = bulk_cohort()
    data.X = np.log1p(1e4 * data.X / data.X.sum(1, keepdims=True))
    data.write_h5ad(tmp_path / "log.h5ad")
    out = tmp_path / "out"
    command = ["de", str(tmp_path / "log.h5ad"), *PIGS, "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "no counts: the cohort was read from log-normalised values" in said.err
    assert "note: no counts: " in said.out
    notes = json.loads((out / "run.json").read_text())["read"]["notes"]
    assert any(n.startswith("no counts: ") for n in notes)
    de = pd.read_csv(out / "de.csv")
    assert list(de.columns) == COLUMNS
    assert de["standard_error"].isna().all() and de["q_value"].notna().all()
    for more, named in (
        (["--method", "linear"], "--method NAME"),
        (["--design", "~ hour + (1|pig)"], "--design FORMULA"),
        (["--factors", "1", "--fdr", "storey"], "--factors N and --fdr KIND"),
    ):
        again = tmp_path / "again"
        assert main([*command[:-1], str(again), *more]) == 2
        said = capsys.readouterr().err
        assert "need raw counts: read the count matrix (--layer NAME)" in said
        assert f"or leave out {named} for the paired test" in said
        assert not again.exists()
    assert main([*command[:-1], str(tmp_path / "asked"), "--method", "downsampled"]) == 0
    assert "no counts" not in capsys.readouterr().err


def test_the_older_test_gives_the_numbers_of_old(tmp_path):
    cohort = la.datasets.simulate_cohort("small", seed=2, n_patients=6, n_genes=120, n_drivers=6)
    del cohort.uns["truth"]
    path = la.pp.save_cohort(cohort, tmp_path / "c.h5ad")
    found = run_de(path, tmp_path / "out", method="downsampled", contrast=("REL", "DX"))["de"]
    older = de_table(la.pp.pseudobulk(cohort))
    older = older[older["contrast"] == "REL_vs_DX"].reset_index(drop=True)
    assert list(found.columns) == COLUMNS and len(found) == len(older)
    for column in ("cell_type", "gene", "log2_fold_change", "statistic", "p_value", "q_value"):
        assert (found[column] == older[column]).all(), column
    assert (found["n_patients"] == older["patients"]).all()
    differences = la.tl.permutation.paired_differences(la.pp.pseudobulk(cohort), ("REL", "DX"))
    whole = found[found["cell_type"] == "all"].set_index("gene")["log2_fold_change"]
    mean = differences.mean() / np.log(2)
    np.testing.assert_allclose(whole[mean.index], mean, rtol=1e-6)


# ---- permuted visits


def test_exchanges_are_balanced_and_distinct():
    cohort = la.datasets.simulate_cohort("small", seed=1, n_patients=9, n_genes=100, n_drivers=4)
    bulk = gene_tests.design_bulk(cohort, gene_tests.DEFAULT_DESIGN, gene_tests.TestOptions())
    found = exchanges_of(bulk, ("REL", "DX"), n=12)
    assert 1 < len(found) <= 12
    assert len({tuple(sorted(e.assignment.items())) for e in found}) == len(found)
    for exchange in found:
        for cell_type, moved in exchange.moved.items():
            kept = exchange.kept[cell_type]
            assert not moved & kept and abs(len(moved) - len(kept)) <= 1


def test_an_excess_has_a_probability_below_a_twentieth():
    assert [least_excess(n) for n in (1, 2, 3, 4, 10, 20, 100)] == [None, 2, 2, 3, 4, 5, 16]


# ---- real data


def run_shock(folder, out, permutations):
    "Cardiogenic shock, third against first visit."
    read = {"patient_key": "patient", "timepoint_key": "time", "timepoints": ["T1", "T2", "T3"]}
    path = folder / "shock_bulk.h5ad"
    return run_de(path, out, contrast="T3,T1", read=read, permutations=permutations)


def test_shock_finds_as_much_as_limma(shared_data, tmp_path):
    "limma finds 1,780 genes (duplicateCorrelation) and 1,861 (patients as fixed blocks)."
    found = run_shock(shared_data, tmp_path / "out", 0)
    de, audit = found["de"], found["audit"].set_index("check")
    assert (de["q_value"] < 0.05).sum() >= 1700
    assert set(de["contrast"]) == {"T3_vs_T1"} and (de["n_patients"] == 11).all()
    assert audit.loc["unstable", "status"] == "passed" and "permuted visits" not in audit.index


@pytest.mark.slow
def test_shock_has_no_excess_where_visits_are_permuted(shared_data, tmp_path):
    "No more permuted cohorts with a call than one in ten, beyond the binomial margin."
    audit = run_shock(shared_data, tmp_path / "out", 20)["audit"].set_index("check")
    found = audit.loc["permuted visits"]
    assert found["status"] == "passed" and " of 20 permuted cohorts" in found["text"]
    assert "visits exchanged in 5 of 11 patients" in found["text"]
    assert found["value"] < found["threshold"]


def planted_sets(folder, names=("RISE", "OTHERS")):
    "A GMT: the ten genes that rise, and twelve that do not."
    genes = [[f"GENE{i}" for i in range(10)], [f"GENE{i}" for i in range(20, 32)]]
    path = folder / "sets.gmt"
    lines = ["\t".join([name, "made here", *members]) for name, members in zip(names, genes)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_gene_sets_go_through_the_same_design(pigs, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["--design", "~ line * hour + (1|pig)", "--contrast", "lineL:hour2"]
    words = ["de", str(pigs), *PIGS, *given, "--gene-sets", str(planted_sets(tmp_path))]
    assert main([*words, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    table = pd.read_csv(out / "gene_sets.csv").set_index("gene_set")
    assert table.index[0] == "RISE" and table.loc["RISE", "p_value"] < 1e-3
    assert table.loc["RISE", "n_genes"] == 10 and table.loc["OTHERS", "p_value"] > 0.01
    de = pd.read_csv(out / "de.csv").set_index("gene")["log2_fold_change"]
    mean = de[[f"GENE{i}" for i in range(10)]].mean()
    assert table.loc["RISE", "effect"] == pytest.approx(mean, rel=1e-4)
    assert "1 of 2 gene sets at 10% FDR; first, with mean log2 fold change: RISE" in said
    assert list((out / "figures").glob("gene-sets-*.png"))
    before = (out / "gene_sets.csv").read_bytes()
    assert main([*words, "--out", str(out), "--resume"]) == 0
    assert (out / "gene_sets.csv").read_bytes() == before
    planted_sets(tmp_path, ("RISE", "NAMED ANEW"))
    assert main([*words, "--out", str(out), "--resume"]) == 2
    assert "checksum of the input" in capsys.readouterr().err


def test_factors_and_q_values_are_those_of_the_function(tmp_path):
    "The table, its stability over half-cohorts and its gene sets are all made with the factors."
    cohort = la.datasets.simulate_cohort("small", seed=2, n_patients=9, n_genes=150, n_drivers=10)
    la.pp.save_cohort(cohort, tmp_path / "cohort.h5ad")
    pair, how = ("REL", "DX"), {"factors": 1, "fdr": "storey"}
    sets = {"first": list(cohort.var_names[:30]), "last": list(cohort.var_names[-30:])}
    gmt = tmp_path / "sets.gmt"
    gmt.write_text("".join("\t".join([k, "", *v]) + "\n" for k, v in sets.items()))
    words = "--contrast REL,DX --permutations 2 --factors 1 --fdr storey --no-figures".split()
    words.append("--gene-sets")
    given = ["de", str(tmp_path / "cohort.h5ad"), *words, str(gmt), "--out", str(tmp_path / "out")]
    assert main(given) == 0
    read = pd.read_csv(tmp_path / "out/de.csv")
    table = la.tl.de(cohort, contrast=[pair], **how)
    numbers = table.select_dtypes("number").columns
    np.testing.assert_allclose(read[numbers], table[numbers], rtol=1e-6)
    plain = la.tl.de(cohort, contrast=[pair])
    both = table.merge(plain, on=["cell_type", "gene"], suffixes=("", "_plain"))
    assert not np.allclose(both["statistic"], both["statistic_plain"], rtol=0.01)
    found = la.tl.enrich(cohort, sets, contrast=[pair], factors=1)
    sets_read = pd.read_csv(tmp_path / "out/gene_sets.csv")
    np.testing.assert_allclose(sets_read["p_value"], found["p_value"], rtol=1e-6)
    bulk = gene_tests.design_bulk(cohort, gene_tests.DEFAULT_DESIGN, gene_tests.TestOptions())
    stable = [
        gene_test_stability(
            bulk, gene_tests.DEFAULT_DESIGN, pair, gene_tests.TestOptions(factors=k), k=20, n=3
        )
        for k in (0, 1)
    ]
    index = [one.set_index("cell_type")["index"] for one in stable]
    assert index[0]["all"] != index[1]["all"]


def test_gene_sets_that_cannot_be_tested(pigs, tmp_path, capsys):
    path = tmp_path / "ids.gmt"
    path.write_text("A\tnone\t" + "\t".join(f"ENSG{i:011d}" for i in range(20)) + "\n")
    out = tmp_path / "out"
    words = ["de", str(pigs), *PIGS, "--out", str(out), "--gene-sets"]
    assert main([*words, str(path)]) == 2 and not out.exists()
    assert main([*words, str(tmp_path / "nowhere.gmt")]) == 2 and not out.exists()
    sets = str(planted_sets(tmp_path))
    assert main([*words, sets, "--method", "downsampled"]) == 2 and not out.exists()
    said = capsys.readouterr().err
    assert "leave out --gene-sets FILE or --method NAME" in said, said


def test_a_timepoint_without_cells_enough_takes_no_other_along(tmp_path):
    "REL has five cells of a type in each sample: its contrasts are listed, the other is tested."
    size = {"n_patients": 6, "n_genes": 100, "n_cells": 200, "n_drivers": 4}
    a = la.datasets.simulate_cohort("small", seed=1, **size)
    place = a.obs.groupby(["sample", "cell_type"], observed=True).cumcount()
    a = a[((a.obs["timepoint"] != "REL") | (place < 5)).to_numpy()].copy()
    path = la.pp.save_cohort(a, tmp_path / "c.h5ad")
    how = ["--permutations", "0", "--no-figures"]
    assert main(["de", str(path), "--out", str(tmp_path / "out"), *how]) == 0
    assert set(pd.read_csv(tmp_path / "out" / "de.csv")["contrast"]) == {"REM_vs_DX"}
    left = pd.read_csv(tmp_path / "out" / "coverage.csv").query("contrast != 'REM_vs_DX'")
    assert not left["tested"].any()
    assert left["why"].str.startswith("no sample at REL").all()
    only = ["--contrast", "REL,DX", "--out", str(tmp_path / "none"), *how]
    assert main(["de", str(path), *only]) == 2 and not (tmp_path / "none").exists()
