"""Make tests/bdm_reference.json: block decompositions by pybdm itself, which longaml is compared
with.

    python -m venv venv
    venv/bin/pip install "setuptools<81" numpy pybdm==0.1.0
    venv/bin/python tests/make_bdm_reference.py

pybdm 0.1.0 imports pkg_resources, which setuptools dropped in version 81; hence an environment of
its own. longaml is not imported here. Every case is a random binary matrix (rows as text) with,
for each rule of the border and side of the blocks: the value; for graphs also the value without
each node, by zeros in its row and column ("zero") and with row and column taken out ("remove"),
and the change when single entries are set to zero, by pybdm's own perturbation experiment
("entries").
"""

import json
from pathlib import Path

import numpy as np
import pybdm
from pybdm import BDM, PerturbationExperiment
from pybdm.partitions import PartitionCorrelated, PartitionIgnore, PartitionRecursive

RULES = {
    "ignore": PartitionIgnore,
    "recursive": PartitionRecursive,
    "correlated": PartitionCorrelated,
}
SIZES = (4, 3, 2)


def value(matrix, rule, size):
    return float(
        BDM(ndim=2, shape=(size, size), partition=RULES[rule], raise_if_zero=False).bdm(matrix)
    )


def deletions(matrix, rule, size):
    """The value without each node, by zeros and with the node taken out; and the change when each
    of a few entries is zero.
    """
    zero = []
    remove = []
    for k in range(len(matrix)):
        without = matrix.copy()
        without[k] = without[:, k] = 0
        zero.append(value(without, rule, size))
        remove.append(value(np.delete(np.delete(matrix, k, 0), k, 1), rule, size))
    out = {"zero": zero, "remove": remove}
    if (
        rule == "ignore"
    ):  # at a recursive border pybdm's experiment reads another partition than the value does
        inside = len(matrix) - len(matrix) % size
        ones = np.argwhere(matrix[:inside, :inside])[:40]
        changes = PerturbationExperiment(
            BDM(ndim=2, shape=(size, size), partition=RULES[rule]), matrix.copy()
        ).run(ones, np.zeros(len(ones), dtype=int))
        out["entries"] = [[int(i), int(j), float(c)] for (i, j), c in zip(ones, changes)]
    return out


def main():
    rng = np.random.default_rng(8)
    cases = []
    for shape, density, graph in (
        ((12, 12), 0.5, False),
        ((4, 4), 0.4, False),
        ((17, 30), 0.2, False),
        ((30, 19), 0.6, False),
        ((23, 22), 0.3, False),
        ((16, 16), 0.3, True),
        ((21, 21), 0.2, True),
        ((30, 30), 0.1, True),
        ((43, 43), 0.05, True),
        ((23, 23), 0.6, True),
    ):
        matrix = (rng.random(shape) < density).astype(int)
        if graph:
            matrix = np.triu(matrix, 1) + np.triu(matrix, 1).T
        rules = {f"{rule}-{size}": (rule, size) for rule in RULES for size in SIZES}
        case = {
            "matrix": ["".join(map(str, row)) for row in matrix],
            "values": {name: value(matrix, *r) for name, r in rules.items()},
        }
        if graph:
            case["deletions"] = {
                name: deletions(matrix, *r)
                for name, r in rules.items()
                if r[1] == 4 or (len(matrix) == 23 and r[0] != "correlated")
            }
        cases.append(case)
    out = {
        "made_by": "tests/make_bdm_reference.py",
        "pybdm": "0.1.0",
        "numpy": np.__version__,
        "cases": cases,
    }
    Path(__file__).with_name("bdm_reference.json").write_text(
        json.dumps(out, indent=None, separators=(",", ":")) + "\n"
    )
    print(len(cases), "cases with pybdm from", Path(pybdm.__file__).parent.name)


if __name__ == "__main__":
    main()
