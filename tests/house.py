"""Which modules of longaml a piece of code uses, through whatever name it reaches them: used by
the tests of the house and by the figure of the contributing page.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "longaml"
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
INNER = SCOPES + COMPREHENSIONS + (ast.ClassDef,)
NOWHERE = "-"  # code that is in no module; "" is longaml itself
Use = tuple[str, str]  # a module of longaml without the leading `longaml.`, and a name in it


def module_name(path: Path, package: Path = PACKAGE) -> str:
    """`pp.reading` for longaml/pp/reading.py; `pp` for its package; an empty name for longaml."""
    name = path.relative_to(package).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix("__init__").rstrip(".")


@dataclass(frozen=True)
class House:
    "What there is to be found: modules, packages, and the public names of the namespaces."

    modules: frozenset[str]  # such as `pp.reading`
    packages: frozenset[str]  # such as `pp`
    public: dict[str, Use]  # `tl.de` -> module and name where it is defined

    def resolve(self, path: str) -> Use | None:
        """The module and the name that a dotted path means: the longest part that is a module, or
        a public name of a namespace. None for a package alone, from which nothing is taken.
        """
        parts = path.split(".") if path else []
        for n in range(len(parts), 0, -1):
            start, rest = ".".join(parts[:n]), parts[n:]
            if start in self.public:
                return self.public[start]
            if start in self.modules:
                return start, rest[0] if rest else ""
            if start in self.packages:
                return (start, rest[0]) if rest else None
        return ("", parts[0]) if parts else None


def _names_of(source: str) -> dict[str, str]:
    "The table `NAMES` of a namespace: module -> its public names."
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAMES":
            return ast.literal_eval(node.value)
    return {}


@cache
def house(package: Path = PACKAGE) -> House:
    "The modules and the public names of a checkout, without importing it."
    files = [p for p in package.rglob("*.py") if p.stem != "_modidx"]
    packages = {module_name(p, package): p for p in files if p.stem == "__init__"}
    modules = {module_name(p, package) for p in files} - packages.keys()
    public = {}
    for name, path in packages.items():
        for module, entries in _names_of(path.read_text()).items():
            for entry in entries.split():
                shown, _, own = entry.partition("=")
                public[f"{name}.{shown}"] = (f"{name}.{module}", own or shown)
    if "pp.read_cohort" in public:
        public["read_cohort"] = public["pp.read_cohort"]
    return House(frozenset(modules), frozenset(packages), public)


def _imports(node: ast.AST, here: str) -> Iterable[tuple[str, str, str]]:
    "What an import statement brings from longaml: the name it binds, what to, and what it reads."
    if isinstance(node, ast.Import):
        for alias in node.names:
            top, _, path = alias.name.partition(".")
            if top == "longaml":
                yield alias.asname or "longaml", path if alias.asname else "", path
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            inside = [*here.split("."), *([""] if here in house().packages else [])]
            base = ".".join([*inside[: -node.level], *filter(None, [base])])
        elif base.partition(".")[0] == "longaml":
            base = base.partition(".")[2]
        else:
            return
        for alias in node.names:
            path = f"{base}.{alias.name}".strip(".")
            yield alias.asname or alias.name, path, path


def _dotted(node: ast.AST) -> list[str]:
    "The names of `a.b.c`, first to last; empty where it does not start with a plain name."
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def _own(node: ast.AST) -> Iterable[ast.AST]:
    "The nodes of a scope, without those of functions, classes and comprehensions in it."
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, INNER):
            yield from _own(child)


def _assigned(scope: ast.AST) -> set[str]:
    "Names that a scope gives to something of its own: parameters and what it assigns."
    found = set()
    if isinstance(scope, SCOPES):
        a = scope.args
        every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
        found |= {arg.arg for arg in every}
    for node in _own(scope):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
    return found


@dataclass
class _Reader:
    "Walks through code, and knows what each name means where it is read."

    there: House
    here: str  # the module that the code belongs to
    found: set[Use] = field(default_factory=set)

    def add(self, path: str) -> None:
        if (use := self.there.resolve(path)) and use[0] != self.here:
            self.found.add(use)

    def scope(self, scope: ast.AST, known: dict[str, str]) -> dict[str, str]:
        "Read one scope and those in it; the names that it has bound to something of longaml."
        outer = known
        known = {name: path for name, path in known.items() if name not in _assigned(scope)}
        own = list(_own(scope))
        for node in own:
            for name, path, read in _imports(node, self.here):
                known[name] = path
                self.add(read)
        for node in own:
            names = _dotted(node)
            if names and names[0] in known:
                self.add(".".join(filter(None, [known[names[0]], *names[1:]])))
            if isinstance(node, INNER):  # methods do not see what their class has assigned
                self.scope(node, outer if isinstance(scope, ast.ClassDef) else known)
        return known


def uses(
    code: str,  # Python code
    here: str = NOWHERE,  # the module that it belongs to, for relative imports
    known: dict[str, str] | None = None,  # names that mean something of longaml already
    there: House | None = None,  # where to look; this checkout, if left out
) -> set[Use]:
    """What code uses of longaml: by import, by attribute of a package or of a module
    (`tasks.timepoint.evaluate`), and by public name of a namespace (`la.tl.de`).
    """
    reader = _Reader(there or house(), here)
    reader.scope(ast.parse(code), known or {})
    return reader.found


def bound(code: str) -> dict[str, str]:
    "The names that code gives to something of longaml."
    return _Reader(house(), NOWHERE).scope(ast.parse(code), {})


def imports_of(package: Path = PACKAGE) -> dict[str, set[str]]:
    "Module -> the modules of longaml that it uses, at its top or within a function."
    there = house(package)
    found = {}
    for path in package.rglob("*.py"):
        name = module_name(path, package)
        if name in there.modules:
            modules = {module for module, _ in uses(path.read_text(), name, there=there)}
            found[name] = modules & there.modules - {name}
    return found


def private(code: str, here: str = NOWHERE) -> list[str]:
    "Names with a leading underscore that code takes from another module, however it reaches them."
    return sorted(
        f"{module}.{name}".strip(".")
        for module, name in uses(code, here)
        if name.startswith("_") and not name.startswith("__")
    )
