"The longaml command: help, wrong options, and what a failure leaves behind. Whole runs are tested elsewhere."

import sys
import types

import pytest
from tools import ROOT, python

from longaml import __version__
from longaml.cli import explain, main

HEAVY = ["torch", "scanpy", "anndata", "pandas", "numpy", "matplotlib", "sklearn", "scipy"]
COMMANDS = [
    "demo",
    "run",
    "simulate",
    "convert",
    "audit",
    "published",
    "perturb",
    "modules",
    "de",
    "network",
    "report",
    "celltype",
    "compare",
]


@pytest.fixture
def evaluation(monkeypatch):
    "Stands in for longaml.tasks.timepoint: records how it was called; `fails` is raised if set."
    fake = types.ModuleType("longaml.tasks.timepoint")
    fake.calls, fake.fails = [], None

    def recorder(name):
        def f(*args, **kw):
            if fake.fails:
                exec(
                    "raise e", {"__name__": "longaml.pp.reading", "e": fake.fails}
                )  # as a module of longaml would
            fake.calls.append((name, [str(a) for a in args], kw))
            return {"summary": f"summary of {name}"}

        return f

    for name in ("run_cohort", "audit_csv", "run_demo"):
        setattr(fake, name, recorder(name))
    monkeypatch.setitem(sys.modules, "longaml.tasks.timepoint", fake)
    return fake


def process(*args, cwd=ROOT):
    "The command in a process of its own; the heavy modules it imported are the last line of standard error."
    code = f"import sys; from longaml.cli import main; code = main(sys.argv[1:]); print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    return python("-c", code, *args, cwd=cwd)


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        [],
        *[[c, "--help"] for c in COMMANDS],
        ["run"],
        ["runn"],
        ["run", "x", "--out", "y", "--nulls", "many"],
    ],
)
def test_answers_without_heavy_imports(args):
    assert process(*args).stderr.splitlines()[-1] == "[]"


def test_help_names_every_command_and_option(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(c in text for c in COMMANDS) and "..." not in text.split("Commands:")[1]
    wanted = {
        "run": "--out --patient-key --timepoint-key --timepoints --cell-type-key --lineage-key --task --models --nulls --seed --device --report --resume",
        "de": "--out --patient-key --min-cells --min-patients --seed --resume",
        "network": "--out --genes --method --density --nulls --seed --resume",
        "simulate": "--preset --patients --genes --cells --drivers --seed --null",
        "audit": "--cohort --out",
        "convert": "--patient-key --timepoints",
        "demo": "--out --seed",
        "perturb": "--out --perturbation-key --control --batch-key --separator --layer --models --folds --min-cells --seed --device --resume",
        "modules": "--label-key --out --patient-key --sample-key --layer --genes --pair-genes --nulls --seed --device --resume",
    }
    for command, options in wanted.items():
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert not [o for o in [*options.split(), "--debug"] if o not in text.split()]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"longaml {__version__}\n"


def test_no_arguments_show_the_help(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: longaml")


@pytest.mark.parametrize(
    "args,said",
    [
        ("runn", "runn"),
        ("--nope", "--nope"),
        ("run", "COHORT"),
        ("run x", "--out"),
        ("run x --out y --nulls many", "--nulls"),
        ("run x --out y --nulls -1", "--nulls"),
        ("run x --out y --seed -1", "--seed"),
        ("run x --out y --patientkey z", "--patientkey"),
        ("run x y --out z", "y"),
        ("run x --out y --timepoints A,,B", "--timepoints': 'A,,B' is not a list"),
        ("run x --out y --timepoints A,B,A", "'A' more than once"),
        ("run x --out y --models ,", "--models"),
        ("simulate", "OUT"),
        ("simulate o --patients 1", "--patients"),
        ("simulate o --cells 0", "--cells"),
        ("simulate o --null yes", "yes"),
        ("convert x", "OUT.h5ad"),
        ("convert x y.csv", "ends in .h5ad"),
        ("audit r.csv --out o", "--cohort"),
        ("perturb", "DATA.h5ad"),
        ("perturb x", "--out"),
        ("perturb x --out y --min-cells 0", "--min-cells"),
        ("perturb x --out y --models ,", "--models"),
        ("audit --cohort c --out o", "RANKING.csv"),
    ],
)
def test_wrong_options(args, said, capsys, tmp_path, monkeypatch, evaluation):
    monkeypatch.chdir(tmp_path)
    assert main(args.split()) == 2
    got = capsys.readouterr()
    assert got.out == "" and got.err.startswith("longaml: ") and got.err.count("\n") == 1
    assert said in got.err and "Traceback" not in got.err
    assert list(tmp_path.iterdir()) == [] and evaluation.calls == []


def test_run_hands_over_what_was_given(evaluation, capsys):
    assert (
        main(
            "run c.h5ad --out o --patient-key p --timepoint-key t --timepoints A,B --lineage-key l --models logistic,paired_t --nulls 30 --seed 4 --device cpu --no-report --resume".split()
        )
        == 0
    )
    assert evaluation.calls == [
        (
            "run_cohort",
            ["c.h5ad", "o"],
            dict(
                read=dict(
                    patient_key="p", timepoint_key="t", lineage_key="l", timepoints=["A", "B"]
                ),
                task=["state"],
                models=["logistic", "paired_t"],
                nulls=30,
                seed=4,
                device="cpu",
                resume=True,
            ),
        )
    ]
    assert capsys.readouterr().out == "summary of run_cohort\n"


def test_every_command_that_reads_a_cohort_has_the_same_options(capsys):
    shared = "--patient-key --timepoint-key --timepoints --cell-type-key --malignant-key --lineage-key --layer --gene-symbols"
    for command in ("run", "audit", "published", "de", "network", "compare", "convert"):
        assert main([command, "--help"]) == 0
        said = capsys.readouterr().out.split()
        assert [o for o in said if o in shared.split()] == shared.split(), command


def test_layer_and_symbols_are_handed_over(evaluation):
    assert main("run c.h5ad --out o --layer raw --gene-symbols symbol --no-report".split()) == 0
    assert evaluation.calls[0][2]["read"] == {"layer": "raw", "gene_symbols": "symbol"}


def test_keyword_arguments_are_named_as_options():
    assert explain(ValueError("Name a layer with layer=... and genes with gene_symbols=..."))[
        0
    ].startswith("Name a layer with --layer NAME and genes with --gene-symbols COLUMN")


def test_defaults_leave_choices_to_the_library(evaluation):
    assert (
        main("run c.tar --out o --no-report".split())
        == main("demo --no-report".split())
        == main("audit r.csv --cohort c --out o --timepoints A,B".split())
        == 0
    )
    assert evaluation.calls == [
        (
            "run_cohort",
            ["c.tar", "o"],
            dict(
                read={},
                task=["state"],
                models=None,
                nulls=None,
                seed=0,
                device="auto",
                resume=False,
            ),
        ),
        ("run_demo", ["longaml-demo"], dict(seed=0, resume=False)),
        ("audit_csv", ["r.csv", "c", "o"], dict(read=dict(timepoints=["A", "B"]))),
    ]


@pytest.mark.parametrize(
    "error,code,said",
    [
        (
            ValueError("the header says 3 genes\nand 4 are listed."),
            2,
            "the header says 3 genes and 4 are listed",
        ),
        (KeyError("no patient column 'x'"), 2, "longaml: no patient column 'x'"),
        (
            FileNotFoundError(2, "No such file or directory", "c.h5ad"),
            2,
            "No such file or directory: c.h5ad",
        ),
        (FileExistsError("the folder 'o' is not empty"), 2, "not empty"),
        (EOFError(), 2, "EOFError"),
        (PermissionError(13, "Permission denied", "o"), 2, "Permission denied: o"),
        (KeyError("gene"), 1, "unexpected KeyError: gene"),
        (IndexError("list index out of range"), 1, "--debug"),
        (ZeroDivisionError("division by zero"), 1, "--debug"),
        (MemoryError(), 1, "unexpected MemoryError"),
        (KeyboardInterrupt(), 130, "--resume"),
    ],
)
def test_failures_are_one_line(error, code, said, evaluation, capsys):
    evaluation.fails = error
    assert main("run c --out o".split()) == code
    got = capsys.readouterr()
    assert "Traceback" not in got.err
    lines = [l for l in got.err.splitlines() if l]
    assert got.out.strip() == "" and len(lines) == 1 and lines[0].startswith("longaml: ")
    assert said in lines[0]


@pytest.mark.parametrize("args", ["--debug run c --out o", "run c --out o --debug"])
def test_debug_shows_the_traceback_and_keeps_the_code(args, evaluation, capsys):
    evaluation.fails = ValueError("no cells")
    assert main(args.split()) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("longaml: no cells")


def test_a_foreign_error_says_how_to_find_it(evaluation):
    "A word for programmers, from a library, still names the way on."
    try:
        int("x")
    except ValueError as e:
        text, code = explain(e)
    assert code == 2 and text.endswith("(--debug shows where)")


def test_warnings_of_longaml_go_to_standard_error(evaluation, monkeypatch, capsys):
    import logging
    import warnings

    def noisy(*args, **kw):
        logging.getLogger("longaml").warning("3 cells name another patient")
        warnings.warn("a word for programmers", FutureWarning)
        return {"summary": "done"}

    monkeypatch.setattr(evaluation, "run_cohort", noisy)
    before = list(logging.getLogger("longaml").handlers)
    assert main("run c --out o --no-report".split()) == 0
    got = capsys.readouterr()
    assert got.out == "done\n" and got.err == "longaml: warning: 3 cells name another patient\n"
    assert logging.getLogger("longaml").handlers == before


@pytest.mark.parametrize(
    "args,said",
    [
        ("simulate {used}", "not empty"),
        ("simulate {file}", "is a file"),
        ("simulate {file}/x", "cannot write"),
        ("simulate o --preset tiny", "expected one of"),
        ("simulate o --genes 100 --drivers 90", "drivers"),
        ("convert nowhere.h5ad o.h5ad", "nowhere.h5ad"),
        ("convert {file} o.h5ad", "file"),
        ("convert x {used}/kept.h5ad", "exists"),
        ("convert x {file}/o.h5ad", "cannot write"),
    ],
)
def test_wrong_input_leaves_nothing(args, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "kept.h5ad").write_text("mine")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert main(args.format(used="used", file="file").split()) == 2
    got = capsys.readouterr()
    assert (
        got.out == ""
        and got.err.startswith("longaml: ")
        and got.err.count("\n") == 1
        and said in got.err
    )
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "file",
        "used",
        "used/kept.h5ad",
    ]
    assert (tmp_path / "used" / "kept.h5ad").read_text() == "mine"


@pytest.mark.parametrize(
    "text,said",
    [
        (
            "no patient column 'x'. Pass patient_key=... .",
            "no patient column 'x'. Pass --patient-key COLUMN.",
        ),
        (
            "Name the right column with cell_type_key=...",
            "Name the right column with --cell-type-key COLUMN",
        ),
        ("Pass timepoints=['A', 'B'] in order of time.", "Pass --timepoints A,B in order of time."),
        ("Pass timepoints=['Day 0', 'D+14']", 'Pass --timepoints "Day 0,D+14"'),
        ("or timepoints=[...].", "or --timepoints A,B,C."),
        ("the columns are: patient_key, monkey_key", "the columns are: patient_key, monkey_key"),
    ],
)
def test_messages_speak_of_options(text, said, evaluation, capsys):
    "A message of the library names keyword arguments; the command's user has options."
    evaluation.fails = ValueError(text)
    assert main("run c --out o".split()) == 2
    assert capsys.readouterr().err == f"longaml: {said}\n"
