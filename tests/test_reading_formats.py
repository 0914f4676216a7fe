"""Reading files as instruments, pipelines and repositories leave them: every value is compared
with the matrix that was written, or the refusal's text is.
"""

import errno
import gzip
import io
import subprocess
import sys
import tarfile
import warnings
import zipfile

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from longaml.cli import explain, main
from longaml.core import InputError, rng_for
from longaml.pp import archives, containers, sheets
from longaml.pp.reading import read_cohort

GENES = ["CD34", "KIT", "MT-CO1", "HBB", "MPO", "GATA1"]
VISITS = [("P1", "DX"), ("P1", "REL"), ("P2", "DX"), ("P2", "REL")]
PATTERN = "{patient}_{timepoint}"


def made(visits=VISITS, seed=0):
    "Counts by visit: barcodes and a dense matrix, cells x genes."
    r = rng_for(seed, "formats")
    found = {}
    for visit in visits:
        n = int(r.integers(2, 5))
        barcodes = ["".join(r.choice(list("ACGT"), 16)) + "-1" for _ in range(n)]
        found[visit] = barcodes, r.poisson(1.5, (n, len(GENES))) + np.eye(n, len(GENES), dtype=int)
    return found


TRUTH = made()


def market(X):
    "Matrix Market, genes x cells, as Cell Ranger writes it."
    m = sp.coo_matrix(X.T)
    lines = [f"{g + 1} {c + 1} {v}" for g, c, v in zip(m.row, m.col, m.data)]
    head = "%%MatrixMarket matrix coordinate integer general\n%metadata_json: {}\n"
    return (head + f"{m.shape[0]} {m.shape[1]} {m.nnz}\n" + "\n".join(lines) + "\n").encode()


def features(genes=GENES):
    rows = [f"ENSG{i:011d}\t{g}\tGene Expression\n" for i, g in enumerate(genes)]
    return "".join(rows).encode()


def triple(visit, names=("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"), truth=TRUTH):
    "The three files of a visit, by name."
    barcodes, X = truth[visit]
    data = [market(X), features(), ("\n".join(barcodes) + "\n").encode()]
    return {n: gzip.compress(d) if n.endswith(".gz") else d for n, d in zip(names, data) if n}


def put(folder, files):
    "Write files below a folder."
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def tarred(files, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def assert_same(cohort, truth=TRUTH, genes=GENES):
    "Every visit has the values that were written for it, cell by cell."
    assert cohort.n_obs == sum(len(barcodes) for barcodes, _ in truth.values())
    for (patient, timepoint), (_, X) in truth.items():
        rows = (cohort.obs["patient"] == patient) & (cohort.obs["timepoint"] == timepoint)
        np.testing.assert_array_equal(cohort[rows.to_numpy(), genes].X.toarray(), X)


def sheet_text(rows, between=","):
    return "".join(between.join(map(str, row)) + "\n" for row in rows)


def flat(visits=VISITS, template="GSM{k}_{p}_{t}_{kind}", truth=TRUTH):
    "Files of all visits in one folder."
    files = {}
    for k, (p, t) in enumerate(visits, 100):
        names = [
            template.format(k=k, p=p, t=t, kind=kind)
            for kind in ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz")
        ]
        files |= triple((p, t), names, truth)
    return files


def h5_of(visit, path, truth=TRUTH, cellbender=False, suffix=None):
    "An .h5 as Cell Ranger 3 and later, or CellBender, writes it."
    barcodes, X = truth[visit]
    m = sp.csr_matrix(X)
    with h5py.File(path, "w") as f:
        group = f.create_group("matrix")
        group["shape"] = np.array(X.shape[::-1], np.int32)
        group["data"], group["indices"] = m.data.astype(np.int32), m.indices.astype(np.int64)
        group["indptr"], group["barcodes"] = m.indptr.astype(np.int64), np.array(barcodes, "S")
        about = group.create_group("features")
        about["name"] = np.array(GENES, "S")
        about["id"] = np.array([f"ENSG{i:011d}" for i in range(len(GENES))], "S")
        about["feature_type"] = np.array(["Gene Expression"] * len(GENES), "S")
        about["genome"] = np.array(["GRCh38"] * len(GENES), "S")
        if cellbender:  # as remove-background 0.3 adds
            f["droplet_latents/cell_probability"] = np.ones(len(barcodes))
            f["global_latents/ambient_expression"] = np.ones(len(GENES)) / len(GENES)
            f["metadata/estimator"] = np.array(["mckp"], "S")


# ---------------------------------------------------------------- several triples in a folder


def test_a_prefix_chooses_among_triples_of_one_folder(tmp_path):
    put(tmp_path, flat())
    rows = [("folder", "prefix", "patient", "timepoint")]
    rows += [(".", f"GSM{k}_{p}_{t}", p, t) for k, (p, t) in enumerate(VISITS, 100)]
    (tmp_path / "samples.csv").write_text(sheet_text(rows))
    assert_same(read_cohort(tmp_path))
    rows = [("folder", "patient", "timepoint")] + [(".", p, t) for p, t in VISITS]
    (tmp_path / "samples.csv").write_text(sheet_text(rows))
    with pytest.raises(InputError, match="fits 4 samples in .: GSM100_P1_DX.*column 'prefix'"):
        read_cohort(tmp_path)


def test_a_folder_per_patient_with_both_visits(tmp_path):
    for p, t in VISITS:
        names = [f"{t}_{n}.gz" for n in ("matrix.mtx", "features.tsv", "barcodes.tsv")]
        put(tmp_path / p, triple((p, t), names))
    rows = [("folder", "prefix", "patient", "timepoint")] + [(p, t, p, t) for p, t in VISITS]
    (tmp_path / "samples.csv").write_text(sheet_text(rows))
    back = read_cohort(tmp_path)
    assert_same(back)
    assert back.obs["sample"].nunique() == 4
    (tmp_path / "samples.csv").write_text(sheet_text([(r[0], *r[2:]) for r in rows]))
    with pytest.raises(InputError, match="fits 2 samples in P1: DX, REL"):
        read_cohort(tmp_path)


def test_an_ambient_matrix_next_to_the_filtered_one(tmp_path):
    for p, t in VISITS:
        place = put(tmp_path / f"{p}{t}", triple((p, t), ("filtered_matrix.mtx.gz",) + NAMES[1:]))
        (place / "ambient_raw_matrix.mtx").write_bytes(market(TRUTH[p, t][1] * 7))
    rows = [("folder", "patient", "timepoint")] + [(f"{p}{t}", p, t) for p, t in VISITS]
    (tmp_path / "samples.csv").write_text(sheet_text(rows))
    with pytest.raises(InputError, match="fits 2 samples in P1DX: "):
        read_cohort(tmp_path)
    rows = [(*row, "filtered" if k else "prefix") for k, row in enumerate(rows)]
    (tmp_path / "samples.csv").write_text(sheet_text(rows))
    assert_same(read_cohort(tmp_path))


NAMES = ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz")


def test_two_rows_that_name_one_folder_are_refused(tmp_path):
    put(tmp_path / "run1", triple(VISITS[0]))
    rows = [("folder", "patient", "timepoint"), ("run1", "P1", "DX"), ("run1", "P1", "REL")]
    (tmp_path / "samples.csv").write_text(sheet_text(rows))
    with pytest.raises(InputError, match="row 1 of .*row 2 of .*name the same files, run1/matrix"):
        read_cohort(tmp_path)


@pytest.mark.parametrize("gene_file", ["GSE1_genes.tsv.gz", "features.tsv.gz"])
def test_one_gene_file_for_all(tmp_path, gene_file):
    for p, t in VISITS:
        put(tmp_path, triple((p, t), (f"{p}_{t}.mtx.gz", "", f"{p}_{t}_barcodes.tsv.gz")))
    put(tmp_path, {gene_file: gzip.compress(features())})
    assert_same(read_cohort(tmp_path, name_pattern=PATTERN))
    put(tmp_path, {"other_genes.tsv": features(GENES[::-1])})
    with pytest.raises(InputError, match="2 files of genes"):
        read_cohort(tmp_path, name_pattern=PATTERN)


# ---------------------------------------------------------------- sample sheets


def rows_of_sheet():
    rows = [("folder", "patient", "timepoint", "centre")]
    return rows + [(f"{p}/{t}", p, t, "Zürich") for p, t in VISITS]


LINES = sheet_text(rows_of_sheet())
WINDOWS = [rows_of_sheet()[0]] + [(r[0].replace("/", "\\"), *r[1:]) for r in rows_of_sheet()[1:]]
QUOTED = sheet_text([(*r, '"a, b"') for r in rows_of_sheet()]).replace('"a, b"', "note", 1)
SHEETS = {
    "mark": ("samples.csv", LINES.encode("utf-8-sig")),
    "lines of an old Mac": ("samples.csv", LINES.replace("\n", "\r").encode()),
    "folders as Windows writes them": ("samples.csv", sheet_text(WINDOWS).encode()),
    "folders with a slash at the end": ("samples.csv", LINES.replace(",P", "/,P").encode()),
    "separators within quotes": ("samples.csv", QUOTED.encode()),
    "names of columns in capitals": (
        "samples.csv",
        LINES.replace("folder,patient,timepoint", "Folder,PATIENT,Timepoint").encode(),
    ),
    "comma": ("samples.csv", sheet_text(rows_of_sheet()).encode()),
    "semicolon of a German Excel": ("s.csv", sheet_text(rows_of_sheet(), ";").encode("cp1252")),
    "tabs": ("samples.tsv", sheet_text(rows_of_sheet(), "\t").encode()),
    "tabs in .txt": ("samples.txt", sheet_text(rows_of_sheet(), "\t").encode()),
    "Unicode text of Excel": ("s.txt", sheet_text(rows_of_sheet(), "\t").encode("utf-16")),
    "latin-1": ("samples.csv", sheet_text(rows_of_sheet()).encode("latin-1")),
    "mark, CRLF": ("s.csv", sheet_text(rows_of_sheet()).replace("\n", "\r\n").encode("utf-8-sig")),
    "empty rows": ("s.csv", (sheet_text(rows_of_sheet()) + ",,,\n\n , ,,\n").encode()),
    "empty columns": ("s.csv", sheet_text([(*r, "", "") for r in rows_of_sheet()]).encode()),
    "sep=": ("s.csv", b"sep=;\n" + sheet_text(rows_of_sheet(), ";").encode()),
    "blanks": ("s.csv", sheet_text(rows_of_sheet(), " , ").encode()),
}


@pytest.mark.parametrize("name", SHEETS)
def test_sheets_as_they_are_written(tmp_path, name):
    for p, t in VISITS:
        put(tmp_path / p / t, triple((p, t)))
    file, data = SHEETS[name]
    (tmp_path / file).write_bytes(data)
    for path in (tmp_path, tmp_path / file):
        back = read_cohort(path)
        assert_same(back)
        assert set(back.obs["centre"]) == {"Zürich"}
    guessed = [n for n in back.uns["longaml"]["warnings"] if n.startswith("encoding guessed")]
    assert len(guessed) == (name in ("semicolon of a German Excel", "latin-1"))


def test_workbooks_need_openpyxl(tmp_path, monkeypatch):
    (tmp_path / "samples.xlsx").write_bytes(b"PK")
    monkeypatch.setattr(sheets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install openpyxl; or save the sheet as CSV"):
        read_cohort(tmp_path / "samples.xlsx")


def test_a_workbook(tmp_path):
    pytest.importorskip("openpyxl")
    for p, t in VISITS:
        put(tmp_path / p / t, triple((p, t)))
    head, *rows = rows_of_sheet()
    pd.DataFrame([*rows, [None] * 4], columns=head).to_excel(tmp_path / "s.xlsx", index=False)
    assert_same(read_cohort(tmp_path))


@pytest.mark.parametrize(
    "text, words",
    [
        ("folder,patient,timepoint\n", "has no rows"),
        ("folder,patient,timepoint\na,b,c,d\n", "row 2 has a value in a column without a name"),
        ("folder,patient,patient\na,b,c\n", "two columns of the same name: patient"),
        ("folder,patient,timepoint\n,P1,DX\n", "has no value in column 'folder'"),
        ("folder,patient,timepoint\nno,P1,DX\n", "'no', which is not there"),
    ],
)
def test_sheets_that_cannot_be_used(tmp_path, text, words):
    (tmp_path / "samples.csv").write_text(text)
    with pytest.raises((InputError, FileNotFoundError), match=words):
        read_cohort(tmp_path / "samples.csv")


def test_sheets_without_a_patient_in_one_row(tmp_path):
    "Its cells are dropped, counted and named; no patient is made of an empty field."
    for p, t in [*VISITS, ("P2", "DX2")]:
        put(tmp_path / p / t, triple((p, t.removesuffix("2"))))
    rows = [*rows_of_sheet(), ("P2/DX2", "", "DX", "Zürich")]
    (tmp_path / "samples.csv").write_text(sheet_text(rows), encoding="utf-8")
    back = read_cohort(tmp_path)
    assert_same(back)
    n = len(TRUTH["P2", "DX"][0])
    assert any(
        f"dropped: {n} of {len(back) + n} rows without a patient" in x for x in notes_of(back)
    )


# ---------------------------------------------------------------- GEO series of any name

# How files of these series are called (GSM5039270_G1_CellRanger_outs_barcodes.tsv.gz of GSE165554,
# GSM4143656_SAM24345863-ln1.barcodes.tsv.gz of GSE139555, GSM3891612_Bleo1_GFPp_matrix.mtx.gz of
# GSE132771; also GSM3814885_day0_filtered_gene_bc_matrices_h5.h5 of GSE131736 and
# GSM3587923_AML1012-D0.dem.txt.gz of GSE116256 below). Patients and visits in them are invented:
# most of these series are not longitudinal.
SCHEMES = {  # series -> template of a file, name of a sample, pattern (None: a sheet)
    "GSE235063 with PT1": ("GSM{k}_{p}_{t}_processed_{kind}", "GSM{k}_{p}_{t}", PATTERN),
    "GSE165554": (
        "GSM{k}_{p}-{t}_CellRanger_outs_{kind}",
        "GSM{k}_{p}-{t}",
        "{patient}-{timepoint}",
    ),
    "GSE139555": ("GSM{k}_SAM{k}-{p}{t}.{kind}", "SAM{k}-{p}{t}", None),
    "GSE132771": ("GSM{k}_{p}_{t}_GFPp_{kind}", "GSM{k}_{p}_{t}_GFPp", PATTERN + "_GFPp"),
    "numbers only": ("GSM{k}_JB1{k}_{kind}", "JB1{k}", None),
    "dots": ("GSM{k}.{p}.{t}.filtered.{kind}", "GSM{k}.{p}.{t}", "{patient}.{timepoint}"),
    "words first": ("{kind}", "", PATTERN),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("series", SCHEMES)
def test_naming_schemes_of_series(tmp_path, series, packed):
    template, name, pattern = SCHEMES[series]
    files = flat(template=template)
    if series == "words first":  # matrix_P1_DX.mtx.gz
        files = {}
        for p, t in VISITS:
            kinds = ("matrix_{}.mtx.gz", "features_{}.tsv.gz", "barcodes_{}.tsv.gz")
            files |= triple((p, t), [kind.format(f"{p}_{t}") for kind in kinds])
    path = tmp_path / "GSE_RAW.tar"
    if packed:
        path.write_bytes(tarred(files))
    else:
        path = put(tmp_path / "series", files)
    if pattern is not None:
        assert_same(read_cohort(path, name_pattern=pattern))
        return
    rows = [(name.format(k=k, p=p, t=t), p, t) for k, (p, t) in enumerate(VISITS, 100)]
    sheet = pd.DataFrame(rows, columns=["sample", "patient", "timepoint"])
    assert_same(read_cohort(path, sample_sheet=sheet))
    sheet.to_csv(tmp_path / "who.csv", index=False)
    assert_same(read_cohort(path, sample_sheet=tmp_path / "who.csv"))


def test_without_sheet_or_pattern_the_error_lists_names_and_an_example(tmp_path):
    put(tmp_path, flat())
    words = (
        r"4 samples.*GSM100_P1_DX, GSM101_P1_REL.*name_pattern='\{patient\}_\{timepoint\}', "
        r"or name a table with the columns sample, patient, timepoint with sample_sheet"
    )
    with pytest.raises(InputError, match=words) as e:
        read_cohort(tmp_path)
    assert e.value.parameter == "name_pattern"
    with pytest.raises(InputError, match="reads none of the names: GSM100_P1_DX"):
        read_cohort(tmp_path, name_pattern="{patient}-{timepoint}")
    with pytest.raises(InputError, match="pass one of them"):
        read_cohort(tmp_path, name_pattern=PATTERN, sample_sheet=pd.DataFrame({"sample": []}))


def test_samples_whose_names_do_not_fit_are_named(tmp_path):
    extra = made([*VISITS, ("BM1", "x")], seed=3)
    put(tmp_path, flat(truth=extra))
    put(tmp_path, triple(("BM1", "x"), [f"GSM9_BM1_{n}" for n in NAMES], extra))
    back = read_cohort(tmp_path, name_pattern=PATTERN)
    assert_same(back, {visit: extra[visit] for visit in VISITS})
    assert any("1 samples whose names do not fit: GSM9_BM1" in n for n in notes_of(back))


def notes_of(cohort):
    return list(cohort.uns["longaml"]["warnings"])


def test_samples_that_a_sheet_does_not_name_are_named(tmp_path):
    put(tmp_path, flat())
    rows = [(f"{p}_{t}", p, t) for p, t in VISITS[:2]]
    sheet = pd.DataFrame(rows, columns=["sample", "patient", "timepoint"])
    with pytest.raises(InputError, match="one patient"):
        read_cohort(tmp_path, sample_sheet=sheet)
    third = made([*VISITS, ("P3", "DX"), ("P3", "REL")], seed=4)
    put(tmp_path, flat(list(third), truth=third))
    rows = [(f"{p}_{t}", p, t) for p, t in third if p != "P2"]
    sheet = pd.DataFrame(rows, columns=["sample", "patient", "timepoint"])
    back = read_cohort(tmp_path, sample_sheet=sheet)
    assert_same(back, {visit: third[visit] for visit in third if visit[0] != "P2"})
    assert any("left out: 2 samples that" in n and "GSM102_P2_DX" in n for n in notes_of(back))


def test_annotation_of_cells_says_who_and_when(tmp_path):
    "As a Seurat object that is written as a matrix: one triple, a table of all cells."
    barcodes = [f"{p}_{t}_{b}" for (p, t), (own, _) in TRUTH.items() for b in own]
    X = np.vstack([X for _, X in TRUTH.values()])
    put(
        tmp_path, triple("all", ("matrix.mtx", "genes.tsv", "barcodes.tsv"), {"all": (barcodes, X)})
    )
    who = [b.split("_")[:2] for b in barcodes]
    table = pd.DataFrame(who, index=barcodes, columns=["patient", "timepoint"])
    table["cell_type"] = ["HSC", "Mono"] * (len(table) // 2) + ["HSC"] * (len(table) % 2)
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "metadata.tsv", sep="\t")
    back = read_cohort(tmp_path)
    assert_same(back)
    bare = back.obs_names.str.split(":").str[-1]
    assert back.obs["cell_type"].astype(str).tolist() == table.loc[bare, "cell_type"].tolist()


# ---------------------------------------------------------------- dense tables


def dense(visit, turned=False, r_style=False, between="\t", prefix=True):
    barcodes, X = TRUTH[visit]
    cells = [f"{visit[0]}-{visit[1]}_{b}" if prefix else b for b in barcodes]
    table = pd.DataFrame(X.T, GENES, cells)
    if turned:
        table = table.T
    text = table.to_csv(sep=between, index_label=False if r_style else "GENE")
    return gzip.compress(text.encode())


@pytest.mark.parametrize("strip", [None, 7])
def test_tables_of_van_galen(tmp_path, monkeypatch, strip):
    "GSE116256: dem.txt.gz and anno.txt.gz, whose accessions differ."
    if strip:
        monkeypatch.setattr(containers, "STRIP", strip)
    for k, (p, t) in enumerate(VISITS):
        barcodes = [f"{p}-{t}_{b}" for b in TRUTH[p, t][0]]
        anno = pd.DataFrame({"Cell": barcodes, "CellType": "HSC-like", "NumberOfReads": 7})
        text = anno.to_csv(sep="\t", index=False).encode()
        files = {
            f"GSM{k * 2}_{p}-{t}.dem.txt.gz": dense((p, t)),
            f"GSM{k * 2 + 1}_{p}-{t}.anno.txt.gz": gzip.compress(text),
        }
        put(tmp_path, files)
    (tmp_path / "README.txt").write_text("about the files\nof this series\n")
    (tmp_path / "README.txt").unlink()
    back = read_cohort(tmp_path, name_pattern="{patient}-{timepoint}", cell_type_key="CellType")
    assert_same(back)
    assert set(back.obs["cell_type"]) == {"HSC-like"} and set(back.obs["NumberOfReads"]) == {7}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("ending, between", [("csv.gz", ","), ("tsv.gz", "\t"), ("csv.gz", ";")])
@pytest.mark.parametrize("r_style", [False, True])
def test_dense_tables_either_way_round(tmp_path, turned, ending, between, r_style):
    for p, t in VISITS:
        put(tmp_path, {f"{p}_{t}_counts.{ending}": dense((p, t), turned, r_style, between, False)})
    assert_same(read_cohort(tmp_path, name_pattern=PATTERN))


def test_dense_tables_in_a_sheet(tmp_path):
    rows = [("file", "patient", "timepoint")]
    for p, t in VISITS:
        put(tmp_path / "data", {f"{p}{t}.csv.gz": dense((p, t), between=",")})
        rows.append((f"data/{p}{t}.csv.gz", p, t))
    (tmp_path / "samples.csv").write_text(sheet_text(rows))
    assert_same(read_cohort(tmp_path / "samples.csv"))


def test_dense_tables_of_unknown_direction_are_refused(tmp_path):
    for p, t in VISITS:  # no barcodes, and the same names on both sides of all samples
        table = pd.DataFrame(np.ones((3, 3), int), ["CD34", "KIT", "MPO"], ["w1", "w2", "w3"])
        table.to_csv(tmp_path / f"{p}_{t}.csv.gz")
    with pytest.raises(InputError, match="which are the genes.*scanpy.read_csv"):
        read_cohort(tmp_path, name_pattern=PATTERN)


@pytest.mark.parametrize("turned", [False, True])
def test_totals_and_lengths_are_no_cells(tmp_path, turned):
    "Columns that featureCounts and spreadsheets add; rows of HTSeq and STAR."
    for p, t in VISITS:
        barcodes, X = TRUTH[p, t]
        table = pd.DataFrame(X.T, GENES, barcodes)
        table.insert(0, "Length", range(900, 900 + len(GENES)))
        table["total"] = table.sum(axis=1)
        for row in ("__no_feature", "N_unmapped", "Total"):
            table.loc[row] = 77
        (table.T if turned else table).to_csv(tmp_path / f"{p}_{t}.csv")
    back = read_cohort(tmp_path, name_pattern=PATTERN)
    assert_same(back)
    assert sorted(back.var_names) == sorted(GENES)
    said = "left out: Length, total, __no_feature, N_unmapped, Total of P1_DX.csv"
    assert any(said in note for note in notes_of(back)), notes_of(back)


def test_dense_tables_of_a_spreadsheet(tmp_path):
    "A byte-order mark, line ends of Windows, quotes; and a decimal comma is refused."
    for p, t in VISITS:
        barcodes, X = TRUTH[p, t]
        how = {"lineterminator": "\r\n", "encoding": "utf-8-sig", "quoting": 1}
        pd.DataFrame(X.T, GENES, barcodes).to_csv(tmp_path / f"{p}_{t}.csv", **how)
    back = read_cohort(tmp_path, name_pattern=PATTERN)
    assert_same(back)
    assert back.obs_names[0] == f"P1_DX:{TRUTH['P1', 'DX'][0][0]}"
    text = (tmp_path / "P1_DX.csv").read_text(encoding="utf-8-sig")
    (tmp_path / "P1_DX.csv").write_text(text.replace(",", ";").replace('"1"', '"1,0"'))
    with pytest.raises(InputError, match="P1_DX.csv is not a table of counts"):
        read_cohort(tmp_path, name_pattern=PATTERN)


def test_dense_tables_with_fractions_are_refused_by_name(tmp_path):
    for p, t in VISITS:
        put(tmp_path, {f"{p}_{t}.csv.gz": dense((p, t), between=",")})
    text = gzip.decompress((tmp_path / "P2_DX.csv.gz").read_bytes()).decode()
    head, *lines = text.splitlines()
    lines = [",".join([line.split(",")[0]] + ["1.37"] * line.count(",")) for line in lines]
    (tmp_path / "P2_DX.csv.gz").write_bytes(gzip.compress("\n".join([head, *lines]).encode()))
    with pytest.raises(InputError, match="^P2_DX: "):
        read_cohort(tmp_path, name_pattern=PATTERN)
    (tmp_path / "P2_DX.csv.gz").write_bytes(gzip.compress(text.replace(",1", ",x").encode()))
    with pytest.raises(InputError, match="P2_DX.csv.gz is not a table of counts"):
        read_cohort(tmp_path, name_pattern=PATTERN)


def test_triples_that_went_through_windows(tmp_path):
    "Line ends, and a byte-order mark before the first gene and the first barcode."
    for p, t in VISITS:
        files = triple((p, t), ("matrix.mtx", "features.tsv", "barcodes.tsv"))
        files = {n: d.replace(b"\n", b"\r\n") for n, d in files.items()}
        for name in ("features.tsv", "barcodes.tsv"):
            files[name] = b"\xef\xbb\xbf" + files[name]
        put(tmp_path / f"{p}_{t}", files)
    back = read_cohort(tmp_path, name_pattern=PATTERN)
    assert_same(back)
    assert list(back.var_names) == GENES
    assert back.obs_names[0] == f"P1_DX:{TRUTH['P1', 'DX'][0][0]}"
    place = tmp_path / "P1_DX"
    (place / "barcodes.tsv").write_bytes(b"barcode\n" + (place / "barcodes.tsv").read_bytes())
    with pytest.raises(InputError, match="its gene and barcode files have 6 and 5"):
        read_cohort(tmp_path, name_pattern=PATTERN)


def test_one_file_under_two_names_is_named(tmp_path):
    "Two samples with the same counts: copied, or one file downloaded twice."
    copied = TRUTH | {("P1", "REL"): TRUTH["P1", "DX"]}
    put(tmp_path, flat(truth=copied))
    back = read_cohort(tmp_path, name_pattern=PATTERN)
    assert_same(back, copied)
    (note,) = [n for n in notes_of(back) if n.startswith("identical")]
    assert "P1_DX and GSM101_P1_REL have the same values, cell for cell" in note
    put(tmp_path, flat())
    again = read_cohort(tmp_path, name_pattern=PATTERN)
    assert not any(n.startswith("identical") for n in notes_of(again))


# ---------------------------------------------------------------- .h5 of 10x


@pytest.mark.parametrize("cellbender", [False, True])
def test_h5_in_a_folder_and_in_a_sheet(tmp_path, cellbender):
    rows = [("file", "patient", "timepoint")]
    for k, (p, t) in enumerate(VISITS):
        name = f"GSM{k}_{p}_{t}_filtered_gene_bc_matrices_h5.h5"  # as GSE131736 names them
        h5_of((p, t), tmp_path / name, cellbender=cellbender)
        rows.append((name, p, t))
    assert_same(read_cohort(tmp_path, name_pattern=PATTERN))
    (tmp_path / "samples.csv").write_text(sheet_text(rows))
    assert_same(read_cohort(tmp_path / "samples.csv"))
    files = {p.name: p.read_bytes() for p in tmp_path.glob("*.h5")}
    (tmp_path / "x.tar").write_bytes(tarred(files))
    assert_same(read_cohort(tmp_path / "x.tar", name_pattern=PATTERN))


def test_h5_without_a_genome_and_with_antibodies(tmp_path):
    for p, t in VISITS:
        h5_of((p, t), tmp_path / f"{p}_{t}.h5")
        with h5py.File(tmp_path / f"{p}_{t}.h5", "a") as f:
            del f["matrix/features/genome"]
    assert_same(read_cohort(tmp_path, name_pattern=PATTERN))
    for p, t in VISITS:
        with h5py.File(tmp_path / f"{p}_{t}.h5", "a") as f:
            kinds = f["matrix/features/feature_type"][:].astype("S20")
            kinds[1] = b"Antibody Capture"
            del f["matrix/features/feature_type"]
            f["matrix/features/feature_type"] = kinds
    left = [g for g in GENES if g != "KIT"]
    truth = {v: (b, np.delete(X, 1, axis=1)) for v, (b, X) in TRUTH.items()}
    back = read_cohort(tmp_path, name_pattern=PATTERN)
    assert_same(back, truth, left)
    assert list(back.var_names) == left


def test_legacy_h5(tmp_path):
    "As Cell Ranger 1 and 2 write it: a group for every genome."
    for p, t in VISITS:
        barcodes, X = TRUTH[p, t]
        m = sp.csr_matrix(X)
        with h5py.File(tmp_path / f"{p}_{t}.h5", "w") as f:
            group = f.create_group("GRCh38")
            group["shape"] = np.array(X.shape[::-1])
            group["data"], group["indices"], group["indptr"] = m.data, m.indices, m.indptr
            group["barcodes"] = np.array(barcodes, "S")
            group["gene_names"] = np.array(GENES, "S")
            group["genes"] = np.array([f"ENSG{i:011d}" for i in range(len(GENES))], "S")
    assert_same(read_cohort(tmp_path, name_pattern=PATTERN))
    with h5py.File(tmp_path / "P1_DX.h5", "a") as f:
        f.copy("GRCh38", "mm10")
    with pytest.raises(InputError, match=r"2 genomes \(GRCh38, mm10\).*genome="):
        read_cohort(tmp_path, name_pattern=PATTERN)


def test_one_aggregated_h5(tmp_path):
    barcodes = [f"{b[:-2]}-{k}" for k, (own, _) in enumerate(TRUTH.values(), 1) for b in own]
    X = np.vstack([X for _, X in TRUTH.values()])
    h5_of("all", tmp_path / "aggr.h5", {"all": (barcodes, X)})
    sheet = pd.DataFrame(VISITS, columns=["patient", "timepoint"])
    assert_same(read_cohort(tmp_path / "aggr.h5", sample_sheet=sheet))
    with pytest.raises(InputError, match="cells of 4 samples.*aggregation.csv.*none was given"):
        read_cohort(tmp_path / "aggr.h5")
    with pytest.raises(InputError, match="sample_sheet has 3 rows"):
        read_cohort(tmp_path / "aggr.h5", sample_sheet=sheet[:3])


def test_h5_that_is_no_matrix(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["barcode_idx"] = [1, 2]
    with pytest.raises(InputError, match="not a 10x matrix.*Use filtered_feature_bc_matrix.h5"):
        read_cohort(tmp_path / "a.h5")
    h5_of(VISITS[0], tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as f:
        del f["matrix/data"]
        f.create_dataset("matrix/data", (10**12,), np.int32, chunks=(1000,))
    with pytest.raises(InputError, match="1000000000000 values, which the 0 bytes"):
        read_cohort(tmp_path / "a.h5")
    (tmp_path / "a.h5").write_bytes(b"not HDF5")
    with pytest.raises(InputError, match="a.h5 cannot be read as 10x .h5"):
        read_cohort(tmp_path / "a.h5")


# ---------------------------------------------------------------- Cell Ranger's folders


def test_multi_and_older_nesting(tmp_path):
    multi = "run/outs/per_sample_outs/{}_{}/count/sample_filtered_feature_bc_matrix"
    for p, t in VISITS[:2]:
        put(tmp_path / multi.format(p, t), triple((p, t)))
    put(tmp_path / "run/outs/multi/count/raw_feature_bc_matrix", triple(VISITS[2]))
    for p, t in VISITS[2:]:
        names = ("matrix.mtx", "genes.tsv", "barcodes.tsv")
        outs = tmp_path / f"{p}_{t}/outs"
        put(outs / "filtered_gene_bc_matrices/GRCh38", triple((p, t), names))
        put(outs / "raw_gene_bc_matrices/GRCh38", triple(VISITS[0], names))
        put(outs / "analysis/clustering", {"clusters.csv": b"Barcode,Cluster\nA,1\n"})
        h5_of((p, t), outs / "filtered_gene_bc_matrices_h5.h5")
    assert_same(read_cohort(tmp_path, name_pattern=PATTERN))
    rows = [("folder", "patient", "timepoint")]
    rows += [(f"run/outs/per_sample_outs/{p}_{t}", p, t) for p, t in VISITS[:2]]
    rows += [(f"{p}_{t}", p, t) for p, t in VISITS[2:]]
    (tmp_path / "samples.csv").write_text(sheet_text(rows))
    assert_same(read_cohort(tmp_path))
    rows[1:3] = [("run", p, t, f"{p}_{t}") for p, t in VISITS[:2]]
    rows[3:] = [(*row, "") for row in rows[3:]]
    rows[0] = (*rows[0], "prefix")
    (tmp_path / "samples.csv").write_text(sheet_text(rows))
    assert_same(read_cohort(tmp_path))


def test_two_genomes_are_refused_by_name(tmp_path):
    for genome in ("GRCh38", "mm10"):
        put(tmp_path / f"a/outs/filtered_gene_bc_matrices/{genome}", triple(VISITS[0]))
    (tmp_path / "s.csv").write_text("folder,patient,timepoint\na,P1,DX\n")
    with pytest.raises(InputError, match="fits 2 samples in a: .*GRCh38.*mm10"):
        read_cohort(tmp_path)


# ---------------------------------------------------------------- archives


@pytest.mark.parametrize("form", ["tar.gz", "tgz", "zip", "tar of tar.gz", "tar of zip"])
def test_archives(tmp_path, form):
    place = "filtered_feature_bc_matrix"
    own = {v: {f"{place}/{n}": d for n, d in triple(v).items()} for v in VISITS}
    every = {f"{p}_{t}/{n}": d for (p, t), files in own.items() for n, d in files.items()}
    every["P1_DX/._matrix.mtx.gz"] = b"left by a Mac"
    path = tmp_path / f"x.{form.split()[0]}"
    if form in ("tar.gz", "tgz"):
        path.write_bytes(tarred(every, "w:gz"))
    elif form == "zip":
        path.write_bytes(zipped(every))
    else:
        pack = zipped if form.endswith("zip") else lambda files: tarred(files, "w:gz")
        ending = form.rpartition(" ")[2]
        inner = {f"GSM{k}_{p}_{t}.{ending}": pack(own[p, t]) for k, (p, t) in enumerate(VISITS)}
        path.write_bytes(tarred(inner))
    assert_same(read_cohort(path, name_pattern=PATTERN))
    rows = [(f"{p}_{t}", p, t) for p, t in VISITS]
    sheet = pd.DataFrame(rows, columns=["sample", "patient", "timepoint"])
    assert_same(read_cohort(path, sample_sheet=sheet))


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            z.writestr(name, data)
    return out.getvalue()


def test_nested_folders_and_members_that_come_twice(tmp_path):
    files = {f"a/b/c/{p}_{t}/{n}": d for p, t in VISITS for n, d in triple((p, t)).items()}
    path = tmp_path / "x.tar"
    path.write_bytes(tarred(files))
    assert_same(read_cohort(path, name_pattern=PATTERN))
    twice = files | {f"copy/P1_DX/{n}": d for n, d in triple(("P1", "DX")).items()}
    path.write_bytes(tarred(twice))
    with pytest.raises(InputError, match="reads 'a_b_c_P1_DX' in two ways|P1_DX"):
        read_cohort(path, name_pattern=PATTERN)
    with tarfile.open(path, "w") as tar:
        for name, data in [*files.items(), *files.items()]:  # tar -r of the same files
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(InputError, match="matrix.mtx.gz|P1_DX"):
        read_cohort(path, name_pattern=PATTERN)


def test_a_sheet_inside_an_archive(tmp_path):
    rows = [("folder", "patient", "timepoint")] + [(f"{p}/{t}", p, t) for p, t in VISITS]
    files = {f"data/{p}/{t}/{n}": d for p, t in VISITS for n, d in triple((p, t)).items()}
    files["data/samples.csv"] = sheet_text(rows).encode()
    (tmp_path / "x.zip").write_bytes(zipped(files))
    assert_same(read_cohort(tmp_path / "x.zip"))


def test_unsafe_and_damaged_archives(tmp_path, monkeypatch):
    files = flat()
    path = tmp_path / "x.zip"
    path.write_bytes(zipped({"../up.txt": b"x", **files}))
    with pytest.raises(InputError, match=r"unsafe name, '../up.txt'"):
        read_cohort(path, name_pattern=PATTERN)
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match=r"not a plain file, 'link' \(link\)"):
        read_cohort(path, name_pattern=PATTERN)
    for name, data in {
        "x.zip": zipped(files)[:-30],
        "x.tar.gz": tarred(files, "w:gz")[:-50],
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name} is truncated or"):
            read_cohort(tmp_path / name, name_pattern=PATTERN)
    (tmp_path / "y.tgz").write_bytes(tarred(files, "w:gz"))
    usage = archives.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda p: usage._replace(free=1 << 10))
    with pytest.raises(InputError, match="which is full.*TMPDIR.*pass the folder"):
        read_cohort(tmp_path / "y.tgz", name_pattern=PATTERN)


def test_a_zip_that_claims_too_much(tmp_path):
    data = bytearray(zipped({"P1_DX_matrix.mtx": market(TRUTH["P1", "DX"][1])}))
    at = data.rindex(b"PK\x01\x02") + 24  # size in the central directory
    data[at : at + 4] = (10**9).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(bytes(data))
    with pytest.raises(InputError, match="1000000000 bytes; the .* cannot hold that much"):
        read_cohort(tmp_path / "x.zip", name_pattern=PATTERN)


# ---------------------------------------------------------------- one file with all cells


def whole():
    "All visits as one AnnData."
    X = np.vstack([X for _, X in TRUTH.values()])
    rows = [(p, t, f"{p}_{t}_{b}") for (p, t), (own, _) in TRUTH.items() for b in own]
    obs = pd.DataFrame(rows, columns=["patient", "timepoint", "cell"]).set_index("cell")
    return ad.AnnData(sp.csr_matrix(X.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))


def write_loom(path, adata, layers=True):
    "As loompy and velocyto write it: genes x cells, dense, text as variable-length strings."
    with h5py.File(path, "w") as f:
        X = adata.X.toarray()
        f["matrix"] = X.T
        if layers:
            f["layers/spliced"], f["layers/unspliced"] = np.floor(X.T / 2), np.ceil(X.T / 2)
        f["row_attrs/Gene"] = np.array(adata.var_names, object)
        f["row_attrs/Accession"] = np.array([f"ENSG{i:011d}" for i in range(len(GENES))], object)
        f["col_attrs/CellID"] = np.array(adata.obs_names, object)
        for c in adata.obs:
            f[f"col_attrs/{c}"] = adata.obs[c].to_numpy(object)


def test_zarr(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole().write_zarr(tmp_path / "c.zarr")
    back = read_cohort(tmp_path / "c.zarr")
    assert_same(back)
    assert back.uns["longaml"]["layout"] == "zarr"
    assert_same(read_cohort(f"{tmp_path / 'c.zarr'}/"))
    (tmp_path / "c.zarr").rename(tmp_path / "plain")  # told by what is in it
    assert_same(read_cohort(tmp_path / "plain"))
    (tmp_path / "broken.zarr").mkdir()
    with pytest.raises(InputError, match="cannot be read as an AnnData in zarr"):
        read_cohort(tmp_path / "broken.zarr")


@pytest.mark.parametrize("strip", [1 << 23, 3])
def test_loom(tmp_path, monkeypatch, strip):
    monkeypatch.setattr(containers, "STRIP", strip)
    adata = whole()
    write_loom(tmp_path / "c.loom", adata)
    back = read_cohort(tmp_path / "c.loom")
    assert_same(back)
    X = adata.X.toarray()
    order = [list(adata.obs_names).index(n.split(":")[-1]) for n in back.obs_names]
    np.testing.assert_array_equal(back.layers["spliced"].toarray(), np.floor(X / 2)[order])
    np.testing.assert_array_equal(back.layers["unspliced"].toarray(), np.ceil(X / 2)[order])
    (tmp_path / "c.loom").write_bytes(b"not HDF5")
    with pytest.raises(InputError, match="c.loom cannot be read as loom"):
        read_cohort(tmp_path / "c.loom")


def test_a_loom_or_h5ad_for_every_sample_keeps_layers(tmp_path):
    adata = whole()
    adata.obs_names = [n.split("_")[-1] for n in adata.obs_names]
    for kind in ("loom", "h5ad"):
        place = tmp_path / kind
        place.mkdir()
        for p, t in VISITS:
            part = adata[(adata.obs["patient"] == p) & (adata.obs["timepoint"] == t)].copy()
            part.layers["spliced"] = sp.csr_matrix(np.floor(part.X.toarray() / 2))
            part.obs = part.obs[[]]
            if kind == "loom":
                write_loom(place / f"{p}_{t}.loom", part)
            else:
                part.write_h5ad(place / f"{p}_{t}.h5ad")
        back = read_cohort(place, name_pattern=PATTERN)
        assert_same(back)
        spliced = back.layers["spliced"].toarray()
        np.testing.assert_array_equal(spliced, np.floor(back.X.toarray() / 2))


def test_compressed_h5ad_for_every_sample(tmp_path):
    adata = whole()
    for p, t in VISITS:
        part = adata[(adata.obs["patient"] == p) & (adata.obs["timepoint"] == t)].copy()
        part.obs = part.obs[[]]
        part.write_h5ad(tmp_path / "x.h5ad")
        put(
            tmp_path / "all",
            {f"{p}_{t}.h5ad.gz": gzip.compress((tmp_path / "x.h5ad").read_bytes())},
        )
    assert_same(read_cohort(tmp_path / "all", name_pattern=PATTERN))


def test_fractional_matrix_market_is_rounded_on_request(tmp_path):
    for p, t in VISITS:
        barcodes, X = TRUTH[p, t]
        files = triple((p, t), [f"{p}_{t}_{n}" for n in NAMES])
        text = market(X).decode().replace(" integer ", " real ").splitlines()
        body = [f"{line}.125" for line in text[3:]]
        matrix = "\n".join([*text[:3], *body]) + "\n"
        put(tmp_path, files | {f"{p}_{t}_matrix.mtx.gz": gzip.compress(matrix.encode())})
    with pytest.raises(InputError, match="fractional count"):
        read_cohort(tmp_path, name_pattern=PATTERN)
    assert_same(read_cohort(tmp_path, name_pattern=PATTERN, counts="round"))


def test_spliced_and_unspliced_without_X(tmp_path):
    adata = whole()
    X = adata.X.toarray()
    layers = {"spliced": sp.csr_matrix(np.floor(X / 2)), "unspliced": sp.csr_matrix(np.ceil(X / 2))}
    bare = ad.AnnData(obs=adata.obs, var=adata.var, layers=layers)
    bare.write_h5ad(tmp_path / "kb.h5ad")
    back = read_cohort(tmp_path / "kb.h5ad")
    assert_same(back)
    assert "summed: kb.h5ad has no X; counts are its layers spliced + unspliced" in notes_of(back)


def test_h5mu(tmp_path):
    adata = whole()
    who = adata.obs.copy()
    adata.obs = adata.obs[["patient"]].rename(columns={"patient": "donor"})
    protein = ad.AnnData(np.ones((adata.n_obs, 2), np.float32), obs=who[[]])
    with h5py.File(tmp_path / "c.h5mu", "w") as f:
        for name, part in {"rna": adata, "prot": protein}.items():
            ad.io.write_elem(f, f"mod/{name}", part)
        ad.io.write_elem(f, "obs", who[["timepoint"]])
    assert_same(read_cohort(tmp_path / "c.h5mu", patient_key="donor"))
    with pytest.raises(InputError, match="modality is 'atac'; expected one of: .*rna"):
        read_cohort(tmp_path / "c.h5mu", modality="atac")
    with h5py.File(tmp_path / "c.h5mu", "a") as f:
        f.move("mod/rna", "mod/gene")
    with pytest.raises(InputError, match="modalities gene, prot; name one with modality=") as e:
        read_cohort(tmp_path / "c.h5mu")
    assert e.value.parameter == "modality"
    assert_same(read_cohort(tmp_path / "c.h5mu", modality="gene", patient_key="donor"))


@pytest.mark.parametrize("parameter", ["name_pattern", "sample_sheet"])
def test_options_that_do_not_fit_are_refused(tmp_path, parameter):
    whole().write_h5ad(tmp_path / "c.h5ad")
    value = PATTERN if parameter == "name_pattern" else pd.DataFrame({"sample": ["a"]})
    with pytest.raises(InputError, match=f"{parameter}=... is for files of several samples"):
        read_cohort(tmp_path / "c.h5ad", **{parameter: value})
    put(tmp_path / "flat", flat())
    with pytest.raises(InputError, match="files with layers only") as e:
        read_cohort(tmp_path / "flat", name_pattern=PATTERN, layer="spliced")
    assert e.value.parameter == "layer"


# ---------------------------------------------------------------- files that cannot be read


@pytest.mark.parametrize(
    "name, words",
    [
        ("c.rds", r"""anndataR::write_h5ad\(readRDS\("c.rds"\), "c.h5ad"\)"""),
        ("c.rds.gz", "write_h5ad"),
        ("c.h5Seurat", r'SeuratDisk::LoadH5Seurat\("c.h5Seurat"\), "c.h5ad"'),
        ("c.RData", r'get\(load\("c.RData"\)\[1\]\)'),
        ("c.rda", "write_h5ad"),
        ("c.qs", r'qs::qread\("c.qs"\)'),
        ("c.cloupe", "Pass filtered_feature_bc_matrix.h5"),
        ("c.fastq.gz", "Run cellranger count"),
        ("c.tar.xz", "tar xf c.tar.xz"),
        ("c.7z", "7z x c.7z"),
        ("c.zarr.zip", "unzip c.zarr.zip -d c.zarr"),
        ("c.parquet", "read_parquet"),
        ("c.mtx.gz", "pass the folder that has them all"),
        ("c.csv.gz", "pass the folder that has them all"),
        ("c.pdf", "expected a .tar or folder of samples"),
    ],
)
def test_what_cannot_be_read_says_how_to_convert_it(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=words) as e:
        read_cohort(tmp_path / name)
    assert e.value.parameter == "path" and "\n" not in str(e.value)


def test_a_folder_of_seurat_objects_says_how_to_convert_them(tmp_path):
    (tmp_path / "a.rds").write_bytes(b"x")
    with pytest.raises(InputError, match="readRDS"):
        read_cohort(tmp_path)
    (tmp_path / "s.csv").write_text("file,patient,timepoint\na.rds,P1,DX\n")
    with pytest.raises(InputError, match="readRDS"):
        read_cohort(tmp_path / "s.csv")


# ---------------------------------------------------------------- the command


def test_commands_take_the_new_options(tmp_path, capsys):
    put(tmp_path / "flat", flat())
    out = tmp_path / "c.h5ad"
    said = main(["convert", str(tmp_path / "flat"), str(out)])
    assert said == 2 and "--name-pattern" in capsys.readouterr().err
    args = ["convert", str(tmp_path / "flat"), str(out), "--name-pattern", PATTERN]
    assert main(args) == 0
    assert_same(ad.read_h5ad(out))


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device. Free some"),
        (OSError(errno.ENOSPC, "No space left on device", "/out/a"), "No space left.*: /out/a"),
        (PermissionError(errno.EACCES, "Permission denied", "a.csv"), "Permission denied: a.csv"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (UnicodeDecodeError("utf-8", b"Z\xfcrich", 1, 2, "invalid start byte"), "not UTF-8.*0xfc"),
    ],
)
def test_messages_are_sentences(error, words):
    import re

    text, code = explain(error)
    assert code == 2 and re.search(words, text), text


def test_python_m_longaml():
    done = subprocess.run(
        [sys.executable, "-m", "longaml", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("longaml ")
