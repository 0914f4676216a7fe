"""A whole run in one process against one in every core: the same tables, in less time.

    python tests/benchmarks/bench_jobs.py           # 28 patients, 2,000 genes, 20 permutations
    python tests/benchmarks/bench_jobs.py --quick   # 7 patients, 150 genes: starting costs more

Both sides are the command `longaml run` with its default models and permutations, without figures
and report, one after the other in processes of their own, on a cohort that is simulated first. The
time is that of the command, with its start and the reading. The exit status is 1 where a table of
the two differs in a byte. One thread each (OMP_NUM_THREADS=1).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import row

LONGAML = (sys.executable, "-c", "import sys; from longaml.cli import main; sys.exit(main())")


def longaml(*args):
    "Run a command; the seconds it took."
    env = os.environ | {"OMP_NUM_THREADS": "1", "LONGAML_PROGRESS": "0"}
    start = time.perf_counter()
    subprocess.run([*LONGAML, *map(str, args)], check=True, stdout=subprocess.DEVNULL, env=env)
    return time.perf_counter() - start


def differing(one, other):
    "Tables of two folders that are not the same bytes."
    names = {p.name for folder in (one, other) for p in folder.glob("*.csv")}
    return sorted(n for n in names if (one / n).read_bytes() != (other / n).read_bytes())


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--quick", action="store_true", help="a small case")
    parse.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    given = parse.parse_args()
    size = (
        "--preset small --patients 7 --genes 150 --cells 120 --drivers 8"
        if given.quick
        else "--patients 28 --genes 2000 --cells 200"
    ).split()
    options = "--nulls 3 --halves 3".split() if given.quick else []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        longaml("simulate", place / "cohort", *size, "--seed", 3)
        seconds = {}
        for jobs in (1, given.jobs):
            how = ["--jobs", jobs, "--no-report", "--no-figures", *options]
            seconds[jobs] = longaml("run", place / "cohort", "--out", place / f"{jobs}", *how)
        lost = differing(place / "1", place / f"{given.jobs}")
    one, many = seconds[1], seconds[given.jobs]
    patients, genes = (size[size.index(o) + 1] for o in ("--patients", "--genes"))
    what = f"longaml run, {patients} patients, {int(genes):,} genes, default models"
    row(what, (f"{given.jobs} processes", many), ("1 process", one), differs=float(len(lost)))
    print(what)
    print(f"  1 process      {one:8.1f} s")
    print(f"  {given.jobs} processes    {many:8.1f} s")
    print(f"  {one / many:.2f} times less time; tables that differ: {', '.join(lost) or 'none'}")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
