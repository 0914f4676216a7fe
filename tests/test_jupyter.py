"""JupyterLab starts on the repository and serves it, and a reader's first notebook runs: in a
kernel, and from the menu of a browser, with its figures and progress bars. Slow.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import Request, urlopen

import nbformat
import pytest
from nbclient import NotebookClient
from tools import changed, copy_tree, notebooks, snapshot

pytestmark = pytest.mark.slow
FIRST = next((nb for nb in notebooks() if nb.startswith("tutorials/")), "000_core.ipynb")


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home without anybody's Jupyter configuration, for the server and its kernels."
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


@pytest.fixture
def server(home):
    "JupyterLab on a copy of the repository: a function that asks it for a path."
    top = copy_tree(home / "longaml")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=reader",
        f"--ServerApp.root_dir={top}",
    ]
    if getattr(os, "geteuid", lambda: 1)() == 0:
        command.append("--allow-root")
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PYTEST_CURRENT_TEST", "IN_TEST", "MPLBACKEND")
    } | {
        "LONGAML_PROGRESS": "1",
        "PYTHONPATH": str(top),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # progress bars and figures, as a reader has them
    with open(home / "server.log", "w") as log:
        process = subprocess.Popen(command, cwd=top, env=env, stdout=log, stderr=log)

    def ask(where, **post):
        data = json.dumps(post).encode() if post else None
        with urlopen(
            Request(
                f"http://127.0.0.1:{port}{where}",
                data=data,
                headers={"Authorization": "token reader"},
            ),
            timeout=30,
        ) as r:
            return r.read().decode()

    try:
        for _ in range(120):
            try:
                ask("/api/status")
                break
            except (URLError, ConnectionError):
                assert process.poll() is None, (home / "server.log").read_text()[-3000:]
                time.sleep(0.5)
        ask.address = f"http://127.0.0.1:{port}"
        yield ask
    finally:
        process.terminate()
        process.wait(30)


def test_lab_serves_the_repository(server):
    page = server("/lab")
    assert "JupyterLab" in page and 'id="jupyter-config-data"' in page
    scripts = re.findall(r'<script[^>]+src="([^"]+)"', page)
    assert scripts and all(server(s) for s in scripts)
    listed = {f["path"] for f in json.loads(server("/api/contents/nbs"))["content"]}
    assert {"nbs/index.ipynb", "nbs/000_core.ipynb"} <= listed
    opened = json.loads(server(f"/api/contents/nbs/{FIRST}"))
    assert opened["type"] == "notebook" and opened["content"]["cells"]


def test_lab_starts_a_kernel_beside_a_notebook(server):
    session = json.loads(
        server(
            "/api/sessions",
            path=f"nbs/{FIRST}",
            name="",
            type="notebook",
            kernel={"name": "python3"},
        )
    )
    assert session["kernel"]["id"] in {k["id"] for k in json.loads(server("/api/kernels"))}


def test_first_notebook_runs_in_a_kernel(home, monkeypatch, shared_data):
    top = copy_tree(home / "longaml")
    monkeypatch.setenv("PYTHONPATH", str(top))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    before = snapshot(top)
    path = top / "nbs" / FIRST
    nb = nbformat.read(path, as_version=4)
    skip = re.compile(r"^#\|\s*(eval:\s*false|slow\b)", re.M)
    nb.cells = [c for c in nb.cells if not skip.search(c.source)]
    NotebookClient(
        nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    assert sum(bool(c.get("outputs")) for c in nb.cells if c.cell_type == "code") > 0
    assert not (wrote := changed(before, snapshot(top))), f"{FIRST} wrote {wrote}"


# ---------------------------------------------------------------- in a browser

WATCH = """
window.bars = 0;
const kinds = ['widget-hprogress', 'jupyter-widget-hprogress', 'progress-bar'];
const bars = kinds.map(k => '.jp-OutputArea .' + k).join(', ');
new MutationObserver(() => {
  window.bars = Math.max(window.bars, document.querySelectorAll(bars).length);
}).observe(document.body, {childList: true, subtree: true});
"""
STATE = """() => ({
  errors: [...document.querySelectorAll(
    '.jp-OutputArea [data-mime-type="application/vnd.jupyter.error"], ' +
    '.jp-OutputArea .jp-RenderedText[data-mime-type*="error"]'
  )].map(e => e.innerText.slice(0, 300)),
  bars: window.bars,
})"""


@pytest.fixture
def browser():
    "A headless Chromium: this machine's or Playwright's own; skipped where there is neither."
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(
        filter(
            None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))
        ),
        None,
    )
    with playwright.sync_playwright() as start:
        try:
            opened = start.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as e:
            pytest.skip(f"no Chromium: {str(e).splitlines()[0]}")
        yield opened
        opened.close()


def stored(server, path):
    return json.loads(server(f"/api/contents/{path}"))["content"]["cells"]


def figures(cells):
    return sum(
        "image/png" in o.get("data", {})
        for c in cells
        if c["cell_type"] == "code"
        for o in c["outputs"]
    )


def idle(server, path):
    "Whether the kernel of a notebook has nothing to do."
    return any(
        s["path"] == path and s["kernel"]["execution_state"] == "idle"
        for s in json.loads(server("/api/sessions"))
    )


def test_first_tutorial_runs_from_the_menu(server, browser, shared_data):
    path = f"nbs/{FIRST}"
    expected = figures(stored(server, path))
    tab = browser.new_page(viewport={"width": 1400, "height": 1000})
    tab.goto(f"{server.address}/lab/tree/{path}?token=reader")
    tab.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=120_000)
    for _ in range(120):
        if idle(server, path):
            break
        time.sleep(0.5)
    tab.evaluate(WATCH)

    def menu(name, item):
        tab.locator(".lm-MenuBar-item", has_text=re.compile(f"^{name}$")).click()
        tab.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}$")).first.click()

    menu("Edit", "Clear Outputs of All Cells")
    menu("Run", "Run All Cells")
    deadline = time.monotonic() + 500
    quiet = 0
    while quiet < 8:  # between two cells the kernel is idle for a moment too
        assert time.monotonic() < deadline, tab.evaluate(STATE)
        time.sleep(1)
        quiet = quiet + 1 if idle(server, path) else 0
    assert not (state := tab.evaluate(STATE))["errors"], state
    assert state["bars"] > 0, "no progress bar was seen while it ran"
    menu("File", "Save Notebook")
    time.sleep(2)
    cells = stored(server, path)
    ran = [c["execution_count"] for c in cells if c["cell_type"] == "code"]
    assert all(ran) and figures(cells) == expected > 3
    tab.locator(".jp-OutputArea-output img").first.scroll_into_view_if_needed()
    assert (
        tab.eval_on_selector_all(
            ".jp-OutputArea-output img",
            "all => all.filter(i => i.complete && i.naturalWidth > 100).length",
        )
        > 0
    )
