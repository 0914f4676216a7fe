"The flat names of version 0.1: each has a place where it is now."

import re
from pathlib import Path

import pytest

import longaml as la

# what `dir(longaml)` listed in version 0.1 (commit b0fa0d8)
OLD = (Path(__file__).parent / "names_of_version_0.1.txt").read_text().split()
KEPT = {"read_cohort"}


def found_at(path):
    "What a dotted name below longaml is; an AttributeError where there is nothing."
    value = la
    for name in path.split("."):
        value = getattr(value, name)
    return value


def test_the_list_of_old_names_is_whole():
    assert len(OLD) == len(set(OLD)) == 329


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_says_where_it_is_now(old):
    if old in KEPT:
        assert callable(getattr(la, old))
        return
    with pytest.raises(AttributeError) as error:
        getattr(la, old)
    said = re.fullmatch(rf"la\.{old} is la\.([\w.]+) since version 0\.2\.", str(error.value))
    assert said, error.value
    assert found_at(said[1]) is not None


def test_a_name_that_never_was_is_not_an_old_one():
    with pytest.raises(AttributeError, match="longaml has no 'plot_everything'"):
        la.plot_everything  # noqa: B018
    with pytest.raises(AttributeError):
        found_at("tl.permutation.nothing")


def test_names_that_the_package_reads_from_its_namespaces_exist():
    "In code and in the templates of reports: a name taken off a page fails only when it is drawn."
    folder = Path(la.__path__[0])
    files = [*folder.rglob("*.py"), *folder.rglob("*.j2")]
    assert any(f.suffix == ".j2" for f in files)
    for file in files:
        for space, name in set(
            re.findall(r"(?<!sc\.)\b(pl|pp|tl)\.([a-z_]\w*)\(", file.read_text())
        ):
            assert hasattr(getattr(la, space), name), f"{file.name}: {space}.{name}"
