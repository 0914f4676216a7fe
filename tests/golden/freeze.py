"""Freeze what a checkout gives: `python tests/golden/freeze.py CHECKOUT [CASE ...]`.

Do this again only for a case whose inputs or commands changed, and with the checkout of before.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from cases import HERE
from running import DATA, by_name, run_case
from tables import collect, store


def main() -> None:
    """Run the cases one after another and store their tables and printed summaries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="folder that holds the package longaml")
    parser.add_argument("cases", nargs="*", help="names of cases; all, if left out")
    parser.add_argument("--fast", action="store_true", help="without the slow cases")
    parser.add_argument("--to", type=Path, default=HERE / "tables", help="where the tables go")
    asked = parser.parse_args()
    print(f"real data: {DATA}")
    with tempfile.TemporaryDirectory() as folder:
        for case in by_name(asked.cases):
            if asked.fast and case.slow:
                continue
            out, start = Path(folder) / case.name, time.monotonic()
            printed = run_case(case, out, Path(folder) / "inputs", asked.checkout.resolve(), {})
            to = asked.to / case.name
            shutil.rmtree(to, ignore_errors=True)
            found = collect(out)
            for name, table in found.items():
                store(table, to / name)
            to.mkdir(parents=True, exist_ok=True)
            (to / "printed.txt").write_text(printed)
            missing = [f for f in case.files if not (out / f).is_file()]
            assert not missing, f"{case.name} left no {missing}"
            print(f"{case.name}: {time.monotonic() - start:.1f} s, {len(found)} tables", flush=True)
            shutil.rmtree(out)


if __name__ == "__main__":
    main()
