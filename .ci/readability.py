"""Flesch-Kincaid grade (years of school) of the README and the tutorials: `python
.ci/readability.py [FILE ...]`. Code, tables, links' addresses and headings do not count.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_PROSE = r"```(?s:.*?)```|^\|.*$|^#.*$|^!\[.*$|<!--.*?-->|\$[^$]*\$|`[^`]*`|\]\([^)]*\)"


def prose(
    path,  # a notebook, or a page of markdown
) -> str:
    "The sentences of a page."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        pages = [
            "".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"][0] == "m"
        ]
        text = "\n\n".join(pages)
    text = re.sub(r"\n(\s*\n|- |> )", ".\n", re.sub(NOT_PROSE, " ", text, flags=re.M))
    return re.sub(r"[*_\[\]>]", "", text)


def grade(
    text,  # sentences
) -> float:  # years of school
    "Flesch-Kincaid grade; a syllable is a group of vowels, less a mute e at the end."
    words = re.findall(r"[A-Za-z]+(?:'[a-z]+)?", text)
    sentences = [s for s in re.split(r"[.!?](?:\s|$)", text) if re.search(r"[A-Za-z]", s)]
    stems = [re.sub(r"(?<=[^aeiouyl])e[sd]?$", "", w.lower()) for w in words]
    syllables = sum(max(1, len(re.findall(r"[aeiouy]+", s))) for s in stems)
    return 0.39 * len(words) / len(sentences) + 11.8 * syllables / len(words) - 15.59


if __name__ == "__main__":
    tutorials = sorted((ROOT / "nbs/tutorials").glob("*.ipynb"))
    for page in [Path(f) for f in sys.argv[1:]] or [ROOT / "README.md", *tutorials]:
        print(f"{grade(prose(page)):5.1f}  {page.name}")
