"""Every notebook runs from top to bottom, as nbdev_test runs it, and leaves the repository as it
was.
"""

import forked
import pytest
from tools import changed, copy_tree, environment, notebooks, snapshot


def run_notebook(
    nb,  # path under nbs/
    folder,  # empty folder to copy the repository to
    root=None,  # repository to copy, if not this one
):  # how it ended, and the files it changed
    "Run a notebook in a process of its own, on a copy of the repository."
    top = copy_tree(folder / "longaml", **({"root": root} if root else {})).resolve()
    before = snapshot(top)
    limit = 600 if nb.startswith("tutorials") else 300  # seconds
    done = forked.run_notebook(nb, top, environment(top), limit)
    return done, changed(before, snapshot(top))


# They train networks, draw cohorts or run commands, a quarter of a minute each and more. The
# contract of every model and the commands are tested in tests/ as well; these run with --slow.
SLOW = {
    "datasets/100_cohort.ipynb",
    "models/510_transformer.ipynb",
    "models/511_lstm.ipynb",
    "models/513_perturbation.ipynb",
    "models/514_attribution.ipynb",
    "models/517_celltype.ipynb",
    "models/521_bilstm.ipynb",
    "models/523_lgem.ipynb",
    "experiment/704_report_text.ipynb",
    "experiment/705_report.ipynb",
    "experiment/708_perturb.ipynb",
    "experiment/709_de.ipynb",
    "experiment/710_network.ipynb",
    "experiment/713_celltype.ipynb",
    "experiment/718_run.ipynb",
    "experiment/720_evaluation.ipynb",
    "experiment/722_abundance.ipynb",
    "experiment/724_outcome.ipynb",
    "experiment/725_forecast.ipynb",
    "published/801_networks.ipynb",
    "published/802_protocol.ipynb",
    "tasks/601_changes.ipynb",
    "tasks/604_perturbation.ipynb",
    "tasks/605_module_tests.ipynb",
    "tasks/607_responses.ipynb",
    "tasks/612_outcome.ipynb",
    "tasks/613_unseen_visits.ipynb",
    "tl/317_enrichment.ipynb",
    "tl/323_beta_binomial.ipynb",
    "tl/calibration.ipynb",
    "benchmarks/a_transformer_and_its_baselines.ipynb",
    "benchmarks/forecasts_over_many_cohorts.ipynb",
    "tutorials/04_outcome.ipynb",
    "tutorials/05_forecasting_the_next_visit.ipynb",
    "tutorials/06_which_model_should_i_believe.ipynb",
    "tutorials/07_cell_types_with_the_previous_timepoint.ipynb",
    "tutorials/08_perturbations.ipynb",
    "tutorials/09_gene_modules_from_weights.ipynb",
    "tutorials/10_what_the_published_rankings_measure.ipynb",
}


NEEDS_DATA = {
    "tutorials/01_what_changed.ipynb",
    "tutorials/02_covariates_responders_repeated_samples.ipynb",
    "tutorials/03_composition_and_pathways.ipynb",
    "tutorials/04_outcome.ipynb",
    "tutorials/09_gene_modules_from_weights.ipynb",
    "tutorials/12_on_a_cluster.ipynb",
}


@pytest.mark.parametrize(
    "nb",
    [
        pytest.param(nb, marks=[pytest.mark.slow] if nb in SLOW else [])
        for nb in sorted(notebooks(), key=lambda nb: not nb.startswith("tutorials"))
    ],  # the longest first, so that both workers end at about the same time
)
def test_notebook_runs(nb, tmp_path, request):
    if nb in NEEDS_DATA:
        request.getfixturevalue("shared_data")
    done, wrote = run_notebook(nb, tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]
    assert not wrote, f"{nb} wrote into the repository: {wrote}. Write to a temporary folder."


def test_slow_notebooks_are_there():
    assert SLOW | NEEDS_DATA <= set(notebooks())


def test_a_failing_cell_and_a_stray_file_are_seen(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    top = copy_tree(tmp_path / "source")

    def check(name, *sources):
        nbformat.write(
            new_notebook(cells=[new_code_cell(s) for s in sources]), top / "nbs" / f"{name}.ipynb"
        )
        return run_notebook(f"{name}.ipynb", tmp_path / name, root=top)

    done, _ = check("fails", "assert 1 == 2, 'sums'")
    assert done.returncode != 0 and "sums" in done.stderr
    done, wrote = check("strays", "#| slow\nassert False", "open('stray.txt', 'w').close()")
    assert done.returncode == 0 and wrote == ["nbs/stray.txt"]
