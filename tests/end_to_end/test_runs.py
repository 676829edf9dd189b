"""The command as a process of its own keeps its files whole when Ctrl-C or a full disk ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from cli_support import FILES, MODEL, rows_of, start
from support import PATIENCE

pytest.importorskip("gluoncv")

from multitrainer_cli.training import network


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_keeps_the_files_of_the_run(images, tmp_path, workers):
    arguments = ("--data", images, "--model", MODEL, "--epochs", 10000, "--batch-size", 8, "--out", tmp_path)
    with start(*arguments, "--workers", workers, start_new_session=True) as process:
        lines = iter(process.stdout.readline, "")
        assert any("epoch 1/" in line for line in lines)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, error
    assert error.count("\n") == 1, error
    assert "interrupted" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    net, _ = network.build(MODEL, 3)
    for name in ("best.params", "last.params"):
        net.load_parameters(str(tmp_path / name))
    assert rows_of(tmp_path)


# A limit stands in for a full disk: nothing can be written to the file that is created while it holds.
FULL_DISK = """
import resource
def limit(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".tmp"):
        full = {name!r} in str(arguments[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else -1, -1))
sys.addaudithook(limit)
"""
# In this order; best.params is written before the checkpoint, but gets its name only after it.
WRITTEN = ["run.json", "classes.txt", "last.params", "checkpoint/000001.params", "checkpoint/000001.npz"]
WRITTEN += ["checkpoint/000001.json", "best.params", "metrics.jsonl", "finetune.png"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
@pytest.mark.parametrize("name", WRITTEN)
def test_a_full_disk_names_the_file_and_leaves_no_incomplete_one(images, tmp_path, name):
    arguments = ["--data", images, "--model", MODEL, "--epochs", 1, "--batch-size", 8, "--out", tmp_path]
    prelude = FULL_DISK.format(name=f".{name.rpartition('/')[2]}.")
    with start(*arguments, prelude=prelude, stdin=subprocess.DEVNULL) as process:
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, error
    assert error.count("\n") == 1, error
    assert f"cannot write {tmp_path / name}: " in error
    before = set(WRITTEN[: 3 if name == "best.params" else WRITTEN.index(name)])
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == before | ({"metrics.jsonl"} if len(before) > 0 else set())
    with start(*arguments, "--resume") as process:
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
