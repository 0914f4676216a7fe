"""The longaml command: help, wrong options, and what a failure leaves behind. Whole runs are tested
elsewhere."""

import io
import re
import shutil
from pathlib import Path

import pytest
from tools import ROOT, python

from longaml import __version__
from longaml.cli import QUESTIONS, explain, in_present_words, main, parameters, print_summary
from longaml.experiment.driver import commands

HEAVY = ["torch", "scanpy", "anndata", "sklearn", "matplotlib"]
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
    "abundance",
    "network",
    "report",
    "celltype",
    "compare",
    "outcome",
]


class Recorder:
    "Stands in for the work of commands: records what they were asked; `fails` is raised if set."

    def __init__(self):
        self.calls = []
        self.fails = None

    def run(self, command):
        "In place of `Command.run`."
        if self.fails:
            # as a module of longaml would
            exec("raise e", {"__name__": "longaml.pp.reading", "e": self.fails})
        self.calls.append((command.name, vars(command.config)))
        return {"summary": f"summary of {command.name}"}


@pytest.fixture
def asked(monkeypatch):
    "What commands are asked, in place of doing it."
    from longaml.experiment.audit import Audit
    from longaml.experiment.run import CohortRun, Demo

    recorder = Recorder()
    for command in (CohortRun, Audit, Demo):
        monkeypatch.setattr(command, "run", lambda self: recorder.run(self))
    return recorder


def process(*args, cwd=ROOT):
    """The command in a process of its own; the heavy modules it imported are the last line of
    standard error."""
    code = f"""
import sys
from longaml.cli import main
code = main(sys.argv[1:])
print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)
sys.exit(code)
"""
    return python("-c", code, *args, cwd=cwd)


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        [],
        *[[c, "--help"] for c in COMMANDS if c not in ("run", "compare", "perturb")],
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
    assert all(c in text for c in COMMANDS) and "..." not in text.split("What changed:")[1]
    wanted = {
        "run": "--out --patient-key --timepoint-key --timepoints --cell-type-key --malignant-key "
        "--task "
        "--models --nulls --halves --gene-sets --seed --device --report --resume --store",
        "de": "--out --patient-key --design --contrast --method --moderation --random --min-cells "
        "--min-patients --min-count --permutations --seed --resume",
        "abundance": "--out --patient-key --cell-type-columns --design --contrast --method "
        "--reference --min-patients --permutations --seed --resume",
        "network": "--out --genes --method --density --nulls --seed --resume",
        "simulate": "--preset --patients --genes --cells --drivers --seed --null",
        "audit": "--cohort --out",
        "convert": "--patient-key --timepoints",
        "demo": "--out --seed",
        "perturb": "--out --perturbation-key --control --batch-key --separator --layer "
        "--models --folds --min-cells --seed --device --resume",
        "modules": "--label-key --out --patient-key --sample-key --layer "
        "--genes --pair-genes --nulls --seed --device --resume",
    }
    for command, options in wanted.items():
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert not [o for o in [*options.split(), "--debug"] if o not in text.split()]


def test_help_lists_each_command_once_under_its_question(capsys):
    assert main(["--help"]) == 0
    listed: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.split("and exit.\n")[1].splitlines():
        if line and line[0] != " ":
            listed[line.rstrip(":")] = []
        elif re.match(r"  \w", line):
            listed[list(listed)[-1]].append(line.split()[0])
    assert list(listed) == list(QUESTIONS)  # no shipped command is under "Other commands"
    expected: dict[str, set[str]] = {}
    for name, command in commands().items():
        expected.setdefault(command.question, set()).add(name.split()[0])
    assert listed == {question: sorted(names) for question, names in expected.items()}
    assert {"de", "abundance", "run"} <= set(listed["What changed"])
    assert "outcome" in listed["For the patient"]
    assert {"compare", "celltype", "perturb", "modules", "network"} == set(listed["Models"])
    assert {"convert", "audit", "simulate", "demo"} == set(listed["Data"])
    lines = [w for names in listed.values() for w in names]
    assert len(lines) == len(set(lines))


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
def test_wrong_options(args, said, capsys, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    assert main(args.split()) == 2
    got = capsys.readouterr()
    assert got.out == "" and got.err.startswith("longaml: ") and got.err.count("\n") == 1
    assert said in got.err and "Traceback" not in got.err
    assert list(tmp_path.iterdir()) == [] and asked.calls == []


def test_run_hands_over_what_was_given(asked, capsys):
    given = (
        "run c.h5ad --out o --patient-key p --timepoint-key t --timepoints A,B --cell-type-key l "
        """--models logistic,my.py:Net --nulls 30 --halves 4 --gene-sets s.gmt --seed 4
        --cell-sets --device cpu --store s --no-report --resume --no-figures --jobs 3 --backend dask
        --scheduler tcp://there:1"""
    )
    assert main(given.split()) == 0
    read = {
        "jobs": 3,
        "patient_key": "p",
        "timepoint_key": "t",
        "cell_type_key": "l",
        "timepoints": ["A", "B"],
    }
    config = {
        "cohort": Path("c.h5ad"),
        "out": Path("o"),
        "read": read,
        "task": ["timepoint"],
        "models": ["logistic", "my.py:Net"],
        "nulls": 30,
        "halves": 4,
        "gene_sets": Path("s.gmt"),
        "cell_sets": True,
        "seed": 4,
        "device": "cpu",
        "store": Path("s"),
        "figures": False,
        "backend": "dask",
        "scheduler": "tcp://there:1",
        "report": False,
        "resume": True,
    }
    assert asked.calls == [("run", config)]
    assert capsys.readouterr().out == "summary of run\n"


def test_every_command_that_reads_a_cohort_has_the_same_options(capsys):
    shared = (
        "--patient-key --timepoint-key --timepoints --cell-type-key --malignant-key --layer "
        "--gene-symbols"
    )
    for command in (
        "run",
        "audit",
        "published",
        "de",
        "abundance",
        "network",
        "compare",
        "convert",
        "forecast",
    ):
        assert main([command, "--help"]) == 0
        said = capsys.readouterr().out.split()
        assert [o for o in said if o in shared.split()] == shared.split(), command


def test_layer_and_symbols_are_handed_over(asked):
    assert main("run c.h5ad --out o --layer raw --gene-symbols symbol --no-report".split()) == 0
    assert asked.calls[0][1]["read"] == {"layer": "raw", "gene_symbols": "symbol"}


def test_keyword_arguments_are_named_as_options():
    config = commands()["run"].Config
    text = "Name a layer with layer=... and genes with gene_symbols=..."
    said = explain(ValueError(text), config)[0]
    assert said.startswith("Name a layer with --layer NAME and genes with --gene-symbols COLUMN")


def test_defaults_leave_choices_to_the_library(asked):
    assert main("run c.tar --out o --no-report".split()) == 0
    assert main("demo --no-report".split()) == 0
    assert main("audit r.csv --cohort c --out o --timepoints A,B".split()) == 0
    (_, run), (_, demo), (_, audit) = asked.calls
    assert run["read"] == {} and run["task"] == ["timepoint"]
    assert (run["models"], run["nulls"], run["seed"], run["device"]) == (None, None, 0, "auto")
    assert (demo["out"], demo["seed"], demo["resume"]) == (Path("longaml-demo"), 0, False)
    assert (audit["ranking"], audit["cohort"]) == (Path("r.csv"), Path("c"))
    assert audit["read"] == {"timepoints": ["A", "B"]}


def test_every_command_is_generated_from_its_config():
    """Every field with an option is an option; a switch has no value; what must be given has no
    default."""
    for name, command in commands().items():
        made = parameters(command.Config)
        assert list(made) == list(command.Config.options()), name
        assert command.short_help and command.help(), name


def test_names_of_models_come_from_the_registry(capsys):
    from longaml.models.contract import names

    for command, task in (
        ("run", "timepoint"),
        ("compare", "forecast"),
        ("forecast", "forecast"),
        ("perturb", "perturbation"),
    ):
        assert main([command, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert all(n in text for n in names(task)), command


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
def test_failures_are_one_line(error, code, said, asked, capsys):
    asked.fails = error
    assert main("run c --out o".split()) == code
    got = capsys.readouterr()
    assert "Traceback" not in got.err
    lines = [line for line in got.err.splitlines() if line]
    assert got.out.strip() == "" and len(lines) == 1 and lines[0].startswith("longaml: ")
    assert said in lines[0]


@pytest.mark.parametrize("args", ["--debug run c --out o", "run c --out o --debug"])
def test_debug_shows_the_traceback_and_keeps_the_code(args, asked, capsys):
    asked.fails = ValueError("no cells")
    assert main(args.split()) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("longaml: no cells")


def test_a_foreign_error_says_how_to_find_it(asked):
    "A message of another package still says how to find the place."
    try:
        int("x")
    except ValueError as e:
        text, code = explain(e)
    assert code == 2 and text.endswith("(--debug shows where)")


def test_warnings_of_longaml_go_to_standard_error(monkeypatch, capsys):
    import logging
    import warnings

    def noisy(*args, **kw):
        logging.getLogger("longaml").warning("3 cells name another patient")
        warnings.warn("a word for programmers", FutureWarning, stacklevel=2)
        return {"summary": "done"}

    monkeypatch.setattr("longaml.experiment.run.CohortRun.run", noisy)
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
def test_messages_speak_of_options(text, said, asked, capsys):
    "A message of the package names keyword arguments; the command's user has options."
    asked.fails = ValueError(text)
    assert main("run c --out o".split()) == 2
    assert capsys.readouterr().err == f"longaml: {said}\n"


COMMAND = """
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from longaml.experiment.driver import Experiment, Folder, Option


@dataclass(frozen=True, kw_only=True)
class CountConfig(Folder):
    labels: Annotated[Path, Option("File with one label a line.", "FILE", argument=True)]
    least: Annotated[int, Option("Labels with fewer cells are left out.", "N", least=1)] = 1


class Count(Experiment):
    "Count the cells of every label."

    name = "count"
    short_help = "Count labels."
    Config = CountConfig

    def inputs(self):
        return [self.config.labels]

    def read(self):
        return self.config.labels.read_text().split()

    def steps(self, data, run):
        return run.step("count", lambda: {x: data.count(x) for x in sorted(set(data))})

    def summary(self, data, found):
        return [f"{k}: {n}" for k, n in found.items() if n >= self.config.least]
"""


def test_a_command_is_one_experiment(tmp_path):
    "In a copy of the package, one more module is one more command: its help, options, resumption."
    shutil.copytree(
        ROOT / "longaml", tmp_path / "longaml", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "longaml" / "experiment" / "count.py").write_text(COMMAND)
    (tmp_path / "labels.txt").write_text("B T T NK T B")
    assert "Other commands:\n  count " in python("-m", "longaml", "--help", cwd=tmp_path).stdout
    assert "--least" in python("-m", "longaml", "count", "--help", cwd=tmp_path).stdout
    asked = ["-m", "longaml", "count", "labels.txt", "--out", "out", "--least", 2]
    for more in ([], ["--resume"]):
        done = python(*asked, *more, cwd=tmp_path)
        said = "B: 2\nT: 3\nreport: out/report.html\n"
        assert (done.returncode, done.stdout) == (0, said), done.stderr
    assert "not empty" in python(*asked, cwd=tmp_path).stderr


# ---- words of version 0.1


@pytest.mark.parametrize(
    "old, now, notes",
    [
        (
            "compare c --models patient_lineage,own_level,logistic",
            "compare c --models patient_cell_type,baseline_expression,logistic",
            ["--models patient_lineage,own_level,logistic is --models patient_cell_type,"],
        ),
        (
            "compare c --tasks=state,forecast --models=own_level",
            "compare c --tasks timepoint,forecast --models baseline_expression",
            ["--tasks state,forecast is --tasks timepoint,forecast since", "--models own_level is"],
        ),
        (
            "run c --task state",
            "run c --task timepoint",
            ["--task state is --task timepoint since"],
        ),
        (
            "run c --lineage-key type",
            "run c --cell-type-key type --malignant-key none",
            ["--lineage-key type is --cell-type-key type --malignant-key none since"],
        ),
        (
            "celltype train c --lineage-key clone",
            "celltype train c --clone-key clone",
            ["--lineage-key clone is --clone-key clone since"],
        ),
        ("run c --models logistic --task timepoint", None, []),
        ("run c --models", None, []),
    ],
)
def test_old_words_are_read_and_said(old, now, notes):
    args, said = in_present_words(old.split())
    assert args == (now or old).split() and len(said) == len(notes)
    assert all(text.startswith(start) for text, start in zip(said, notes)), said
    assert all(text.endswith("since version 0.2") for text in said)


def test_notes_on_old_words_are_printed(tmp_path, capsys):
    "The command goes on with the present words; here to a cohort that is not there."
    words = "--tasks state,forecast --models patient_lineage,own_level"
    assert (
        main(["compare", str(tmp_path / "gone"), "--out", str(tmp_path / "o"), *words.split()]) == 2
    )
    said = capsys.readouterr().err
    assert "--tasks state,forecast is --tasks timepoint,forecast since version 0.2" in said
    now = "--models patient_cell_type,baseline_expression since version 0.2"
    assert f"--models patient_lineage,own_level is {now}" in said
    assert "unknown" not in said and "gone" in said.splitlines()[-1]


# ---- summaries


class Terminal(io.StringIO):
    "A text stream that says that it is a terminal."

    def isatty(self):
        return True


SUMMARY = "two models\n  logistic        0.81  (8 patients)\n  own  0.5  (8)\ndone: a  b"


def test_a_summary_is_laid_out_on_a_terminal(monkeypatch):
    "Lines of tables stand in columns of one width; other lines, and files, are as they were."
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    screen, file = Terminal(), io.StringIO()
    print_summary(SUMMARY, screen)
    print_summary(SUMMARY, file)
    assert file.getvalue() == SUMMARY + "\n"
    lines = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()).splitlines()
    assert lines[0] == "two models" and lines[-1] == "done: a  b" and len(lines) == 4
    assert lines[1].index("0.81") == lines[2].index("0.5")
    assert lines[1].index("(8 patients)") == lines[2].index("(8)")
    assert screen.getvalue() != file.getvalue()


def test_long_cells_are_wrapped_to_the_window(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    screen = Terminal()
    print_summary(f"  check  {'word ' * 20}".rstrip() + "\nend", screen)
    lines = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue()).splitlines()
    assert len(lines) > 4 and max(map(len, lines)) <= 30 and lines[-1] == "end"
