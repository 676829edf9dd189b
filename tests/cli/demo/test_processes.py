"""The processes of the comparison: one thread each, out of reach of Ctrl-C, and gone with their parent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("joblib")

from multitrainer_cli.demo.processes import ENVIRONMENT, TrainingProcesses, count_cores
from multitrainer_cli.errors import UserError, require
from support import PATIENCE

SLEEPER = """
import os, sys, time
from multitrainer_cli.demo.processes import TrainingProcesses
if __name__ == "__main__":
    with TrainingProcesses(2) as processes:
        print(*processes.map(os.path.abspath, ["a"]), flush=True)
        list(processes.map(time.sleep, [1000, 1000]))
"""


def is_running(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_results_come_in_the_order_of_the_items_from_processes_of_one_thread():
    before = dict(os.environ)
    with TrainingProcesses(2) as processes:
        assert list(processes.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
        assert list(processes.map(os.getenv, ENVIRONMENT)) == list(ENVIRONMENT.values())
        assert set(processes.map(signal.getsignal, [signal.SIGINT] * 4)) == {signal.SIG_IGN}
    assert dict(os.environ) == before


@pytest.mark.slow
def test_an_error_in_a_process_is_raised_here():
    with TrainingProcesses(1) as processes, pytest.raises(UserError, match=r"no_such_package"):
        # A function of the package, because a process cannot import this file.
        list(processes.map(require, ["no_such_package"]))


@pytest.mark.slow
def test_a_process_that_is_killed_is_an_error_that_says_how_to_go_on():
    with TrainingProcesses(1) as processes, pytest.raises(UserError, match=r"was ended by something else .* --resume"):
        list(processes.map(os._exit, [9]))


def test_the_processes_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout.readline()
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) >= 2
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: not any(map(is_running, children)))


def test_at_least_one_core_is_counted():
    assert 1 <= count_cores() <= len(os.sched_getaffinity(0))


def test_a_limit_that_is_no_number_is_an_error(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "two")
    with pytest.raises(UserError, match=r"LOKY_MAX_CPU_COUNT=two: expected a whole number; "):
        count_cores()
