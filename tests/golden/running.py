"""Run a case with a checkout: its inputs and commands in one process of its own."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from cases import CASES, HERE, Case

DATA = Path(os.environ.get("LONGAML_DATA") or HERE.parents[2] / "shared" / "data").resolve()
# one thread, and instructions that most machines have, so that sums are added in the same order
FIXED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_CBWR": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "LONGAML_PROGRESS": "0",
    "MPLBACKEND": "agg",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "LONGAML_DATA": str(DATA),
}


def read_names() -> dict[str, dict]:
    """What was renamed since the tables were frozen."""
    return json.loads((HERE / "names.json").read_text())


def renamed(token: str, options: dict) -> list[str]:
    """An argument under its new name: as a whole, or each name of a list `A,B,C`."""
    if token in options:
        new = options[token]
        return [] if new is None else new.split()
    parts = [options.get(p, p) for p in token.split(",")]
    return [",".join(p for p in parts if p is not None)]


def arguments(command: str, options: dict) -> list[str]:
    """The words of a command, renamed, with their braces still in place."""
    return [word for token in command.split() for word in renamed(token, options)]


def run_case(case: Case, out: Path, inputs: Path, checkout: Path, options: dict) -> str:
    """Run a case in the empty folder `out`; what it printed, without the names of folders."""
    out.mkdir(parents=True, exist_ok=True)
    inputs.mkdir(parents=True, exist_ok=True)
    base = {k: v for k, v in os.environ.items() if k not in ("PYTEST_CURRENT_TEST", "IN_TEST")}
    words = [arguments(c, options) for c in case.commands]
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(words), str(out), str(inputs)],
        cwd=checkout,
        env={**base, **FIXED, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, (
        f"{case.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    shown = {str(out): "OUT", str(inputs): "INPUTS", str(DATA): "DATA"}
    text = done.stdout
    for path, short in shown.items():
        text = text.replace(path, short)
    return text


def _inside(words: list[list[str]], out: Path, inputs: Path) -> int:
    """Make the inputs and run the commands in this process; 0, or the code of a failure."""
    import inputs as maker
    from matplotlib.figure import Figure

    from longaml.cli import main

    # pictures are not compared, so they are not drawn
    Figure.savefig = lambda figure, file, **how: Path(file).write_bytes(b"")
    needed = set(re.findall(r"\{(\w+)\}", json.dumps(words))) - {"out", "data"}
    with contextlib.redirect_stdout(io.StringIO()):
        where = {name: maker.make(name, inputs) for name in sorted(needed)}
    for command in words:
        args = [w.format(out=out, data=DATA, **where) for w in command]
        print("$ longaml", *args, flush=True)
        if code := main(args):
            return code
    return 0


def by_name(names: list[str]) -> list[Case]:
    """The cases of these names, all if there is none."""
    unknown = set(names) - {c.name for c in CASES}
    if unknown:
        raise SystemExit(f"no case {sorted(unknown)}; there are {[c.name for c in CASES]}")
    return [c for c in CASES if not names or c.name in names]


if __name__ == "__main__":
    sys.exit(_inside(json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])))
