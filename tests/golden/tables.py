"""Collect the tables of a case, store them small, and compare two of them.

A table is a DataFrame of texts as a CSV file has them, "" where a value is missing. Of a long table
some rows are kept, and what all its rows add up to.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from cases import IGNORED

MOST = 3500  # rows that are stored; of a longer table, every k-th row
RELATIVE = 2e-5  # stored values have six significant digits, whatever else is in their column
ABSOLUTE = 1e-12  # a zero
# A permutation p-value counts scores, and one of many may change sides; a small one counts few.
OF_P, SMALL_P = 2e-4, 1e-3
# Differences of values in single precision keep the error of the values, however small they are;
# as a share of the largest of their model. Functions such as log1p differ in the last bit between
# machines with and without AVX-512.
OF_DIFFERENCE = 5e-7
DIFFERENCES = ("score", "interaction", "earlier", "later")
# The output of a network with a gene less its output with all genes: numbers near 1.
OF_OUTPUT = 6e-8
OUTPUTS = ("output_change",)
# Training feeds a rounding back to the network: two processors that both have AVX2 gave
# importances of the published Transformer that differ by 3.6e-4 of the largest, and one of them
# now gives others by 3e-4 of the largest, and by 0.5% where the largest is 0.03.
OF_NETWORK = 2e-3
NETWORKS = ("Importance",)  # columns that come from a trained network alone
GROUPS = ("model", "contrast", "cell_type")  # a ranking is of one of each


@dataclass
class Table:
    """Rows that are kept of a table, and what all its rows add up to."""

    rows: pd.DataFrame  # texts
    n: int  # rows of the whole table
    step: int  # every step-th row is kept
    totals: dict[str, dict[str, float]]  # column -> count, sum, squares; only where step > 1


def numbers(texts: pd.Series) -> np.ndarray:
    """The values of a column, NaN where a text is not a number."""
    return pd.to_numeric(texts, errors="coerce").to_numpy(float)


def _totals(texts: pd.Series) -> dict[str, float]:
    """How many values a column has; where all are numbers, their sum and their sum of squares."""
    given = texts[texts != ""]
    x = numbers(given)
    if not len(x) or not np.isfinite(x).all():
        return {"count": len(given)}
    return {"count": len(given), "sum": float(x.sum()), "squares": float((x**2).sum())}


def table(frame: pd.DataFrame, step: int | None = None) -> Table:
    """Keep at most `MOST` rows, evenly spaced, or every `step`-th."""
    frame = frame.drop(columns=[c for c in IGNORED if c in frame])
    step = step or max(1, -(-len(frame) // MOST))
    totals = {c: _totals(frame[c]) for c in frame} if step > 1 else {}
    return Table(frame.iloc[::step].reset_index(drop=True), len(frame), step, totals)


def _texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Every value as a text, missing ones as an empty text."""
    return frame.astype(object).where(frame.notna(), "").astype(str)


def _h5ad(path: Path) -> dict[str, pd.DataFrame]:
    """The obs columns of a file, and the sums over its cells of X and of every layer."""
    import anndata as ad

    a = ad.read_h5ad(path)
    sums = {"gene": a.var_names.to_numpy()}
    for name, x in {"X": a.X, **a.layers}.items():
        x = x.toarray() if hasattr(x, "toarray") else np.asarray(x)
        sums[name] = np.nansum(x.astype(float), axis=0)
    obs = a.obs.rename_axis("index").reset_index()
    return {"obs.csv": _texts(obs), "sums.csv": _texts(pd.DataFrame(sums))}


def collect(out: Path, steps: dict[str, int] | None = None) -> dict[str, Table]:
    """Every table that commands left in a folder, by its path, without what --resume needs.

    Of tables in `steps`, the rows that were kept when it was frozen.
    """
    steps = steps or {}
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if "/steps/" in name or "/pieces/" in name or not path.is_file():
            continue
        if path.suffix == ".csv":
            read = pd.read_csv(path, dtype=str, keep_default_na=False)
            found[name] = table(read, steps.get(name))
        if path.suffix == ".h5ad":
            parts = {f"{name}/{part}": t for part, t in _h5ad(path).items()}
            found |= {part: table(t, steps.get(part)) for part, t in parts.items()}
    return found


def rounded(texts: pd.Series) -> pd.Series:
    """Numbers that are not whole, to six significant digits; everything else as it is."""
    whole = texts.str.fullmatch(r"-?\d+")
    x = numbers(texts)
    some = ~whole.to_numpy(bool) & np.isfinite(x)
    out = texts.copy()
    out[some] = [f"{v:.6g}" for v in x[some]]
    return out


def store(t: Table, path: Path) -> None:
    """Write a table as `path`.csv.gz, the same bytes for the same values; `path` ends in .csv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = t.rows.apply(rounded).to_csv(index=False, lineterminator="\n")
    Path(f"{path}.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    if t.step > 1:
        totals = {
            c: {k: float(f"{v:.10g}") if k != "count" else v for k, v in s.items()}
            for c, s in t.totals.items()
        }
        whole = {"rows": t.n, "step": t.step, "columns": totals}
        path.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")


def load(folder: Path) -> dict[str, Table]:
    """The stored tables of a case."""
    found = {}
    for path in sorted(folder.rglob("*.csv.gz")):
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        whole = path.with_name(path.name.removesuffix(".csv.gz") + ".json")
        about = json.loads(whole.read_text()) if whole.exists() else {}
        name = path.relative_to(folder).as_posix().removesuffix(".gz")
        n, step = about.get("rows", len(rows)), about.get("step", 1)
        found[name] = Table(rows, n, step, about.get("columns", {}))
    return found


def _lookup(names: dict, table_name: str, column: str, default):
    """The entry of `table.csv:column`, the one with most of its path, or of the column anywhere."""
    parts = table_name.split("/")
    for i in range(len(parts)):
        own = f"{'/'.join(parts[i:])}:{column}"
        if own in names:
            return names[own]
    return names.get(column, default)


def _reworded(texts: pd.Series, words: dict[str, str]) -> pd.Series:
    """Texts with parts of them replaced."""
    for old, new in words.items():
        texts = texts.str.replace(old, new, regex=False)
    return texts


def renamed_path(path: str, names: dict) -> str | None:
    """A table's path under its new name: the whole path, or any part of it; None if it is gone."""
    if path in names:
        return names[path]
    parts = [names.get(part, part) for part in path.split("/")]
    return None if None in parts else "/".join(parts)


def renamed(tables: dict[str, Table], names: dict[str, dict]) -> dict[str, Table]:
    """Frozen tables under the names of today; what is null in names.json is left out."""
    found = {}
    for path, t in tables.items():
        new_path = renamed_path(path, names["tables"])
        if new_path is None:
            continue
        columns = {c: _lookup(names["columns"], path, c, c) for c in t.rows}
        rows = t.rows.copy()
        for c in rows:
            rows[c] = rows[c].replace(_lookup(names["values"], path, c, {}))
            rows[c] = _reworded(rows[c], _lookup(names.get("words", {}), path, c, {}))
        kept = [c for c in rows if columns[c] is not None]
        totals = {columns[c]: t.totals[c] for c in kept if c in t.totals}
        found[new_path] = Table(rows[kept].rename(columns=columns), t.n, t.step, totals)
    return found


def dropped(path: str, names: dict[str, dict]) -> set[str]:
    """Old columns of a table that names.json says are gone or not compared."""
    base = Path(path).name
    gone = [
        c.split(":", 1) if ":" in c else ["", c]
        for c, new in names["columns"].items()
        if new is None
    ]
    return {c for where, c in gone if where in ("", base)}


def added(path: str, names: dict[str, dict]) -> set[str]:
    """Columns of a table that names.json says came later."""
    return set(names.get("added", {}).get(Path(path).name, []))


def unchanged(path: str, t: Table, names: dict[str, dict]) -> Table:
    """A table without the rows whose numbers names.json says were changed on purpose."""
    rows = t.rows
    for column, values in names.get("changed", {}).get(Path(path).name, {}).items():
        if column in rows:
            rows = rows[~rows[column].isin(values)].reset_index(drop=True)
    return Table(rows, t.n - (len(t.rows) - len(rows)) * t.step, t.step, t.totals)


def floor(name: str, rows: pd.DataFrame) -> np.ndarray:
    """By how much each value of a column may differ, because of a known cause."""
    x = np.nan_to_num(np.abs(numbers(rows[name])), posinf=0)
    allowed = np.full(len(x), ABSOLUTE)
    if name.startswith(("p_value", "q_value")):
        allowed[x >= SMALL_P] = OF_P
    if name in DIFFERENCES:
        of = rows["model"] if "model" in rows else np.zeros(len(x))
        allowed += OF_DIFFERENCE * pd.Series(x).groupby(np.asarray(of)).transform("max").to_numpy()
    if name in OUTPUTS:
        allowed += OF_OUTPUT
    if name in NETWORKS:
        allowed += OF_NETWORK * x.max(initial=0)
    return allowed


def within(path: str, t: Table, names: dict[str, dict]) -> dict[str, np.ndarray]:
    """By how much more values may differ where names.json says that they were made more exact."""
    found = {}
    for place, rule in names.get("within", {}).items():
        base, column = place.split(":")
        if Path(path).name == base and column in t.rows:
            found[column] = t.rows[rule["column"]].map(rule["rows"]).fillna(0).to_numpy(float)
    return found


def close(a: np.ndarray, b: np.ndarray, allowed: np.ndarray | float = 0.0) -> np.ndarray:
    """Which numbers agree to the digits that are stored, or within what is allowed."""
    same = a == b  # infinite values too
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= np.maximum(allowed, RELATIVE * np.maximum(np.abs(a), np.abs(b)))
    return same | near


def tied(frozen: pd.DataFrame, now: pd.DataFrame) -> np.ndarray:
    """Where a gene has the rank of another with the same score: rounding orders them."""
    groups = [c for c in GROUPS if c in frozen]
    score = dict(zip(map(tuple, frozen[[*groups, "rank"]].to_numpy()), numbers(frozen["score"])))
    places = map(tuple, frozen[groups].assign(rank=now["rank"]).to_numpy())
    there = np.array([score.get(place, np.nan) for place in places])
    return close(numbers(frozen["score"]), there, floor("score", frozen))


def inconsistent(path: str, rows: pd.DataFrame) -> list[str]:
    """Whether ranks are the order of scores, and directions those of log2 fold changes."""
    found = []
    if {"rank", "score", "gene"} <= set(rows):
        ordered = rows.assign(rank=numbers(rows["rank"]), score=numbers(rows["score"]))
        groups = [c for c in GROUPS if c in rows]
        ordered = ordered.sort_values([*groups, "rank"]).reset_index(drop=True)
        fell = ordered["score"].diff() <= floor("score", ordered)
        first = (
            ordered[groups].ne(ordered[groups].shift()).any(axis=1) if groups else fell.index == 0
        )
        if not (fell | first | ordered["score"].isna()).all():
            found.append(f"{path}: ranks are not in the order of scores")
    if {"direction", "log2_fold_change"} <= set(rows):
        change = numbers(rows["log2_fold_change"])
        sign = np.select([change > 0, change < 0], ["up", "down"], "")
        if (rows["direction"].to_numpy() != sign).any():
            found.append(f"{path}: directions are not those of log2 fold changes")
    return found


def _column(
    name: str, frozen: pd.DataFrame, now: pd.DataFrame, step: int, more: np.ndarray | float
) -> list[str]:
    """The cells of a column that differ, in words."""
    was, found = frozen[name], now[name]
    same = (was == found).to_numpy()
    same |= close(numbers(was), numbers(found), np.maximum(floor(name, frozen), more))
    if name == "rank" and {"gene", "score"} <= set(frozen):
        same |= tied(frozen, now)
    return [
        f"row {i * step}, {name}: was {was[i]!r}, is {found[i]!r}" for i in np.flatnonzero(~same)
    ]


def _total(name: str, frozen: dict[str, float], now: dict[str, float]) -> list[str]:
    """How the totals of a column differ, in words."""
    if frozen.keys() != now.keys() or frozen["count"] != now["count"]:
        return [f"all rows, {name}: was {frozen}, is {now}"]
    if "sum" not in frozen:
        return []
    size = np.sqrt(frozen["count"] * frozen["squares"])  # of a sum whose terms may cancel
    bad = abs(frozen["sum"] - now["sum"]) > ABSOLUTE + RELATIVE * size
    bad |= abs(frozen["squares"] - now["squares"]) > ABSOLUTE + 2 * RELATIVE * frozen["squares"]
    return [f"all rows, {name}: was {frozen}, is {now}"] if bad else []


def aligned(frozen: pd.DataFrame, now: pd.DataFrame) -> pd.DataFrame:
    """Rows in the frozen order where texts name each row: rounding decides the order of ties."""
    shared = [c for c in frozen if c in now]
    keys = [c for c in shared if np.isnan(numbers(frozen[c][frozen[c] != ""])).any()]
    if len(frozen) != len(now) or not keys or frozen[keys].equals(now[keys]):
        return now
    was, found = (pd.MultiIndex.from_frame(t[keys]) for t in (frozen, now))
    if not was.is_unique or not found.is_unique or set(was) != set(found):
        return now
    return now.iloc[found.get_indexer(was)].reset_index(drop=True)


def differences(frozen: Table, now: Table, more: dict[str, np.ndarray] | None = None) -> list[str]:
    """What differs between two tables, in words: columns, number of rows, cells, totals.

    `more` gives columns whose values may differ by more.
    """
    more = more or {}
    gone = sorted(set(frozen.rows) - set(now.rows))
    came = sorted(set(now.rows) - set(frozen.rows))
    found = [f"column {c!r} is gone" for c in gone] + [f"column {c!r} is new" for c in came]
    if frozen.n != now.n:
        return [*found, f"had {frozen.n} rows, has {now.n}"]
    rows = aligned(frozen.rows, now.rows)
    for c in frozen.rows:
        if c in now.rows:
            found += _column(c, frozen.rows, rows, frozen.step, more.get(c, 0.0))
            if frozen.step > 1:
                found += _total(c, frozen.totals[c], now.totals[c])
    return found
