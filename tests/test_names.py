"The flat names of version 0.1: each has a place where it is now."

import importlib
import re
from pathlib import Path

import pytest

import longaml as la

NEW = la._new_names()


@pytest.mark.parametrize("old", NEW)
def test_an_old_name_says_where_it_is_now(old):
    place, _, name = NEW[old].rpartition(".")
    assert hasattr(importlib.import_module(f"longaml.{place}"), name)
    if not hasattr(type(la), old) and old not in vars(la):
        with pytest.raises(AttributeError, match=f"is la.{NEW[old]} since"):
            getattr(la, old)


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
