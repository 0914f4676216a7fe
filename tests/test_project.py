"""The rules of the project, as the contributing page states them: the tree is what nbdev writes,
notebooks read like lessons, importing is instant.
"""

import ast
import configparser
import re
import subprocess
import sys
import tomllib
import warnings
from importlib import metadata

import pytest
import slow_outputs
import yaml
from tools import (
    NBS,
    ROOT,
    Cell,
    all_cells,
    cells,
    changed,
    copy_tree,
    notebooks,
    python,
    snapshot,
    texts,
)

HEAVY = ["torch", "scanpy", "anndata", "sklearn", "matplotlib"]
SETTINGS = configparser.ConfigParser(interpolation=None)
SETTINGS.read(ROOT / "settings.ini")
SETTINGS = SETTINGS["DEFAULT"]


# ---------------------------------------------------------------- what nbdev and the scripts write


def test_export_and_clean_change_nothing(tmp_path):
    top = copy_tree(tmp_path / "longaml")
    before = snapshot(top)
    done = python(
        "-c",
        "from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; "
        "nbdev_clean(); nbdev_export()",
        cwd=top,
    )
    assert done.returncode == 0, done.stderr
    assert not (files := changed(before, snapshot(top))), (
        f"run nbdev_export and nbdev_clean: they change {files}"
    )


def test_every_module_comes_from_a_notebook():
    made = {
        c.flags["default_exp"].replace(".", "/") + ".py"
        for c in all_cells()
        if "default_exp" in c.flags
    }
    found = {
        p.relative_to(ROOT / "longaml").as_posix() for p in (ROOT / "longaml").rglob("*.py")
    } - {"_modidx.py"}
    packages = {
        p for p in found if p.endswith("__init__.py")
    }  # nbdev makes them where no notebook does
    assert made <= found and found - packages <= made, found ^ made


def test_readme_is_what_index_gives():
    done = subprocess.run(
        [sys.executable, ".ci/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_readme_check_sees_a_change(tmp_path):
    top = copy_tree(tmp_path / "longaml")
    (top / "README.md").write_text(
        (top / "README.md").read_text().replace("longaml", "shortaml", 1)
    )
    done = python(".ci/readme.py", "--check", cwd=top)
    assert done.returncode == 1 and "README.md" in done.stderr
    assert python(".ci/readme.py", cwd=top).returncode == 0
    assert python(".ci/readme.py", "--check", cwd=top).returncode == 0


# ---------------------------------------------------------------- the package


def test_version_agrees():
    import longaml

    assert longaml.__version__ == SETTINGS["version"] == metadata.version("longaml")


def test_setup_sets_every_dynamic_field():
    dynamic = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"])
    meta, entries = metadata.metadata("longaml"), metadata.distribution("longaml").entry_points
    found = {
        "keywords": meta["Keywords"],
        "description": meta["Summary"],
        "version": meta["Version"],
        "dependencies": [r for r in meta.get_all("Requires-Dist") if "extra ==" not in r],
        "optional-dependencies": meta.get_all("Provides-Extra"),
        "readme": meta["Description-Content-Type"] == "text/markdown"
        and "# longaml" in f"{meta.get_payload()}{meta.get('Description')}",
        "license": meta.get("License-Expression") or meta.get("License"),
        "authors": meta["Author"] or meta["Author-email"],
        "classifiers": meta.get_all("Classifier"),
        "entry-points": [e for e in entries if e.group == "nbdev"],
        "scripts": [e for e in entries if e.group == "console_scripts"],
        "urls": meta.get_all("Project-URL"),
    }
    assert dynamic == found.keys() and all(found.values()), {
        k for k, v in found.items() if not v
    } | (dynamic ^ found.keys())
    assert {"dev", "deseq2", "ot", "report", "bdm"} <= set(meta.get_all("Provides-Extra"))


def test_constraints_are_plain_pins():
    text = (ROOT / "constraints.txt").read_text()
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert any(pin.startswith("torch==") for pin in pins)
    bad = [pin for pin in pins if not re.fullmatch(r"[\w.-]+==\d[\w.]*", pin)]
    assert not bad, f"name==version only: {bad}"


def test_import_is_light_and_quick(tmp_path):
    code = f"""
import sys, time
start = time.perf_counter()
import longaml
print(time.perf_counter() - start, [m for m in {HEAVY} if m in sys.modules])
"""
    runs = [python("-c", code, cwd=ROOT).stdout.split(" ", 1) for _ in range(3)]
    assert {r[1].strip() for r in runs} == {"[]"}
    assert min(float(r[0]) for r in runs) < 0.1  # seconds; the best of three, for a busy machine


def test_help_imports_nothing_heavy():
    code = f"""
import sys
sys.argv = ["longaml", "--help"]
from longaml.cli import main
try: code = main()
except SystemExit as e: code = e.code
print([m for m in {HEAVY} if m in sys.modules], code or 0, file=sys.stderr)
"""
    done = python("-c", code, cwd=ROOT)
    assert done.stderr.strip().splitlines()[-1] == "[] 0", done.stderr[-3000:]
    assert "demo" in done.stdout and "run" in done.stdout


# ---------------------------------------------------------------- how a notebook is written


def code_cells():
    "Cells of Python; not nbdev's own last cell, which neither the tests nor the documentation run."
    return [
        c
        for c in all_cells()
        if c.kind == "code"
        and c.code.strip()
        and "nbdev_export(" not in c.code
        and not c.source.lstrip().startswith("%%")
    ]


def test_cells_do_not_mix_imports_and_code():
    kinds = (ast.Import, ast.ImportFrom)

    def mixes(c):
        tree = ast.parse(c.code)
        top = [isinstance(n, kinds) for n in tree.body]
        nested = not c.exported and any(
            isinstance(n, kinds) for n in ast.walk(tree)
        )  # nbdev would run such a cell to make the documentation
        return (any(top) or nested) and not all(top)

    assert not (bad := [str(c) for c in code_cells() if mixes(c)]), "\n".join(bad)


def test_notebooks_start_with_a_title_and_a_line():
    bad = [
        nb
        for nb in notebooks()
        if not re.match(
            r"# \S.*\n+> \S", next((c.source for c in cells(nb) if c.kind == "markdown"), "")
        )
    ]
    assert not bad, f"the first cell is '# title' and '> one line': {bad}"


def test_notebooks_that_export_also_check():
    bad = [
        nb
        for nb in notebooks()
        if any(c.exported for c in cells(nb))
        and not any(
            re.search(r"\btest_\w+\(|\bassert\b", c.code)
            for c in cells(nb)
            if c.kind == "code" and not c.exported
        )
    ]
    assert not bad, f"no check in {bad}"


def shows(c):
    "Whether a cell ends on a value or prints, so that it has an output once it was run."
    if c.exported or c.flags.get("eval") == "false" or c.code.rstrip().endswith(";"):
        return False
    last = ast.parse(c.code).body[-1]
    if not isinstance(last, ast.Expr):
        return False
    if isinstance(last.value, ast.Call):
        return isinstance(last.value.func, ast.Name) and last.value.func.id == "print"
    return not (isinstance(last.value, ast.Constant) and last.value.value in (None, ...))


def test_outputs_are_stored():
    bad = [str(c) for c in code_cells() if shows(c) and not c.outputs]
    assert not bad, "run these and save the notebook:\n" + "\n".join(bad)
    empty = [
        nb
        for nb in notebooks()
        if any(c.exported for c in cells(nb)) and not any(c.outputs for c in cells(nb))
    ]
    assert not empty, f"no stored output in {empty}"


UNWANTED = {
    "an absolute path": (
        r"(?<![\w.:/<\\~-])/(?:home|root|tmp|work|usr|var|opt|mnt|Users|private|content)/\w"
        r"|\b[A-Z]:\\\\?\w"
    ),
    "a warning": r"\w*Warning\b:",
    "a progress bar": r"\d+%\|| ?it/s|\r",
    "a memory address": r" at 0x[0-9a-f]{6,}",
}


def faults(c):
    "What the stored outputs of a cell should not hold."
    found = {
        name
        for o in c.outputs
        for t in texts(o)
        for name, pattern in UNWANTED.items()
        if re.search(pattern, t)
    }
    if any(o.output_type == "error" for o in c.outputs):
        found.add("an error")
    if any(o.get("name") == "stderr" for o in c.outputs):
        found.add("text on standard error")
    types = {t for o in c.outputs for t in o.get("data", {})}
    if any("widget" in t for t in types):
        found.add("a widget")
    if any(t.startswith("image/") and t != "image/png" for t in types):
        found.add("a picture that is not PNG")
    if any(
        "<Figure size" in t and "image/png" not in o.get("data", {})
        for o in c.outputs
        for t in texts(o)
    ):
        found.add("a figure without its picture")
    return sorted(found)


def test_outputs_are_clean():
    assert not (bad := [f"{c}: {f}" for c in all_cells() for f in faults(c)]), "\n".join(bad)


@pytest.mark.parametrize(
    "text, fault",
    [
        ("/home/me/x.csv", "an absolute path"),
        ("saved to /tmp/abc", "an absolute path"),
        ("UserWarning: no", "a warning"),
        (" 40%|####   | 2/5", "a progress bar"),
        ("<object at 0x7f11aa22bb33>", "a memory address"),
        ("<Figure size 640x480 with 1 Axes>", "a figure without its picture"),
    ],
)
def test_unclean_outputs_are_seen(text, fault):
    from nbformat.v4 import new_output

    assert faults(Cell("x", 0, "code", "x", [new_output("stream", text=text)])) == [fault]
    assert not faults(
        Cell(
            "x",
            0,
            "code",
            "x",
            [new_output("stream", text="https://x.org/home/a, REL/work, 12% of 0x10")],
        )
    )


# ---------------------------------------------------------------- the site and the changelog


def hrefs(entry):
    "Every page that a part of the sidebar names, in order."
    if isinstance(entry, str):
        return [entry]
    if isinstance(entry, list):
        return [h for e in entry for h in hrefs(e)]
    return ([entry["href"]] if "href" in entry else []) + hrefs(entry.get("contents", []))


def test_sidebar_reaches_every_page():
    """Pages at the top and tutorials are named one by one; a folder of the package is listed
    whole.
    """
    text = (ROOT / "_quarto.yml").read_text()
    contents = yaml.safe_load(text)["website"]["sidebar"]["contents"]
    named = hrefs(contents)
    folders = set(re.findall(r"- auto: (\w+)", text))
    pages = {*notebooks(), *(p.relative_to(NBS).as_posix() for p in NBS.rglob("*.qmd"))}
    alone = {p for p in pages if p.split("/")[0] not in folders}
    assert set(named) == alone, (
        f"twice or gone: {set(named) - alone}; missing: {alone - set(named)}"
    )
    assert len(named) == len(set(named)) and named[0] == "index.ipynb"
    tutorials = [h for h in named if h.startswith("tutorials/")]
    assert tutorials == sorted(tutorials)


def test_changelog_names_the_version_or_unreleased():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings and (headings[0] == "Unreleased" or headings[0].startswith(SETTINGS["version"]))


# ---------------------------------------------------------------- stored outputs of slow cells


def test_slow_cells_keep_an_output():
    bad = [str(c) for c in slow_outputs.slow_cells().values() if not c.outputs]
    assert not bad, "run these and save the notebook:\n" + "\n".join(bad)


def test_slow_outputs_are_fresh(request):
    "Stale outputs are listed as a warning, and are an error with --slow."
    stale = slow_outputs.stale()
    if stale:
        warnings.warn(f"{len(stale)} stale slow outputs: {', '.join(stale)}", stacklevel=1)
    assert not (stale and request.config.getoption("--slow")), "run these again:\n" + "\n".join(
        stale
    )


def test_a_fingerprint_follows_code_and_not_comments():
    before = slow_outputs.bare("def f(x):\n    'Doc.'\n    return x  # comment\n")
    assert slow_outputs.bare("def f(x):\n\n    return x\n") == before
    assert slow_outputs.bare("def f(x):\n    return x + 1\n") != before
