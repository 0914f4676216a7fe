"""Every benchmark on this machine, and the page that shows them.

    python tests/benchmarks/run_all.py                        # all of them: many minutes
    python tests/benchmarks/run_all.py --only lgem,reading    # the others keep what they had
    python tests/benchmarks/run_all.py --quick --out x.json   # small cases: does it work?

Runs each bench_*.py but bench_peers.py in a process of its own, one after the other, on one thread
unless OMP_NUM_THREADS says otherwise, and collects what they compared (rows.py). Writes
nbs/benchmarks.json (the rows; machine, date and versions of each benchmark's run), then runs
nbs/benchmarks.ipynb, which shows it, and stores its outputs. A benchmark whose two sides disagree
fails, keeps its old rows, and makes the exit status 1.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib import metadata
from pathlib import Path

from rows import ROWS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "nbs/benchmarks.ipynb"
TABLE = PAGE.with_suffix(".json")
PACKAGES = ("longaml", "torch", "numpy", "scipy", "pandas", "anndata")


def benchmarks():
    "Every bench_*.py by name; bench_peers.py compares error rates and has files of its own."
    files = sorted(set(HERE.glob("bench_*.py")) - {HERE / "bench_peers.py"})
    return {p.stem.removeprefix("bench_"): p for p in files}


def processor():
    "What the processor calls itself."
    try:
        return next(
            line.split(":", 1)[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memory():
    "Gigabytes of this machine, rounded; nothing where that cannot be asked."
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (AttributeError, ValueError):
        return None


def machine(threads):
    "Where and with what a benchmark ran."
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": int(threads),
        "memory_gib": memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "versions": {p: metadata.version(p) for p in PACKAGES},
    }


def run(file, quick, env):
    "Run one benchmark: its rows, or nothing where it failed."
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(file), *(["--quick"] if quick else [])],
            cwd=ROOT,
            env={**env, ROWS: str(out)},
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        print(
            f"--- {file.name}: {seconds:.0f} s\n{done.stdout}",
            done.stderr if done.returncode else "",
            flush=True,
        )
        rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return (
        None
        if done.returncode or not rows
        else {"quick": quick, "seconds": round(seconds, 1), "rows": rows}
        | machine(env["OMP_NUM_THREADS"])
    )


def show(page):
    "Run the page that shows the table, and store its outputs."
    import nbformat
    from nbclient import NotebookClient
    from nbdev.clean import nbdev_clean

    nb = nbformat.read(page, as_version=4)
    NotebookClient(
        nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(page.parent)}}
    ).execute()
    nbformat.write(nb, page)
    nbdev_clean(fname=str(page))


def chosen(names, every):
    "The benchmarks asked for; a name that is none of them ends the program."
    if unknown := set(names) - set(every):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    return {n: every[n] for n in every if not names or n in names}


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="small cases")
    parse.add_argument("--only", default="", help="names, with commas between")
    parse.add_argument(
        "--out",
        type=Path,
        default=TABLE,
        help="the file to write; the page is run only for its own",
    )
    args = parse.parse_args()
    every = benchmarks()
    env = {
        **os.environ,
        "LONGAML_PROGRESS": "0",
        **{
            k: os.environ.get("OMP_NUM_THREADS", "1")
            for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        },
    }
    old = json.loads(args.out.read_text()) if args.out.exists() else {}
    table, failed = {n: old[n] for n in every if n in old}, []
    for name, file in chosen([n for n in args.only.split(",") if n], every).items():
        if (made := run(file, args.quick, env)) is None:
            failed.append(name)
        else:
            table[name] = made
        part = args.out.with_name(
            f".{args.out.name}.part"
        )  # after every benchmark: what is interrupted keeps what it has
        part.write_text(json.dumps({n: table[n] for n in every if n in table}, indent=1) + "\n")
        part.replace(args.out)
    if args.out.resolve() == TABLE:
        show(PAGE)
    print(
        f"wrote {args.out}: {sum(len(t['rows']) for t in table.values())} comparisons "
        f"of {len(table)} benchmarks" + (f"; FAILED: {', '.join(failed)}" if failed else "")
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
