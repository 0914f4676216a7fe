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
    r"\bcan(not|'t)?\b[^.?!|]{0,80}\bbe believed|\bto be believed\b": (
        "a call at a stated false discovery rate"
    ),
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


TERMS = [  # what the design's table of words says instead of the retired ones
    *("distinguished", "significantly different", "baseline", "cell type", "sample"),
    *("downsampled", "check", "passed", "failed", "not assessed", "timepoint classification"),
    *("`timepoint`", "baseline expression", "power", "smallest possible p", "compared with"),
    *("bag", "20 cells", "pair (of bags)", "token sequence", "token", "hidden size"),
    *("embedding dimension", "query", "prediction", "attend to", "support"),
]


def unexplained(terms: list[str], glossary: str) -> list[str]:
    "Terms that the glossary does not have as whole words."
    return [t for t in terms if not re.search(rf"(?<!\w){re.escape(t)}(?!\w)", glossary, re.I)]


def test_the_glossary_has_every_replacement():
    page = "\n".join(c.source for c in all_cells() if c.nb == "glossary.ipynb")
    assert not (lost := unexplained(TERMS, page)), lost
    assert unexplained(["power", "token"], "powerful tokens") == ["power", "token"]


def test_retired_phrases_are_seen():
    planted = "8 assignments of their samples, 3 of them informative; the own-level regression"
    assert len(hits(RETIRED, planted)) == 3
    believed = (
        "Can the p-value be believed?",
        "a list that cannot be believed",
        "it can be believed",
    )
    assert all(len(hits(RETIRED, text)) == 1 for text in believed)
    assert not hits(RETIRED, "What can it be? Believed or not.")
    assert not hits(RETIRED, "`--lineage-key` names a clinical covariate; samples were exchanged")
    assert said("x = 'beside'  # a verdict") == ["beside", "# a verdict"]


# ---------------------------------------------------------------- headings

FINITE = (
    r"(?<!^)\b(is|are|was|were|has|have|had|does|do|did|can|cannot|may|must|will|would|should|belongs?|"
    r"becomes?|depends?|changes nothing|matters?|reads|says|gives|holds|follows)\b"
)
RELATIVE = r"\b(that|which|what|who|whose|where|when|how|whether|why)\b"
RIDDLES = r"(Its\b|What follows$|Trained$|Sanity$|Now\b|And\b|So\b)"
QUESTIONS = ("index.ipynb", "models.ipynb", "tutorials/")  # a heading may be the user's question


def headings(text: str) -> list[str]:
    "The headings below the title, outside of code."
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.findall(r"^#{2,4} (.+)$", prose, re.M)


def no_topic(nb: str, heading: str) -> str | None:
    "What keeps a heading from naming a topic."
    asks = "?" in heading
    if asks:
        return None if nb.startswith(QUESTIONS) else "a question"
    verb = re.search(FINITE, heading, re.I)
    relative = re.search(RELATIVE, heading, re.I)
    if verb and not (relative and relative.start() < verb.start()):
        return f"a sentence ({verb[0]})"
    return "a riddle" if re.match(RIDDLES, heading) else None


def test_headings_name_topics():
    bad = [
        f"{c.nb}: {heading!r} is {why}"
        for c in all_cells()
        if c.kind == "markdown"
        for heading in headings(c.source)
        if (why := no_topic(c.nb, heading))
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    "heading, seen",
    [
        ("A set has no order", True),
        ("Can the p-value be believed?", True),
        ("Which pairs are associated? Permutations of samples", True),
        ("What follows", True),
        ("Its shape", True),
        ("A config is a dataclass", True),
        ("Genes that are not read out", False),
        ("What is compared", False),
        ("Names of files", False),
        ("Errors", False),
    ],
)
def test_headings_without_a_topic_are_seen(heading, seen):
    assert bool(no_topic("tl/300_permutation.ipynb", heading)) == seen
    assert headings(f"# T\n## {heading}\n```\n## code\n```\n### b") == [heading, "b"]
    assert no_topic("index.ipynb", "What changed?") is None
