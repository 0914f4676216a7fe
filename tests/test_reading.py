"""Reading: round trips over every trap of the GEO layout, the errors, memory, the download, and
real data sets.
"""

import gzip
import http.server
import io
import re
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.utils import make_index_unique
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import mmwrite

from longaml.cli import main
from longaml.core import InputError, rng_for
from longaml.datasets.cohort import simulate_cohort
from longaml.datasets.fetch import GSE235063_URL, fetch_gse235063
from longaml.datasets.writers import GEO_TRAPS, geo_symbols, write_geo
from longaml.pp.cohort import as_cohort, save_cohort
from longaml.pp.preprocessing import bags, pseudobulk
from longaml.pp.reading import read_cohort

QUICK = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
STEM = "GSM7494257_AML1_DX_processed_"
MATRIX, GENES, BARCODES, METADATA = (
    STEM + n for n in ("matrix.mtx.gz", "genes.tsv.gz", "barcodes.tsv.gz", "metadata.tsv.gz")
)


def make(
    seed=0,
    patients=("AML1", "AML2", "AML10"),
    n_genes=30,
    n_cells=6,
    annotated=True,
    missing=False,
    density=0.4,
):
    "A small cohort in the contract, by hand: independent of the simulator and of as_cohort."
    r = rng_for(seed, "test cohort")
    rows = []
    for p in patients:
        times = ["DX", "REM", "REL"] if p != patients[-1] else ["DX", "REL"]
        for t in times:
            barcodes = [
                "".join(r.choice(list("ACGT"), 16)) + "-1"
                for _ in range(int(r.integers(1, n_cells + 1)))
            ]
            rows += [(p, t, b) for b in barcodes]
    obs = pd.DataFrame(rows, columns=["patient", "timepoint", "barcode"])
    obs["sample"] = obs["patient"] + "_" + obs["timepoint"]
    obs.index = obs["sample"] + ":" + obs.pop("barcode")
    X = r.poisson(3, (len(obs), n_genes)) * (r.random((len(obs), n_genes)) < density)
    X[:, 0] = r.integers(1, 9, len(obs))  # no empty sample
    if annotated:
        obs["cell_type"] = pd.Categorical(r.choice(["HSC", "Mono", "T cell"], len(obs)))
        obs["malignant"] = r.random(len(obs)) < 0.5
        if missing:
            obs["malignant"] = obs["malignant"].astype("boolean").mask(r.random(len(obs)) < 0.3)
    obs["patient"] = pd.Categorical(obs["patient"], list(patients))
    obs["timepoint"] = pd.Categorical(obs["timepoint"], ["DX", "REM", "REL"], ordered=True)
    obs["sample"] = pd.Categorical(obs["sample"], list(dict.fromkeys(obs["sample"])))
    if not annotated:
        obs["cell_type"] = "all"
    var = pd.DataFrame(
        index=["MT-CO1", "HLA-A", "HLA-A-1x", *(f"Gene{i}.{i % 3}" for i in range(n_genes - 3))]
    )
    return ad.AnnData(sp.csr_matrix(X.astype(np.float32)), obs=obs, var=var)


def equal(a, b):
    "Are two sparse matrices the same numbers in the same places?"
    return a.shape == b.shape and (sp.csr_matrix(a) != sp.csr_matrix(b)).nnz == 0


@pytest.fixture
def cohort():
    return make(1)


@pytest.fixture
def geo(cohort, tmp_path):
    return write_geo(cohort, tmp_path / "geo")


def rewrite(path, change):
    "Change the text of a gzipped file."
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()).decode()).encode()))


# ---------------------------------------------------------------- round trips
@QUICK
@given(
    traps=st.sets(st.sampled_from(sorted(GEO_TRAPS))),
    tar=st.booleans(),
    seed=st.integers(0, 10**6),
    missing=st.booleans(),
)
def test_geo_round_trip(tmp_path_factory, traps, tar, seed, missing):
    "Whatever the files do, the cohort comes back: counts, names, who, when and annotation."
    cohort = make(seed, missing=missing)
    path = write_geo(
        cohort,
        tmp_path_factory.mktemp("geo") / ("x.tar" if tar else "folder"),
        tar=tar,
        traps=traps,
        seed=seed,
    )
    back = read_cohort(path)
    genes = make_index_unique(pd.Index(geo_symbols(cohort.var_names, traps, seed)[0].astype(str)))
    assert set(back.var_names) == set(genes)
    assert equal(
        back[:, genes].X, cohort.X
    )  # samples are read in the order of patients and time, as they were made
    if "repeated_barcodes" not in traps:
        assert list(back.obs_names) == list(cohort.obs_names)
    assert back.obs_names.is_unique
    for c in ("patient", "timepoint", "sample"):
        assert back.obs[c].astype(str).tolist() == cohort.obs[c].astype(str).tolist()
    named = "base_cell_type" if cohort.obs["malignant"].notna().any() else "cell_type"
    assert back.obs[named].astype(str).tolist() == cohort.obs["cell_type"].astype(str).tolist()
    assert (
        back.obs["malignant"].astype(str).tolist() == cohort.obs["malignant"].astype(str).tolist()
    )
    split = [
        t if pd.isna(m) else f"{t} {'malignant' if m else 'normal'}"
        for t, m in zip(cohort.obs["cell_type"], cohort.obs["malignant"])
    ]
    assert back.obs["cell_type"].astype(str).tolist() == split
    assert (
        back.X.dtype == np.float32
        and back.X.has_canonical_format
        and back.uns["longaml"]["input_kind"] == "counts"
    )
    assert np.array_equal(
        back.obs["n_counts"], np.asarray(cohort.X.sum(1)).ravel()
    ) and np.array_equal(back.obs["n_genes"], cohort.X.getnnz(axis=1))


@QUICK
@given(
    seed=st.integers(0, 10**6),
    traps=st.sets(st.sampled_from(["mixed_columns", "repeated_barcodes", "unsorted_entries"])),
)
def test_intersection_is_what_every_sample_lists(tmp_path_factory, seed, traps):
    cohort = make(seed)
    path = write_geo(
        cohort, tmp_path_factory.mktemp("geo"), traps={*traps, "different_genes"}, seed=seed
    )
    lists = [
        {
            ln.split("\t")[min(1, ln.count("\t"))]
            for ln in gzip.decompress(p.read_bytes()).decode().split("\n")
            if ln
        }
        for p in path.glob("*genes*")
    ]
    union = read_cohort(path)
    shared = read_cohort(path, genes="intersection")
    assert set(union.var_names) == set.union(*lists) and set(shared.var_names) == set.intersection(
        *lists
    )
    assert equal(union[:, shared.var_names].X, shared.X)
    assert union.var["n_samples"].to_dict() == {
        g: sum(g in x for x in lists) for g in union.var_names
    }


def test_tar_and_folder_are_the_same_cohort(cohort, tmp_path):
    a, b = (
        read_cohort(
            write_geo(cohort, tmp_path / n, tar=t, traps=["mixed_columns", "different_genes"])
        )
        for n, t in (("a", False), ("b.tar", True))
    )
    assert equal(a.X, b.X) and a.obs.equals(b.obs) and a.var.equals(b.var)


def test_the_file_name_wins_with_one_counted_warning(cohort, tmp_path, caplog):
    path = write_geo(cohort, tmp_path, traps="contradicting_patient")
    wrong = sum(
        pd.read_csv(p, sep="\t")["Patient_Sample"].str.contains("AML99").sum()
        for p in path.glob("*metadata*")
    )
    back = read_cohort(path)
    said = [r.message for r in caplog.records if "file names win" in r.message]
    assert wrong > 0 and len(said) == 1 and f"{wrong} of {len(cohort)}" in said[0]
    assert "AML99" not in set(back.obs["patient"]) and said[0] in back.uns["longaml"]["warnings"]


def test_ids_decide_which_repeated_symbol_is_which(geo):
    "One sample lists both genes of a symbol, another only the second: ids keep them apart."
    for p in geo.glob("*genes*"):
        rewrite(
            p,
            lambda s: "".join(
                f"ENSG{i:011d}\t{'TBCE' if i in (3, 4) else g}\n" for i, g in enumerate(s.split())
            ),
        )
    whole = read_cohort(geo)
    one = geo / GENES
    rewrite(
        one,
        lambda s: "".join(
            ln + "\n" for ln in s.split("\n") if ln and not ln.startswith("ENSG00000000003")
        ),
    )

    def drop(text):  # the gene's row, and the rows after it move up
        head = text.split("\n")[:3]
        body = [list(map(int, ln.split())) for ln in text.split("\n")[3:] if ln]
        body = [[g - (g > 4), c, v] for g, c, v in body if g != 4]
        n_genes, n_cells, _ = map(int, head[2].split())
        return (
            "\n".join(
                [
                    *head[:2],
                    f"{n_genes - 1} {n_cells} {len(body)}",
                    *(" ".join(map(str, b)) for b in body),
                ]
            )
            + "\n"
        )

    rewrite(geo / MATRIX, drop)
    back = read_cohort(geo)
    dx = (back.obs["sample"] == "AML1_DX").to_numpy()
    assert equal(back[:, "TBCE-1"].X, whole[:, "TBCE-1"].X)
    assert back[dx, "TBCE"].X.nnz == 0 and equal(back[~dx, "TBCE"].X, whole[~dx, "TBCE"].X)


def test_antibody_rows_are_not_genes(geo):
    for p in geo.glob("*genes*"):
        rewrite(
            p,
            lambda s: "".join(
                f"id{i}\t{g}\t{'Antibody Capture' if i == 5 else 'Gene Expression'}\n"
                for i, g in enumerate(s.split())
            ),
        )
    before = make(1)
    back = read_cohort(geo)
    assert back.n_vars == before.n_vars - 1 and before.var_names[5] not in back.var_names
    assert equal(
        back[:, [g for g in before.var_names if g in back.var_names]].X,
        before[:, [i for i in range(before.n_vars) if i != 5]].X,
    )


def test_clinical_columns_stay_and_repeats_go(geo):
    obs = read_cohort(geo).obs
    assert {"Age_Months", "Subgroup", "Treatment_Outcome", "Known_CNVs", "GEO_ID"} <= set(
        obs
    ) and not {"nCount_RNA", "Patient_ID", "Color_Subgroup", "Classified_Celltype"} & set(obs)
    assert (
        pd.api.types.is_numeric_dtype(obs["Age_Months"])
        and obs.groupby("patient", observed=True)["Age_Months"].nunique().max() == 1
    )


def test_other_columns_can_be_named(geo):
    back = read_cohort(geo, cell_type_key="Seurat_Cluster")
    assert set(back.obs["base_cell_type"]) <= {"0", "1", "2"}
    assert set(back.obs["cell_type"].str.split().str[1]) <= {"malignant", "normal"}
    back = read_cohort(geo, cell_type_key="Subgroup", malignant_key="none")
    assert set(back.obs["cell_type"]) == set(back.obs["Subgroup"].astype(str))
    with pytest.raises(
        KeyError, match="no cell_type column 'Seurat_clusters'.*Did you mean 'Seurat_Cluster'"
    ):
        read_cohort(geo, cell_type_key="Seurat_clusters")


def test_a_cell_without_metadata_has_counts_and_no_annotation(geo, cohort):
    rewrite(geo / METADATA, lambda s: "\n".join(s.rstrip("\n").split("\n")[:-1]) + "\n")
    n = int((cohort.obs["sample"] == "AML1_DX").sum())
    if n == 1:
        pytest.skip("the sample has one cell")
    back = read_cohort(geo)
    assert (
        equal(back.X, cohort.X)
        and back.obs["base_cell_type"].isna().sum() == 1
        and back.obs["cell_type"].astype(str).iloc[n - 1] == "unassigned"
    )
    assert any("no annotation: 1 of" in w for w in back.uns["longaml"]["warnings"])


def test_two_replicates_of_one_visit_are_kept_apart(geo, cohort):
    for p in list(geo.glob("GSM7494257*")):
        (geo / p.name.replace("GSM7494257", "GSM7999999")).write_bytes(p.read_bytes())
    back = read_cohort(geo)
    size = back.obs["sample"].value_counts()
    once = (cohort.obs["sample"] == "AML1_DX").sum()
    for gsm in ("GSM7494257", "GSM7999999"):
        assert size[f"AML1_DX_{gsm}"] == once
    assert len(size) == cohort.obs["sample"].nunique() + 1 and back.obs_names.is_unique
    assert any(w.startswith("replicates: 1 of") for w in back.uns["longaml"]["warnings"])


def test_only_the_timepoints_asked_for(geo, cohort):
    back = read_cohort(geo, timepoints=["DX", "REL"])
    assert equal(back.X, cohort[cohort.obs["timepoint"] != "REM"].X) and list(
        back.obs["timepoint"].cat.categories
    ) == ["DX", "REL"]
    assert any(w.startswith("dropped: 2 samples") for w in back.uns["longaml"]["warnings"])
    assert list(
        read_cohort(geo, timepoints=["REL", "REM", "DX"]).obs["timepoint"].cat.categories
    ) == ["REL", "REM", "DX"]
    with pytest.raises(ValueError, match="'RELAPSE' is not in"):
        read_cohort(geo, timepoints=["DX", "RELAPSE"])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_tenx_folders(cohort, tmp_path, nested, zipped):
    rows = []
    for k, s in enumerate(cohort.obs["sample"].cat.categories):
        part = cohort[cohort.obs["sample"] == s]
        place = tmp_path / f"run{k}" / ("outs/filtered_feature_bc_matrix" if nested else "")
        place.mkdir(parents=True)
        out = io.BytesIO()
        mmwrite(out, part.X.T.astype("int64"), field="integer", symmetry="general")
        files = {
            "matrix.mtx": out.getvalue(),
            "features.tsv": "".join(
                f"ENSG{i:011d}\t{g}\tGene Expression\n" for i, g in enumerate(part.var_names)
            ).encode(),
            "barcodes.tsv": "".join(n.split(":")[1] + "\r\n" for n in part.obs_names).encode(),
        }
        for name, data in files.items():
            (place / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
        rows.append(
            {
                "folder": f"run{k}",
                "donor": part.obs["patient"].iat[0],
                "day": {"DX": "0", "REM": "30", "REL": "400"}[part.obs["timepoint"].iat[0]],
                "sample": s,
                "centre": "Oslo",
            }
        )
    sheet = tmp_path / "sheet.csv"
    pd.DataFrame(rows).to_csv(sheet, index=False)
    for path in (tmp_path, sheet):
        back = read_cohort(path, timepoint_key="day", timepoints=[0, 30, 400])
        assert (
            equal(back.X, cohort.X)
            and list(back.obs_names) == list(cohort.obs_names)
            and set(back.obs["centre"]) == {"Oslo"}
        )
        assert list(back.obs["timepoint"].cat.categories) == ["0", "30", "400"] and list(
            back.obs["sample"]
        ) == list(cohort.obs["sample"])
    with pytest.raises(ValueError, match=r"Pass timepoints=\['0', '30', '400'\]"):
        read_cohort(tmp_path, timepoint_key="day")
    with pytest.raises(KeyError, match="no timepoint column"):
        read_cohort(tmp_path)
    pd.DataFrame(rows).replace("run0", "run9").to_csv(sheet, index=False)
    with pytest.raises(FileNotFoundError, match="'run9', which is not there"):
        read_cohort(tmp_path, timepoint_key="day")
    pd.DataFrame(rows).drop(columns=["folder", "sample"]).to_csv(sheet, index=False)
    with pytest.raises(KeyError, match="no|needs a column 'folder'"):
        read_cohort(tmp_path, timepoint_key="day")


def test_h5ad_round_trip(geo, tmp_path):
    a = read_cohort(geo)
    b = read_cohort(save_cohort(a, tmp_path / "deep" / "c.h5ad"))
    assert (
        equal(a.X, b.X)
        and list(a.obs_names) == list(b.obs_names)
        and list(a.obs.columns) == list(b.obs.columns)
    )
    for c in a.obs:
        assert a.obs[c].astype(str).tolist() == b.obs[c].astype(str).tolist(), c
    assert (
        b.obs["timepoint"].cat.ordered
        and list(b.uns["longaml"]["warnings"]) == a.uns["longaml"]["warnings"]
    )
    assert b.uns["longaml"]["source"] == "c.h5ad" and [
        p.name for p in (tmp_path / "deep").iterdir()
    ] == ["c.h5ad"]
    with pytest.raises(ValueError, match="saved as .h5ad"):
        save_cohort(a, tmp_path / "c.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        save_cohort(a, tmp_path / "file" / "c.h5ad")


# ---------------------------------------------------------------- damaged files
def sized(change):  # change (genes, cells, entries) of the header
    return lambda s: re.sub(
        r"\n(\d+) (\d+) (\d+)\n",
        lambda m: "\n{} {} {}\n".format(*change(*map(int, m.groups()))),
        s,
        count=1,
    )


def value(new):  # give the first entry another value, or replace its whole line
    def change(s):
        lines = s.split("\n")
        at = next(i for i, ln in enumerate(lines) if ln and ln[0] != "%") + 1
        lines[at] = new if " " in new else " ".join([*lines[at].split()[:2], new])
        return "\n".join(lines)

    return change


@pytest.mark.parametrize(
    "file, change, words",
    [
        (
            MATRIX,
            sized(lambda g, c, n: (10**12, 10**12, n)),
            "says 1000000000000 genes x 1000000000000 cells",
        ),
        (
            MATRIX,
            sized(lambda g, c, n: (g, c, 10**12)),
            r"says 1000000000000 entries; .* can hold at most",
        ),
        (MATRIX, sized(lambda g, c, n: (g + 1, c, n)), "says 31 genes"),
        (MATRIX, sized(lambda g, c, n: (c, g, n)), "cells x genes: transpose it"),
        (MATRIX, sized(lambda g, c, n: (g, c, n + 1)), "ends early"),
        (MATRIX, sized(lambda g, c, n: (g, c, n - 1)), "more entries than"),
        (MATRIX, sized(lambda g, c, n: (g, c, 0)), "is empty"),
        (MATRIX, sized(lambda g, c, n: (g, c, -5)), "expected 'rows columns entries'"),
        (MATRIX, value("-3"), "negative count: gene 1, cell 1, value -3"),
        (MATRIX, value("2.5"), "fractional count.* value 2.5"),
        (MATRIX, value("nan"), "missing or infinite count"),
        (MATRIX, value("inf"), "missing or infinite count"),
        (MATRIX, value("three"), "not 'gene cell count': '1 1 three'"),
        (MATRIX, value("1 1"), "not 'gene cell count': '1 1'"),
        (MATRIX, value("99 1 4"), "outside its 30 genes"),
        (MATRIX, value("0 1 4"), "outside its 30 genes"),
        (
            MATRIX,
            lambda s: s.replace("coordinate integer general", "array integer general"),
            "not a sparse Matrix Market",
        ),
        (
            MATRIX,
            lambda s: s.replace("integer general", "pattern general"),
            "pattern general matrix",
        ),
        (
            MATRIX,
            lambda s: s.replace("integer general", "integer symmetric"),
            "integer symmetric matrix",
        ),
        (MATRIX, lambda s: "", "not a sparse Matrix Market"),
        (GENES, lambda s: "", "names no genes"),
        (GENES, lambda s: s.replace("HLA-A\n", "\n", 1), "line 2 names no gene"),
        (BARCODES, lambda s: "", "its gene and barcode files have 30 and 0"),
        (METADATA, lambda s: "", "not a table"),
        (METADATA, lambda s: s.replace("Cell_Barcode", "Barcode"), "no column Cell_Barcode"),
        (METADATA, lambda s: re.sub(r"(?m)^[ACGT]{16}", "X", s), "none of the barcodes|twice"),
        (
            METADATA,
            lambda s: s.replace("\tMalignant\t", "\tPerhaps\t").replace("Perhaps", "Malignant", 1),
            "says perhaps",
        ),
    ],
)
def test_damaged_text(geo, file, change, words):
    if words == "says perhaps":
        rewrite(geo / METADATA, lambda s: s.replace("\tNormal\t", "\tMalignant\t"))
    rewrite(geo / file, change)
    with pytest.raises(ValueError, match=words) as e:
        read_cohort(geo)
    assert words == "says perhaps" or "GSM7494257_AML1_DX_processed_" in str(e.value)


@pytest.mark.parametrize("file", [MATRIX, GENES, BARCODES, METADATA])
@pytest.mark.parametrize("how", ["short", "flipped", "not gzip"])
def test_damaged_gzip(geo, file, how):
    data = (geo / file).read_bytes()
    (geo / file).write_bytes(
        {
            "short": data[:-9],
            "flipped": data[:-6] + bytes([data[-6] ^ 255]) + data[-5:],
            "not gzip": gzip.decompress(data),
        }[how]
    )
    with pytest.raises(ValueError, match=f"{file} is truncated or damaged"):
        read_cohort(geo)


@pytest.mark.parametrize("file", [MATRIX, GENES, BARCODES, METADATA])
def test_missing_companion(geo, file):
    (geo / file).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"{file} is missing; its companions are GSM7494257"
    ):
        read_cohort(geo)


def test_the_same_entry_twice(geo):
    def twice(s):
        lines = s.rstrip("\n").split("\n")
        g, c, n = map(int, lines[2].split())
        return "\n".join([*lines[:2], f"{g} {c} {n + 1}", *lines[3:], lines[3]]) + "\n"

    rewrite(geo / MATRIX, twice)
    with pytest.raises(ValueError, match=f"{MATRIX} gives the same gene of the same cell twice"):
        read_cohort(geo)


def test_zeros_blank_lines_and_carriage_returns_are_harmless(geo, cohort):
    def padded(s):
        lines = s.rstrip("\n").split("\n")
        entries = lines[3:]
        g, c, n = map(int, lines[2].split())
        free = next(
            f"{i} {j} 0"
            for j in range(1, c + 1)
            for i in range(1, g + 1)
            if not any(e.startswith(f"{i} {j} ") for e in entries)
        )
        return "\r\n".join(
            [
                *lines[:2],
                f"{g} {c} {n + 1}",
                *entries[:2],
                "",
                *[e.replace(" ", "\t") for e in entries[2:]],
                free,
            ]
        )

    rewrite(geo / MATRIX, padded)
    assert equal(read_cohort(geo).X, cohort.X)


@pytest.mark.parametrize(
    "name, kind, words",
    [
        ("../up.txt", tarfile.REGTYPE, r"unsafe name, '\.\./up\.txt'"),
        ("a/../../up.txt", tarfile.REGTYPE, "unsafe name"),
        ("/etc/up.txt", tarfile.REGTYPE, "unsafe name, '/etc/up.txt'"),
        ("C:\\up.txt", tarfile.REGTYPE, "unsafe name"),
        ("link.gz", tarfile.SYMTYPE, "not a plain file, 'link.gz' .link to /etc/passwd"),
        ("hard.gz", tarfile.LNKTYPE, "not a plain file, 'hard.gz'"),
        ("pipe", tarfile.FIFOTYPE, "not a plain file, 'pipe'"),
    ],
)
def test_unsafe_tar_members_are_refused_by_name(cohort, tmp_path, name, kind, words):
    path = write_geo(cohort, tmp_path / "x.tar", tar=True)
    with tarfile.open(path, "a") as t:
        m = tarfile.TarInfo(name)
        m.type = kind
        m.linkname = "/etc/passwd"
        t.addfile(m)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=words):
        read_cohort(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_truncated_tar(cohort, tmp_path):
    path = write_geo(cohort, tmp_path / "x.tar", tar=True)
    data = path.read_bytes()
    with tarfile.open(path) as t:
        between = t.getmembers()[8].offset  # two whole samples, then nothing
    for cut in (700, len(data) // 2, len(data) // 2 - 300, between):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="x.tar is truncated or not a tar"):
            read_cohort(path)
    path.write_bytes(b"not a tar at all" * 100)
    with pytest.raises(ValueError, match="x.tar is truncated or not a tar"):
        read_cohort(path)


def test_paths_that_hold_no_cohort(tmp_path, geo):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_cohort(tmp_path / "no")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="expected a .tar or folder"):
        read_cohort(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither GEO files"):
        read_cohort(tmp_path / "empty")
    (tmp_path / "b.h5ad").write_bytes(b"not hdf5")
    with pytest.raises(ValueError, match="b.h5ad cannot be read as h5ad"):
        read_cohort(tmp_path / "b.h5ad")
    with pytest.raises(ValueError, match="genes is 'all'"):
        read_cohort(geo, genes="all")
    for p in geo.glob("*AML2_*"):
        p.unlink()
    for p in geo.glob("*AML10_*"):
        p.unlink()
    with pytest.raises(ValueError, match="one patient .AML1."):
        read_cohort(geo)
    with pytest.raises(ValueError, match="one timepoint .DX."):
        read_cohort(geo, timepoints="DX")


def test_samples_without_a_common_gene(geo):
    rewrite(geo / GENES, lambda s: "".join(f"other{i}\n" for i, _ in enumerate(s.split())))
    with pytest.raises(ValueError, match="no gene in common"):
        read_cohort(geo, genes="intersection")
    assert any(
        "gene lists differ: 60 of 60" in w for w in read_cohort(geo).uns["longaml"]["warnings"]
    )


# ---------------------------------------------------------------- as_cohort
def plain(seed=1, **kw):  # as a user has it: no contract names
    c = make(seed, **kw)
    return ad.AnnData(
        c.X.copy(),
        var=c.var.copy(),
        obs=pd.DataFrame(
            {"donor": c.obs["patient"].astype(str), "visit": c.obs["timepoint"].astype(str)},
            index=c.obs_names,
        ),
    )


@QUICK
@given(
    seed=st.integers(0, 10**6),
    form=st.sampled_from(["csr", "csc", "dense", "int64", "layer", "raw", "array"]),
)
def test_every_form_of_counts_is_found(seed, form):
    a = plain(seed)
    X = a.X.copy()
    scaled = X.toarray() - X.toarray().mean(0)
    if form == "csc":
        a.X = X.tocsc()
    elif form == "dense":
        a.X = X.toarray()
    elif form == "int64":
        a.X = X.astype(np.int64)
    elif form == "array":
        a.X = sp.csr_array(X)
    elif form == "layer":
        a.layers["counts"] = X
        a.X = scaled
    elif form == "raw":
        a.raw = a.copy()
        a.X = scaled
    before = a.obs.copy()
    got = as_cohort(a)
    assert (
        equal(got.X, X)
        and got.X.dtype == np.float32
        and isinstance(got.X, sp.csr_matrix)
        and not np.shares_memory(got.X.data, X.data)
    )
    assert a.obs.equals(before) and got.uns["longaml"]["slot"] == {
        "layer": "layers['counts']",
        "raw": ".raw",
    }.get(form, "X")


def test_again_is_the_same(geo):
    a = read_cohort(geo)
    b = as_cohort(a)
    assert (
        equal(a.X, b.X)
        and a.obs.equals(b.obs)
        and b.uns["longaml"]["warnings"] == a.uns["longaml"]["warnings"]
    )


def annotated_cohort():
    "A cohort whose cell types are split, with columns of the user."
    a = make(1)
    a.obs["annotation"] = np.where(np.arange(a.n_obs) % 2, "x", "y")
    a.obs["clone"] = np.where(np.arange(a.n_obs) % 3, "c1", "c2")
    return a, as_cohort(a)


def texts(column):
    return column.astype(str).tolist()


def test_cell_types_are_split_once(tmp_path):
    a, split = annotated_cohort()
    part = np.where(a.obs["malignant"], "malignant", "normal")
    assert texts(split.obs["cell_type"]) == [f"{t} {m}" for t, m in zip(a.obs["cell_type"], part)]
    assert texts(split.obs["base_cell_type"]) == texts(a.obs["cell_type"])
    assert split.uns["longaml"]["split_by_malignant"]
    assert as_cohort(split).obs.equals(split.obs)
    assert as_cohort(split, cell_type_key="cell_type").obs.equals(split.obs)
    assert as_cohort(split, cell_type_key="base_cell_type").obs.equals(split.obs)
    back = read_cohort(save_cohort(split, tmp_path / "c.h5ad"))
    assert as_cohort(back).obs.equals(back.obs)
    assert texts(back.obs["cell_type"]) == texts(split.obs["cell_type"])
    for column in ("annotation", "clone"):
        assert texts(back.obs[column]) == texts(a.obs[column])


def test_cell_types_are_split_once_without_provenance():
    _, split = annotated_cohort()
    del split.uns["longaml"]
    assert as_cohort(split).obs.equals(split.obs)
    del split.obs["base_cell_type"]  # what is left says `Mono malignant` already
    assert texts(as_cohort(split).obs["cell_type"]) == texts(split.obs["cell_type"])


def test_only_malignant_or_nothing_is_known():
    a = make(1)
    del a.obs["cell_type"]
    got = as_cohort(a)
    assert set(got.obs["cell_type"]) == {"malignant", "normal"}
    assert "base_cell_type" not in got.obs and as_cohort(got).obs.equals(got.obs)
    bare = as_cohort(plain())
    assert set(bare.obs["cell_type"]) == {"all"} and "base_cell_type" not in bare.obs
    assert as_cohort(bare).obs.equals(bare.obs)


def test_cell_types_that_are_not_split(tmp_path):
    a, split = annotated_cohort()
    for source in (a, split):
        got = as_cohort(source, malignant_key="none")
        assert texts(got.obs["cell_type"]) == texts(a.obs["cell_type"])
        assert "base_cell_type" not in got.obs and "malignant" in got.obs
        assert as_cohort(got).obs.equals(got.obs)  # the choice is kept
        back = read_cohort(save_cohort(got, tmp_path / "c.h5ad"))
        assert texts(back.obs["cell_type"]) == texts(a.obs["cell_type"])
        again = as_cohort(back, malignant_key="malignant")
        assert texts(again.obs["cell_type"]) == texts(split.obs["cell_type"])
    a.obs["malignant"] = "perhaps"
    assert texts(as_cohort(a, malignant_key="none").obs["cell_type"]) == texts(a.obs["cell_type"])


def test_a_column_of_the_user_is_followed():
    a, split = annotated_cohort()
    for source in (a, split):
        got = as_cohort(source, cell_type_key="annotation", malignant_key="none")
        assert texts(got.obs["cell_type"]) == texts(a.obs["annotation"])
        assert texts(got.obs["annotation"]) == texts(a.obs["annotation"])
        assert texts(got.obs["clone"]) == texts(a.obs["clone"])
    parted = as_cohort(split, cell_type_key="annotation")
    assert texts(parted.obs["base_cell_type"]) == texts(a.obs["annotation"])
    a.obs["lineage"] = "myeloid"  # a column like any other
    assert texts(as_cohort(a).obs["cell_type"]) == texts(split.obs["cell_type"])
    assert set(as_cohort(as_cohort(a)).obs["lineage"]) == {"myeloid"}


def old_cohort(lineage=None):
    "As version 0.1 wrote it: raw `cell_type`, `malignant`, and `lineage`, which is followed."
    a, split = annotated_cohort()
    old = split.copy()
    old.obs["lineage"] = split.obs["cell_type"] if lineage is None else a.obs[lineage].to_numpy()
    old.obs["cell_type"] = split.obs["base_cell_type"]
    del old.obs["base_cell_type"]
    old.uns["longaml"] = {"version": "0.1.0", "input_kind": "counts", "parameters": {}}
    return old, split


def test_a_file_of_version_01(tmp_path):
    old, split = old_cohort()
    old.write_h5ad(tmp_path / "old.h5ad")
    got = read_cohort(tmp_path / "old.h5ad")
    for column in ("cell_type", "base_cell_type", "malignant", "annotation", "clone"):
        assert texts(got.obs[column]) == texts(split.obs[column])
    assert "lineage" not in got.obs and as_cohort(got).obs.equals(got.obs)
    unsplit = read_cohort(tmp_path / "old.h5ad", malignant_key="none")
    assert texts(unsplit.obs["cell_type"]) == texts(split.obs["base_cell_type"])


def test_a_file_of_version_01_with_a_lineage_of_its_own():
    old, split = old_cohort("annotation")
    got = as_cohort(old)
    assert texts(got.obs["cell_type"]) == texts(split.obs["annotation"])
    assert texts(got.obs["base_cell_type"]) == texts(split.obs["base_cell_type"])
    assert as_cohort(got).obs.equals(got.obs)
    named = as_cohort(old, cell_type_key="cell_type", malignant_key="malignant")
    assert texts(named.obs["cell_type"]) == texts(split.obs["cell_type"])


@pytest.mark.parametrize("old", [False, True])
def test_convert_without_splitting(tmp_path, capsys, old):
    a, _ = annotated_cohort()
    a.write_h5ad(tmp_path / "mine.h5ad")
    options = ["--cell-type-key", "annotation", "--malignant-key", "none"]
    given = ["--lineage-key", "annotation"] if old else options
    out = tmp_path / "made.h5ad"
    assert main(["convert", str(tmp_path / "mine.h5ad"), str(out), *given]) == 0
    note = f"longaml: warning: --lineage-key annotation is {' '.join(options)} since version 0.2"
    assert (note in capsys.readouterr().err) == old
    assert texts(read_cohort(out).obs["cell_type"]) == texts(a.obs["annotation"])


def lognorm(X):
    return (sp.diags(1e4 / np.asarray(X.sum(1)).ravel()) @ X).log1p().tocsr()


def test_lognormalised_is_declared_and_never_normalised_twice():
    a = plain()
    a.X = lognorm(a.X)
    got = as_cohort(a)
    assert (
        np.allclose(got.X.toarray(), a.X.toarray())
        and got.uns["longaml"]["input_kind"] == "lognorm"
    )
    assert any(w.startswith("depth uncontrolled") for w in got.uns["longaml"]["warnings"])
    assert np.allclose(got.obs["n_counts"], 1e4, rtol=1e-4)
    a.obs["n_counts"] = np.arange(a.n_obs) + 1.0
    assert list(as_cohort(a).obs["n_counts"]) == list(a.obs["n_counts"])


def test_a_raw_that_holds_no_counts_gives_way_to_X():
    a = plain()
    b = a.copy()
    b.X = lognorm(a.X)
    a.raw = b
    assert as_cohort(a).uns["longaml"]["slot"] == "X"


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda X: X - 0.5,
            r"X\['AML1_DX:[ACGT]+-1', 'MT-CO1'\] is .* scaled.*layers\['counts'\] or \.raw",
        ),
        (lambda X: np.where((X == 3), 2.5, X), "fractional counts: X.* is 2.5"),
        (lambda X: np.where((X == 3), np.nan, X), "missing or infinite values: X.* is nan"),
        (lambda X: np.where((X == 3), np.inf, X), "missing or infinite values: X.* is inf"),
        (lambda X: X * 0, "every value of the matrix is zero"),
    ],
)
def test_values_that_are_no_counts(change, words):
    a = plain()
    dense = a.X.toarray()
    if "scaled" in words:
        dense[0, 0] = 0
    a.X = change(dense)
    with pytest.raises(ValueError, match=words):
        as_cohort(a)


@pytest.mark.parametrize(
    "change, keys, words, kind",
    [
        (
            lambda a: None,
            dict(patient_key="doner"),
            "no patient column 'doner'.*Did you mean 'donor'",
            KeyError,
        ),
        (
            lambda a: a.obs.rename(columns={"donor": "who"}, inplace=True),
            {},
            "no patient column; columns that could be meant: .*who.*Pass patient_key",
            KeyError,
        ),
        (
            lambda a: a.obs.insert(0, "patient_id", "x"),
            {},
            "several patient columns .patient_id, donor",
            KeyError,
        ),
        (lambda a: None, dict(layer="spliced"), "no layer 'spliced'", KeyError),
        (lambda a: None, dict(gene_symbols="symbol"), "no gene symbol column 'symbol'", KeyError),
        (lambda a: a.obs.__setitem__("donor", "one"), {}, "one patient .one.", ValueError),
        (lambda a: a.obs.__setitem__("visit", "DX"), {}, "one timepoint .DX.", ValueError),
        (
            lambda a: a.obs.__setitem__("donor", [f"p{i}" for i in range(a.n_obs)]),
            {},
            "none of .* patients was seen at two timepoints",
            ValueError,
        ),
        (
            lambda a: a.obs.__setitem__("visit", a.obs["visit"].replace("DX", "start")),
            {},
            "nothing says which comes first. Pass timepoints=",
            ValueError,
        ),
        (
            lambda a: None,
            dict(timepoints=["DX", "REL", "DX"]),
            "timepoints= names one twice",
            ValueError,
        ),
        (
            lambda a: None,
            dict(timepoints=["DX", "relapse"]),
            "timepoint 'relapse' is not in column 'visit', which has: DX, REM, REL",
            ValueError,
        ),
        (
            lambda a: a.obs.__setitem__("donor", None),
            {},
            "none of .* rows has a patient in column 'donor'",
            ValueError,
        ),
        (
            lambda a: a.obs.__setitem__("malignant", "perhaps"),
            {},
            "says perhaps; expected Malignant or Normal",
            ValueError,
        ),
    ],
)
def test_descriptions_that_do_not_work(change, keys, words, kind):
    a = plain()
    change(a)
    with pytest.raises(kind, match=words):
        as_cohort(a, **keys)
    with pytest.raises(TypeError, match="expected an AnnData"):
        as_cohort(a.obs)


@pytest.mark.parametrize(
    "options, parameter",
    [
        (dict(patient_key="doner"), "patient_key"),
        (dict(timepoints=["DX", "relapse"]), "timepoints"),
        (dict(timepoints=["DX"]), "timepoint_key"),
        (dict(layer="spliced"), "layer"),
        (dict(gene_symbols="symbol"), "gene_symbols"),
    ],
)
def test_errors_name_the_parameter_to_change(options, parameter):
    with pytest.raises(InputError) as e:
        as_cohort(plain(), **options)
    assert e.value.parameter == parameter and not str(e.value).startswith("'")


def test_order_of_time():
    a = plain()
    assert list(as_cohort(a).obs["timepoint"].cat.categories) == ["DX", "REM", "REL"]
    a.obs["visit"] = pd.Categorical(a.obs["visit"], ["REL", "DX", "REM", "never"], ordered=True)
    assert list(as_cohort(a).obs["timepoint"].cat.categories) == ["REL", "DX", "REM"]
    a.obs["visit"] = a.obs["visit"].astype(str).map({"DX": 0, "REM": 30, "REL": 400})
    assert list(as_cohort(a, timepoints=[0, 30, 400]).obs["timepoint"].cat.categories) == [
        "0",
        "30",
        "400",
    ]
    half = as_cohort(a, timepoints=[0, 400])
    assert len(half) == (a.obs["visit"] != 30).sum() and any(
        "dropped" in w for w in half.uns["longaml"]["warnings"]
    )
    assert equal(half.X, a.X[np.flatnonzero(a.obs["visit"] != 30)])


def test_genes_by_a_column_of_var():
    a = plain()
    a.var["symbol"] = ["CD34", "CD34", None, *(f"S{i}" for i in range(a.n_vars - 3))]
    got = as_cohort(a, gene_symbols="symbol")
    assert list(got.var_names[:3]) == ["CD34", "CD34-1", "HLA-A-1x"] and got.var[
        "gene_id"
    ].tolist() == list(a.var_names)


def test_bulk_rows_one_per_visit(tmp_path):
    "15 donors x 3 days, one log-normalised row each, dense."
    r = rng_for(0, "bulk")
    obs = pd.DataFrame(
        [(f"D{p}", d) for p in range(1, 16) for d in (0, 1, 7)], columns=["donor", "day"]
    )
    a = ad.AnnData(
        np.log1p(r.gamma(2, 50, (45, 80))),
        obs=obs.set_axis([f"r{i}" for i in range(45)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(80)]),
    )
    a.write_h5ad(tmp_path / "bulk.h5ad")
    with pytest.raises(InputError, match="may be corrected counts or logarithms"):
        read_cohort(tmp_path / "bulk.h5ad", timepoint_key="day", timepoints=[0, 1, 7])
    got = read_cohort(
        tmp_path / "bulk.h5ad", timepoint_key="day", timepoints=[0, 1, 7], counts="log"
    )
    assert (
        got.uns["longaml"]["rows"] == "bulk"
        and got.uns["longaml"]["input_kind"] == "lognorm"
        and got.obs["sample"].nunique() == 45
    )
    assert (
        list(got.obs["patient"].cat.categories[:3]) == ["D1", "D2", "D3"]
        and got.obs_names[0] == "D1_0:r0"
        and set(got.obs["cell_type"]) == {"all"}
    )


# ---------------------------------------------------------------- AnnData in, AnnData out
def rich(seed=1):
    "A user's AnnData with layers, embeddings, tables and columns of every kind."
    a = plain(seed)
    at = np.arange(a.n_obs)
    a.layers["spliced"] = sp.csr_matrix(a.X.toarray() // 2)
    a.layers["dense"] = a.X.toarray() + 0.5
    a.obsm["X_umap"] = np.c_[at, -at].astype(float)
    a.obsm["sparse"] = sp.csc_matrix(np.c_[at, at % 2])
    a.obsm["scores"] = pd.DataFrame(
        {"G2M": at / 2, "phase": pd.Categorical(np.where(at % 2, "S", "G1"))}, index=a.obs_names
    )
    a.obsm["numbered"] = pd.DataFrame({0: at, 1: at}, index=a.obs_names)
    a.varm["PCs"] = np.c_[np.arange(a.n_vars), np.ones(a.n_vars)]
    a.varm["panel"] = pd.DataFrame({"measured": np.arange(a.n_vars) % 2 == 0}, index=a.var_names)
    a.obs["weight"] = at * 1.5
    a.obs["batch"] = pd.Categorical(np.where(at % 3, "one", "two"))
    return a


def same_parts(got, a, rows):
    "Is everything of `a` in `got`, for these rows?"
    assert equal(got.layers["spliced"], a.layers["spliced"][rows])
    assert np.array_equal(got.layers["dense"], a.layers["dense"][rows])
    assert np.array_equal(got.obsm["X_umap"], a.obsm["X_umap"][rows])
    assert equal(got.obsm["sparse"], a.obsm["sparse"][rows])
    assert got.obsm["scores"]["G2M"].tolist() == a.obsm["scores"]["G2M"].iloc[rows].tolist()
    assert got.obsm["scores"]["phase"].tolist() == a.obsm["scores"]["phase"].iloc[rows].tolist()
    assert got.obsm["numbered"]["0"].tolist() == rows.tolist()
    assert np.array_equal(got.varm["PCs"], a.varm["PCs"])
    assert got.varm["panel"]["measured"].tolist() == a.varm["panel"]["measured"].tolist()
    for column in ("donor", "visit", "weight", "batch"):
        assert got.obs[column].tolist() == a.obs[column].iloc[rows].tolist()


@pytest.mark.parametrize("timepoints", [None, ["DX", "REL"]])
def test_layers_obsm_varm_and_columns_are_kept(tmp_path, timepoints):
    a = rich()
    before = a.copy()
    rows = np.flatnonzero(np.ones(a.n_obs, bool) if timepoints is None else a.obs["visit"] != "REM")
    got = as_cohort(a, timepoints=timepoints)
    same_parts(got, a, rows)
    assert list(got.obsm["scores"].index) == list(got.obs_names)
    same_parts(read_cohort(save_cohort(got, tmp_path / "c.h5ad")), a, rows)
    same_parts(as_cohort(got), a, rows)
    got.layers["dense"][:] = 0  # what is changed in the cohort is not changed in the input
    got.obsm["X_umap"][:] = 0
    got.layers["spliced"].data[:] = 0
    assert np.array_equal(a.layers["dense"], before.layers["dense"])
    assert np.array_equal(a.obsm["X_umap"], before.obsm["X_umap"])
    assert equal(a.layers["spliced"], before.layers["spliced"])


def test_the_chosen_matrix_is_not_kept_twice(caplog):
    a = rich()
    a.layers["counts"] = a.X.copy()
    assert sorted(as_cohort(a).layers) == ["dense", "spliced"] and "not kept" not in caplog.text
    got = as_cohort(a, layer="spliced")  # `counts` would be taken for the counts later on
    assert sorted(got.layers) == ["dense"] and equal(got.X, a.layers["spliced"])
    assert "not kept: layers['counts'], because counts were read from" in caplog.text


def test_parts_of_other_genes_than_raw_are_not_kept(caplog):
    a = rich()
    whole = a.copy()
    a = a[:, :10].copy()
    a.X = a.X.toarray() - 0.5
    a.raw = whole
    got = as_cohort(a)
    assert got.n_vars == whole.n_vars and not got.layers and not got.varm
    assert list(got.obsm) == list(a.obsm)
    assert "layers['spliced'], layers['dense'], varm['PCs'], varm['panel']" in caplog.text


def test_columns_that_h5ad_cannot_hold_are_written_as_text(tmp_path):
    a = plain()
    mixed = [1, "x", None] * a.n_obs
    a.obs["mixed"] = mixed[: a.n_obs]
    a.obs["known"] = pd.Series([True, None] * a.n_obs, dtype=object).to_numpy()[: a.n_obs]
    a.obs["sampled"] = pd.Timestamp("2020-01-31")
    a.obsm["notes"] = pd.DataFrame({"text": mixed[: a.n_obs]}, index=a.obs_names)
    got = as_cohort(a)
    got.raw = got.copy()
    back = read_cohort(save_cohort(got, tmp_path / "c.h5ad"))
    assert back.obs["mixed"].astype(object).where(back.obs["mixed"].notna(), None).tolist()[:3] == [
        "1",
        "x",
        None,
    ]
    assert back.obs["known"].iloc[0] and back.obs["known"].isna().iloc[1]
    assert set(back.obs["sampled"]) == {"2020-01-31 00:00:00"}
    assert back.obsm["notes"]["text"].tolist()[:2] == ["1", "x"]
    assert got.obs["mixed"].tolist()[0] == 1  # the cohort itself is as it was


def test_sums_of_cells_carry_no_embedding():
    got = as_cohort(rich())
    made = {"sums counts": pseudobulk(got, min_cells=1), "counts": bags(got, bag_size=1)}
    for layers, sums in made.items():
        assert not sums.obsm and not sums.varm and sorted(sums.layers) == sorted(layers.split())


@pytest.mark.parametrize("command", ["convert", "de"])
def test_commands_take_a_table_in_obsm(tmp_path, command):
    cohort = simulate_cohort("small", seed=1, n_patients=4, n_genes=120, n_cells=60, n_drivers=4)
    path = save_cohort(cohort, tmp_path / "plain.h5ad")
    cohort.obsm["scores"] = pd.DataFrame({"G2M": 1.0}, index=cohort.obs_names)
    cohort.layers["spliced"] = cohort.X.copy()
    made = []
    for name, source in (("plain", path), ("rich", save_cohort(cohort, tmp_path / "rich.h5ad"))):
        out = tmp_path / f"{name}_out{'.h5ad' if command == 'convert' else ''}"
        options = [out] if command == "convert" else ["--min-cells", 10, "--out", out]
        assert main([command, str(source), *map(str, options)]) == 0
        made.append(out)
    if command == "convert":
        back = ad.read_h5ad(made[1])
        assert set(back.obsm["scores"]["G2M"]) == {1.0} and equal(back.layers["spliced"], back.X)
    else:
        tables = [{p.name: p.read_bytes() for p in out.rglob("*.csv")} for out in made]
        assert tables[0] and tables[0] == tables[1]


# ---------------------------------------------------------------- real data
def test_glioblastoma(shared_data):
    got = read_cohort(
        shared_data / "glioblastoma_panobinostat.h5ad",
        patient_key="patient_id",
        timepoint_key="condition",
        timepoints=["ctrl", "panobinostat"],
    )
    assert (
        got.shape == (5000, 300)
        and got.obs["sample"].nunique() == 10
        and list(got.obs["timepoint"].cat.categories) == ["ctrl", "panobinostat"]
    )
    assert (
        got.uns["longaml"]["input_kind"] == "counts"
        and got.var_names[0].startswith("ENSG")
        and set(got.obs["cell_type"]) == {"all"}
    )
    with pytest.raises(
        KeyError,
        match="no timepoint column; columns that could be meant: "
        ".*condition .2: ctrl, panobinostat",
    ):
        read_cohort(shared_data / "glioblastoma_panobinostat.h5ad")


def test_kang_has_no_donor(shared_data):
    with pytest.raises(
        KeyError,
        match="no patient column; columns that could be meant: "
        "condition .2: .*cell_type .7: .*Pass patient_key",
    ):
        read_cohort(shared_data / "kang_ifnb.h5ad", timepoint_key="condition")
    a = ad.read_h5ad(shared_data / "kang_ifnb.h5ad")
    a.obs["donor"] = np.where(np.arange(a.n_obs) % 2, "a", "b")
    assert (
        as_cohort(a, timepoint_key="condition", timepoints=["control", "stimulated"]).uns[
            "longaml"
        ]["input_kind"]
        == "lognorm"
    )


def test_pancreas_is_one_embryonic_day(shared_data):
    with pytest.raises(
        KeyError, match="no patient column; columns that could be meant: clusters .8"
    ):
        read_cohort(shared_data / "pancreas_endocrinogenesis.h5ad")
    a = ad.read_h5ad(shared_data / "pancreas_endocrinogenesis.h5ad")
    a.obs["donor"], a.obs["time"] = (
        np.where(np.arange(a.n_obs) % 2, "a", "b"),
        np.where(np.arange(a.n_obs) % 3, "early", "late"),
    )
    got = as_cohort(a, timepoints=["early", "late"], cell_type_key="clusters", layer="unspliced")
    assert equal(
        got[
            [
                f"{'a' if i % 2 else 'b'}_{'early' if i % 3 else 'late'}:{n}"
                for i, n in enumerate(a.obs_names)
            ]
        ].X,
        a.layers["unspliced"],
    ) and "Beta" in set(got.obs["cell_type"])


# ---------------------------------------------------------------- memory
MEASURE = """
import sys, anndata, scipy.io
from longaml.pp.reading import read_cohort
from longaml.core import log
log.setLevel("ERROR")
def kb(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
before = kb("VmRSS")
X = read_cohort(sys.argv[1]).X
print((kb("VmHWM") - before) * 1024, X.data.nbytes + X.indices.nbytes + X.indptr.nbytes, X.nnz)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("traps", [["mixed_columns"], ["unsorted_entries", "different_genes"]])
def test_peak_memory_is_below_three_times_the_csr(tmp_path, traps):
    """In a process of its own, on 7.2 million counts: the peak above what imports take, against
    the size of the cohort's CSR matrix.
    """
    base = make(0, patients=("AML1", "AML2"), n_genes=4000, n_cells=1)
    cells = 4000
    codes = np.repeat(np.arange(len(base)), cells)
    obs = base.obs.iloc[codes].set_axis(
        [f"{base.obs['sample'].iloc[s]}:C{i:06d}" for i, s in enumerate(codes)]
    )
    X = sp.csr_matrix(
        sp.random_array(
            (len(obs), 4000),
            density=0.09,
            format="csr",
            rng=rng_for(0, "memory"),
            data_sampler=lambda size: rng_for(1, "memory").integers(1, 60, size).astype(np.float32),
        )
    )
    path = write_geo(
        ad.AnnData(X, obs=obs, var=base.var), tmp_path / "x.tar", tar=True, traps=traps
    )
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    ).stdout.split()
    peak, csr, nnz = map(int, out)
    assert nnz == X.nnz and peak > csr  # the measure sees the matrix itself
    assert peak < 3 * csr, f"{peak / csr:.2f} times the CSR size"


# ---------------------------------------------------------------- download
class Server(http.server.BaseHTTPRequestHandler):
    "Serves `data`; what it does wrong is set on the class."

    data = b""
    ranges = True
    cut = []
    status = 200
    announce = True
    asked = []

    def do_GET(self):
        cls = type(self)
        start = 0
        asked = self.headers.get("Range")
        cls.asked.append(asked)
        if cls.status != 200:
            return self.send_error(cls.status)
        if asked and cls.ranges:
            start = int(asked.split("=")[1].split("-")[0])
        if start >= len(cls.data) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(cls.data)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = cls.data[start:]
        self.send_response(206 if start else 200)
        if cls.announce:
            self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(cls.data) - 1}/{len(cls.data)}")
        self.end_headers()
        self.wfile.write(body[: cls.cut.pop(0)] if cls.cut else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type(
        "Handler", (Server,), dict(data=rng_for(0, "tar").bytes(3_000_000), cut=[], asked=[])
    )
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    handler.url = f"http://127.0.0.1:{httpd.server_port}/GSE235063_RAW.tar"
    yield handler
    httpd.shutdown()
    httpd.server_close()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_fetch_in_one_go(server, tmp_path):
    got = fetch_gse235063(tmp_path / "new", url=server.url, wait=0)
    assert (
        got == tmp_path / "new" / "GSE235063_RAW.tar"
        and got.read_bytes() == server.data
        and names(tmp_path / "new") == ["GSE235063_RAW.tar"]
    )
    assert fetch_gse235063(tmp_path / "new", url=server.url) == got and server.asked == [
        None
    ]  # not asked for again
    assert fetch_gse235063(tmp_path / "mine.tar", url=server.url).read_bytes() == server.data


def test_fetch_resumes_within_a_call(server, tmp_path):
    server.cut[:] = [1_200_000, 5, 0]
    assert fetch_gse235063(tmp_path, url=server.url, wait=0).read_bytes() == server.data
    assert server.asked == [None, "bytes=1200000-", "bytes=1200005-", "bytes=1200005-"]


def test_fetch_resumes_over_calls(server, tmp_path):
    server.cut[:] = [2_000_000]
    with pytest.raises(
        ConnectionError,
        match="2000000 of 3000000 bytes arrived.*kept in GSE235063_RAW.tar.part; "
        "call la.datasets.fetch_gse235063 again",
    ):
        fetch_gse235063(tmp_path, url=server.url, retries=0)
    assert names(tmp_path) == ["GSE235063_RAW.tar.part"]
    assert fetch_gse235063(tmp_path, url=server.url).read_bytes() == server.data
    assert server.asked[-1] == "bytes=2000000-" and names(tmp_path) == ["GSE235063_RAW.tar"]


def test_fetch_from_a_server_that_ignores_ranges(server, tmp_path):
    server.ranges = False
    server.cut[:] = [1_500_000]
    assert (
        fetch_gse235063(tmp_path, url=server.url, wait=0).read_bytes() == server.data
        and len(server.asked) == 2
    )


@pytest.mark.parametrize("extra", [0, 10])
def test_fetch_when_the_part_is_already_whole_or_too_long(server, tmp_path, extra):
    (tmp_path / "GSE235063_RAW.tar.part").write_bytes(server.data + b"x" * extra)
    assert fetch_gse235063(tmp_path, url=server.url, wait=0).read_bytes() == server.data


def test_fetch_refusals(server, tmp_path):
    server.status = 404
    with pytest.raises(ConnectionError, match="answered 404"):
        fetch_gse235063(tmp_path, url=server.url, wait=0)
    assert len(server.asked) == 1  # a wrong address is not tried again
    server.status = 503
    with pytest.raises(ConnectionError, match="503"):
        fetch_gse235063(tmp_path, url=server.url, wait=0, retries=2)
    assert len(server.asked) == 4
    server.status = 200
    server.announce = False
    with pytest.raises(ConnectionError, match="does not announce a length"):
        fetch_gse235063(tmp_path, url=server.url, retries=0)
    assert "GSE235063_RAW.tar" not in names(tmp_path)
    with pytest.raises(ConnectionError, match="call la.datasets.fetch_gse235063 again"):
        fetch_gse235063(tmp_path, url="http://127.0.0.1:9/x", retries=0)


def test_the_default_address_is_geo():
    assert (
        GSE235063_URL
        == "https://ftp.ncbi.nlm.nih.gov/geo/series/GSE235nnn/GSE235063/suppl/GSE235063_RAW.tar"
    )
