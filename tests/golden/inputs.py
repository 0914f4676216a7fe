"""The inputs of the cases: small simulated data with fixed seeds, and a filtered real screen.

Each function writes to the path it is given. They use the package of the checkout that is tested.
"""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.io import mmwrite

import longaml as la


def _cohort() -> ad.AnnData:
    return la.datasets.simulate_cohort(
        "small", n_patients=8, n_genes=150, n_cells=100, n_drivers=8, missing=0.1, seed=2
    )


def cohort(path: Path) -> None:
    """A folder in the GEO layout."""
    la.datasets.write_geo(_cohort(), path)


def tar(path: Path) -> None:
    """The same as one archive."""
    la.datasets.write_geo(_cohort(), path, tar=True)


def visits(path: Path) -> None:
    """Nine patients with visits enough to forecast and to impute."""
    a = la.datasets.simulate_cohort(
        "small", n_patients=9, n_genes=200, n_cells=150, n_drivers=6, seed=5
    )
    la.pp.save_cohort(a, path)


def followed(path: Path) -> None:
    """Fourteen patients with a time to relapse that has nothing to do with their cells."""
    a = la.datasets.simulate_cohort(
        "small", n_patients=14, n_genes=100, n_cells=60, n_drivers=6, seed=9
    )
    patient = a.obs["patient"].cat.codes.to_numpy().astype(int)
    rng = np.random.default_rng(1)
    a.obs["days"] = rng.exponential(300, 14).round()[patient]
    a.obs["relapse"] = (np.arange(14) % 3 > 0).astype(int)[patient]
    a.obs["age"] = rng.integers(1, 18, 14)[patient]
    la.pp.save_cohort(a, path)


def bulk(path: Path) -> None:
    """A row per sample, in the package's own columns."""
    la.datasets.write_geo(
        la.datasets.simulate_cohort("bulk", n_patients=8, n_genes=150, n_drivers=8, seed=3), path
    )


def tidy(path: Path) -> None:
    """Columns, a layer and gene symbols with names of their own."""
    a = _cohort()
    obs = {
        "donor": "patient",
        "day": "timepoint",
        "cluster": "base_cell_type",
        "tumour": "malignant",
    }
    frame = pd.DataFrame({new: a.obs[old].astype(str) for new, old in obs.items()})
    counts = sp.csr_matrix(a.X).astype(np.float32)
    var = pd.DataFrame({"symbol": a.var_names}, index=[f"ENSG{i:011d}" for i in range(a.n_vars)])
    log = counts.copy()
    log.data = np.log1p(log.data)
    ad.AnnData(log, obs=frame, var=var, layers={"raw": counts}).write_h5ad(path)


def tenx(path: Path) -> None:
    """Folders as Cell Ranger leaves them, with a sample sheet."""
    a, rows = _cohort(), []
    for i, sample in enumerate(sorted(a.obs["sample"].astype(str).unique())[:6]):
        part, folder = a[(a.obs["sample"] == sample).to_numpy()], path / f"run{i}"
        folder.mkdir(parents=True)
        mmwrite(folder / "matrix.mtx", sp.coo_matrix(part.X.T.astype(int)), field="integer")
        genes = "".join(f"ENSG{j:011d}\t{g}\tGene Expression\n" for j, g in enumerate(a.var_names))
        (folder / "features.tsv").write_text(genes)
        barcodes = "".join(f"CELL{j:05d}-1\n" for j in range(part.n_obs))
        (folder / "barcodes.tsv").write_text(barcodes)
        who = {k: str(part.obs[k].iloc[0]) for k in ("patient", "timepoint")}
        rows.append({"folder": f"run{i}", "sample": sample, **who})
    pd.DataFrame(rows).to_csv(path / "samples.csv", index=False)


def ranking(path: Path) -> None:
    """A ranking that somebody else made: mostly abundance."""
    a, rng = _cohort(), np.random.default_rng(0)
    score = np.log1p(np.asarray(a.X.sum(0)).ravel()) + rng.normal(0, 0.5, a.n_vars)
    pd.DataFrame({"gene": a.var_names, "score": score}).to_csv(path, index=False)


def genes(path: Path) -> None:
    """Thirty genes, one a line."""
    path.write_text("\n".join(_cohort().var_names[20:50]) + "\n")


def labelled(path: Path) -> None:
    """Cells of three types, for modules."""
    a = la.datasets.simulate_cohort(
        "small", n_patients=6, n_cells=70, n_genes=120, n_drivers=6, composition=0.0, seed=2
    )
    a = a[a.obs["base_cell_type"].isin(["T", "B", "Mono"]).to_numpy()]
    columns = {"type": "base_cell_type", "donor": "patient", "lane": "sample"}
    obs = pd.DataFrame({new: a.obs[old].astype(str) for new, old in columns.items()})
    ad.AnnData(a.X.copy(), obs=obs, var=a.var[[]]).write_h5ad(path)


def screen(path: Path) -> None:
    """A small Perturb-seq screen with single and double perturbations."""
    a = la.datasets.simulate_perturbseq(
        "small",
        n_genes=60,
        n_regulators=10,
        n_programmes=3,
        n_pairs=10,
        n_cells=25,
        n_control=120,
        umis=600,
        not_read=1,
        unmeasured=2,
        unexpressed=3,
        seed=3,
    )
    guide = a.obs["perturbation"].astype(str).str.replace("+", "_").replace("control", "NTC")
    a.obs = pd.DataFrame({"guide": guide, "lane": a.obs["batch"].astype(str)})
    a.write_h5ad(path)


def types(path: Path) -> None:
    """Cells of six types of five donors."""
    la.datasets.simulate_types("distinct", seed=5, n_patients=5, n_genes=240, cells=4).write_h5ad(
        path
    )


def new(path: Path) -> None:
    """Cells to annotate."""
    la.datasets.simulate_types("distinct", seed=5, n_patients=2, n_genes=240, cells=4).write_h5ad(
        path
    )


def clones(path: Path) -> None:
    """Types that converge, in clones followed over time."""
    a = la.datasets.simulate_types(
        "ambiguous", seed=6, n_patients=4, n_genes=160, n_pairs=2, cells=8
    )
    a.write_h5ad(path)


def thp1(path: Path) -> None:
    """The cells of the THP-1 screen whose guide is certain."""
    cells = ad.read_h5ad(Path(os.environ["LONGAML_DATA"]) / "thp1_crispr.h5ad")
    sure = (cells.obs["grna_umi"] >= 5) & (cells.obs["grna_frac"] > 0.7)
    cells[sure.to_numpy()].copy().write_h5ad(path)


H5AD = "visits followed tidy labelled screen types new clones thp1".split()
# what an input is called on disk, where the reader looks at the name
NAMES = {
    "tar": "GSE000000_RAW.tar",
    "ranking": "ranking.csv",
    "genes": "genes.txt",
    **{
        n: f"{n}.h5ad" for n in "visits followed tidy labelled screen types new clones thp1".split()
    },
}


def make(name: str, folder: Path) -> Path:
    """The path of an input, made if it is not there yet."""
    path = folder / NAMES.get(name, name)
    if not path.exists():
        part = folder / f".part-{os.getpid()}" / path.name
        part.parent.mkdir(parents=True, exist_ok=True)
        globals()[name](part)
        os.replace(part, path)
        part.parent.rmdir()
    return path
