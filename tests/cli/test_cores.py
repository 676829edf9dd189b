"""The command computes on all cores, says with how many threads, and records it."""

from __future__ import annotations

import json
import os

import pytest

from cli_support import MODEL, rows_of, start
from multitrainer.cores import VARIABLES, count_cores, count_threads
from multitrainer_cli import main
from support import PATIENCE

pytest.importorskip("joblib")
pytest.importorskip("gluoncv")

CORES = count_cores()
UNSET = f"import os\nfor name in {VARIABLES}: os.environ.pop(name, None)\n"


def described(threads):
    return f"with {threads} thread" + "s" * (threads > 1)


def run(*options, prelude):
    with start(*options, prelude=prelude) as process:
        printed, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    return printed


@pytest.mark.slow
def test_a_run_uses_all_cores_and_says_so_when_it_is_resumed_with_others(images, tmp_path):
    options = ["--data", images, "--model", MODEL, "--batch-size", 8, "--out", tmp_path / "run", "--epochs"]
    printed = run(*options, 1, prelude=UNSET)
    assert f"on cpu(0) {described(CORES)}\n" in printed
    assert json.loads((tmp_path / "run" / "run.json").read_text())["threads"] == CORES
    note = f"the run had {CORES} threads, and now has {CORES + 1}: "
    assert note in run(*options, 2, "--resume", prelude=f"{UNSET}os.environ['OMP_NUM_THREADS'] = '{CORES + 1}';")
    assert "the run had" not in run(*options, 3, "--resume", prelude=UNSET)
    assert len(rows_of(tmp_path / "run")) == 3


def test_a_program_that_has_imported_mxnet_keeps_its_threads(images, tmp_path, capsys, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    options = ["--data", images, "--model", MODEL, "--batch-size", 8, "--out", tmp_path, "--epochs", 1]
    assert main(["finetune", *map(str, options)]) == 0
    assert described(count_threads()) in capsys.readouterr().out
    assert not os.environ.keys() & {*VARIABLES}


@pytest.mark.parametrize(
    ("prelude", "error"),
    [
        ("os.environ['OMP_NUM_THREADS'] = '2,1';", "OMP_NUM_THREADS=2,1: expected a whole number from 1 to 2147483647"),
        ("os.environ['LOKY_MAX_CPU_COUNT'] = 'two';", "LOKY_MAX_CPU_COUNT=two: expected a whole number; unset it"),
        ("sys.modules['joblib'] = None;", "joblib, which counts the cores, cannot be imported"),
    ],
)
def test_what_cannot_be_counted_is_an_error_of_one_line(prelude, error):
    with start("--data", "nowhere", prelude=UNSET + prelude) as process:
        _, printed = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert printed.startswith(f"multitrainer: error: {error}")
    assert printed.count("\n") == 1
