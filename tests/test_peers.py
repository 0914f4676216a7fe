"""The stored comparison with limma, edgeR and DESeq2 is of this engine; its page hides nothing."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from tools import cells, texts

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/benchmarks"))
import bench_peers  # noqa: E402

COHORTS = pd.read_csv(bench_peers.REFERENCE / "peers_cohorts.csv")
PEERS = pd.read_csv(bench_peers.REFERENCE / "peers.csv")
ABOUT = json.loads((bench_peers.REFERENCE / "peers.json").read_text())


@pytest.mark.parametrize("method", bench_peers.OWN)
@pytest.mark.parametrize(
    ("name", "replicate", "changed"),
    [("nb12", 0, True), ("nb12", 1, False), ("nb24_missing", 0, True)],
)
def test_the_stored_rows_are_of_this_engine(method, name, replicate, changed):
    setting = bench_peers.SETTINGS[name]
    samples, counts, truth = bench_peers.simulate(setting, replicate, changed)
    found = bench_peers.in_python(setting, replicate, samples, counts)[method]()
    now = bench_peers.score(*found, truth)
    row = COHORTS.query(
        "setting == @name and replicate == @replicate and changed == @changed and method == @method"
    )
    stored = row.iloc[0][list(now)].to_dict()
    assert now == stored, "stale; run: python tests/benchmarks/bench_peers.py"


def test_the_table_is_of_the_cohorts():
    again = bench_peers.summary(COHORTS)
    assert list(again["method"]) == list(PEERS["method"])
    numbers = again.select_dtypes("number").columns
    far = (again[numbers] - PEERS[numbers]).abs().max().drop("seconds")
    assert far.max() < 1e-4, far
    assert (again["best_peer"] == PEERS["best_peer"]).all()


def test_every_setting_is_stored_as_it_is_now():
    now = {n: json.loads(json.dumps(vars(s))) for n, s in bench_peers.SETTINGS.items()}
    assert {s["name"]: s for s in ABOUT["settings"]} == now
    assert {"limma", "edgeR", "DESeq2", "statmod", "R", "pydeseq2"} <= set(ABOUT["versions"])


def test_the_page_says_where_a_peer_is_better():
    page = "\n".join(t for c in cells("benchmarks.ipynb") for o in c.outputs for t in texts(o))
    engine = PEERS[PEERS["method"] == "longaml de"].set_index("setting")
    for name, row in engine.iterrows():
        if row["difference"] < 0:
            says = bench_peers.SETTINGS[name].says
            assert f"{says}: {row['best_peer']} finds more" in page, name
