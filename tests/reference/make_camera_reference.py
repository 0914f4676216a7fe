"""What limma's camera makes of the counts that `make_de_reference.py` simulated (R).

    python tests/reference/make_camera_reference.py  # needs Rscript, limma, edgeR

Writes `camera_sets.csv` (set, gene), `camera.csv` (a row a set: correlation; p with the correlation
estimated, fixed at 0.01, and with variances on a trend; `exact`: cameraPR on z-scores without
Hill's approximation) and `camera_z.csv` (the z-scores of the genes); tests read these without R.
"""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
R = """
suppressMessages({library(limma); library(edgeR)})
setwd(commandArgs(TRUE)[1])
counts <- as.matrix(read.csv("de_counts.csv.gz", row.names=1)); s <- read.csv("de_samples.csv")
s$timepoint <- factor(s$timepoint, levels=c("DX","REM","REL")); s$patient <- factor(s$patient)
first <- s$replicate == 1; d <- s[first,]
design <- model.matrix(~ patient + timepoint, d)
v <- voom(calcNormFactors(DGEList(t(counts[first,]))), design)
m <- read.csv("camera_sets.csv"); sets <- split(m$gene, factor(m$set, unique(m$set)))
estimated <- camera(v, sets, design, inter.gene.cor=NA, sort=FALSE)
fixed <- camera(v, sets, design, sort=FALSE)
trend <- camera(v, sets, design, inter.gene.cor=NA, trend.var=TRUE, sort=FALSE)
fit <- eBayes(lmFit(v, design))
z <- zscoreT(fit$t[,ncol(design)], fit$df.total, approx=FALSE)
exact <- cameraPR(z, sets, inter.gene.cor=pmax(estimated$Correlation, 0), sort=FALSE)
out <- data.frame(set=names(sets), n_genes=estimated$NGenes, correlation=estimated$Correlation,
  direction=estimated$Direction, estimated=estimated$PValue, fixed=fixed$PValue,
  trend=trend$PValue, exact=exact$PValue)
write.csv(format(out, digits=14, trim=TRUE), "camera.csv", row.names=FALSE, quote=FALSE)
z <- data.frame(gene=rownames(v$E), z=z)
write.csv(format(z, digits=14, trim=TRUE), "camera_z.csv", row.names=FALSE, quote=FALSE)
"""


def chosen() -> pd.DataFrame:
    "Random sets, sets of changed genes (the first 40), and genes that follow one gene."
    rng = np.random.default_rng(317)
    counts = pd.read_csv(HERE / "de_counts.csv.gz", index_col=0)
    log = np.log(counts + 0.5).sub(np.log(counts.sum(axis=1)), axis=0)
    alike = log.corr().to_numpy()
    sets = {f"random {i}": rng.choice(300, n, replace=False) for i, n in enumerate((5, 20, 60))}
    sets |= {f"changed {i}": rng.choice(40, n, replace=False) for i, n in enumerate((6, 12))}
    sets |= {f"mixed {i}": np.r_[rng.choice(40, n), rng.choice(260, n) + 40] for i, n in [(0, 8)]}
    sets |= {f"alike {i}": np.argsort(-alike[i])[:15] for i in (3, 50, 120, 200)}
    rows = [(name, counts.columns[g]) for name, genes in sets.items() for g in dict.fromkeys(genes)]
    return pd.DataFrame(rows, columns=["set", "gene"])


def main() -> None:
    "Choose sets, write them, and let R do its part."
    chosen().to_csv(HERE / "camera_sets.csv", index=False)
    subprocess.run(["Rscript", "-e", R, str(HERE)], check=True)


if __name__ == "__main__":
    main()
