"""Which stored outputs of slow cells were made with other code than there is now.

A slow cell (`#| slow`) keeps its output, because tests skip it. `tests/slow_outputs.json` holds,
for each, a hash of the cell and of the modules its notebook uses. After a study was run again:

    python tests/slow_outputs.py nbs/tl/305_factors.ipynb    # this notebook's outputs are
    current
    python tests/slow_outputs.py                            # list what is stale
"""

import ast
import hashlib
import json
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from tools import NBS, ROOT, Cell, cells, notebooks

RECORD = Path(__file__).with_suffix(".json")
PACKAGE = ROOT / "longaml"


def source_of(module: str) -> Path | None:
    "The file of a module such as `pp.reading`; None where there is none."
    path = PACKAGE.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.exists()), None)


def imports(code: str, package: str = "") -> set[str]:
    "Modules of longaml that code imports; relative imports count from `package`."
    found = set()
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = package.split(".")
        if node.level:
            base = ".".join([*parts[: len(parts) - node.level + 1], node.module or ""]).strip(".")
        elif (node.module or "").startswith("longaml."):
            base = node.module.removeprefix("longaml.")
        else:
            continue
        found |= {f"{base}.{a.name}".strip(".") for a in node.names} | {base}
    return {m for m in found if m and source_of(m)}


def names_used(code: str) -> set[str]:
    "Modules behind `la.pp.bags` and the like in a lesson."
    import longaml

    found = set()
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Attribute):
            continue
        owner = node.value
        if isinstance(owner.value, ast.Name) and owner.value.id == "la":
            names = getattr(getattr(longaml, owner.attr, None), "NAMES", {})
            found |= {f"{owner.attr}.{m}" for m, n in names.items() if node.attr in n.split()}
    return {m for m in found if source_of(m)}


@cache
def closure(modules: frozenset[str]) -> frozenset[str]:
    "The modules and all they import, directly or not."
    seen = set()
    left = set(modules)
    while left:
        module = left.pop()
        seen.add(module)
        code = source_of(module).read_text()
        left |= imports(code, module.rpartition(".")[0]) - seen
    return frozenset(seen)


SHOWN = {"progress", "_bar"}  # functions that only draw progress: no output depends on them


def computes(node: ast.stmt) -> bool:
    "Whether a statement can change a number: not an import from Python itself, or a progress bar."
    if isinstance(node, ast.Import):
        return not {a.name.partition(".")[0] for a in node.names} <= sys.stdlib_module_names
    if isinstance(node, ast.ImportFrom) and not node.level:
        return (node.module or "").partition(".")[0] not in sys.stdlib_module_names
    return not (isinstance(node, ast.FunctionDef) and node.name in SHOWN)


def bare(code: str) -> str:
    "Code as a syntax tree: comments, formatting, docstrings and progress bars do not count."
    tree = ast.parse(code)
    tree.body = [node for node in tree.body if computes(node)]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        text = isinstance(body, list) and body and isinstance(body[0], ast.Expr)
        if (
            text
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            node.body = body[1:] or [ast.Pass()]
    return ast.dump(tree)


@cache
def module_tree(module: str) -> str:
    "The syntax tree of a module, as text."
    return bare(source_of(module).read_text())


@cache
def notebook_modules(nb: str) -> tuple[str, ...]:
    "The modules that a notebook uses, sorted."
    code = [c for c in cells(nb) if c.kind == "code" and c.code.strip()]
    used = set().union(*(imports(c.code) | names_used(c.code) for c in code))
    own = {c.flags["default_exp"] for c in code if "default_exp" in c.flags}
    return tuple(sorted(closure(frozenset(used | {m for m in own if source_of(m)}))))


def fingerprint(cell: Cell) -> str:
    "A hash of a slow cell and of the modules that its notebook uses."
    text = [bare(cell.code), *(module_tree(m) for m in notebook_modules(cell.nb))]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


def slow_cells() -> dict[str, Cell]:
    "Slow cells by notebook and place: `tl/305_factors.ipynb 1`."
    found = {}
    for nb in notebooks():
        slow = [c for c in cells(nb) if c.kind == "code" and "slow" in c.flags]
        found |= {f"{nb} {i}": c for i, c in enumerate(slow, 1)}
    return found


def stale() -> list[str]:
    "Slow cells whose output was made with other code."
    record = json.loads(RECORD.read_text())
    return [name for name, c in slow_cells().items() if record.get(name) != fingerprint(c)]


def accept(names: list[str]) -> None:
    "Record that the outputs of these notebooks are of the code as it is."
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    current = slow_cells()
    asked = {Path(n).resolve().relative_to(NBS).as_posix() for n in names}
    fresh = {n: fingerprint(c) for n, c in current.items() if n.rpartition(" ")[0] in asked}
    record = {n: h for n, h in (record | fresh).items() if n in current}
    RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        accept(sys.argv[1:])
    print("\n".join(stale()) or "every slow output is of the code as it is")
