"Correlation networks and block decomposition: equal to scipy and pybdm, calibrated nulls, the run."

import gzip
import importlib.metadata
import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from tools import ROOT, python

from longaml.core import rng_for
from longaml.datasets.cohort import simulate_cohort
from longaml.datasets.writers import write_geo
from longaml.experiment.network import asked_genes, run_network
from longaml.pp.preprocessing import bags, pseudobulk
from longaml.tl import block_decomposition as bd
from longaml.tl import network_changes as nc
from longaml.tl import networks as nw
from longaml.tl.permutation import design_of, observed_assignment, permute_samples

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 10**6)


def table_is_there():
    try:
        bd.load_ctm()
    except ImportError:
        return False
    return True


needs_table = pytest.mark.skipif(
    not table_is_there(),
    reason="the table of block complexities is not installed: pip install 'longaml[bdm]'",
)


def graph(n, density, seed):
    rng = rng_for(seed, "graph")
    a = np.triu(rng.random((n, n)) < density, 1)
    return (a | a.T).astype(int)


# correlations


@given(seed=SEEDS, n=st.integers(4, 40), genes=st.integers(2, 12), levels=st.integers(2, 30))
@FEW
def test_spearman_is_scipys_with_any_ties(seed, n, genes, levels):
    x = rng_for(seed).integers(0, levels, (n, genes)).astype(float)
    r = nw.correlation_matrix(x).to_numpy()
    for a in range(genes):
        for b in range(a):
            want = (
                0.0
                if np.ptp(x[:, a]) == 0 or np.ptp(x[:, b]) == 0
                else stats.spearmanr(x[:, a], x[:, b]).statistic
            )
            assert abs(r[a, b] - want) < 1e-10


@given(seed=SEEDS)
@FEW
def test_pearson_is_numpys(seed):
    x = rng_for(seed).normal(size=(15, 6))
    np.testing.assert_allclose(
        nw.correlation_matrix(x, method="pearson"), np.corrcoef(x.T), atol=1e-10
    )


def test_many_genes_equal_scipys_pairs():
    x = np.round(rng_for(0).normal(size=(500, 2000)), 1)
    r, some = nw.correlation_matrix(x).to_numpy(), rng_for(1).choice(2000, 30, replace=False)
    want = stats.spearmanr(x[:, some]).statistic
    assert np.abs(r[np.ix_(some, some)] - want).max() < 1e-10


def test_constant_genes_are_zero_and_reported(caplog):
    x = pd.DataFrame(rng_for(0).normal(size=(10, 4)), columns=list("abcd")).assign(c=3.0)
    r = nw.correlation_matrix(x)
    assert (
        r.attrs["constant"] == ["c"]
        and (r.loc["c", list("abd")] == 0).all()
        and "1 of 4 genes do not vary" in caplog.text
    )


def test_constant_within_patients_is_constant():
    "0.1 + 0.2 - 0.3 is not zero in floating point, and its rank would be noise."
    patients = np.repeat(np.arange(5), 3)
    x = rng_for(0).normal(size=(15, 3))
    x[:, 0] = (0.1 * np.arange(5) + 0.7)[patients]
    assert not nw.centred(x, patients)[:, 0].any()
    assert (nw.correlation_matrix(x, within=patients).to_numpy()[0, 1:] == 0).all()


@pytest.mark.parametrize(
    "data, said",
    [
        (pd.DataFrame({"a": [1, 2, np.nan], "b": [1, 2, 3]}), "1 of 6 values are missing"),
        (pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]}), "not numbers"),
        (pd.DataFrame(np.eye(4), columns=["a", "b", "a", "c"]), "more than once: a"),
        (pd.DataFrame({"a": [1, 2], "b": [2, 1]}), "at least 3 rows"),
        (np.full((4, 2), np.inf), "missing or infinite"),
    ],
)
def test_malformed_tables(data, said):
    with pytest.raises(ValueError, match=said):
        nw.correlation_matrix(data)


def test_permutation_within_groups_keeps_each_group():
    rng, code = rng_for(0), np.array([2, 0, 1, 0, 2, 1, 0])
    z = rng.normal(size=(7, 50))
    moved = nw._permuted(z, code, rng)
    for c in range(3):
        np.testing.assert_array_equal(
            np.sort(moved[code == c], axis=0), np.sort(z[code == c], axis=0)
        )
    assert (moved != z).any()
    assert len(set(map(tuple, np.argsort(moved[code == 0], axis=0).T))) > 1  # genes move apart


def test_p_values_count_ties_against_the_pair():
    "Values on a coarse grid: p by counting steps is never smaller than p by comparing all."
    null = np.round(rng_for(0).random(500), 2)
    seen = np.round(rng_for(1).random(40), 2)
    p = nw.tail_p_values(seen, nw.step_counts(null))
    want = np.array([(1 + (null >= s - 1e-9).sum()) / 501 for s in seen])
    assert (p >= want - 1e-12).all() and np.abs(p - want).max() < 0.01


def test_a_pair_is_called_and_independent_genes_are_not():
    rng, patients = rng_for(5), np.repeat(np.arange(15), 2)
    x = rng.normal(size=(15, 30))[patients] + rng.normal(size=(30, 30))
    x[:, 1] = x[:, 0] + 0.1 * rng.normal(size=30)
    t = nw.correlation_test(x, within=patients, nulls=50)
    assert (
        list(t.loc[0, ["gene_a", "gene_b"]]) == ["0", "1"]
        and t["q_value"].iloc[0] < 0.1
        and t["p_max"].iloc[0] <= 1 / 51 + 1e-12
    )
    assert (t["q_value"].iloc[1:] >= 0.1).mean() > 0.99
    pd.testing.assert_frame_equal(t, nw.correlation_test(x, within=patients, nulls=50))


@given(seed=SEEDS, density=st.floats(0.02, 1.0))
@FEW
def test_density_is_the_share_of_pairs(seed, density):
    r = nw.correlation_matrix(rng_for(seed).normal(size=(12, 15)))
    for sign in nw.SIGNS:
        g = nw.adjacency(r, density=density, sign=sign).to_numpy()
        assert (g == g.T).all() and not g.diagonal().any()
        wanted = (
            r.to_numpy()
            if sign == "positive"
            else -r.to_numpy()
            if sign == "negative"
            else np.abs(r.to_numpy())
        )[np.triu_indices(15, 1)]
        k = max(round(density * 105), 1)
        n = g.sum() // 2
        if (wanted > 1e-9).sum() >= k:
            assert n >= k and (wanted >= np.sort(wanted)[-k] - 1e-12).sum() == n
        else:
            assert n == (wanted > 1e-9).sum()


def test_centralities_of_a_star():
    star = np.zeros((6, 6), int)
    star[0, 1:] = star[1:, 0] = 1
    c = nw.centralities(pd.DataFrame(star, index=list("abcdef"), columns=list("abcdef")))
    assert (
        c.loc["a", "degree"] == 5
        and c.loc["a", "betweenness"] == 1
        and (c.loc["b":, "betweenness"] == 0).all()
        and c["eigenvector"].idxmax() == "a"
    )
    with pytest.raises(ValueError, match="directed"):
        nw.centralities(np.triu(star))


def test_profiles_take_cell_type_means_away():
    bulk = pseudobulk(simulate_cohort("small", seed=1))
    p = nw.sample_profiles(bulk)
    shifted = bulk.copy()
    shifted.X = (
        bulk.X.toarray()
        + 3.0 * (bulk.obs["cell_type"] == bulk.obs["cell_type"].iloc[0]).to_numpy()[:, None]
    ).astype(np.float64)
    np.testing.assert_allclose(nw.sample_profiles(shifted).X, p.X, atol=1e-4)
    assert list(p.obs_names) == list(dict.fromkeys(bulk.obs["sample"].astype(str)))


# block decomposition

REFERENCE = json.loads((Path(__file__).parent / "bdm_reference.json").read_text())


def arrays(case):
    return np.array([[int(c) for c in row] for row in case["matrix"]])


@needs_table
@pytest.mark.parametrize(
    "case", REFERENCE["cases"], ids=lambda c: f"{len(c['matrix'])}x{len(c['matrix'][0])}"
)
def test_block_decomposition_is_pybdms(case):
    "Values, nodes and single entries deleted: all as pybdm gave them (make_bdm_reference.py)."
    m = arrays(case)
    for rule, want in case["values"].items():
        assert bd.bdm(m, size=int(rule[-1]), boundary=rule[:-2]) == pytest.approx(want, abs=1e-8)
    for rule, d in case.get("deletions", {}).items():
        how = dict(size=int(rule[-1]), boundary=rule[:-2])
        for kind in ("zero", "remove"):
            np.testing.assert_allclose(
                bd.node_impact(m, how=kind, **how),
                case["values"][rule] - np.array(d[kind]),
                atol=1e-8,
            )
        if "entries" in d:
            e = np.array(d["entries"])
            np.testing.assert_allclose(
                bd.edge_impact(m, e[:, :2].astype(int), directed=True, **how)["impact"],
                -e[:, 2],
                atol=1e-8,
            )


@needs_table
@given(
    seed=SEEDS,
    n=st.integers(4, 30),
    density=st.floats(0.0, 1.0),
    size=st.sampled_from([2, 3, 4]),
    boundary=st.sampled_from(bd.BOUNDARIES),
    symmetric=st.booleans(),
)
@FEW
def test_touched_blocks_are_the_whole_matrix_again(seed, n, density, size, boundary, symmetric):
    rng = rng_for(seed)
    m = (rng.random((n, n)) < density).astype(int)  # loops are allowed
    if symmetric:
        m = np.maximum(m, m.T)
    how = dict(size=size, boundary=boundary)

    def zeroed(k):
        w = m.copy()
        w[k] = w[:, k] = 0
        return w

    np.testing.assert_allclose(
        bd.node_impact(m, **how),
        [bd.bdm(m, **how) - bd.bdm(zeroed(k), **how) for k in range(n)],
        atol=1e-8,
    )
    e = bd.edge_impact(m, directed=not symmetric, **how)
    for r in e.iloc[:15].itertuples():
        w, a, b = m.copy(), int(r.gene_a), int(r.gene_b)
        w[a, b] = 0
        if symmetric:
            w[b, a] = 0
        assert r.impact == pytest.approx(bd.bdm(m, **how) - bd.bdm(w, **how), abs=1e-8)


@needs_table
def test_orders_are_averaged_and_named():
    g = pd.DataFrame(
        graph(20, 0.3, 1), index=[f"g{i}" for i in range(20)], columns=[f"g{i}" for i in range(20)]
    )
    order = rng_for(4, "order", 0).permutation(20)
    one = bd.node_impact(g, orders=1, seed=4)
    np.testing.assert_allclose(one.iloc[order], bd.node_impact(g.iloc[order, order]), atol=1e-9)
    assert list(one.index) == list(g.index)


@pytest.mark.parametrize(
    "bad, said",
    [
        (np.full((8, 8), 2), "other than 0 and 1"),
        (np.zeros((8, 5), int), "genes x genes"),
        (np.zeros(8, int), "genes x genes"),
    ],
)
def test_malformed_graphs(bad, said):
    with pytest.raises(ValueError, match=said):
        bd.node_impact(bad)


# the table


@pytest.fixture
def without_pybdm(monkeypatch):
    "As if pybdm were not installed."
    real = importlib.metadata.distribution

    def missing(name):
        if name == "pybdm":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    bd.load_ctm.cache_clear()
    yield
    bd.load_ctm.cache_clear()


def test_a_missing_table_names_the_extra(without_pybdm):
    with pytest.raises(ImportError, match=r"longaml\[bdm\]"):
        bd.bdm(np.zeros((8, 8), int))
    data = nw.sample_profiles(pseudobulk(simulate_cohort("small", seed=1, n_patients=4)))
    with pytest.raises(ImportError, match=r"longaml\[bdm\]"):
        nc.network_change_scorer(data, ("REL", "DX"), by="bdm")
    nc.network_change_scorer(data, ("REL", "DX"), by="degree")  # needs no table


@needs_table
def test_a_changed_table_is_not_read():
    raw = bytearray(bd.ctm_bytes())
    raw[1000] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        bd.parse_ctm(bytes(raw))


@pytest.mark.parametrize(
    "payload",
    [b"cos\nsystem\n(S'echo no'\ntR.", b"cbuiltins\neval\n(S'1+1'\ntR.", b"cnumpy\nndarray\n."],
)
def test_a_table_with_code_is_refused(payload):
    with pytest.raises(pickle.UnpicklingError, match="not read"):
        bd.parse_ctm(gzip.compress(payload), sha256=None)


@needs_table
def test_pybdm_is_never_imported():
    done = python(
        "-c",
        "import sys, numpy as np; from longaml.tl.block_decomposition import bdm; "
        "bdm(np.eye(8, dtype=int)); assert not [m for m in sys.modules if m.startswith('pybdm')]",
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


# nulls


@given(seed=SEEDS, n=st.integers(5, 40), density=st.floats(0.05, 0.9))
@FEW
def test_rewiring_keeps_degrees(seed, n, density):
    g = graph(n, density, seed)
    w, r = bd.rewired_graph(g, rng_for(seed)), bd.random_graph(g, rng_for(seed))
    for a in (w, r):
        assert (
            (a == a.T).all()
            and not a.diagonal().any()
            and set(np.unique(a)) <= {0, 1}
            and a.sum() == g.sum()
        )
    assert (w.sum(0) == g.sum(0)).all()


@pytest.mark.slow
def test_rewiring_is_uniform_over_small_graphs():
    "All graphs with degrees 2, 2, 2, 2, 2 are the 12 five-cycles; each must come as often."
    cycle = np.roll(np.eye(5, dtype=int), 1, axis=1)
    cycle = cycle + cycle.T
    seen = pd.Series(
        [bd.rewired_graph(cycle, rng_for(i), rounds=60).tobytes() for i in range(1200)]
    ).value_counts()
    assert len(seen) == 12 and stats.chisquare(seen).pvalue > 1e-3


@needs_table
def test_deletions_of_random_graphs_are_not_called():
    calls = []
    for seed in range(12):
        t = bd.rank_by_impact(graph(40, 0.15, seed), nulls=20, orders=3, seed=seed)
        calls.append(
            [
                (t["q_random"] < 0.1).any(),
                (t["q_rewired"] < 0.1).any(),
                (t["p_random"] < 0.05).mean(),
                (t["p_rewired"] < 0.05).mean(),
            ]
        )
    share = np.mean(calls, 0)
    assert (share[:2] <= 0.1 + 2.33 * np.sqrt(0.09 / 12)).all() and (
        np.abs(share[2:] - 0.05) < 0.03
    ).all()


# changes


@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort("small", seed=6, n_patients=12)


@pytest.mark.parametrize(
    "by", [b if b != "bdm" else pytest.param(b, marks=needs_table) for b in nc.CHANGES]
)
@pytest.mark.parametrize("kind", ["bags", "profiles"])
def test_a_scorer_depends_on_the_assignment_alone(cohort, by, kind):
    "Relabelling the data is the same as passing the assignment, with patients left out too."
    data = (
        bags(cohort, bag_size=5, max_bags=4)
        if kind == "bags"
        else nw.sample_profiles(pseudobulk(cohort))
    )
    data, contrast = data[:, :60].copy(), ("REL", "DX")
    design = design_of(data, contrast[::-1])
    design = design[design.groupby("patient")["timepoint"].transform("size") == 2]
    score, true = nc.network_change_scorer(data, contrast, by=by), observed_assignment(design)
    perm = permute_samples(design, n=3).assignments
    both = score([true, *perm])
    assert both.shape == (4, 60) and np.isfinite(both).all() and (both >= 0).all()
    moved = data.copy()
    sample = moved.obs["sample"].astype(str)
    times = [perm[0].get(s, t) for s, t in zip(sample, moved.obs["timepoint"].astype(str))]
    moved.obs["timepoint"] = pd.Categorical(times, ["DX", "REM", "REL"], ordered=True)
    np.testing.assert_allclose(
        nc.network_change_scorer(moved, contrast, by=by)([perm[0]])[0], both[1], atol=1e-3
    )
    np.testing.assert_allclose(score([true])[0], both[0], rtol=1e-5, atol=1e-6)


def test_patients_without_both_visits_are_left_out(cohort):
    data = bags(cohort, bag_size=5, max_bags=2)[:, :20].copy()
    with pytest.raises(ValueError, match="patients have both"):
        nc.network_change_scorer(data[data.obs["patient"] == "AML2"].copy(), ("REL", "DX"))
    few = data[
        data.obs.groupby(["sample", "cell_type"], observed=True).cumcount().to_numpy() < 1
    ].copy()
    with pytest.raises(ValueError, match="sample_profiles"):
        nc.network_change_scorer(few, ("REL", "DX"))([{}])
    one = data[(data.obs["cell_type"] == data.obs["cell_type"].iloc[0]).to_numpy()].copy()
    with pytest.raises(ValueError, match="bag_size"):
        nc.network_change_scorer(one, ("REL", "DX"))


def test_genes_outside_the_network_score_zero(cohort):
    data = bags(cohort, bag_size=5, max_bags=4)
    some = list(data.var_names[10:40])
    s = nc.network_change_scorer(data, ("REL", "DX"), by="pair", genes=some)(
        [observed_assignment(design_of(data, ("DX", "REL")))]
    )[0]
    assert (s[10:40] > 0).all() and not s[:10].any() and not s[40:].any()


# the run


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("cohort") / "cohort"
    write_geo(
        simulate_cohort(
            "small", seed=2, n_patients=8, n_cells=80, timepoints=("DX", "REL"), missing=0.0
        ),
        path,
    )
    return path


def csvs(folder):
    return {p.name: p.read_bytes() for p in folder.glob("*.csv")}


@pytest.mark.slow  # every command has one driver; test_cohort_runs.py does this for run
@needs_table
def test_a_run_repeats_and_resumes_to_the_same_bytes(on_disk, tmp_path):
    result = run_network(on_disk, tmp_path / "a", genes="top:16", nulls=2)
    assert set(csvs(tmp_path / "a")) == {
        "network.csv",
        "nodes.csv",
        "bdm.csv",
        "changes.csv",
        "pair_changes.csv",
        "audit.csv",
    }
    run_network(on_disk, tmp_path / "b", genes="top:16", nulls=2)
    assert csvs(tmp_path / "a") == csvs(tmp_path / "b")
    for p in [
        *(tmp_path / "b").glob("*.csv"),
        *sorted((tmp_path / "b" / "steps").rglob("*.npz"))[::2],
    ]:
        p.unlink()
    run_network(on_disk, tmp_path / "b", genes="top:16", nulls=2, resume=True)
    assert csvs(tmp_path / "a") == csvs(tmp_path / "b")
    manifest = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (
        manifest["status"] == "complete"
        and manifest["results"]["summary"] == result["summary"].splitlines()
    )
    nodes, edges = (
        pd.read_csv(tmp_path / "a" / "nodes.csv"),
        pd.read_csv(tmp_path / "a" / "network.csv"),
    )
    assert (nodes.groupby("network")["degree"].sum() == 2 * edges.groupby("network").size()).all()


def test_without_the_table_the_rest_is_made(on_disk, tmp_path, without_pybdm):
    result = run_network(on_disk, tmp_path / "out", genes="top:20", nulls=2)
    assert (
        "longaml[bdm]" in result["summary"]
        and not (tmp_path / "out" / "bdm.csv").exists()
        and (tmp_path / "out" / "network.csv").exists()
    )
    assert "network_bdm" not in set(result["changes"]["model"])


def test_genes_from_a_file(on_disk, tmp_path, caplog):
    genes = ["RPL3", "RPS3", "MALAT1", "HBB", "B2M", "ACTB", "NOSUCHGENE"]
    (tmp_path / "genes.txt").write_text("# a comment\n" + "\n".join(genes) + "\n\n")
    assert asked_genes(tmp_path / "genes.txt") == genes
    result = run_network(
        on_disk, tmp_path / "out", genes=tmp_path / "genes.txt", nulls=2, density=0.3
    )
    assert "1 of 7 genes are not in the cohort: NOSUCHGENE" in caplog.text
    assert set(result["nodes"]["gene"]) == set(genes[:6])


def test_timepoints_and_contrasts_with_too_few_patients_are_named(tmp_path):
    cohort = simulate_cohort("small", seed=2, n_patients=6, n_cells=60)
    keep = (cohort.obs["timepoint"] != "REM") | cohort.obs["patient"].isin(["AML1", "AML2"])
    write_geo(cohort[keep.to_numpy()].copy(), tmp_path / "cohort")
    result = run_network(
        tmp_path / "cohort", tmp_path / "out", genes="top:10", nulls=2, density=0.2
    )
    assert (
        "REM: fewer than 5 patients have enough cells" in result["summary"]
        and "REM_vs_DX: fewer than 3 patients" in result["summary"]
        and "REL_vs_DX, network_pair" in result["summary"]
    )


@pytest.mark.parametrize(
    "given, said",
    [
        ({"genes": "top:2"}, "top:N"),
        ({"genes": ["A", "B"]}, "expected 4"),
        ({"genes": "no-such-file.txt"}, "one gene a line"),
        ({"genes": ["A", "B", "C", "D"]}, "0 of 4 genes"),
        ({"method": "kendall"}, "spearman, pearson"),
        ({"density": 0}, "above 0"),
        ({"nulls": 0}, "at least 1"),
    ],
)
def test_a_run_refuses_before_it_writes(on_disk, tmp_path, given, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        run_network(on_disk, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@needs_table
def test_the_benchmark_agrees_with_itself():
    done = python("tests/benchmarks/bench_networks.py", "--quick", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "times" in done.stdout
