"""The figures in the README come from scripts that run; the quick part of them runs here."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
def test_what_stock_does(tmp_path):
    """What the package is for is still so: none of these expectations holds under stock MXNet."""
    broken = ["freeze", "adadelta", "batchnorm", "gluon", "export", "states"]
    command = [sys.executable, "-W", "ignore", BENCHMARKS / "what_stock_does.py", "--quick", "--json", "rows.json"]
    done = subprocess.run(
        [*map(str, command), "--only", *broken], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    rows = rows["rows"] if isinstance(rows, dict) else rows
    assert len(rows) >= len(broken)
    assert {row["held"] for row in rows} == {False}


@pytest.mark.slow
def test_frozen_layers_do_not_cross_the_wire(tmp_path):
    """Under lr_mult=0 stock sends what it always sends; what is frozen here is neither pushed nor pulled."""
    command = [sys.executable, "-W", "ignore", BENCHMARKS / "distributed.py", "--json", "rows.json", "--only", "sync"]
    small = ["--model", "resnet18_v1", "--pixels", "32", "--steps", "2"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [*map(str, command), *small], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    sent = {(row["trainer"], row["backbone"]): row["bytes"] for row in rows}
    values, head = 11181642, 512 * 10 + 10  # of resnet18_v1 with ten classes, and of its last layer
    all_of_it = 2 * 2 * 4 * values  # two workers push and pull float32
    assert sent["gluon.Trainer", "trained"] == pytest.approx(all_of_it, rel=0.02)
    assert sent["gluon.Trainer", "lr_mult=0"] == pytest.approx(all_of_it, rel=0.02)
    assert sent["MultiLRTrainer", "trained"] == pytest.approx(all_of_it, rel=0.02)
    assert sent["MultiLRTrainer", "frozen"] < (head / values + 0.001) * all_of_it
    assert 0.4 * all_of_it < sent["MultiLRTrainer", "half unfrozen"] < 0.51 * all_of_it


@pytest.mark.slow
def test_checkpoint(tmp_path):
    """Saving and loading take less memory than stock's; how long they take is for the benchmark to say."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        BENCHMARKS / "checkpoint.py",
        "--rounds",
        "1",
        "--network",
        "resnet18_v1",
    ]
    done = subprocess.run(
        [*map(str, command), "--json", str(tmp_path / "rows.json")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["what"] for row in rows] == ["save", "load"]
    assert all(row["ours file MB"] > 40 and row["memory"] < 1.2 for row in rows)
