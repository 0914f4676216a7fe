"""Matrix Market through SciPy's reader: the same numbers, every refusal, any number of processes,
and a fast filter in what is written.
"""

import gzip
import io
import math
import re
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from scipy.io import mmread, mmwrite

from longaml.core import InputError, rng_for
from longaml.datasets.cohort import simulate_cohort
from longaml.datasets.writers import write_geo
from longaml.experiment.de import DE, DEConfig
from longaml.pp import formats, matrix
from longaml.pp.archives import archive_files
from longaml.pp.cohort import save_cohort
from longaml.pp.formats import SourceFile, read_matrix
from longaml.pp.reading import read_cohort

MANY = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
BANNER = "%%MatrixMarket matrix coordinate {kind} general\n"


def source(data, name="m.mtx"):
    "Bytes as a file."
    return SourceFile(name, len(data), partial(io.BytesIO, data))


def read(data, n_genes, n_cells, entries, columns=None, name="m.mtx"):
    "What `read_matrix` makes of bytes, as a matrix of cells x genes."
    columns = np.arange(n_genes, dtype=np.int32) if columns is None else columns
    values = np.full(entries, -7, np.float32)
    indices = np.full(entries, -7, np.int32)
    rows = read_matrix(source(data, name), n_cells, columns, values, indices)
    shape = (n_cells, int(columns.max(initial=0)) + 1)
    return sp.csr_matrix((values[: rows[-1]], indices[: rows[-1]], rows), shape=shape)


def text_of(lines, size, kind="integer"):
    return (BANNER.format(kind=kind) + size + "\n" + "".join(x + "\n" for x in lines)).encode()


def refusal(lines, size="3 3 2", entries=2, kind="real"):
    with pytest.raises(InputError) as e:
        read(text_of(lines, size, kind), 3, 3, entries)
    assert str(e.value).startswith("m.mtx ")
    return str(e.value)


# ---------------------------------------------------------------- the same numbers
@st.composite
def matrices(draw):
    "Counts, genes x cells, and where each gene goes."
    n_genes, n_cells = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    r = rng_for(draw(st.integers(0, 10**6)), "matrix")
    dense = r.poisson(3, (n_genes, n_cells)) * (
        r.random((n_genes, n_cells)) < draw(st.sampled_from([0.05, 0.3, 1.0]))
    )
    dense[r.random(dense.shape) < 0.05] *= 100_000
    columns = r.permutation(n_genes + 3)[:n_genes].astype(np.int32)
    columns[r.random(n_genes) < draw(st.sampled_from([0, 0.3]))] = -1
    return dense, columns, r


def placed(dense, columns):
    "Cells x genes of the cohort, by plain NumPy."
    out = np.zeros((dense.shape[1], int(columns.max(initial=0)) + 1), np.float32)
    for gene, column in enumerate(columns):
        if column >= 0:
            out[:, column] = dense[gene]
    return out


@MANY
@given(matrices(), st.sampled_from(["integer", "real"]), st.booleans(), st.booleans())
def test_the_numbers_are_those_of_scipy(case, kind, zipped, shuffled):
    dense, columns, r = case
    counts = sp.coo_matrix(dense)
    if shuffled:
        order = r.permutation(counts.nnz)
        counts = sp.coo_matrix(
            (counts.data[order], (counts.row[order], counts.col[order])), counts.shape
        )
    out = io.BytesIO()
    mmwrite(out, counts, field=kind, symmetry="general")
    data = gzip.compress(out.getvalue()) if zipped else out.getvalue()
    name = "m.mtx.gz" if zipped else "m.mtx"
    found = read(data, *dense.shape, counts.nnz, columns, name)
    assert found.has_canonical_format and found.dtype == np.float32
    assert np.array_equal(found.toarray(), placed(dense, columns))
    identity = np.arange(dense.shape[0], dtype=np.int32)
    theirs = mmread(io.BytesIO(out.getvalue())).T.tocsr()
    ours = read(data, *dense.shape, counts.nnz, identity, name)
    assert np.array_equal(ours.indptr, theirs.indptr)
    assert np.array_equal(ours.indices, theirs.indices) and np.array_equal(ours.data, theirs.data)


VARIANTS = {
    "plain": "{g} {c} {v}\n",
    "windows": "{g} {c} {v}\r\n",
    "tabs": "{g}\t{c}\t{v}\n",
    "two blanks": "{g}  {c} {v}\n",
    "blank first": " {g} {c} {v}\n",
    "blank last": "{g} {c} {v} \n",
    "empty lines": "{g} {c} {v}\n\n",
    "point": "{g} {c} {v}.0\n",
    "point alone": "{g} {c} {v}.\n",
    "exponent": "{g} {c} {v}e0\n",
    "signed exponent": "{g} {c} {v}.000E+00\n",
    "R": "{g} {c} {tenth:.1f}E1\n",
    "plus": "+{g} {c} +{v}\n",
    "zeros": "00{g} {c} 0{v}\n",
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size", [7, 64, 1 << 20])
@pytest.mark.parametrize("ending", [True, False])
def test_however_lines_are_written(name, size, ending, monkeypatch):
    "Also where a block ends within a line, a number, or between the two bytes of a line break."
    monkeypatch.setattr(formats, "_blocks", partial(formats._blocks, size=size))
    r = rng_for(0, name)
    dense = r.poisson(2, (11, 9)) * 12
    genes, cells = np.nonzero(dense)
    body = "".join(
        VARIANTS[name].format(g=g + 1, c=c + 1, v=dense[g, c], tenth=dense[g, c] / 10)
        for g, c in zip(genes, cells)
    )
    text = BANNER.format(kind="real") + f"11 9 {len(genes)}\n" + body
    text = text if ending else text.rstrip()
    assert np.array_equal(read(text.encode(), 11, 9, len(genes)).toarray(), dense.T)


def test_blocks_of_all_kinds_in_one_file():
    "More than one block; a block in Python between blocks in C."
    n = 200_000
    lines = [f"{i % 500 + 1} {i // 500 + 1} {i % 7 + 1}" for i in range(n)]
    lines[90_000] = lines[90_000].replace(" ", "\t") + " "
    lines[150_000] += ".0"
    found = read(text_of(lines, f"500 400 {n}"), 500, 400, n)
    assert np.array_equal(found.toarray().ravel(), np.arange(n) % 7 + 1)


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    "line, part",
    [
        ("1 1", "a line that is not 'gene cell count': '1 1'"),
        ("1 1 ", "a line that is not 'gene cell count': '1 1'"),
        (" 2 3.0", "a line that is not 'gene cell count': '2 3.0'"),
        ("1  3.0", "a line that is not 'gene cell count': '1  3.0'"),
        ("1  1", "a line that is not 'gene cell count': '1  1'"),
        ("1 1 3 7", "a line that is not 'gene cell count': '1 1 3 7'"),
        ("1 2.0 3", "a line that is not 'gene cell count': '1 2.0 3'"),
        ("1 2e0 3", "a line that is not 'gene cell count': '1 2e0 3'"),
        ("1 1 3e", "a line that is not 'gene cell count': '1 1 3e'"),
        ("1 1 3E+", "a line that is not 'gene cell count': '1 1 3E+'"),
        ("1 1 e5", "a line that is not 'gene cell count': '1 1 e5'"),
        ("1 1 .", "a line that is not 'gene cell count': '1 1 .'"),
        ("1 1 3.0.7", "a line that is not 'gene cell count': '1 1 3.0.7'"),
        ("1 1 3-4", "a line that is not 'gene cell count': '1 1 3-4'"),
        ("1 1 0x3", "a line that is not 'gene cell count': '1 1 0x3'"),
        ("1 1 1_000", "a line that is not 'gene cell count': '1 1 1_000'"),
        ("1 1 1,000", "a line that is not 'gene cell count': '1 1 1,000'"),
        ("1 1 three", "a line that is not 'gene cell count': '1 1 three'"),
        ("% comment", "a line that is not 'gene cell count': '% comment'"),
        ("1 1 \x00", "a line that is not 'gene cell count'"),
        ("0 1 4", "an entry outside its 3 genes x 3 cells: gene 0, cell 1, value 4"),
        ("1 4 9", "an entry outside its 3 genes x 3 cells: gene 1, cell 4, value 9"),
        ("-1 2 1", "an entry outside its 3 genes x 3 cells: gene -1, cell 2, value 1"),
        ("99999999999999999999 2 1", "outside its 3 genes x 3 cells: gene 99999999999999999999"),
        ("4294967297 1 1", "outside its 3 genes x 3 cells: gene 4294967297, cell 1"),
        ("1 2 -3", "a negative count: gene 1, cell 2, value -3"),
        ("1 2 2.5", "a fractional count; counts must be whole: gene 1, cell 2, value 2.5"),
        ("1 2 1e-3", "a fractional count; counts must be whole: gene 1, cell 2, value 0.001"),
        ("1 2 nan", "a missing or infinite count: gene 1, cell 2, value nan"),
        ("1 2 -Inf", "a missing or infinite count: gene 1, cell 2, value -inf"),
        ("1 2 1e999", "a missing or infinite count: gene 1, cell 2, value inf"),
        ("1 2 99999999999999999999", "a count above 9,007,199,254,740,992: gene 1, cell 2"),
        ("3 3 5", "gives the same gene of the same cell twice"),
        ("1 2 " + "3" * 70_000, "a count above|missing or infinite|65,536 characters"),
    ],
)
@pytest.mark.parametrize("kind", ["integer", "real"])
def test_refused(line, part, kind):
    "Whatever the header says, wherever the line is."
    for lines in ([line, "3 3 5"], ["3 3 5", line]):
        found = refusal(lines, kind=kind)
        assert re.search(part if "|" in part else re.escape(part), found), found


def test_a_bad_line_far_down_is_named():
    n = 150_000
    lines = [f"{i % 500 + 1} {i // 500 + 1} 1" for i in range(n)]
    for bad, part in {
        "501 3 1": "gene 501, cell 3",
        "7  3": "'7  3'",
        "7 3 1 1": "'7 3 1 1'",
    }.items():
        lines[n - 2] = bad
        with pytest.raises(InputError, match=re.escape(part)):
            read(text_of(lines, f"500 300 {n}"), 500, 300, n)


def test_fewer_and_more_entries_than_the_header_says():
    found = refusal(["1 1 3"])
    assert "ends early: 1 of 2 entries. Download it again" in found
    found = refusal(["1 1 3", "1 2 3", "1 3 3"])
    assert "has more entries than the 2 its header says" in found


@pytest.mark.parametrize("cut", [1, 5, 9, 200])
def test_a_gzip_that_was_cut(cut):
    lines = [f"{i % 50 + 1} {i // 50 + 1} {i % 7 + 1}" for i in range(2000)]
    data = gzip.compress(text_of(lines, "50 40 2000"))
    with pytest.raises(InputError, match=r"m\.mtx\.gz is truncated or damaged"):
        read(data[:-cut], 50, 40, 2000, name="m.mtx.gz")
    wrong = bytearray(data)
    wrong[-6] ^= 1  # the checksum: all entries are there and one may be wrong
    with pytest.raises(InputError, match=r"m\.mtx\.gz is truncated or damaged"):
        read(bytes(wrong), 50, 40, 2000, name="m.mtx.gz")


def test_a_file_without_line_breaks_is_not_kept_in_memory():
    "A gzip of a few kilobytes that holds a line of 64 MiB."
    bomb = gzip.compress(text_of([], "3 3 2") + b"1" * (64 << 20))
    with pytest.raises(InputError, match="a line of more than 65,536 characters"):
        read(bomb, 3, 3, 2, name="m.mtx.gz")


def exactly(data, n_genes, n_cells, entries):
    "What a file holds, by int and float of Python; None where it must be refused."
    found = {}
    for line in data.split(b"\n", 2)[2].split(b"\n"):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 3 or b"_" in line:
            return None
        try:
            gene, cell, value = int(parts[0]), int(parts[1]), float(parts[2])
        except ValueError:
            return None
        inside = 1 <= gene <= n_genes and 1 <= cell <= n_cells
        fine = math.isfinite(value) and 0 <= value <= 2**53 and value == int(value)
        if not inside or not fine or (gene, cell) in found and value and found[gene, cell]:
            return None
        if (gene, cell) in found:
            return "either"  # one of the two is a zero
        found[gene, cell] = value
    return found if len(found) == entries else None


LETTERS = b"0123456789 .eE+-\n\t\r%naif"


@settings(MANY, max_examples=500)
@example(159, 0, 0, "delete")  # the line ` 2 3.0`
@given(
    st.integers(0, 10**6),
    st.integers(0, 200),
    st.integers(0, 255),
    st.sampled_from(["replace", "insert", "delete"]),
)
def test_a_byte_that_is_wrong_is_refused_or_means_what_python_says(seed, at, byte, how):
    "SciPy's reader alone takes `1 1 3 7` as 3 and `1 2.0 3` as 0."
    r = rng_for(seed, "byte")
    n = int(r.integers(1, 12))
    taken = r.choice(12 * 5, n, replace=False)
    values = ["7", "12", "3.0", "5e1", "2.5E+01", "40"]
    lines = [f"{t % 12 + 1} {t // 12 + 1} {values[int(r.integers(6))]}" for t in taken]
    head = BANNER.format(kind="real").encode() + f"12 5 {n}\n".encode()
    body = bytearray("".join(x + "\n" for x in lines).encode())
    at %= len(body)
    new = LETTERS[byte % len(LETTERS) : byte % len(LETTERS) + 1] if byte < 200 else bytes([byte])
    body[at : at + (how != "insert")] = b"" if how == "delete" else new
    data = head + bytes(body)
    right = exactly(data, 12, 5, n)
    assume(right != "either")
    try:
        found = read(data, 12, 5, n)
    except InputError as e:
        assert right is None, (data, str(e))
        assert str(e).startswith("m.mtx ")
        return
    assert right is not None, (data, found.toarray())
    expected = np.zeros((5, 12), np.float32)
    for (gene, cell), value in right.items():
        expected[cell - 1, gene - 1] = value
    assert np.array_equal(found.toarray(), expected), data


# ---------------------------------------------------------------- several processes
@pytest.fixture(scope="module")
def cohort():
    return simulate_cohort("small", seed=3, n_patients=3, n_genes=100, n_cells=12, n_drivers=4)


def same(a, b):
    for part in ("data", "indices", "indptr"):
        one, other = getattr(a.X, part), getattr(b.X, part)
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    assert a.obs.equals(b.obs) and a.var.equals(b.var)
    assert a.uns["longaml"]["warnings"] == b.uns["longaml"]["warnings"]


@pytest.mark.parametrize("place", ["folder", "x.tar"])
def test_the_same_bytes_for_any_number_of_jobs(cohort, tmp_path, place):
    path = write_geo(
        cohort,
        tmp_path / place,
        tar=place.endswith("tar"),
        traps=["different_genes", "unsorted_entries", "real_values"],
    )
    one = read_cohort(path, jobs=1)
    assert np.array_equal(one[cohort.obs_names, cohort.var_names].X.toarray(), cohort.X.toarray())
    for jobs in (None, 2):
        same(one, read_cohort(path, jobs=jobs))


@pytest.mark.slow  # a process for every sample, each with its imports
def test_the_same_bytes_for_more_jobs_than_samples(cohort, tmp_path):
    path = write_geo(cohort, tmp_path / "geo", traps=["different_genes", "unsorted_entries"])
    same(read_cohort(path, jobs=1), read_cohort(path, jobs=100))


def test_members_of_archives_open_in_any_process(tmp_path):
    "Each with a file handle of its own, in turns, and after a trip through pickle."
    import pickle

    contents = {f"s{i}/a.txt": bytes([65 + i]) * 100_000 for i in range(3)}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in contents.items():
            z.writestr(name, data)
    for name in ("a.tar", "a.zip"):
        with archive_files(tmp_path / name) as files:
            files = pickle.loads(pickle.dumps(files))
            with formats.opened(files[0]) as a, formats.opened(files[1]) as b:
                turns = [(a.read(1000), b.read(1000)) for _ in range(100)]
        assert b"".join(x for x, _ in turns) == contents["s0/a.txt"]
        assert b"".join(y for _, y in turns) == contents["s1/a.txt"]


def test_the_first_damaged_sample_is_named_from_any_process(cohort, tmp_path):
    path = write_geo(cohort, tmp_path / "geo")
    matrices = sorted(path.glob("*matrix.mtx.gz"))
    for p in matrices[1:3]:
        text = gzip.decompress(p.read_bytes())
        lines = text.split(b"\n")
        lines[-2] += b" 7"
        p.write_bytes(gzip.compress(b"\n".join(lines)))
    said = []
    for jobs in (1, 2):
        with pytest.raises(InputError, match="not 'gene cell count'") as e:
            read_cohort(path, jobs=jobs)
        said.append(str(e.value))
    assert said[0] == said[1] and said[0].startswith(matrices[1].name)


@pytest.mark.parametrize("jobs", [0, -1, 1.5])
def test_a_number_of_jobs_that_is_none(cohort, tmp_path, jobs):
    with pytest.raises(InputError, match=f"jobs={jobs}: expected how many samples") as e:
        read_cohort(write_geo(cohort, tmp_path / "geo"), jobs=jobs)
    assert e.value.parameter == "jobs"


def test_small_cohorts_are_read_by_one_process_and_large_ones_by_several(monkeypatch):
    def parts(size):
        file = SourceFile("m.mtx", size, None)
        return [matrix._Part(file, 1, np.zeros(1, np.int32), 1)] * 20

    monkeypatch.setattr(matrix.joblib, "cpu_count", lambda: 64)
    assert matrix._processes(parts(1000), None) == 1
    assert matrix._processes(parts(matrix.WORTH_IT), None) == matrix.MOST_JOBS
    assert matrix._processes(parts(1000), 3) == 3 and matrix._processes(parts(1000), 99) == 20


def test_jobs_are_no_part_of_what_decides_a_run(tmp_path):
    config = {"cohort": tmp_path / "c.h5ad", "seed": 0}
    driver = __import__("longaml.experiment.driver", fromlist=["_deciding"])
    decided = [
        driver._deciding(DE(DEConfig(**config, out=tmp_path / "o", read=read)).params())
        for read in ({"layer": "X", "jobs": 2}, {"layer": "X", "jobs": 7}, {"layer": "X"})
    ]
    assert decided[0] == decided[1] == decided[2] and decided[0]["read"] == {"layer": "X"}


# ---------------------------------------------------------------- what is written
def test_files_are_written_with_filters_that_every_hdf5_library_has(cohort, tmp_path):
    path = save_cohort(cohort, tmp_path / "c.h5ad")
    filters = []
    with h5py.File(path) as f:

        def look(name, item):
            if name.startswith(("X/", "layers/")) and isinstance(item, h5py.Dataset):
                filters.append((item.compression, item.compression_opts, item.shuffle))

        f.visititems(look)
    assert len(filters) >= 3 and set(filters) == {("gzip", 1, True)}
    back = ad.read_h5ad(path)
    assert np.array_equal(back.X.toarray(), cohort.X.toarray())
    assert list(back.obs_names) == list(cohort.obs_names)
    pd.testing.assert_frame_equal(back.var, cohort.var, check_dtype=False)


def test_the_filter_is_smaller_than_the_usual_one(tmp_path):
    r = rng_for(0, "filter")
    counts = r.poisson(r.gamma(2, 0.5, (300, 2000)) * np.exp(r.normal(-2.6, 1.6, 2000)))
    adata = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)))
    formats.write_h5ad(adata, tmp_path / "ours.h5ad")
    adata.write_h5ad(tmp_path / "usual.h5ad", compression="gzip")
    sizes = [Path(tmp_path / f"{n}.h5ad").stat().st_size for n in ("ours", "usual")]
    assert sizes[0] < sizes[1]
