"JupyterLab starts on the repository and serves it, and a reader's first notebook runs in a kernel. Slow."
import json
import os
import re
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
FIRST = next((nb for nb in notebooks() if nb.startswith("tutorials/")), "00_core.ipynb")


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home without anybody's Jupyter configuration, for the server and its kernels."
    for name in ("CONFIG", "DATA", "RUNTIME"): monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


@pytest.fixture
def server(home):
    "JupyterLab on a copy of the repository: a function that asks it for a path."
    top = copy_tree(home / "longaml")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=reader", f"--ServerApp.root_dir={top}"]
    if getattr(os, "geteuid", lambda: 1)() == 0: command.append("--allow-root")
    with open(home / "server.log", "w") as log: process = subprocess.Popen(command, cwd=top, stdout=log, stderr=log)

    def ask(where, **post):
        data = json.dumps(post).encode() if post else None
        with urlopen(Request(f"http://127.0.0.1:{port}{where}", data=data, headers={"Authorization": "token reader"}), timeout=30) as r: return r.read().decode()
    try:
        for _ in range(120):
            try: ask("/api/status"); break
            except (URLError, ConnectionError):
                assert process.poll() is None, (home / "server.log").read_text()[-3000:]
                time.sleep(0.5)
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
    assert {"nbs/index.ipynb", "nbs/00_core.ipynb"} <= listed
    opened = json.loads(server(f"/api/contents/nbs/{FIRST}"))
    assert opened["type"] == "notebook" and opened["content"]["cells"]


def test_lab_starts_a_kernel_beside_a_notebook(server):
    session = json.loads(server("/api/sessions", path=f"nbs/{FIRST}", name="", type="notebook", kernel={"name": "python3"}))
    assert session["kernel"]["id"] in {k["id"] for k in json.loads(server("/api/kernels"))}


def test_first_notebook_runs_in_a_kernel(home, monkeypatch):
    top = copy_tree(home / "longaml")
    monkeypatch.setenv("PYTHONPATH", str(top))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    before, path = snapshot(top), top / "nbs" / FIRST
    nb = nbformat.read(path, as_version=4)
    skip = re.compile(r"^#\|\s*(eval:\s*false|slow\b)", re.M)
    nb.cells = [c for c in nb.cells if not skip.search(c.source)]
    NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    assert sum(bool(c.get("outputs")) for c in nb.cells if c.cell_type == "code") > 0
    assert not (wrote := changed(before, snapshot(top))), f"{FIRST} wrote {wrote}"
