"One's own models: stored results follow the model, and invalid predictions are refused."

import importlib
import logging
from dataclasses import dataclass, replace

import numpy as np
import own_models
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from test_models import changes, made

from longaml.core import InputError
from longaml.experiment.run import CohortRun, RunConfig
from longaml.models import contract, fingerprint
from longaml.models.own_models import OwnModel, resolve, resolve_all
from longaml.tasks import timepoint
from longaml.tasks.forecast import held_out_change

FOLDS = [["P0", "P1"], ["P2", "P3"], ["P4", "P5"], ["P6", "P7"]]


class Threshold:
    "A plain class: its repr says nothing of the threshold."

    def __init__(self, least):
        self.least = least

    def fit(self, sets, *, seed=0):
        return self

    def predict_proba(self, sets):
        later = (sets.x.mean(-1) > self.least).astype(float)
        return np.stack([1 - later, later], -1)


def origin(model):
    return resolve(("m", model), "timepoint").origin


def shifted(by):
    return lambda x: x + by


def test_the_origin_follows_attributes():
    assert origin(Threshold(0)) == origin(Threshold(0)) != origin(Threshold(1))
    large, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1
    assert origin(Threshold(large)) != origin(Threshold(other))
    assert origin(Threshold({"a": [Threshold(1)]})) != origin(Threshold({"a": [Threshold(2)]}))
    assert origin(LogisticRegression()) != origin(LogisticRegression(C=2.0))
    assert origin(Threshold(np.random.default_rng(1))) != origin(
        Threshold(np.random.default_rng(2))
    )


def test_the_origin_follows_functions():
    def pipe(f):
        return make_pipeline(FunctionTransformer(f), LogisticRegression())

    assert origin(pipe(shifted(1))) == origin(pipe(shifted(1))) != origin(pipe(shifted(2)))
    space = {}
    exec("SHIFT = 1\ndef f(x):\n    return x + SHIFT", space)
    before = origin(pipe(space["f"]))
    assert origin(pipe(space["f"])) == before
    space["SHIFT"] = 2
    assert origin(pipe(space["f"])) != before


def test_what_cannot_be_described_is_never_the_same(caplog):
    with caplog.at_level(logging.INFO, logger="longaml"):
        model = Threshold(i for i in range(3))
        assert origin(model) != origin(model)
    assert "no stored result is used" in caplog.text
    with pytest.raises(InputError, match="m: TypeError while it was made or copied"):
        resolve(("m", model), "timepoint").made()


def test_the_origin_follows_the_file_and_what_it_imports(tmp_path):
    file, helper = tmp_path / "mine.py", tmp_path / "helper.py"
    file.write_text(
        "from helper import least\nfrom test_own_models import Threshold\n"
        "class Mine(Threshold):\n    def __init__(self):\n        super().__init__(least())\n"
    )
    found = []
    for value in (1, 2, 1):
        helper.write_text(f"def least():\n    return {value}\n")
        spec = resolve(f"{file}:Mine", "timepoint")
        found.append((spec.origin, spec.made().model.least))
    assert [least for _, least in found] == [1, 2, 1]
    assert found[0][0] == found[2][0] != found[1][0]
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    assert resolve(f"{file}:Mine", "timepoint").origin == found[0][0]


def test_a_run_is_another_when_a_module_beside_the_file_changed(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import helper\nfrom test_own_models import Threshold\nmine = Threshold(helper.LEAST)\n"
    )
    found = []
    for value in (0, 0, 1):
        (tmp_path / "helper.py").write_text(f"LEAST = {value}\n")
        config = RunConfig(cohort=tmp_path, out=tmp_path, models=[f"{tmp_path}/mine.py:mine"])
        found.append(CohortRun(config).params())
    assert found[0] == found[1] != found[2] and set(found[0]["own"]) == {"mine"}


def test_an_object_of_a_file_is_called_as_it_was_typed():
    spec = resolve(f"{own_models.__file__}:PIPELINE", "timepoint")
    assert spec.name == "PIPELINE"


def test_a_clash_of_names_in_files_advises_another_class(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from test_own_models import Threshold\nlogistic = Threshold(0)"
    )
    with pytest.raises(InputError, match="rename it in the file"):
        resolve(f"{tmp_path}/mine.py:logistic", "timepoint")
    with pytest.raises(InputError, match="give each model once") as error:
        resolve_all([f"{own_models.__file__}:Dense"] * 2, "timepoint")
    assert "(" not in str(error.value)


# ---- guards


@pytest.mark.parametrize("cheat", [own_models.PositionObject, own_models.LabelReader])
def test_an_entry_that_is_not_registered_is_guarded(cheat):
    entry = contract.ModelSpec("cheat", ("timepoint",), make=cheat, kind="own", origin="mine")
    sets = made()
    spec = resolve(entry, "timepoint")
    assert spec.origin != "mine" and resolve(spec, "timepoint") == spec
    model = spec.made().fit(sets)
    assert isinstance(model, OwnModel)
    p = model.predict_proba(sets)
    own = np.take_along_axis(p, sets.y[..., None], -1)
    np.testing.assert_allclose(own.mean(), 0.5, atol=1e-9)


def test_registered_entries_and_networks_of_the_registry_stay():
    for spec in contract.specs("timepoint"):
        assert resolve(spec, "timepoint") is spec and not spec.origin
    wide = replace(contract.spec("lstm", "timepoint"), settings=(("width", 8),))
    assert resolve(wide, "timepoint") is wide


@dataclass(frozen=True)
class Sizes:
    n_genes: int
    n_outputs: int


class Configured(own_models.Position):
    def __init__(self, config):
        super().__init__(config.n_genes, config.n_outputs)


def test_a_configured_network_that_is_not_registered_is_read_as_a_set():
    entry = contract.ModelSpec(
        "place", ("timepoint",), network=Configured, config=Sizes, kind="network"
    )
    sets = made()
    p, _ = timepoint.network_proba(entry, sets, FOLDS, device="cpu")
    np.testing.assert_allclose(p, 0.5, atol=1e-6)


def test_a_model_registered_by_a_user_has_an_origin():
    entry = contract.ModelSpec("mine_registered", ("timepoint",), make=Threshold, kind="own")
    assert contract.with_origin(entry).origin
    assert contract.with_origin(contract.spec("logistic")) is contract.spec("logistic")


# ---- predictions


class Answers(Threshold):
    def __init__(self, change):
        self.change = change

    def predict_proba(self, sets):
        return self.change(np.full((*sets.mask.shape, 2), 0.5))


WRONG = {
    "are not finite": lambda p: np.where(np.arange(2), p, np.nan),
    "the smallest is -0.5": lambda p: p + np.array([-1, 1]),
    "differ from 1 by up to 1": lambda p: 2 * p,
    "has shape .*expected": lambda p: p[:, 0],
    "has shape": lambda p: p[..., :1],
    "ValueError while it predicted: no": lambda p: (_ for _ in ()).throw(ValueError("no")),
}


@pytest.mark.parametrize("message", WRONG)
def test_predictions_that_are_no_probabilities_are_refused(message):
    sets = made()
    model = resolve(("strange", Answers(WRONG[message])), "timepoint").made().fit(sets)
    for ask in (model.predict_proba, model.contributions):
        with pytest.raises(InputError, match=f"strange: .*{message}"):
            ask(sets)


class Negative(ClassifierMixin, BaseEstimator):
    def fit(self, x, y):
        if len(x) < 3:
            raise ValueError("too few rows")
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, x):
        return np.full((len(x), len(self.classes_)), np.nan)


def test_estimators_are_checked_and_named():
    sets = made()
    model = resolve(("neg", Negative()), "timepoint").made()
    with pytest.raises(InputError, match="neg: .* of .* bags are not finite"):
        model.fit(sets).predict_proba(sets)
    with pytest.raises(InputError, match="neg: ValueError while it was fitted: too few rows"):
        model.fit(sets.take(np.array([0])))


class Changes:
    def __init__(self, change):
        self.change = change

    def fit(self, f, *, seed=0):
        return self

    def predict(self, f):
        return self.change(np.zeros(f.change.shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p + np.nan, "that are not finite"),
        (lambda p: p.T, "has shape .* expected"),
        (lambda p: p[:, :1], "has shape .* expected"),
    ],
)
def test_changes_are_checked(change, message):
    f = changes(patients=10)
    entry = contract.ModelSpec("strange", ("forecast",), make=lambda: Changes(change), kind="own")
    for model in (("strange", Changes(change)), entry):
        with pytest.raises(InputError, match=f"strange: .*{message}"):
            held_out_change(model, f)


def test_a_regressor_of_one_output_is_refused():
    class First(Ridge):
        def predict(self, x):
            return super().predict(x)[:, 0]

    with pytest.raises(InputError, match=r"first: predict\(forecasts\) .*has shape"):
        held_out_change(("first", First()), changes(patients=10))


class Pooled(own_models.Dense):
    def forward(self, x, mask):
        return self.layer(x).mean(1)


class NotANumber(own_models.Dense):
    def forward(self, x, mask):
        return self.layer(x) * (1 if self.training else torch.nan)


def test_networks_are_checked():
    sets = made()
    with pytest.raises(InputError, match=r"Pooled: forward.*expected \(batch, time, outputs\)"):
        timepoint.network_proba(Pooled, sets, FOLDS, device="cpu")
    with pytest.raises(InputError, match="NotANumber: .*not finite|infinite"):
        timepoint.network_proba(NotANumber, sets, FOLDS, device="cpu")


def test_a_module_beside_a_file_is_found_by_its_import(tmp_path):
    (tmp_path / "pack").mkdir()
    for name, text in {
        "a.py": "def f():\n    import b\n",
        "b.py": "from pack.c import x\n",
        "pack/__init__.py": "",
        "pack/c.py": "x = 1\n",
        "d.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    found = [p.relative_to(tmp_path).as_posix() for p in fingerprint.own_files(tmp_path / "a.py")]
    assert sorted(found) == ["a.py", "b.py", "pack/__init__.py", "pack/c.py"]


def test_modules_that_the_user_imported_stay_the_same_objects(tmp_path, monkeypatch):
    "A notebook and a file of models in one folder: loading the file replaces nothing."
    (tmp_path / "la_neighbour_of_models.py").write_text("class Kept: pass\n")
    (tmp_path / "la_models_here.py").write_text(
        "from sklearn.linear_model import LogisticRegression\nMine = LogisticRegression()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    before = importlib.import_module("la_neighbour_of_models")
    resolve(f"{tmp_path / 'la_models_here.py'}:Mine", "timepoint")
    assert importlib.import_module("la_neighbour_of_models") is before
