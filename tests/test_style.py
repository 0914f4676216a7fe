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
import tomllib
from collections.abc import Container, Iterable
from functools import cache
from pathlib import Path

import pytest
from house import NOWHERE, PACKAGE, bound, house, module_name, private, uses
from tools import NBS, ROOT, Cell, all_cells, cells, notebooks, texts

FOLDERS = ["datasets", "pp", "tl", "pl", "models", "tasks", "experiment", "published"]
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py")
LATER = {  # lessons that use a later notebook, and why
    "experiment/703_report_tables.ipynb": "experiment.run: the tables are those of a finished run",
    "experiment/704_report_text.ipynb": "experiment.run: the text is that of a finished run",
    "experiment/705_report.ipynb": "experiment.run: the report is that of a finished run",
}
LONGEST_MODULE = 500  # lines, as formatted


def number(notebook: str) -> int | None:
    "The number in a notebook's file name; pages have none."
    found = re.match(r"(?:\w+/)?(\d+)_", notebook)
    return int(found[1]) if found and not notebook.startswith("tutorials/") else None


@cache
def made() -> dict[str, str]:
    "Module -> the notebook that makes it."
    flags = [(c.nb, c.flags["default_exp"]) for c in all_cells() if "default_exp" in c.flags]
    return {name.removesuffix("__init__").rstrip("."): nb for nb, name in flags}


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


def code_of(nb: str, exported: bool) -> str:
    "The exported code of a notebook, or that of its lessons."
    found = [c for c in cells(nb) if c.kind == "code" and c.exported == exported]
    return "\n\n".join(c.code for c in found if not c.source.lstrip().startswith("%%"))


def used_upward(nb: str, code: str, known: dict[str, str], drawing: bool) -> list[str]:
    "What code in a notebook uses of modules whose notebook has a higher number."
    found = []
    for module, name in sorted(uses(code, known=known)):
        there = number(made().get(module, ""))
        if (module, name) == ("", "__version__"):  # set before anything else is imported
            continue
        if there is not None and there > number(nb) and not (drawing and module.startswith("pl.")):
            found.append(f"{nb} uses {module}.{name}".rstrip(".") + f", which is {made()[module]}")
    return found


def upward(exported: bool) -> list[str]:
    "Uses of a notebook with a higher number, in exported code or in lessons."
    found = []
    for module, nb in made().items():
        if number(nb) is not None and module:
            known = {} if exported else bound(code_of(nb, True))
            found += used_upward(nb, code_of(nb, exported), known, drawing=not exported)
    return found


def test_exported_code_uses_lower_numbers_only():
    assert not (bad := upward(exported=True)), "\n".join(bad)


def test_lessons_use_lower_numbers_but_may_draw():
    found = upward(exported=False)
    allowed = {nb: f"{nb} uses {why.partition(':')[0]}." for nb, why in LATER.items()}
    bad = [line for line in found if not line.startswith(tuple(allowed.values()))]
    assert not bad, "\n".join(bad)
    idle = [nb for nb, start in allowed.items() if not any(f.startswith(start) for f in found)]
    assert not idle, f"no exception is needed any more: {idle}"


def test_no_module_uses_private_names_of_another():
    of = {nb: module for module, nb in made().items()}
    bad = [
        f"{nb}: {name}"
        for nb in notebooks()
        for name in private(code_of(nb, exported=True), of.get(nb, NOWHERE))
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    "code, used",
    [
        ("from longaml.tasks.timepoint import evaluate", "tasks.timepoint.evaluate"),
        ("from longaml import tasks\ntasks.timepoint.evaluate()", "tasks.timepoint.evaluate"),
        ("from longaml import tasks as t\ndef f(): return t.timepoint", "tasks.timepoint"),
        ("import longaml as la\nclass C:\n    x = la.tl.de", "tl.gene_tests.de"),
        ("import longaml.tl.networks\nlongaml.pl.volcano", "pl.rankings.plot_volcano"),
        ("from longaml.pl import volcano", "pl.rankings.plot_volcano"),
        ("from longaml.models import training\n[training.fit for _ in x]", "models.training.fit"),
        ("def f():\n    from longaml import read_cohort", "pp.reading.read_cohort"),
        ("class C:\n    tl = 1\n    def f(self): tl.de()\nfrom ..  import tl", "tl.gene_tests.de"),
    ],
)
def test_a_use_is_seen_however_it_is_spelled(code, used):
    found = {f"{module}.{name}".rstrip(".") for module, name in uses(code, "experiment.run")}
    assert used in found, found
    if not used.startswith("pp."):
        assert used_upward("pp/200_values.ipynb", code, {}, drawing=False) or ".." in code


def test_a_parameter_is_not_the_package_of_its_name():
    code = "from longaml import models\ndef f(models): return models._count, [tl.de for tl in x]"
    assert uses(code) == set() and private(code) == []


@pytest.mark.parametrize(
    "code, name",
    [
        ("from longaml.core import _hidden", "core._hidden"),
        ("from longaml import core\ncore._hidden()", "core._hidden"),
        ("from longaml import pl\ndef f(): return pl.outcomes._hidden", "pl.outcomes._hidden"),
        ("import longaml as la\nla._new_names()", "_new_names"),
        ("from longaml.pl import outcomes as o\no._hidden", "pl.outcomes._hidden"),
        ("from longaml.tl import _x", "tl._x"),
    ],
)
def test_a_private_name_is_seen_however_it_is_reached(code, name):
    assert private(code) == [name]
    assert private("from longaml import pl\npl.__name__\nself._own\nnumpy._x") == []


def test_at_most_a_hundred_public_names_on_one_page():
    import longaml as la

    names = [f"la.{n}.{name}" for n in la.NAMESPACES for name in getattr(la, n).__all__]
    assert list(la.NAMESPACES) == FOLDERS and len(names) <= 100, len(names)
    page = "\n".join(t for c in cells("999_init.ipynb") for o in c.outputs for t in texts(o))
    assert not (lost := absent([n.rpartition(".")[2] for n in names], page)), lost


def absent(names: Iterable[str], page: str) -> list[str]:
    "Names that are not on a page as whole words."
    return sorted(set(names) - set(re.findall(r"[A-Za-z_]\w*", page)))


def test_a_part_of_a_word_is_not_a_name():
    assert absent(["fit", "bags", "de"], "`fit_factors`, bags; model") == ["de", "fit"]


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


RULES = {"E", "F", "W", "I", "B", "UP", "C4", "C90", "PLR0915"}  # of the design, section 3
WITHOUT = {"E402", "B905", "C408"}  # each with its reason in pyproject.toml


def test_ruff_is_as_strict_as_the_design():
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    lint = ruff["lint"]
    assert ruff["line-length"] == 100 and ruff["extend-exclude"] == ["longaml"]
    assert set(lint["select"]) >= RULES and set(lint["ignore"]) <= WITHOUT
    assert not {"per-file-ignores", "extend-ignore"} & lint.keys()
    assert lint["mccabe"]["max-complexity"] == 10
    assert lint["pylint"]["max-statements"] == 40


def test_ruff_reads_these_limits(tmp_path):
    "Complex and long code, two statements on a line and a long line are found."
    branches = "\n".join(f"    if x == {i}:\n        return {i}" for i in range(11))
    long = "\n".join(f"    x += {i}" for i in range(42))
    code = f"def f(x):\n{branches}\n\n\ndef g(x):\n{long}\n\n\nif 1: y = 2\nz = {'1' * 100}\n"
    (tmp_path / "planted.py").write_text(code)
    words = ["ruff", "check", "--config", str(ROOT / "pyproject.toml"), "--no-cache", "planted.py"]
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True
    )
    found = set(re.findall(r"^([A-Z]+\d+) ", done.stdout, re.M))
    assert {"C901", "PLR0915", "E701", "E501"} <= found, done.stdout


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


def long_lines(source: str) -> list[int]:
    "Long lines of an exported module, but for what nbdev writes itself: names and cell marks."
    names = re.search(r"^__all__ = \[[^\]]*\]$", source, re.M)
    where = [source[:at].count("\n") for at in names.span()] if names else [0, -1]
    listed = range(where[0], where[1] + 1)
    return [
        i + 1
        for i, line in enumerate(source.splitlines())
        if len(line) > 100 and i not in listed and not line.startswith("# %% ../")
    ]


def test_lines_of_the_package_are_short():
    bad = [f"{module_name(p)}:{i}" for p in MODULES for i in long_lines(p.read_text())]
    assert not bad, "\n".join(bad)


def test_long_lines_are_seen():
    source = (
        f'"""{"x" * 98}"""\n\n__all__ = [{"1" * 95},\n           {"2" * 95}]\n'
        f"\n# %% ../{'3' * 100}\ny = {'4' * 100}\n"
    )
    assert long_lines(source) == [1, 7]


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
    """Public functions, and public methods and constructors of public classes, with their names."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found.append((node.name, node))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            shown = [m for m in methods if not m.name.startswith("_") or m.name == "__init__"]
            found += [(f"{node.name}.{m.name}", m) for m in shown]
    return found


@cache
def contract_methods() -> frozenset[str]:
    """Methods whose parameters a contract explains: those that the docstring of `Model` names, and
    those of `Experiment` that document each parameter. Classes with a public name explain them
    once more.
    """
    from longaml.experiment.driver import Experiment
    from longaml.models.contract import Model

    of_models = set(re.findall(r"`(\w+)\(", Model.__doc__))
    assert not (bad := documented_gaps(inspect.getsource(Experiment))), bad
    return frozenset(of_models | {n for n in vars(Experiment) if not n.startswith("_")})


def comments_of(source: str) -> dict[int, str]:
    "The comments of code by line, without what is said to a tool."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    tools = r"#\s*(noqa|type:|mypy:|ruff:|pragma|fmt:)[^#]*"
    told = {line: re.sub(tools, "", text).strip("# ") for line, text in found.items()}
    return {line: text for line, text in told.items() if text}


def documented_gaps(source: str, inherited: Container[str] = (), public: Container[str] = ()):
    "What `help()` would not say: docstrings, hints, and what each parameter means."
    comments = comments_of(source)
    tree = ast.parse(source)
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    found = [
        f"{n.name}: a docstring"
        for n in tree.body
        if isinstance(n, (ast.FunctionDef, ast.ClassDef))
        and not n.name.startswith("_")
        and not ast.get_docstring(n)
    ]
    for name, node in public_functions(tree):
        owner, _, method = name.rpartition(".")
        text = ast.get_docstring(classes[owner] if method == "__init__" else node) or ""
        if owner and not text:
            found.append(f"{name}: a docstring")
        for arg in arguments(node):
            if arg.annotation is None:
                found.append(f"{name}({arg.arg}): a type hint")
            told = "help=" in ast.unparse(arg.annotation) if arg.annotation else False
            of_result = node.returns is not None and node.returns.lineno == arg.lineno
            told |= arg.lineno in comments and not of_result
            told |= bool(owner) and f"`{arg.arg}`" in text
            if not told and not (method in inherited and owner and owner not in public):
                found.append(f"{name}({arg.arg}): a comment on its line")
        if node.returns is None and method != "__init__":
            found.append(f"{name}: the type it returns")
    return found


def undocumented(path: Path) -> list[str]:
    "The gaps of a module."
    its = module_name(path)
    public = {name for module, name in house().public.values() if module == its}
    return documented_gaps(path.read_text(), contract_methods(), public)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_public_functions_are_documented(path):
    assert not (bad := undocumented(path)), "\n".join(bad)


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
        "def f(\n    a: int,  # first\n    b=1,\n    c: int = 2,  # noqa: A001\n) -> int:\n"
        "    'Do.'\n"
        "def g(x: int) -> int:  # what it returns\n    'Do.'\n"
        "class C: pass\ndef _h(x): pass\n"
    )
    assert documented_gaps(source) == [
        "C: a docstring",
        "f(b): a type hint",
        "f(b): a comment on its line",
        "f(c): a comment on its line",
        "g(x): a comment on its line",
    ]


METHODS = """
class Shown:
    "Has `width` units."
    def __init__(self, width: int, depth): ...
    def fit(self, data: int, *, seed: int = 0) -> "Shown":
        "Learn; `seed` is not used."
    def predict(
        self,
        data: int,  # type: ignore
    ):
        ...
    def more(self, rows: int) -> int:
        "The `rows`."
    def _own(self, x): ...
"""


def test_methods_and_constructors_are_seen():
    always = [
        "Shown.__init__(depth): a type hint",
        "Shown.__init__(depth): a comment on its line",
        "Shown.predict: a docstring",
        "Shown.predict: the type it returns",
    ]
    contract = [f"Shown.{m}(data): a comment on its line" for m in ("fit", "predict")]
    methods = ("fit", "predict")
    assert sorted(documented_gaps(METHODS)) == sorted(always + contract)
    assert sorted(documented_gaps(METHODS, methods)) == sorted(always)
    assert sorted(documented_gaps(METHODS, methods, {"Shown"})) == sorted(always + contract)
    assert {"fit", "predict_proba", "contributions", "forward", "steps"} <= contract_methods()


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
