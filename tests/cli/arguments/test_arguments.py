"""The parser knows every subcommand without importing MXNet."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from multitrainer_cli import arguments, build_parser

NAMES = [name.replace("_", "-") for name in arguments.SUBCOMMANDS]


@pytest.mark.parametrize("command", [["--help"], ["--version"], *([name, "--help"] for name in NAMES)])
def test_help_is_printed_without_importing_what_takes_long(command):
    code = (
        "import sys, multitrainer_cli\n"
        "try: multitrainer_cli.main(sys.argv[1:])\n"
        "finally: print(*sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "multitrainer" in done.stdout
    packages = {name.split(".")[0] for name in done.stderr.split()}
    assert packages.isdisjoint({"mxnet", "multitrainer", "numpy", "PIL", "gluoncv", "matplotlib"})


def test_every_parser_belongs_to_a_subcommand():
    parsers = {
        path.stem
        for path in pathlib.Path(arguments.__file__).parent.glob("*.py")
        if "def add_parser(" in path.read_text()
    }
    assert parsers == set(arguments.SUBCOMMANDS)
    for name in arguments.SUBCOMMANDS:
        assert (pathlib.Path(arguments.__file__).parents[1] / f"{name}.py").exists()


def test_a_mistyped_option_points_to_the_help(capsys):
    from multitrainer_cli import main

    assert main(["finetune", "--lr", "fast"]) == 2
    assert capsys.readouterr().err == (
        "multitrainer: error: argument --lr: invalid float value: 'fast' (see multitrainer finetune --help)\n"
    )


def test_an_option_is_not_guessed_from_its_beginning():
    with pytest.raises(ValueError, match="unrecognized arguments: --over"):
        build_parser().parse_args(["finetune", "--over"])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--smoothing 0.1", "--label-smoothing"),
        ("--label_smoothing=0.1", "--label-smoothing"),
        ("--weight-decay 0.1", "--wd"),
        ("--num-workers 4", "--workers"),
        ("--early-stopping 3", "--early-stop"),
        ("--pretrain", "--pretrained"),
        ("flowers", "--data flowers"),
    ],
)
def test_an_option_of_another_name_is_suggested(given, meant):
    with pytest.raises(ValueError, match=f"did you mean {meant}\\? \\(see multitrainer finetune --help\\)$"):
        build_parser().parse_args(["finetune", *given.split()])


def test_the_options_that_are_suggested_exist():
    from multitrainer_cli.arguments.parser import NAMES_ELSEWHERE

    (subcommands,) = [action for action in build_parser()._actions if isinstance(action.choices, dict)]
    assert set(NAMES_ELSEWHERE.values()) <= set(subcommands.choices["finetune"]._option_string_actions)
