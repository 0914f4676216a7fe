"""The code gives what it gave before: the tables in tests/golden/tables, up to names.json."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "golden"))

import tables as golden  # noqa: E402
from cases import CASES, UNCOVERED, Case  # noqa: E402
from running import read_names, renamed, run_case  # noqa: E402

NO_NAMES: dict[str, dict] = {
    section: {} for section in ("columns", "values", "options", "tables", "words")
}
SHOWN = 8  # differences of a table that a failure shows


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the inputs, which cases share."""
    return tmp_path_factory.mktemp("inputs")


def compare(folder: Path, out: Path, names: dict[str, dict]) -> list[str]:
    """What differs between the frozen tables of a case and those in `out`, in words."""
    own = names.get("cases", {}).get(folder.name, {})  # what was changed on purpose in this case
    both = {key: {**names.get(key, {}), **own.get(key, {})} for key in ("columns", "changed")}
    names = {**names, **both}
    old, found = golden.load(folder), []
    frozen = golden.renamed(old, names)
    now = golden.collect(out, {path: t.step for path, t in frozen.items()})
    came = {golden.renamed_path(path, names["tables"]): path for path in old}
    now = {path: t for path, t in now.items() if path not in gone(old, names)}
    found += [f"{name} is gone" for name in sorted(frozen.keys() - now.keys())]
    new = sorted(now.keys() - frozen.keys())
    found += [f"{name} is new" for name in new if "*" not in golden.added(name, names)]
    for name in sorted(frozen.keys() & now.keys()):
        table = replace(now[name])
        ignored = golden.dropped(came[name], names) | golden.added(name, names)
        ignored -= set(frozen[name].rows)
        table.rows = table.rows.drop(columns=[c for c in ignored if c in table.rows])
        kept = [golden.unchanged(name, t, names) for t in (frozen[name], table)]
        lines = golden.differences(*kept, golden.within(name, kept[0], names))
        found += [f"{name}: {line}" for line in lines[:SHOWN]]
        found += golden.inconsistent(name, now[name].rows)
        if len(lines) > SHOWN:
            found.append(f"{name}: and {len(lines) - SHOWN} more differences")
    return found


def gone(old: dict, names: dict[str, dict]) -> set[str]:
    """Old tables that names.json says are not compared."""
    return {path for path in old if golden.renamed_path(path, names["tables"]) is None}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.slow else []) for c in CASES],
)
def test_same_tables(
    case: Case, inputs: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Every table of the case is what it was, with names.json for what has another name now."""
    if case.real:
        request.getfixturevalue("shared_data")
    names = NO_NAMES if case.now else read_names()
    frozen = HERE / "golden" / "tables" / case.name
    assert frozen.is_dir(), f"nothing is frozen for {case.name}; run tests/golden/freeze.py"
    run_case(case, tmp_path, inputs, HERE.parent, names["options"])
    files = [golden.renamed_path(f, names["tables"]) for f in case.files]
    missing = [f for f in files if f and not (tmp_path / f).is_file()]
    found = [f"{f} is not there" for f in missing] + compare(frozen, tmp_path, names)
    assert not found, f"{case.name}:\n" + "\n".join(found)


def uncovered(cases: list[Case]) -> list[str]:
    """Commands that no case runs, under the names of today."""
    from longaml.cli import commands

    options = read_names()["options"]
    lines = [
        " ".join(w for t in c.split() for w in renamed(t, {} if case.now else options))
        for case in cases
        for c in case.commands
    ]
    return [name for name in commands() if not any(f"{x} ".startswith(f"{name} ") for x in lines)]


def test_every_command_is_frozen() -> None:
    """A new command gets a case, or a reason in UNCOVERED why it has none."""
    assert uncovered(CASES) == sorted(UNCOVERED)
    assert all(UNCOVERED.values())
    fewer = [c for c in CASES if c.name not in ("questions", "perturb", "perturb_models")]
    planted = [c for c in fewer if "perturb" not in c.name]
    assert uncovered(planted) == ["abundance", "forecast", "outcome", "perturb"]


def test_every_frozen_case_has_its_command() -> None:
    """Tables that no case compares any more are deleted."""
    stored = {p.name for p in (HERE / "golden" / "tables").iterdir()}
    assert stored == {c.name for c in CASES}


def differing(was: dict[str, list[str]], now: dict[str, list[str]]) -> list[str]:
    """What differs between two tables given by their columns."""
    import pandas as pd

    return golden.differences(*(golden.table(pd.DataFrame(t)) for t in (was, now)))


@pytest.mark.parametrize(
    "column, was, now, seen",
    [
        ("p_value", "1e-4", "1e-12", True),
        ("p_value", "1e-4", "1.001e-4", True),
        ("q_value_overall", "3e-9", "2e-9", True),
        ("p_value", "1e-4", "1.00001e-4", False),
        ("p_value", "0.4", "0.4001", False),
        ("p_value", "0.4", "0.4003", True),
        ("value", "0.001", "0.0011", True),  # next to a value of 1000 in its column
        ("value", "0.00123457", "0.001234567", False),
        ("score", "0.01", "0.0101", True),
        ("score", "0", "1e-13", False),
        ("log2_fold_change", "1e-7", "1.01e-7", True),
    ],
)
def test_small_values_are_compared_as_closely(column: str, was: str, now: str, seen: bool) -> None:
    """A large value in a column does not hide a change of a small one."""
    large = "1" if column.startswith(("p_", "q_")) else "20" if column == "score" else "1000"
    found = differing({column: [large, was]}, {column: [large, now]})
    assert bool(found) == seen, found


def test_scores_of_a_model_do_not_hide_those_of_another() -> None:
    """What single precision may do to a score is measured by the scores of its model."""
    model = {"model": ["a", "a", "b", "b"], "gene": list("wxyz")}
    was = {**model, "score": ["10000", "2", "0.5", "0.001"]}
    assert differing(was, {**was, "score": ["10000", "2.001", "0.5", "0.001"]}) == []
    assert differing(was, {**was, "score": ["10000", "2", "0.5", "0.0011"]}) != []


def test_genes_of_one_score_may_change_ranks() -> None:
    """Rounding orders them; a gene that passes another with a higher score is seen."""
    was = {"model": ["a"] * 3, "gene": list("xyz"), "rank": list("123"), "score": ["2", "1", "1"]}
    assert differing(was, {**was, "rank": list("132")}) == []
    assert differing(was, {**was, "rank": list("213")}) != []


def test_ranks_follow_scores_and_directions_follow_changes() -> None:
    """Both are checked in the tables of today, whatever was frozen."""
    import pandas as pd

    good = pd.DataFrame(
        {"gene": list("xyz"), "score": ["3", "2", "-1"], "rank": list("123")}
        | {"log2_fold_change": ["1", "-2", "0"], "direction": ["up", "down", ""]}
    )
    assert golden.inconsistent("t", good) == []
    assert "order of scores" in golden.inconsistent("t", good.assign(rank=list("132")))[0]
    odd = good.assign(direction=["down", "down", ""])
    assert "directions" in golden.inconsistent("t", odd)[0]


def test_what_became_more_exact_is_named_by_row() -> None:
    """`within` in names.json allows more to the rows that it names, and not to others."""
    import pandas as pd

    names = {"within": {"t.csv:value": {"column": "check", "rows": {"a": 1e-3}}}}
    was = golden.table(pd.DataFrame({"check": ["a", "b"], "value": ["0.5", "0.5"]}))
    now = golden.table(pd.DataFrame({"check": ["a", "b"], "value": ["0.5009", "0.5009"]}))
    found = golden.differences(was, now, golden.within("run/t.csv", was, names))
    assert found == ["row 1, value: was '0.5', is '0.5009'"]


def test_rows_are_those_that_were_kept_when_frozen(tmp_path: Path) -> None:
    """A table frozen with another number of rows kept is compared by the same rows."""
    import pandas as pd

    frame = pd.DataFrame({"x": [str(i / 7) for i in range(golden.MOST + 1)]})
    golden.store(golden.table(frame, step=5), tmp_path / "frozen" / "t.csv")
    (tmp_path / "now").mkdir()
    frame.to_csv(tmp_path / "now" / "t.csv", index=False)
    assert compare(tmp_path / "frozen", tmp_path / "now", NO_NAMES) == []
    frame.loc[5, "x"] = "7"
    frame.to_csv(tmp_path / "now" / "t.csv", index=False)
    assert "row 5, x: was" in compare(tmp_path / "frozen", tmp_path / "now", NO_NAMES)[0]


@pytest.fixture
def table_folder(tmp_path: Path) -> Path:
    """A frozen table of two columns, and what a later program made of it."""
    import pandas as pd

    before = pd.DataFrame({"model": ["a", "b", ""], "value": ["1.23456789", "-3", ""]})
    golden.store(golden.table(before), tmp_path / "frozen" / "run" / "old.csv")
    after = pd.DataFrame({"score": ["1.234571", "-3.0", ""], "model": ["a", "B", ""]})
    (tmp_path / "now" / "run").mkdir(parents=True)
    after.to_csv(tmp_path / "now" / "run" / "new.csv", index=False)
    return tmp_path


NAMES = {
    "columns": {"old.csv:value": "score"},
    "values": {"model": {"b": "B"}},
    "options": {},
    "tables": {"old.csv": "new.csv"},
}


def test_renamed_tables_are_the_same(table_folder: Path) -> None:
    """Files, columns and values under new names are found; rounding is not a difference."""
    assert compare(table_folder / "frozen", table_folder / "now", NAMES) == []


def test_the_entry_with_most_of_the_path_counts(tmp_path: Path) -> None:
    """A column has a name of its own in one file; words within its texts are replaced."""
    import pandas as pd

    names = {**NAMES, "tables": {}, "columns": {"obs.csv:x": "y", "b.h5ad/obs.csv:x": "z"}}
    names["words"] = {"obs.csv:x": {"libraries": "samples"}}
    frozen, now = tmp_path / "frozen", tmp_path / "now"
    for file, column in {"a.h5ad": "y", "b.h5ad": "z"}.items():
        before = pd.DataFrame({"x": ["32 assignments of libraries"]})
        golden.store(golden.table(before), frozen / file / "obs.csv")
        (now / file).mkdir(parents=True)
        after = pd.DataFrame({column: ["32 assignments of samples"]})
        after.to_csv(now / file / "obs.csv", index=False)
    assert compare(frozen, now, names) == []
    names["words"] = {}
    assert "was '32 assignments of libraries'" in compare(frozen, now, names)[0]


@pytest.mark.parametrize(
    "section, said",
    [
        ("columns", ["column 'value' is gone", "column 'score' is new"]),
        ("values", ["row 1, model: was 'b', is 'B'"]),
        ("tables", ["run/old.csv is gone", "run/new.csv is new"]),
    ],
)
def test_differences_are_said(table_folder: Path, section: str, said: list[str]) -> None:
    """Without the entry in names.json, the difference is named."""
    names = json.loads(json.dumps(NAMES)) | {section: {}}
    found = "\n".join(compare(table_folder / "frozen", table_folder / "now", names))
    assert all(s in found for s in said), found


def test_rows_that_were_changed_on_purpose_are_left_out(table_folder: Path) -> None:
    """Rows that names.json names are not compared, all others are."""
    import pandas as pd

    new = table_folder / "now" / "run" / "new.csv"
    pd.DataFrame({"score": ["1.23457", "7", ""], "model": ["a", "B", ""]}).to_csv(new, index=False)
    names = NAMES | {"changed": {"new.csv": {"model": ["B"]}}}
    assert compare(table_folder / "frozen", table_folder / "now", names) == []
    assert compare(table_folder / "frozen", table_folder / "now", NAMES) != []


def test_rows_of_equal_rank_may_change_places(table_folder: Path) -> None:
    """The same rows in another order agree; a row with another value does not."""
    import pandas as pd

    new = table_folder / "now" / "run" / "new.csv"
    rows = pd.read_csv(new, dtype=str, keep_default_na=False)
    rows[::-1].to_csv(new, index=False)
    assert compare(table_folder / "frozen", table_folder / "now", NAMES) == []
    rows[::-1].assign(score=["", "-4", "1.23457"]).to_csv(new, index=False)
    found = compare(table_folder / "frozen", table_folder / "now", NAMES)
    assert found == ["run/new.csv: row 1, score: was '-3', is '-4'"]


def test_long_tables_are_thinned_and_added_up(tmp_path: Path) -> None:
    """A row that is not stored still counts."""
    import pandas as pd

    n = 2 * golden.MOST
    frame = pd.DataFrame({"x": [str(i / 7) for i in range(n)]})
    golden.store(golden.table(frame), tmp_path / "t.csv")
    (frozen,) = golden.load(tmp_path).values()
    assert len(frozen.rows) == golden.MOST and frozen.n == n
    assert golden.differences(frozen, golden.table(frame)) == []
    frame.loc[1, "x"] = "1e6"
    assert golden.differences(frozen, golden.table(frame))[0].startswith("all rows, x: was")


def test_arguments_under_new_names() -> None:
    """An option, a member of a list, an argument that is gone, a command of two words."""
    options = {"--nulls": "--permutations", "logistic": "logit", "--gone": None, "de": "test genes"}
    words = [
        w for t in "de --nulls 3 --models nmf,logistic --gone".split() for w in renamed(t, options)
    ]
    assert words == "test genes --permutations 3 --models nmf,logit".split()
