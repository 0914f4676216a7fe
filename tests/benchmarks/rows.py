"""What a benchmark says to a program: one line of JSON for every comparison, for `run_all.py`. A
benchmark that is run by itself prints its sentences only.
"""

import json
import os

ROWS = (
    "LONGAML_BENCHMARK_ROWS"  # the file that gets the lines; nothing is written where it is not set
)


def row(
    what,  # the work, with its size
    ours,  # (name, value) of longaml's side
    other,  # (name, value) of the side it is compared with
    *,
    unit="s",  # of both values; smaller is better
    differs=None,  # largest difference between the results of the two sides
    scaled="",  # where the other side was timed on a part and multiplied: which part
):
    "Add a comparison to the file that the environment names."
    if not (file := os.environ.get(ROWS)):
        return
    record = {
        "what": what,
        "longaml": ours[0],
        "longaml_value": float(ours[1]),
        "other": other[0],
        "other_value": float(other[1]),
        "unit": unit,
        "ratio": float(other[1] / ours[1]) if ours[1] > 0 else None,
        "difference": None if differs is None else float(differs),
        "scaled": scaled,
    }
    with open(file, "a") as f:
        f.write(json.dumps(record) + "\n")
