"""Make README.md from nbs/index.ipynb: `python .ci/readme.py`. With `--check`, say what differs
and exit 1.
"""

import base64
import json
import posixpath
import re
import sys
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup, _nbpath2html

ROOT = Path(__file__).resolve().parents[1]
IMAGES = "nbs/images"
LINK = re.compile(r"(!?\[[^\]\n]*\]\()([^)\s]+)(\))")


def target(
    href,  # a link as index.ipynb has it: to a notebook, an image, another file, or an address
) -> str:  # the same link, as it works from README.md
    "Notebooks become pages of the site; other files are named from the root of the repository."
    if re.match(r"[a-z]+:|#|//", href):
        return href
    path, mark, anchor = href.partition("#")
    cfg = get_config()
    if Path(path).suffix in (".ipynb", ".qmd"):
        return (
            f"{cfg.doc_host}{cfg.doc_baseurl}/{_nbpath2html(Path(path)).as_posix()}{mark}{anchor}"
        )
    return posixpath.normpath(posixpath.join("nbs", path)) + mark + anchor


def prose(
    text,  # source of a markdown cell
    lookup,  # nbdev's table of names
) -> str:
    "Markdown with names in backticks linked to the site, and links that work from README.md."
    out, fence = [], False
    for line in text.splitlines():
        fence ^= line.startswith("```")
        out.append(
            line
            if fence
            else LINK.sub(lambda m: m[1] + target(m[2]) + m[3], lookup.link_line(line))
        )
    return "\n".join(out)


def output(
    out,  # one stored output of a cell
    cell,  # the cell: its `fig-alt` describes a picture
    images,  # pictures so far, by path: a new one is added
) -> str:
    """A stored output as markdown: a picture is written beside the notebooks, text goes into a
    block.
    """
    data = out.get("data", {})

    def text(value):
        return value if isinstance(value, str) else "".join(value)

    if "image/png" in data:
        name = f"{IMAGES}/index_{len(images) + 1}.png"
        images[name] = base64.b64decode(text(data["image/png"]))
        alt = re.search(r"^#\|\s*fig-alt:\s*(.+)$", cell, re.M)
        return f"![{alt[1].strip(chr(34)) if alt else ''}]({name})"
    if "text/markdown" in data:
        return text(data["text/markdown"])
    shown = text(out.get("text") or data.get("text/plain", "")).rstrip()
    return f"```\n{shown}\n```" if shown else ""


def readme(
    nb,  # the notebook, as JSON
) -> tuple:  # text of README.md, and pictures by path
    "README.md and its pictures, from cells and stored outputs; nothing is run."
    lookup, parts, images = NbdevLookup(incl_libs="longaml"), [], {}
    for cell in nb["cells"]:
        src = "".join(cell["source"])
        flags = set(re.findall(r"^#\|\s*(\w[\w-]*(?::\s*\w+)?)", src, re.M))
        if flags & {"hide", "include: false"} or cell["cell_type"] == "raw":
            continue
        if cell["cell_type"] == "markdown":
            parts.append(prose(src, lookup))
            continue
        code = "\n".join(line for line in src.splitlines() if not line.startswith("#|")).strip()
        if code and "echo: false" not in flags:
            parts.append(f"```python\n{code}\n```")
        if "output: false" not in flags:
            parts += filter(None, (output(o, src, images) for o in cell["outputs"]))
    return (
        "<!-- made from nbs/index.ipynb by .ci/readme.py: edit the notebook -->\n\n"
        + "\n\n".join(p.strip() for p in parts)
        + "\n",
        images,
    )


def main(
    args,  # command line: nothing, or `--check`
) -> int:  # exit code
    "Write README.md and its pictures, or check that they are what the notebook gives."
    text, images = readme(json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8")))
    files = {"README.md": text.encode(), **images}
    old = {
        p.relative_to(ROOT).as_posix() for p in (ROOT / IMAGES).glob("index_*.png")
    } - files.keys()
    stale = sorted(
        old
        | {
            f
            for f, data in files.items()
            if not (ROOT / f).is_file() or (ROOT / f).read_bytes() != data
        }
    )
    if "--check" in args:
        if stale:
            print(
                f"not what nbs/index.ipynb gives: {', '.join(stale)}. Run: python .ci/readme.py",
                file=sys.stderr,
            )
        return bool(stale)
    for f in stale:
        if f in old:
            (ROOT / f).unlink()
        else:
            (ROOT / f).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / f).write_bytes(files[f])
    print(f"wrote {', '.join(stale)}" if stale else "README.md is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
