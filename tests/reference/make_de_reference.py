"""Simulated counts with covariates, and what limma, edgeR and lmerTest make of them (R).

    python tests/reference/make_de_reference.py  # needs Rscript, limma, edgeR, lmerTest

Writes `de_counts.csv.gz`, `de_samples.csv` and a table a case; tests read these and need no R.
"""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
GENES = 300
R = """
suppressMessages({library(limma); library(edgeR); library(lmerTest); library(splines)})
setwd(commandArgs(TRUE)[1])
counts <- as.matrix(read.csv("de_counts.csv.gz", row.names=1)); s <- read.csv("de_samples.csv")
s$timepoint <- factor(s$timepoint, levels=c("DX","REM","REL")); s$patient <- factor(s$patient)
s$response <- factor(s$response); first <- s$replicate == 1
say <- function(fit, coef, name) {
  t <- topTable(fit, coef=coef, number=Inf, sort.by="none")
  t$gene <- rownames(t)
  to <- gzfile(paste0("de_", name, ".csv.gz"))
  write.csv(format(t, digits=12), to, row.names=FALSE)
}
voomed <- function(rows, design) {
  y <- calcNormFactors(DGEList(t(counts[rows,])))
  voom(y, design)
}
d <- s[first,]
design <- model.matrix(~ patient + timepoint, d); v <- voomed(first, design)
say(eBayes(lmFit(v, design)), "timepointREL", "fixed")
w <- format(as.data.frame(t(v$weights)), digits=14)
write.csv(w, gzfile("de_fixed_weights.csv.gz"), row.names=FALSE)
design <- model.matrix(~ timepoint * response + age, d); v <- voomed(first, design)
say(eBayes(lmFit(v, design)), "timepointREL:responsepoor", "interaction")
design <- model.matrix(~ ns(days, 3), d); v <- voomed(first, design)
fit <- eBayes(lmFit(v, design)); out <- NULL  # limma's F takes one correlation of coefficients
for (k in 1:nrow(v$E)) { whole <- lm(v$E[k,] ~ design - 1, weights=v$weights[k,])
  none <- lm(v$E[k,] ~ 1, weights=v$weights[k,])
  f <- (deviance(none) - deviance(whole)) / 3 / fit$s2.post[k]
  out <- rbind(out, data.frame(F=f, P.Value=pf(f, 3, fit$df.total[k], lower.tail=FALSE))) }
write.csv(format(out, digits=12), gzfile("de_spline.csv.gz"), row.names=FALSE)
design <- model.matrix(~ timepoint + response, d); v <- voomed(first, design)
for (i in 1:2) { rho <- duplicateCorrelation(v, design, block=d$patient)$consensus
  v <- voom(calcNormFactors(DGEList(t(counts[first,]))), design, block=d$patient, correlation=rho) }
rho <- duplicateCorrelation(v, design, block=d$patient)$consensus
say(eBayes(lmFit(v, design, block=d$patient, correlation=rho)), "timepointREL", "correlated")
alone <- first & !duplicated(s$patient); d <- s[alone,]
design <- model.matrix(~ response + age, d); v <- voomed(alone, design)
say(eBayes(lmFit(v, design)), "responsepoor", "unpaired")
design <- model.matrix(~ timepoint, s); v <- voomed(rep(TRUE, nrow(s)), design); out <- NULL
s$visit <- factor(paste(s$patient, s$timepoint))
for (k in 1:50) { s$y <- v$E[k,]; s$w <- v$weights[k,]
  m <- suppressMessages(suppressWarnings(lmer(y ~ timepoint + (1|patient) + (1|visit), s, weights=w,
    control=lmerControl(optimizer="bobyqa", optCtrl=list(rhoend=1e-12, maxfun=1e5)))))
  x <- coef(summary(m))["timepointREL",]
  out <- rbind(out, data.frame(gene=rownames(v$E)[k], effect=x[1], se=x[2], df=x[3], t=x[4], p=x[5],
    smallest=min(as.data.frame(VarCorr(m))$vcov))) }
write.csv(format(out, digits=12), "de_mixed.csv", row.names=FALSE)
w <- format(as.data.frame(t(v$weights[1:50,])), digits=14)
write.csv(w, gzfile("de_mixed_weights.csv.gz"), row.names=FALSE)
"""


def simulated() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Samples with patient, visit and replicate effects, and their counts."""
    rng = np.random.default_rng(18)
    rows = [
        (f"P{p:02d}", t, r, "poor" if p % 2 else "good", 2 + 1.1 * p, i * 90.0 + rng.integers(60))
        for p in range(12)
        for i, t in enumerate(("DX", "REM", "REL"))
        for r in (1, 2)
        if rng.random() > 0.12 or r == 1
    ]
    names = ["patient", "timepoint", "replicate", "response", "age", "days"]
    samples = pd.DataFrame(rows, columns=names)
    patient = samples["patient"].factorize()[0]
    visit = (samples["patient"] + samples["timepoint"]).factorize()[0]
    log = rng.normal(1.5, 1.6, GENES) + rng.normal(0, 0.5, (12, GENES))[patient]
    log += rng.normal(0, 0.25, (visit.max() + 1, GENES))[visit]
    log[:, :40] += np.outer(samples["timepoint"] == "REL", rng.normal(0, 0.8, 40))
    share = np.exp(log + rng.normal(0, 0.2, log.shape))
    share /= share.sum(1, keepdims=True)
    depth = rng.lognormal(10.5, 0.5, len(samples))
    counts = rng.poisson(depth[:, None] * share * rng.gamma(20, 1 / 20, log.shape))
    genes = [f"G{i:03d}" for i in range(GENES)]
    return samples, pd.DataFrame(counts, columns=genes)


def main() -> None:
    """Simulate, write, and let R do its part."""
    samples, counts = simulated()
    samples.to_csv(HERE / "de_samples.csv", index=False)
    counts.to_csv(HERE / "de_counts.csv.gz")
    subprocess.run(["Rscript", "-e", R, str(HERE)], check=True)


if __name__ == "__main__":
    main()
