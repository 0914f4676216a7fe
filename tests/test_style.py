"""The house: folders and numbers, imports that point downwards, readable code, documented
signatures.
"""

import ast
import importlib
import inspect
import io
import os
import re
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest
from tools import NBS, ROOT, Cell, all_cells, cells, notebooks

PACKAGE = ROOT / "longaml"
FOLDERS = ["datasets", "pp", "tl", "pl", "models", "tasks", "experiment", "published"]
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py")
LONGEST_MODULE = 500  # lines, as formatted


def module_name(path: Path) -> str:
    """`pp.reading` for longaml/pp/reading.py; `pp` for its package; an empty name for longaml
    itself.
    """
    name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix("__init__").rstrip(".")


def number(notebook: str) -> int | None:
    "The number in a notebook's file name; pages have none."
    found = re.match(r"(?:\w+/)?(\d+)_", notebook)
    return int(found[1]) if found and not notebook.startswith("tutorials/") else None


def imported(tree: ast.AST) -> set[tuple[str, str]]:
    "What code imports from longaml, wherever in it: (module, name)."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                (a.name.partition(".")[2], "")
                for a in node.names
                if a.name.split(".")[0] == "longaml"
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "longaml":
            found |= {(node.module.partition(".")[2], a.name) for a in node.names}
    return found


@cache
def made() -> dict[str, str]:
    "Module -> the notebook that makes it."
    flags = [(c.nb, c.flags["default_exp"]) for c in all_cells() if "default_exp" in c.flags]
    return {name.removesuffix("__init__").rstrip("."): nb for nb, name in flags}


def used_modules(code: str) -> set[str]:
    "The modules of longaml that code imports; a name of a package counts as the module it is."
    found = set()
    for module, name in imported(ast.parse(code)):
        inner = f"{module}.{name}".strip(".")
        found.add(inner if inner in made() else module)
    return found - {""}


def test_numbers_are_unique():
    numbered = [number(nb) for nb in notebooks() if number(nb) is not None]
    assert len(numbered) == len(set(numbered)), sorted(numbered)


def test_notebooks_and_modules_mirror_each_other():
    for module, nb in made().items():
        if module and number(nb) is not None:
            assert nb == f"{module.rpartition('.')[0].replace('.', '/')}/{Path(nb).name}".lstrip(
                "/"
            )
            leaf = module.rpartition(".")[2].strip("_")  # `__main__` is 901_main
            assert Path(nb).stem == f"{number(nb):03d}_{leaf}"


def upward(exported: bool) -> list[str]:
    "Imports of a notebook with a higher number, in exported code or in lessons."
    found = []
    for module, nb in made().items():
        here = number(nb)
        if here is None or module == "":
            continue
        code = [c for c in cells(nb) if c.kind == "code" and c.exported == exported]
        for used in set().union(*(used_modules(c.code) for c in code if c.code.strip())):
            there = number(made().get(used, ""))
            drawing = used.startswith("pl.") and not exported
            if there is not None and there > here and not drawing:
                found.append(f"{nb} imports {used}, which is {made()[used]}")
    return found


def test_exported_code_imports_from_lower_numbers_only():
    assert not (bad := upward(exported=True)), "\n".join(bad)


def test_lessons_import_from_lower_numbers_but_may_draw():
    assert not (bad := upward(exported=False)), "\n".join(bad)


def test_no_module_imports_private_names_of_another():
    bad = [
        f"{nb}: {module}.{name}"
        for nb in notebooks()
        for c in cells(nb)
        if c.exported
        for module, name in imported(ast.parse(c.code))
        if name.startswith("_") and not name.startswith("__")
    ]
    assert not bad, "\n".join(bad)


def test_at_most_a_hundred_public_names_on_one_page():
    import longaml as la

    names = [f"la.{n}.{name}" for n in la.NAMESPACES for name in getattr(la, n).__all__]
    assert list(la.NAMESPACES) == FOLDERS and len(names) <= 100, len(names)
    page = "\n".join(str(o) for c in cells("999_init.ipynb") for o in c.outputs)
    assert not (lost := [n for n in names if n.rpartition(".")[2] not in page]), lost


def test_no_module_hides_a_public_name():
    "An imported module is an attribute of its package and would hide a public name."
    import longaml as la

    hidden = [
        f"la.{n}.{name}"
        for n in la.NAMESPACES
        for name in getattr(la, n).__all__
        if (PACKAGE / n / f"{name}.py").exists()
    ]
    assert not hidden, hidden


# ---------------------------------------------------------------- readable code


def test_ruff_check():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "nbs", "tests", ".ci", "setup.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_ruff_format():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "nbs", "tests", ".ci", "setup.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_mypy():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


def test_slow_cells_call_what_there_is(tmp_path):
    "No test runs them; a call that a later change has broken is found by mypy."
    how = "# mypy: check-untyped-defs, allow-redefinition\nfrom IPython.display import display"
    studies = {}
    for c in all_cells():
        if c.kind == "code" and c.flags.get("eval") != "false":
            studies.setdefault(c.nb.replace("/", "_").removesuffix(".ipynb"), []).append(c)
    studies["broken"] = [Cell("broken", 0, "code", "#| slow\nlen(1, 2)\n''.gone()\nnobody()", [])]
    slow = [f"{nb}.py" for nb, its in studies.items() if any("slow" in c.flags for c in its)]
    for name in slow:
        its_cells = studies[name.removesuffix(".py")]
        (tmp_path / name).write_text("\n".join([how, *(c.code for c in its_cells), ""]))
    # the package's own options and cache, so that it is not checked twice
    place = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, place), *slow],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    kinds = r"\[(call-arg|attr-defined|name-defined)\]$|multiple values"
    bad = [line for line in done.stdout.splitlines() if re.search(kinds, line)]
    planted = [line for line in bad if line.startswith("broken")]
    assert len(planted) == 3, done.stdout
    assert bad == planted, "\n".join(bad)


def test_lines_of_the_package_are_short():
    "But for what nbdev writes itself: the lines above the first cell, with the list of names."
    bad = []
    for path in MODULES:
        head, cells_, body = path.read_text().partition("\n# %% ../")
        first = head.count("\n") + 1
        for i, line in enumerate((cells_ + body).splitlines(), first):
            if len(line) > 100 and not line.startswith("# %% ../"):
                bad.append(f"{module_name(path)}:{i}")
    assert not bad, "\n".join(bad)


def test_modules_are_short():
    lengths = {module_name(p): len(p.read_text().splitlines()) for p in MODULES}
    assert not (bad := {m: n for m, n in lengths.items() if n > LONGEST_MODULE}), bad


# ---------------------------------------------------------------- documented signatures


def arguments(node: ast.FunctionDef) -> list[ast.arg]:
    "Every parameter of a function but `self` and `cls`."
    a = node.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
    return [arg for arg in every if arg.arg not in ("self", "cls")]


def public_functions(tree: ast.Module) -> list[tuple[str, ast.FunctionDef]]:
    "Public functions, and public methods of public classes, with their names."
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found.append((node.name, node))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            found += [(f"{node.name}.{m.name}", m) for m in methods if not m.name.startswith("_")]
    return found


def undocumented(source: str) -> list[str]:
    "What `help()` would not say: missing docstrings, hints, and comments on parameters."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
    tree = ast.parse(source)
    found = [
        f"{n.name}: a docstring"
        for n in tree.body
        if isinstance(n, (ast.FunctionDef, ast.ClassDef))
        and not n.name.startswith("_")
        and not ast.get_docstring(n)
    ]
    for name, node in public_functions(tree):
        for arg in arguments(node):
            if arg.annotation is None:
                found.append(f"{name}({arg.arg}): a type hint")
            told = "help=" in ast.unparse(arg.annotation) if arg.annotation else False
            if "." not in name and arg.lineno not in comments and not told:
                found.append(f"{name}({arg.arg}): a comment on its line")
        if node.returns is None:
            found.append(f"{name}: the type it returns")
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_public_functions_are_documented(path):
    assert not (bad := undocumented(path.read_text())), "\n".join(bad)


def signatures_that_do_not_evaluate(module) -> list[str]:
    "Functions and methods whose type hints name what is not there at run time."
    bad = []
    for name, value in vars(module).items():
        own = getattr(value, "__module__", "") == module.__name__
        functions = [value] if inspect.isfunction(value) and own else []
        if inspect.isclass(value) and own:
            functions = [f for f in vars(value).values() if inspect.isfunction(f)]
        for function in functions:
            try:
                inspect.signature(function, eval_str=True)
            except NameError as error:
                bad.append(f"{module.__name__}.{name}: {error}")
    return bad


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_type_hints_evaluate(path):
    "The documentation evaluates them."
    module = importlib.import_module(f"longaml.{module_name(path)}".rstrip("."))
    assert not (bad := signatures_that_do_not_evaluate(module)), "\n".join(bad)


def test_missing_documentation_is_seen():
    source = (
        "def f(\n    a: int,  # first\n    b=1,\n) -> int:\n    'Do.'\n"
        "class C: pass\ndef _h(x): pass\n"
    )
    assert undocumented(source) == [
        "C: a docstring",
        "f(b): a type hint",
        "f(b): a comment on its line",
    ]


def test_notebooks_live_in_their_folder():
    known = {*FOLDERS, "tutorials", "benchmarks", "images"}
    assert {p.name for p in NBS.iterdir() if p.is_dir() and p.name[0] not in "._"} <= known


MOST_THINGS = 5  # that a function is given, beside its subject


def things_of(node: ast.FunctionDef) -> int:
    "What a function needs beside its subject; options of a public one, with defaults, are none."
    public = not node.name.startswith("_") or node.name == "__init__"
    plain = [*node.args.posonlyargs, *node.args.args]
    needed = plain[: len(plain) - len(node.args.defaults)] if public else plain
    pairs = zip(node.args.kwonlyargs, node.args.kw_defaults)
    needed += [arg for arg, default in pairs if default is None or not public]
    return len([arg for arg in needed if arg.arg not in ("self", "cls")]) - 1


def test_no_function_carries_many_things():
    planted = ast.parse("def f(a, b, c, d, e, g, h): ...").body[0]
    assert things_of(planted) == 6
    for file in sorted((ROOT / "longaml").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert things_of(node) <= MOST_THINGS, f"{file.name}: {node.name}"
