"""Reading: which values are counts, which are logarithms; names of genes; every right value is
computed here with plain NumPy and pandas.
"""

import gzip
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import mmwrite

import longaml as la
from longaml.cli import as_options, main
from longaml.core import InputError, rng_for
from longaml.experiment.driver import ReadOptions, commands
from longaml.pp.cells import labelled_cells
from longaml.pp.cohort import as_cohort, save_cohort
from longaml.pp.genes import MITO_IDS, is_mitochondrial, name_genes, read_symbols, symbol_columns
from longaml.pp.preprocessing import bags, downsample, pseudobulk
from longaml.pp.reading import read_cohort
from longaml.pp.slots import choose_matrix
from longaml.pp.tokens import Cells
from longaml.pp.values import describe_values
from longaml.tl.checks import as_ranking, read_ranking

FEW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
NAMES = ["MT-ND1", "MT-CO1", *(f"GENE{i}" for i in range(78))]


def counts_of_cells(n=48, genes=80, seed=0):
    "Counts of cells of different depth: most are 0, 1 or 2, a few are large."
    rng = rng_for(seed, "values")
    depth = rng.gamma(4, 0.4, (n, 1))
    counts = rng.poisson(depth * rng.gamma(0.6, 4, (1, genes)) + 0.2)
    counts[:, 0] += 1  # no empty cell
    return counts.astype(np.float64)


def per(counts, total=1e4):
    "Every row scaled to a total."
    return total * counts / counts.sum(1, keepdims=True)


def annotated(X, names=NAMES, **more):
    "Four patients at two visits."
    n = X.shape[0]
    obs = pd.DataFrame(
        {
            "patient": [f"P{i % 4}" for i in range(n)],
            "timepoint": ["DX" if i % 8 < 4 else "REL" for i in range(n)],
        },
        index=[f"c{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=list(names)[: X.shape[1]])
    return ad.AnnData(sp.csr_matrix(X.astype("float32")), obs=obs, var=var, **more)


def dense(adata):
    return adata.X.toarray().astype(np.float64)


def notes(cohort):
    return " | ".join(cohort.uns["longaml"]["warnings"])


# ---------------------------------------------------------------- counts or log values
COUNTS = counts_of_cells()
SOUP = np.where(COUNTS > 1, COUNTS - 0.37, COUNTS)
DECONT = COUNTS * rng_for(1, "decontX").uniform(0.6, 0.99, COUNTS.shape)
SMALL = np.where(DECONT < 20, DECONT, 0)
TPM = per(rng_for(2, "tpm").gamma(0.3, 2, (48, 80)), 1e6)
SHARE = COUNTS / COUNTS.sum(1, keepdims=True)
DRAWN = np.array([rng_for(3, str(i)).multinomial(10_000, p) for i, p in enumerate(SHARE)])
BULK = rng_for(4, "bulk").poisson(SHARE * rng_for(5, "bulk").uniform(2e7, 5e7, (48, 1))) + 40.0
KINDS = {
    "counts": (COUNTS, "counts", None),
    "counts after a detour through logarithms": (
        np.expm1(np.log1p(COUNTS.astype("float32"))),
        "counts",
        None,
    ),
    "ln of counts per 10,000": (np.log1p(per(COUNTS)), "lognorm", np.e),
    "log2 of counts per 10,000": (np.log2(1 + per(COUNTS)), "lognorm", 2),
    "log10 of counts per million": (np.log10(1 + per(COUNTS, 1e6)), "lognorm", 10),
    "ln, half of the genes": (np.log1p(per(COUNTS))[:, 1::2], "lognorm", np.e),
    "ln, with three decimals": (np.round(np.log1p(per(COUNTS)), 3), "lognorm", np.e),
    "ln of TPM": (np.log1p(TPM), "lognorm", np.e),
    "log2 of TPM": (np.log2(1 + TPM), "lognorm", 2),
    "ln of counts": (np.log1p(COUNTS), "log counts", np.e),
    "log2 of counts, most of them whole": (np.log2(1 + COUNTS), "log counts", 2),
    "counts per million": (per(COUNTS, 1e6), "normalised", None),
    "proportions": (per(COUNTS, 1), "normalised", None),
    "counts per million, rounded": (np.rint(per(COUNTS, 1e6)), "normalised", None),
    "counts per 10,000, rounded": (np.rint(per(COUNTS)), "normalised", None),
    "TPM, rounded": (np.rint(TPM), "normalised", None),
    "half of the genes of rounded counts per million": (
        np.rint(per(COUNTS, 1e6))[:, 1::2],
        "normalised",
        None,
    ),
    "ln of rounded counts per million": (
        np.log1p(np.rint(per(COUNTS, 1e6))),
        "lognorm",
        np.e,
    ),
    "counts that were downsampled": (DRAWN, "counts", None),
    "counts of bulk samples": (BULK, "counts", None),
    "square roots of counts": (np.sqrt(COUNTS), "fractional", None),
    "TPM": (TPM, "normalised", None),
    "half of the genes of counts per million": (per(COUNTS, 1e6)[:, 1::2], "normalised", None),
    "SoupX": (SOUP, "fractional", None),
    "decontX": (DECONT, "fractional", None),
    "halves": (COUNTS / 2, "fractional", None),
    "decontX below 20": (SMALL, "unclear", None),
    "twice the logarithm": (np.log1p(np.log1p(per(COUNTS))), "unclear", None),
    "scaled": (COUNTS - 1.5, "negative", None),
    "broken": (np.where(COUNTS == 3, np.nan, COUNTS), "nan", None),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_matrix_holds(name):
    X, kind, base = KINDS[name]
    found = describe_values(sp.csr_matrix(X.astype("float32")))
    assert found.kind == kind
    assert base is None or np.isclose(found.base, base)


@pytest.mark.parametrize("log1p", [None, {"base": None}, {"base": 2}, {}])
def test_history_of_another_slot_says_nothing(log1p):
    "Fractional counts next to log values: not exponentiated, whatever uns says."
    a = annotated(np.log1p(per(COUNTS)), layers={"counts": SOUP})
    if log1p is not None:
        a.uns["log1p"] = log1p
    with pytest.raises(
        InputError, match=r"fractional counts: layers\['counts'\]\['c0'.*'round'"
    ) as e:
        as_cohort(a)
    assert e.value.parameter == "counts" and "SoupX" in str(e.value)
    got = as_cohort(a, counts="round")
    assert got.uns["longaml"]["input_kind"] == "counts"
    assert got.uns["longaml"]["parameters"]["counts"] == "round"
    assert np.array_equal(np.sort(dense(got).ravel()), np.sort(np.rint(SOUP).ravel()))
    fractional = int((SOUP != np.floor(SOUP)).sum())
    assert f"corrected counts: {fractional:,} of {(SOUP > 0).sum():,} values" in notes(got)
    assert as_cohort(a, layer="X").uns["longaml"]["input_kind"] == "lognorm"


def test_counts_with_a_history_of_log1p_are_counts():
    a = annotated(COUNTS)
    a.uns["log1p"] = {"base": None}
    got = as_cohort(a)
    assert got.uns["longaml"]["input_kind"] == "counts" and np.array_equal(dense(got), COUNTS)


@pytest.mark.parametrize("name", ["counts per million", "proportions", "TPM", "decontX below 20"])
@pytest.mark.parametrize("history", [False, True])
def test_values_that_only_look_like_logarithms_are_refused(name, history):
    X, kind, _ = KINDS[name]
    a = annotated(X)
    if history:
        a.uns["log1p"] = {"base": None}
    words = {
        "counts per million": "counts per million.*normalize_total",
        "proportions": "proportions, neither counts nor their logarithm",
        "TPM": "per million, or TPM",
        "decontX below 20": "may be corrected counts or logarithms.*'round'.*'log'.*'log2'",
    }
    with pytest.raises(InputError, match=words[name]) as e:
        as_cohort(a)
    assert e.value.parameter == ("counts" if kind == "unclear" else "layer")
    if kind == "normalised":
        with pytest.raises(InputError, match="'round' rounds corrected counts, but X holds"):
            as_cohort(a, counts="round")


@pytest.mark.parametrize("rows", ["all", "one sample"])
def test_rounded_cpm_are_refused_in_every_format(tmp_path, rows):
    "Also where one sample was normalised and the others hold counts."
    X = np.rint(per(COUNTS, 1e6))
    if rows == "one sample":
        at = np.arange(48) % 8 == 1  # P1 at DX
        X = np.where(at[:, None], X, COUNTS)
    a = annotated(X)
    with pytest.raises(InputError, match="counts per million, or TPM") as e:
        as_cohort(a)
    assert e.value.parameter == "layer"
    assert ("P1_DX" in str(e.value)) == (rows == "one sample")
    for (p, t), at in a.obs.groupby(["patient", "timepoint"]).indices.items():
        place = tmp_path / f"{p}_{t}"
        place.mkdir()
        mmwrite(place / "matrix.mtx", sp.coo_matrix(X[at].T.astype(int)))
        (place / "genes.tsv").write_text("\n".join(NAMES) + "\n")
        (place / "barcodes.tsv").write_text("\n".join(f"b{i}" for i in at) + "\n")
    with pytest.raises(InputError, match="P1_DX|P0_DX"):
        read_cohort(tmp_path, name_pattern="{patient}_{timepoint}")


def test_negative_counts_in_a_layer_do_not_fall_back_on_X():
    a = annotated(COUNTS, layers={"counts": COUNTS - 2})
    with pytest.raises(InputError, match=r"layers\['counts'\].*values below zero are scaled") as e:
        as_cohort(a)
    assert e.value.parameter == "layer"
    assert np.array_equal(dense(as_cohort(a, layer="X")), COUNTS)


def test_counts_in_a_layer_of_another_name_are_offered():
    a = annotated(np.log1p(per(COUNTS)), layers={"raw_counts": COUNTS, "scaled": COUNTS - 2})
    got = as_cohort(a)
    assert got.uns["longaml"]["input_kind"] == "lognorm"
    assert "layers with counts: raw_counts;" in notes(got)
    assert np.array_equal(dense(as_cohort(a, layer="raw_counts")), COUNTS)
    assert "layers with counts" not in notes(as_cohort(a, layer="X"))


def test_presence_and_absence_is_noted():
    assert "all 3,0" in notes(as_cohort(annotated((COUNTS > 0) * 1.0)))
    assert "one value" not in notes(as_cohort(annotated(COUNTS)))


def test_the_advice_for_normalised_values_works():
    sc = pytest.importorskip("scanpy")
    a = annotated(per(COUNTS, 1e6))
    sc.pp.normalize_total(a, target_sum=1e4)
    sc.pp.log1p(a)
    assert np.allclose(as_cohort(a).obs["n_counts"], 1e4, rtol=1e-4)


def test_unclear_values_are_what_the_user_says():
    X = SMALL.astype("float32")
    rounded = as_cohort(annotated(SMALL), counts="round")
    assert np.array_equal(dense(rounded), np.rint(X))
    logged = as_cohort(annotated(SMALL), counts="log")
    assert np.allclose(dense(logged), X) and logged.uns["longaml"]["input_kind"] == "lognorm"
    two = as_cohort(annotated(SMALL), counts="log2")
    assert np.allclose(dense(two), X * np.log(2), rtol=1e-6)
    assert np.allclose(dense(as_cohort(two)), dense(two))  # a cohort keeps what was said
    with pytest.raises(InputError, match="counts='log', but X holds values up to"):
        as_cohort(annotated(COUNTS * 10), counts="log")
    with pytest.raises(InputError, match="counts='log2', but X holds logarithms in base e"):
        as_cohort(annotated(np.log1p(per(COUNTS))), counts="log2")
    with pytest.raises(InputError, match="counts is 'floor'; expected one of: whole, round, log"):
        as_cohort(annotated(COUNTS), counts="floor")


@pytest.mark.parametrize("base", [None, 2, 10, 3, np.e])
@pytest.mark.parametrize("said", [True, False])
def test_the_base_of_the_logarithm(base, said):
    b = np.e if base is None else base
    a = annotated(np.log1p(per(COUNTS)) / np.log(b))
    if said:
        a.uns["log1p"] = {"base": base}
    elif base == 3:
        with pytest.raises(InputError, match="may be corrected counts or logarithms"):
            as_cohort(a)
        return
    got = as_cohort(a)
    assert np.allclose(got.obs["n_counts"], 1e4, rtol=1e-4)
    assert np.allclose(dense(got), np.log1p(per(COUNTS)), rtol=1e-5, atol=1e-6)
    mito = per(COUNTS)[:, :2].sum(1) / 1e4
    assert np.allclose(got.obs["mito_share"], mito, rtol=1e-4)
    assert f"base {'e' if np.isclose(b, np.e) else b}" in notes(got)
    assert pseudobulk(got, min_cells=1).n_obs and bags(got, bag_size=2).n_obs


def test_values_win_over_a_base_that_they_contradict():
    a = annotated(np.log1p(per(COUNTS)))
    a.uns["log1p"] = {"base": 2}
    got = as_cohort(a)
    assert np.allclose(got.obs["n_counts"], 1e4, rtol=1e-4)
    assert "uns['log1p'] says base 2, the values do not" in notes(got)


@pytest.mark.parametrize("base", [np.e, 2, 10])
def test_logarithms_of_counts_become_counts(base):
    got = as_cohort(annotated(np.log1p(COUNTS) / np.log(base)))
    assert got.uns["longaml"]["input_kind"] == "counts" and np.array_equal(dense(got), COUNTS)
    assert "the counts were recovered" in notes(got)


def test_log_values_in_raw_next_to_scaled_X():
    logged = annotated(np.log1p(per(COUNTS)))
    some = logged[:, 10:40].copy()
    some.raw = logged
    x = some.X.toarray()
    some.X = (x - x.mean(0)) / (x.std(0) + 1e-3)
    got = as_cohort(some)
    assert got.uns["longaml"]["slot"] == ".raw" and got.n_vars == 80
    assert np.allclose(dense(got), np.log1p(per(COUNTS)), rtol=1e-5)
    for layer in ("raw", ".raw"):
        assert as_cohort(some, layer=layer).n_vars == 80
    with pytest.raises(InputError, match=r"scaled, not counts.*\.raw is present \(layer='.raw'\)"):
        as_cohort(some, layer="X")


def test_cells_for_tokens_use_the_base(tmp_path):
    X = np.log2(1 + per(COUNTS))
    in_memory = Cells(annotated(X)).rows(slice(None)).toarray()
    assert np.allclose(in_memory, per(COUNTS), rtol=1e-4, atol=1e-2)
    annotated(X).write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    assert np.allclose(Cells(backed).rows(slice(None)).toarray(), in_memory, rtol=1e-5, atol=1e-3)


@given(
    seed=st.integers(0, 50),
    base=st.sampled_from([np.e, 2.0, 10.0]),
    total=st.sampled_from([1e4, 1e6, 2345.0]),
    log=st.booleans(),
    half=st.booleans(),
    named=st.booleans(),
)
@FEW
def test_mixed_kinds_are_read_right_or_refused(seed, base, total, log, half, named):
    "Normalised counts of any total: undone with the right base, or refused; never counts."
    counts = counts_of_cells(seed=seed)
    x = per(counts, total)
    a = annotated(np.log1p(x) / np.log(base) if log else x)
    if half:
        a = a[:, ::2].copy()
        x = x[:, ::2]
    if named:
        a.uns["log1p"] = {"base": None}
    if not log:
        with pytest.raises(InputError, match="neither counts nor their logarithm"):
            as_cohort(a)
        return
    got = as_cohort(a)
    assert np.allclose(got.obs["n_counts"], x.sum(1), rtol=1e-3)
    assert np.allclose(np.expm1(dense(got)), x, rtol=1e-3, atol=1e-2)


# ---------------------------------------------------------------- names of genes
ODD = ["NA", "nan", "None", "null", "7157", "NaN", "inf"]


def test_odd_names_are_text():
    a = annotated(COUNTS, [*ODD, *NAMES[len(ODD) :]])
    got = as_cohort(a)
    assert list(got.var_names[: len(ODD)]) == ODD
    assert np.array_equal(dense(got), COUNTS)
    numeric = name_genes(pd.DataFrame(index=pd.Index([7157.0, 4535.0])))
    assert list(numeric.var.index) == ["7157", "4535"] and "Entrez" in numeric.notes[0]


def test_genes_that_a_spreadsheet_made_dates_are_noted():
    names = ["1-Mar", "2-Sep", "SEPTIN2", "HLA-A", "2023-09-02 00:00:00", *NAMES[5:]]
    got = as_cohort(annotated(COUNTS, names))
    assert list(got.var_names) == names
    assert "gene names: 3 look like dates (1-Mar, 2-Sep, 2023-09-02" in notes(got)
    assert "dates" not in notes(as_cohort(annotated(COUNTS)))


def test_repeated_names_are_made_unique_with_a_note():
    names = ["TBCE", "TBCE", "TBCE-1", *NAMES[3:]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a = annotated(COUNTS, names)
    got = as_cohort(a)
    assert got.var_names.is_unique and got.var_names[0] == "TBCE"
    assert np.array_equal(dense(got), COUNTS)
    assert "gene names: 1 name is repeated and made unique with -1, -2, ...: TBCE" in notes(got)


def test_a_ranking_with_odd_genes_is_read_as_written(tmp_path):
    path = tmp_path / "r.csv"
    genes = [*ODD, "CD34"]
    pd.DataFrame({"gene": genes, "score": range(8), "q_value": [np.nan, *[0.1] * 7]}).to_csv(
        path, index=False, na_rep="NA"
    )
    table = as_ranking(read_ranking(path))
    assert list(table["gene"]) == genes and list(table["score"]) == list(range(8))
    assert np.isnan(table["q_value"][0]) and table["q_value"][1] == 0.1
    pd.DataFrame({"names": [7157, 4535], "scores": [1.0, 2.0]}).to_csv(path, index=False)
    assert list(as_ranking(read_ranking(path))["gene"]) == ["7157", "4535"]
    assert list(as_ranking(pd.read_csv(path))["gene"]) == ["7157", "4535"]
    with pytest.raises(InputError, match="1 of 2 rows of the ranking have no gene.*read_ranking"):
        as_ranking(pd.DataFrame({"gene": ["CD34", np.nan], "score": [1, 2]}))


def test_audit_finds_genes_with_odd_names(tmp_path):
    a = annotated(COUNTS, [*ODD, *NAMES[len(ODD) :]])
    a.write_h5ad(tmp_path / "c.h5ad")
    pd.DataFrame({"gene": a.var_names, "score": rng_for(0).normal(size=80)}).to_csv(
        tmp_path / "r.csv", index=False
    )
    got = la.tl.audit(
        as_ranking(read_ranking(tmp_path / "r.csv")), read_cohort(tmp_path / "c.h5ad")
    )
    assert len(got) and read_ranking(tmp_path / "r.csv")["gene"].isin(a.var_names).all()


def labelled(names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a = annotated(COUNTS, names)
    a.obs["type"] = ["T" if i % 2 else "B" for i in range(a.n_obs)]
    return a


def test_labelled_cells_name_genes_and_cells(caplog):
    "What `modules` and `celltype` read."
    a = labelled(["NA", "nan", "SAME", "SAME", *NAMES[4:]])
    a.obs_names = ["c0", "c0", *a.obs_names[2:]]
    got = labelled_cells(a, label_key="type")
    assert list(got.var_names[:4]) == ["NA", "nan", "SAME", "SAME-1"]
    assert got.obs_names.is_unique and got.n_obs == 48
    assert np.allclose(dense(got), np.log1p(per(COUNTS)), rtol=1e-5)
    assert got[:, ["SAME", "SAME-1"]].shape == (48, 2)
    assert "gene names: 1 name" in caplog.text and "cell names: 1 name" in caplog.text
    a.var["symbol"] = [f"S{i}" for i in range(80)]
    assert labelled_cells(a, label_key="type", gene_symbols="symbol").var_names[0] == "S0"
    a.X = sp.csr_matrix(SOUP.astype("float32"))
    rounded = labelled_cells(a, label_key="type", counts="round")
    assert np.allclose(dense(rounded), np.log1p(per(np.rint(SOUP))), rtol=1e-5)


# ---------------------------------------------------------------- symbols
IDS = [f"ENSG{i:011d}" for i in range(1, 81)]


def with_ids(version=""):
    a = annotated(COUNTS, [i + version for i in IDS])
    a.var["feature_name"] = NAMES
    a.var["feature_type"] = "Gene Expression"
    a.var["length"] = range(80)
    return a


def test_ids_are_noted_and_symbol_columns_are_offered():
    got = as_cohort(with_ids())
    assert "gene ids: genes are named by Ensembl ids (ENSG00000000001" in notes(got)
    assert "--gene-symbols feature_name" in notes(got)
    assert symbol_columns(with_ids().var) == ["feature_name"]
    bare = with_ids()
    bare.var = bare.var[[]]
    assert "--gene-symbols genes.gtf.gz" in notes(as_cohort(bare))
    assert "gene ids" not in notes(as_cohort(annotated(COUNTS)))


def symbol_file(folder, kind):
    "The same names in every form that a laboratory has."
    path = folder / kind
    if kind.startswith("genes.gtf"):
        lines = ["#!genome-build X"]
        for i, s in zip(IDS, NAMES):
            lines.append(
                f'1\tx\tgene\t1\t9\t.\t+\t.\tgene_id "{i}.4"; gene_type "a"; gene_name "{s}";'
            )
            lines.append(f'1\tx\texon\t1\t9\t.\t+\t.\tgene_id "{i}.4"; gene_name "{s}"; exon 1;')
    elif kind == "turned.csv":
        lines = ["symbol,id", *(f"{s},{i}" for i, s in zip(IDS, NAMES))]
    elif kind == "features.tsv.gz":
        lines = [f"{i}\t{s}\tGene Expression" for i, s in zip(IDS, NAMES)]
    else:
        lines = [f"{i}\t{s}" for i, s in zip(IDS, NAMES)]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize(
    "kind", ["genes.gtf", "genes.gtf.gz", "two.tsv", "turned.csv", "features.tsv.gz", "ids.txt"]
)
@pytest.mark.parametrize("version", ["", ".11"])
def test_symbols_from_a_file(tmp_path, kind, version):
    path = symbol_file(tmp_path, kind)
    a = with_ids(version)
    got = as_cohort(a, gene_symbols=path)
    assert list(got.var_names) == NAMES and list(got.var["gene_id"]) == list(a.var_names)
    share = COUNTS[:, :2].sum(1) / COUNTS.sum(1)
    assert np.allclose(got.obs["mito_share"], share)
    a.write_h5ad(tmp_path / "c.h5ad")
    out = tmp_path / "o.h5ad"
    assert main(["convert", str(tmp_path / "c.h5ad"), str(out), "--gene-symbols", str(path)]) == 0
    assert list(ad.read_h5ad(out).var_names) == NAMES


def test_symbols_that_are_missing_or_elsewhere(tmp_path):
    a = with_ids()
    a.var["feature_name"] = ["nan", "nan", None, "", "NA", *NAMES[5:]]
    got = as_cohort(a, gene_symbols="feature_name")
    assert list(got.var_names) == [*IDS[:4], "NA", *NAMES[5:]]
    assert "gene names: from var['feature_name']; 4 of 80 have no symbol there" in notes(got)
    with pytest.raises(InputError, match="none of the 80 genes.*--gene-symbols feature_name"):
        (tmp_path / "other.tsv").write_text("ENSMUSG00000000001\tGnai3\n")
        as_cohort(with_ids(), gene_symbols=tmp_path / "other.tsv")
    with pytest.raises(FileNotFoundError, match="gene_symbols=... takes a column of var, a GTF"):
        as_cohort(with_ids(), gene_symbols=tmp_path / "nowhere.gtf")
    with pytest.raises(InputError, match="has one column; expected an id and a symbol"):
        (tmp_path / "one.tsv").write_text("ENSG1\n")
        read_symbols(tmp_path / "one.tsv", IDS)


def test_symbols_of_raw_are_found_in_var():
    a = with_ids()
    full = ad.AnnData(a.X, obs=a.obs, var=a.var[[]])
    a.raw = full
    a.X = np.log1p(per(COUNTS))
    assert list(as_cohort(a, gene_symbols="feature_name").var_names) == NAMES


def test_every_command_that_reads_has_the_options():
    reading = set(ReadOptions.options())
    assert {"gene_symbols", "counts"} <= reading
    for name, command in commands().items():
        options = set(command.Config.options())
        if "layer" in options:
            assert {"gene_symbols", "counts"} <= options, name


def test_messages_name_the_options():
    config = commands()["convert"].Config
    text = "fractional counts: X is 2.5; counts='round' rounds them. Read raw counts, or layer=..."
    said = as_options(text, config, "counts")
    assert said == (
        "fractional counts: X is 2.5; --counts round rounds them. Read raw counts, or --layer NAME"
    )


def test_counts_round_on_the_command_line(tmp_path, capsys):
    a = annotated(SOUP)
    a.write_h5ad(tmp_path / "c.h5ad")
    out = tmp_path / "o.h5ad"
    assert main(["convert", str(tmp_path / "c.h5ad"), str(out)]) == 2
    assert "--counts round rounds them" in capsys.readouterr().err and not out.exists()
    assert main(["convert", str(tmp_path / "c.h5ad"), str(out), "--counts", "round"]) == 0
    assert np.array_equal(dense(ad.read_h5ad(out)), np.rint(SOUP))


# ---------------------------------------------------------------- mitochondrial genes
MITO = {
    "human": ["MT-ND1", "MT-CO1"],
    "mouse": ["mt-Nd1", "mt-Co1"],
    "fly": ["mt:ND1", "mt:CoI"],
    "R": ["MT.ND1", "MT.CO1"],
    "two genomes": ["GRCh38_MT-ND1", "mm10___mt-Co1"],
    "two genomes, Seurat": ["GRCh38-MT-ND1", "mm10-mt-Co1"],
    "Ensembl": ["ENSG00000198888", "ENSG00000198804.2"],
    "Ensembl, two genomes": ["GRCh38_ENSG00000198888", "mm10_ENSMUSG00000064341"],
    "Ensembl, mouse": ["ENSMUSG00000064341", "ENSMUSG00000064351"],
    "Entrez": ["4535", "4512"],
}


@pytest.mark.parametrize("kind", MITO)
def test_mitochondrial_share(kind):
    others = NAMES[2:]
    if "Ensembl" in kind:
        others = IDS[2:]
    if kind == "Entrez":
        others = [str(i) for i in range(100, 178)]
    got = as_cohort(annotated(COUNTS, [*MITO[kind], *others]))
    assert np.allclose(got.obs["mito_share"], COUNTS[:, :2].sum(1) / COUNTS.sum(1))
    assert "mitochondrial genes" not in notes(got)
    bulk = pseudobulk(got, min_cells=1, downsampled=False)
    visit = got.obs["sample"].astype(str)
    sums = pd.DataFrame(COUNTS).groupby(visit.to_numpy()).sum()
    share = sums[[0, 1]].sum(axis=1) / sums.sum(axis=1)
    want = share[bulk.obs["sample"].astype(str)].to_numpy()
    assert np.allclose(bulk.obs["mito_share"], want, rtol=1e-3)


def test_mitochondrial_ids_in_a_column_and_none():
    ids = pd.DataFrame({"gene_ids": ["ENSG00000198888", IDS[0]]}, index=["ND1", "A"])
    assert is_mitochondrial(ids).tolist() == [True, False]
    entrez = pd.DataFrame({"entrez_id": [4535, 7157]}, index=["ND1", "TP53"])
    assert is_mitochondrial(entrez).tolist() == [True, False]
    for column in ("n_cells", "length", "highly_variable_rank"):  # numbers of another kind
        other = pd.DataFrame({column: [4535, 7157]}, index=["CD34", "TP53"])
        assert not is_mitochondrial(other).any()
        assert not is_mitochondrial(other.astype(str)).any()
    nuclear = ["MTOR", "MT1X", "MT2A", "MTND1P23", "HLA-A", "GRCh38_MTOR", "MTRNR2L12"]
    assert not is_mitochondrial(pd.DataFrame(index=nuclear)).any()
    assert len([i for i in MITO_IDS if i.startswith("ENSG")]) == 15
    got = as_cohort(annotated(COUNTS, [f"G{i}" for i in range(80)]))
    assert (got.obs["mito_share"] == 0).all()
    assert "mitochondrial genes: none among 80 genes" in notes(got)


# ---------------------------------------------------------------- kinds of AnnData
def test_tables_in_obsm(tmp_path):
    a = annotated(COUNTS)
    a.obsm["scores"] = pd.DataFrame(
        {"S": range(48), "phase": pd.Categorical(["G1", "S"] * 24)}, index=a.obs_names
    )
    a.obsm["numbered"] = pd.DataFrame(np.arange(96).reshape(48, 2), index=a.obs_names)
    a.obsm["X_pca"] = np.arange(96.0).reshape(48, 2)
    got = as_cohort(a, timepoints=["DX", "REL"])
    assert list(got.obsm["scores"]["S"]) == list(range(48))
    again = read_cohort(save_cohort(got, tmp_path / "c.h5ad"))
    assert list(again.obsm["scores"]["phase"]) == ["G1", "S"] * 24
    assert list(again.obsm["numbered"].columns) == ["0", "1"]
    assert bags(got, bag_size=2).n_obs and la.pp.normalize(got).n_obs == 48


def test_dask_and_lazy(tmp_path):
    da = pytest.importorskip("dask.array")
    a = annotated(COUNTS)
    chunks = da.from_array(sp.csr_matrix(COUNTS.astype("float32")), chunks=(16, 80), asarray=False)
    lazy = ad.AnnData(chunks, obs=a.obs, var=a.var)
    lazy.layers["spliced"] = da.from_array(COUNTS.astype("float32"), chunks=(16, 80))
    got = as_cohort(lazy)
    assert np.array_equal(dense(got), COUNTS)
    assert np.array_equal(np.asarray(got.layers["spliced"]), COUNTS)
    pytest.importorskip("xarray")
    a.write_h5ad(tmp_path / "c.h5ad")
    read = ad.experimental.read_lazy(tmp_path / "c.h5ad")
    assert np.array_equal(dense(as_cohort(read)), COUNTS)


def test_backed(tmp_path):
    annotated(COUNTS).write_h5ad(tmp_path / "c.h5ad")
    assert np.array_equal(dense(as_cohort(ad.read_h5ad(tmp_path / "c.h5ad", backed="r"))), COUNTS)


def test_rows_of_more_than_a_billion():
    big = np.array([[9e8, 6e8, 0, 3e5], [1e3, 2e3, 0, 5]], dtype="float32")
    got = downsample(sp.csr_matrix(big), np.array([1_000_000_000, 100]), rng_for(0)).toarray()
    assert abs(got[0].sum() / 1e9 - 1) < 1e-4 and got[1].sum() == 100
    assert np.allclose(got[0] / got[0].sum(), big[0] / big[0].sum(), atol=1e-4)
    scale = np.where(np.arange(48) % 8 < 4, 3e7, 1e7)[:, None]
    big = np.rint(COUNTS * scale * rng_for(1, "big").uniform(0.7, 1.3, COUNTS.shape))
    cohort = as_cohort(annotated(big))
    assert COUNTS.sum() * 1e7 > 1e9
    bulk = pseudobulk(cohort, min_cells=1)
    assert np.isfinite(bulk.X.toarray()).all()


# ---------------------------------------------------------------- screens
def screen(labels, names=NAMES):
    a = annotated(COUNTS, names)
    a.obs["perturbation"] = [labels[i % len(labels)] for i in range(48)]
    return a


def test_screens_with_ids_need_symbols():
    a = screen(["control", "GENE3", "GENE4"], IDS)
    a.var["symbol"] = NAMES
    with pytest.raises(InputError, match="named by ids.*gene_symbols='symbol'") as e:
        la.pp.as_perturbseq(a)
    assert e.value.parameter == "gene_symbols"
    got = la.pp.as_perturbseq(a, gene_symbols="symbol")
    assert list(got.var_names) == NAMES


@pytest.mark.parametrize(
    "labels, control",
    [
        (["control", "GENE3_ctrl", "ctrl_GENE4", "GENE3+GENE4"], "control"),
        (["ctrl", "GENE3+ctrl", "ctrl+GENE4", "GENE4+GENE3"], "ctrl"),
        (["NTC", "GENE3_NTC", "GENE4|non-targeting", "GENE4+GENE3"], "NTC"),
        (["control", "GENE3-NegCtrl0", "NegCtrl12_GENE4", "GENE4 + GENE3"], "control"),
    ],
)
def test_labels_that_name_the_control_next_to_a_gene(labels, control):
    got = la.pp.as_perturbseq(screen(labels), control=control)
    want = [[control, "GENE3", "GENE4", "GENE3+GENE4"][i % 4] for i in range(48)]
    assert list(got.obs["perturbation"]) == want
    assert "perturbations: 2 labels name the control" in " ".join(got.uns["longaml"]["warnings"])


def test_another_separator_is_offered():
    a = screen(["control", "GENE3_GENE4", "GENE5_GENE6"])
    with pytest.raises(InputError, match="Pass separator='_'") as e:
        la.pp.as_perturbseq(a)
    assert e.value.parameter == "separator"
    got = la.pp.as_perturbseq(a, separator="_")
    assert set(got.obs["perturbation"]) == {"control", "GENE3+GENE4", "GENE5+GENE6"}


def test_screens_with_repeated_barcodes_and_genes():
    a = screen(["control", "GENE3", "GENE4", "nan", "unassigned", None])
    a.obs["n"] = range(48)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a.obs_names = ["AAAC", "AAAC", "AAAC", *a.obs_names[3:]]
        a.var_names = ["SAME", "SAME", *a.var_names[2:]]
    got = la.pp.as_perturbseq(a)
    rows = [i for i in range(48) if i % 6 < 3]
    assert list(got.obs["n"]) == rows and np.array_equal(dense(got), COUNTS[rows])
    assert got.obs_names.is_unique and list(got.var_names[:2]) == ["SAME", "SAME-1"]
    said = " ".join(got.uns["longaml"]["warnings"])
    assert "dropped: 24 of 48 cells" in said and "cell names: 1 name is repeated" in said
    assert got.obs["perturbation"].value_counts().to_dict() == {
        "control": 8,
        "GENE3": 8,
        "GENE4": 8,
    }


def test_fractional_screens():
    a = screen(["control", "GENE3", "GENE4"])
    a.X = sp.csr_matrix(SOUP.astype("float32"))
    with pytest.raises(InputError, match="fractional counts"):
        la.pp.as_perturbseq(a)
    assert np.array_equal(dense(la.pp.as_perturbseq(a, counts="round")), np.rint(SOUP))


def test_choose_matrix_reads_what_is_whole_first():
    a = annotated(np.log1p(per(COUNTS)))
    a.raw = annotated(COUNTS)
    assert choose_matrix(a).slot == ".raw"
    a.layers["counts"] = sp.csr_matrix(COUNTS)
    assert choose_matrix(a).slot == "layers['counts']"


def tenx_folders(folder, genes):
    "Four samples in 10x folders, with a sheet; gene files as `genes` says."
    rows = []
    for k in range(4):
        patient, time = f"P{k // 2}", ("DX", "REL")[k % 2]
        place = folder / f"{patient}{time}"
        place.mkdir(parents=True)
        own = COUNTS[12 * k : 12 * k + 12]
        mmwrite(place / "matrix.mtx", sp.coo_matrix(own.T.astype(int)))
        (place / "genes.tsv").write_text("\n".join(genes) + "\n")
        (place / "barcodes.tsv").write_text("\n".join(f"c{k}-{i}" for i in range(12)) + "\n")
        rows.append((place.name, patient, time))
    pd.DataFrame(rows, columns=["folder", "patient", "timepoint"]).to_csv(
        folder / "sheet.csv", index=False
    )
    return folder


def test_symbols_for_files_of_samples(tmp_path):
    folder = tenx_folders(tmp_path / "ids", IDS)
    plain = read_cohort(folder)
    assert list(plain.var_names) == IDS and "--gene-symbols genes.gtf.gz" in notes(plain)
    got = read_cohort(folder, gene_symbols=symbol_file(tmp_path, "genes.gtf.gz"))
    assert list(got.var_names) == NAMES
    assert np.allclose(got.obs["mito_share"], COUNTS[:, :2].sum(1) / COUNTS.sum(1))


def test_repeated_symbols_of_files_are_noted(tmp_path):
    names = ["NA", "nan", "SAME", "SAME", *NAMES[4:]]
    got = read_cohort(tenx_folders(tmp_path / "twice", [f"{i}\t{s}" for i, s in zip(IDS, names)]))
    assert list(got.var_names[:4]) == ["NA", "nan", "SAME", "SAME-1"]
    assert np.array_equal(dense(got), COUNTS)
    assert "gene names: 1 name is repeated" in notes(got)


def test_resume_knows_the_file_of_symbols(tmp_path, capsys):
    "Genes are named by what a table says: another table in its place is another run."
    from longaml.cli import main

    cohort = la.datasets.simulate_cohort("bulk", seed=1, n_genes=100, n_patients=5, n_drivers=4)
    cohort.var_names = [f"ENSG{i:011d}" for i in range(cohort.n_vars)]
    cohort.write_h5ad(tmp_path / "cohort.h5ad")
    symbols = tmp_path / "symbols.csv"
    lines = [f"{name},S{i}" for i, name in enumerate(cohort.var_names)]
    symbols.write_text("\n".join(["gene_id,gene_name", *lines]) + "\n")
    words = ["de", str(tmp_path / "cohort.h5ad"), "--out", str(tmp_path / "out")]
    words += ["--gene-symbols", str(symbols), "--permutations", "0", "--no-figures"]
    assert main(words) == 0
    assert main([*words, "--resume"]) == 0
    symbols.write_text(symbols.read_text().replace("S3\n", "OTHER\n"))
    capsys.readouterr()
    assert main([*words, "--resume"]) == 2
    assert "checksum of the input" in capsys.readouterr().err
