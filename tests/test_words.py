"""Retired phrases: private jargon and figures of speech that a reader had to guess. What replaced
them is in the glossary, or next to each phrase below.
"""

import ast
import io
import re
import tokenize
from functools import cache

import pytest
from tools import NBS, ROOT, all_cells, texts

RETIRED = {  # phrase -> what to say
    r"own[- ]level|own_level": "baseline expression",
    r"\btold apart\b": "distinguished; significantly different",
    r"\bthinned\b": "downsampled",
    r"\blineages?\b": "cell type",
    r"\bverdicts?\b": "check: passed, failed, not assessed",
    r"\bnumbers inside\b": "hidden size",
    r"\bbeside\b": "next to; adjusted for",
    r"\bspeaks? (for|against)\b": "support; evidence for",
    r"can(not)? be believed": "a call at a stated false discovery rate",
    r"\binformative (assignments?|permutations?)\b|\bof them informative\b": "(leave it out)",
    r"assignments of (their samples|samples,|libraries)": "exchanges of visits",
    r"\bgenes pooled\b": "null scores of all genes together",
    r"\bsmallest attainable\b": "smallest possible",
    r"\bpaired score\b": "paired test",
    r"(permuted|exchanged|swapped|whole) librar|\blibrary effects?\b": "sample",
    r"\bthe clinic\b(?!al)": "clinical covariates",
    r"what says so|cells say so": "what predicts it",
    r"\bcarr(y|ies) the change\b": "change",
    r"\bstands? out from\b": "exceed",
    r"\bat prevalence\b": "as a random list",
    r"\bq-values( \(FDR\))? hold within\b": "q-values are for",
    r"\bversions before\b|\b(numbers|test) of before\b": "versions 0.1 and 0.2",
    r"\bthe (whole )?way of a cohort\b": "what is done with a cohort",
    r"\bcohort (goes )?in,|\bhonest answer": "what the function does",
    r"\bpermuted labels reach\b": "permuted labels give",
}
PAGES = {  # phrases of statistics that have a place in reference pages, but not on pages to begin
    r"\bnuisances?\b": "other explanation",
    r"\bstudentised?\b": "divided by its standard error",
    r"\bstrata\b": "groups",
    r"\bincumbents?\b": "baseline",
    r"\bablations?\b": "settings left out",
}
ALLOWED = {  # where a retired phrase is the name of something: notebook -> phrases
    "900_cli.ipynb": [r"\blineages?\b", r"own[- ]level|own_level"],  # options of version 0.1
    "pp/208_labels.ipynb": [r"\blineages?\b"],  # a column of version 0.1
}
KEPT = {  # messages of modules that stored studies depend on; their texts change with the studies
    "tl/303_checks.ipynb": [
        r"\bpermuted labels reach\b",
        r"assignments of (their samples|samples,|libraries)",
    ],
    "tl/320_gene_test_summary.ipynb": [
        r"assignments of (their samples|samples,|libraries)",
        r"\bq-values( \(FDR\))? hold within\b",
    ],
}
STARTING = ("index.ipynb", "models.ipynb", "glossary.ipynb", "tutorials/")


def said(code: str) -> list[str]:
    "What a cell of code says to a reader: its texts, docstrings and comments."
    words = [
        node.value
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return words + [t.string for t in tokens if t.type == tokenize.COMMENT]


@cache
def pages() -> dict[str, str]:
    "Everything that a reader may meet, by the file it is in; outputs of notebooks apart."
    found: dict[str, list[str]] = {}
    for c in all_cells():
        parts = [c.source] if c.kind != "code" else said(c.code)
        found.setdefault(c.nb, []).extend(parts)
        outputs = [t for o in c.outputs for t in texts(o)]
        found.setdefault(f"{c.nb} (outputs)", []).extend(outputs)
    files = [*NBS.glob("*.qmd"), *(ROOT / "longaml/experiment/templates").glob("*.j2")]
    changes = (
        (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    )  # older versions had other words
    named = {p.relative_to(ROOT).as_posix(): p.read_text() for p in files}
    named |= {"README.md": (ROOT / "README.md").read_text(), "CHANGELOG.md": changes}
    return {name: "\n".join(parts) for name, parts in found.items()} | named


@cache
def plain(text: str) -> str:
    "A text on one line, without names of code."
    return re.sub(r"\s+", " ", re.sub(r"`[^`\n]*`", "``", text))


def hits(phrases: dict[str, str], text: str) -> dict[str, str]:
    "The phrases in a text, with the words around each."
    one = plain(text)
    found = {p: re.search(p, one, re.I) for p in phrases}
    return {p: one[max(0, m.start() - 50) : m.end() + 40] for p, m in found.items() if m}


def unsaid(phrases: dict[str, str], name: str, text: str) -> list[str]:
    "Retired phrases on a page that may not be there."
    if name.endswith("(outputs)"):
        allowed = [p for kept in KEPT.values() for p in kept]
    else:
        allowed = KEPT.get(name, [])
    allowed = [*allowed, *ALLOWED.get(name.removesuffix(" (outputs)"), [])]
    found = hits({p: w for p, w in phrases.items() if p not in allowed}, text)
    return [f"{name}: {around!r}; say: {phrases[p]}" for p, around in found.items()]


def test_no_retired_phrase():
    bad = [line for name, text in pages().items() for line in unsaid(RETIRED, name, text)]
    assert not bad, "\n".join(bad)


def test_pages_to_begin_with_have_no_jargon_of_statistics():
    begun = {n: t for n, t in pages().items() if n.startswith(STARTING) or n == "README.md"}
    bad = [line for name, text in begun.items() for line in unsaid(PAGES, name, text)]
    assert len(begun) > 10 and not bad, "\n".join(bad)


@pytest.mark.parametrize("name", [*ALLOWED, *KEPT])
def test_exceptions_are_still_needed(name):
    "An exception that nothing needs any more is deleted."
    text = pages()[name] + pages()[f"{name} (outputs)"]
    wanted = [*ALLOWED.get(name, []), *KEPT.get(name, [])]
    one = re.sub(r"\s+", " ", text)
    assert not [p for p in wanted if not re.search(p, one, re.I)]


def test_retired_phrases_are_seen():
    planted = "8 assignments of their samples, 3 of them informative; the own-level regression"
    assert len(hits(RETIRED, planted)) == 3
    assert not hits(RETIRED, "`--lineage-key` names a clinical covariate; samples were exchanged")
    assert said("x = 'beside'  # a verdict") == ["beside", "# a verdict"]
