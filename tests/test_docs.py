"""The site: nbdev makes the pages and smalldocs renders them, on a copy; then every link, anchor
and picture is followed. `python tests/test_docs.py` leaves it in _docs.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from tools import ROOT, copy_tree, notebooks, python_code

PROC = """
import os
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
if __name__ == "__main__":
    refresh_quarto_yml()
    proc_nbs(n_workers=0)  # workers would import PyTorch anew for each page
    os._exit(0)  # IPython takes a minute to take down a shell for each page
"""


class Links(HTMLParser):
    "The ids of a page, what it links to, and what it shows."

    def __init__(self, text):
        super().__init__()
        self.ids = set()
        self.hrefs = []
        self.pictures = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get("id"):
            self.ids.add(a["id"])
        if tag == "a" and a.get("name"):
            self.ids.add(a["name"])
        if tag in ("a", "link") and a.get("href"):
            self.hrefs.append(a["href"])
        if tag in ("img", "script", "source") and a.get("src"):
            self.pictures.append(a["src"])


def page_name(nb):
    """Take `output-file` out of a page's front matter, which smalldocs does not read, and name
    the page by it, as Quarto does.
    """
    cells = json.loads(nb.read_text())
    for cell in cells["cells"]:
        found = cell["cell_type"] == "raw" and re.search(
            r"^output-file: (\S+)\n", source := "".join(cell["source"]), re.M
        )
        if not found:
            continue
        cell["source"] = source.replace(found[0], "")
        nb.unlink()
        new = nb.with_name(found[1]).with_suffix(".ipynb")
        assert not new.exists(), f"two notebooks become {found[1]}"
        new.write_text(json.dumps(cells))
        return new
    return nb


def with_page_names(text, pages):
    "A text whose relative links to notebooks lead to their pages: {notebook: page}, file names."
    parts = []
    at = 0
    for found in re.finditer(r"\d{2,3}_\w+\.ipynb", text):  # what stands before it is seen next
        before = re.search(r"[\w./-]*$", text[max(at, found.start() - 200) : found.start()])[0]
        here = before.startswith("/") or (before and before[-1] not in "/.-")
        if here or found[0] not in pages:
            continue
        parts += [text[at : found.start()], pages[found[0]]]
        at = found.end()
    return "".join([*parts, text[at:]])


def build(top):
    "Make the site of a copy of the repository: the folder of pages."
    done = python_code(PROC, cwd=top, timeout=600)
    proc = top / "_proc"
    made = {p.relative_to(proc).as_posix() for p in proc.rglob("*.ipynb")}
    assert done.returncode == 0 and made == set(notebooks(top)), (
        f"pages missing: {set(notebooks(top)) - made}\n{done.stderr[-1500:]}"
    )
    names = {nb: page_name(proc / nb).relative_to(proc).as_posix() for nb in sorted(made)}
    pages = {Path(a).name: Path(b).name for a, b in names.items() if a != b}
    for f in [
        top / "_quarto.yml",
        *proc.rglob("*.ipynb"),
        *proc.rglob("*.qmd"),
        *proc.rglob("*.md"),
    ]:  # links name the notebook; Quarto finds its page
        f.write_text(with_page_names(f.read_text(), pages))
    done = subprocess.run(
        [sys.executable, "-m", "smalldocs.cli", "render", "--strict", str(proc)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return proc / "_docs"


@cache
def settings(top):
    return dict(
        line.split(" = ", 1)
        for line in (top / "settings.ini").read_text().splitlines()
        if " = " in line and not line.startswith("#")
    )


def fault(link, page, pages, top):
    """What is wrong with a link of a page, or nothing. Links to the site and to the repository
    are held to the files here; other addresses are not visited.
    """
    cfg = settings(top)
    base = cfg["doc_host"] + cfg["doc_baseurl"] + "/"
    git = cfg["git_url"]
    if re.match(r"data:|mailto:|javascript:", link):
        return None
    if link.startswith(f"{git}/blob/"):
        return repository_fault(unquote(link.removeprefix(f"{git}/blob/")), cfg["branch"], top)
    if not (full := urljoin(base + page, link)).startswith(base):
        return None if urlsplit(full).netloc else "no host"
    path, _, anchor = unquote(full.removeprefix(base)).partition("#")
    path = path.partition("?")[0]
    if path == "" or path.endswith("/"):
        path += "index.html"
    if path not in pages:
        return "no such file"
    if anchor and pages[path] is not None and anchor not in pages[path].ids:
        return "no such anchor"


@cache
def length(file):
    "How many lines a file has."
    return len(file.read_text().splitlines())


def repository_fault(path, branch, top):
    "What is wrong with a link to a file of the repository, and a line in it."
    path, _, line = path.partition("#L")
    file = top / path.removeprefix(f"{branch}/")
    if not path.startswith(f"{branch}/") or not file.is_file():
        return "no such file in the repository"
    if line and not (line.isdigit() and 1 <= int(line) <= length(file)):
        return "no such line"


def read_site(site):
    return {
        p.relative_to(site).as_posix(): Links(p.read_text()) if p.suffix == ".html" else None
        for p in site.rglob("*")
        if p.is_file()
    }


@pytest.fixture(scope="module")
def pages(site):
    return read_site(site)


def faults(pages, top):
    "Every broken link, anchor and picture of the pages of a site."
    links = [
        (page, link)
        for page, found in pages.items()
        if found
        for link in dict.fromkeys(found.hrefs + found.pictures)
    ]
    assert len(links) > 10 * len([p for p in pages.values() if p])  # the sidebar alone has more
    return [
        f"{page}: {link}: {why}" for page, link in links if (why := fault(link, page, pages, top))
    ]


def test_every_link_anchor_and_picture_resolves(pages, top):
    assert not (bad := faults(pages, top)), "\n".join(bad)


def test_broken_links_are_seen(pages, site, top):
    home = "https://longaml.github.io/longaml"
    added = [
        "nowhere.html",
        "index.html#nowhere",
        f"{home}/core.html#nowhere",
        f"{home}/nowhere.html",
        "https://github.com/longaml/longaml/blob/main/longaml/core.py#L99999",
    ]
    fine = [
        "index.html",
        f"{home}/core.html#check_cohort",
        f"{home}/",
        "https://example.org/x#y",
        "https://github.com/longaml/longaml/blob/main/longaml/core.py#L1",
    ]
    links = "".join(f'<a href="{href}">x</a>' for href in added + fine)
    page = (site / "core.html").read_text()
    page = page.replace("</body>", f'{links}<img src="nowhere.png"></body>')
    broken = {**pages, "core.html": Links(page)}
    assert len(set(faults(broken, top)) - set(faults(pages, top))) == len(added) + 1


def symbols(top):
    "What nbdev knows of every module: its names, and where each is shown."
    found = {}
    exec((top / "longaml/_modidx.py").read_text(), found)
    return found["d"]["syms"]


def public(top):
    "Where nbdev says that every public function and class is shown: links into the site."
    for module, names in symbols(top).items():
        tree = ast.parse((top / (module.replace(".", "/") + ".py")).read_text())
        listed = next(
            (
                ast.literal_eval(n.value)
                for n in tree.body
                if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
            ),
            [],
        )
        yield from (
            link for name, (link, _) in names.items() if name.removeprefix(f"{module}.") in listed
        )


def test_every_public_function_has_its_place(site, top):
    pages = read_site(site)
    links = list(public(top))
    assert len(links) > 15 and {"core.html#check_cohort", "core.html#atomic_path"} <= set(links)
    missing = [
        link
        for link in links
        if (p := link.partition("#"))[0] not in pages or p[2] not in pages[p[0]].ids
    ]
    assert not missing, f"functions without their place on the site: {missing}"


def test_names_as_they_are_typed_lead_to_their_page(site, top):
    "`la.NAME` in a notebook's prose is a link; in headings, code and docstrings it is not."
    import longaml

    names = {f"{n}.{name}" for n in longaml.NAMESPACES for name in getattr(longaml, n).__all__}
    names |= {"read_cohort"}
    linked = 0
    bare = []
    left_out = {
        p.relative_to(ROOT / "nbs").with_suffix("").as_posix()
        for p in (ROOT / "nbs").rglob("*.qmd")
    } | {"init"}  # not notebooks; and the list of docstrings
    hidden = (
        r"<pre.*?</pre>|<h[1-6].*?</h[1-6]>|<nav.*?</nav>|<script.*?</script>|<p><em>.*?</em></p>"
    )
    for page in site.rglob("*.html"):
        if page.stem in left_out:
            continue
        text = re.sub(f"(?s){hidden}", "", page.read_text())
        for a, name in re.findall(r"(<a [^>]*>)?<code[^>]*>la\.(\w+(?:\.\w+)?)", text):
            if name not in names:
                continue
            linked += bool(a)
            if not a:
                bare.append(f"{page.name}: la.{name}")
    assert linked > 40 and not bare, bare


def test_site_has_two_themes_and_its_sections(site):
    text = (site / "index.html").read_text()
    conf = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    for theme in conf["format"]["html"]["theme"].values():
        assert f"{theme}.min.css" in text
    for name in (
        "Start",
        "Tutorials",
        "Models",
        "Reference",
        "Benchmarks",
        "Citation",
        "Contributing",
        "Changelog",
    ):
        assert name in text
    assert "0.2.0" in (site / "changelog.html").read_text()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as tmp:
        made = build(copy_tree(Path(tmp) / "longaml"))
        shutil.rmtree(ROOT / "_docs", ignore_errors=True)
        shutil.copytree(made, ROOT / "_docs")
    print("open _docs/index.html")
