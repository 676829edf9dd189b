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


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_full_disk_leaves_no_incomplete_file(images, tmp_path):
    # The limit stands in for the disk: what goes beyond it fails to be written. The network takes 1.1 MB.
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000));"
    arguments = ("--data", images, "--model", MODEL, "--epochs", 1, "--batch-size", 8, "--out", tmp_path)
    with start(*arguments, prelude=limited, stdin=subprocess.DEVNULL) as process:
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, error
    assert error.count("\n") == 1, error
    assert "cannot write" in error
    assert "last.params" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "classes.txt", "metrics.jsonl"]
