from __future__ import annotations

import re
import signal
import sys
import threading
import time

import pytest

from cli_support import MODEL, default_sigint, start
from multitrainer_cli.interrupts import Interrupts, import_whole, lost_interrupts_raised
from support import PATIENCE


def test_ctrl_c_waits_for_the_check():
    with default_sigint() as press, Interrupts() as interrupts:
        interrupts.check()
        press()
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()


def test_a_second_ctrl_c_interrupts_at_once():
    with default_sigint() as press, Interrupts():
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_the_handler_before_comes_back():
    with default_sigint():
        with Interrupts():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_user_stays():
    def mine(*_):
        pass

    with default_sigint():
        signal.signal(signal.SIGINT, mine)
        with Interrupts():
            assert signal.getsignal(signal.SIGINT) is mine
        assert signal.getsignal(signal.SIGINT) is mine


def test_another_thread_sets_no_handler():
    errors = []

    def enter():
        try:
            with Interrupts() as interrupts:
                interrupts.check()
        except ValueError as error:
            errors.append(error)

    with default_sigint():
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert errors == []


class Lost:
    """An object whose `__del__` is interrupted."""

    def __init__(self, press):
        self._press = press

    def __del__(self):
        self._press()
        time.sleep(0)  # Python raises it here, and ignores it


def test_an_interrupt_that_is_lost_in_a_del_is_raised_again(capsys):
    def work():
        Lost(press)
        time.sleep(PATIENCE)

    with default_sigint() as press, lost_interrupts_raised(), pytest.raises(KeyboardInterrupt):
        work()
    assert capsys.readouterr().err == ""


def test_another_error_in_a_del_is_reported_as_before(monkeypatch):
    class Failing:
        def __del__(self):
            raise ValueError("in a del")

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(str(unraisable.exc_value)))
    hook = sys.unraisablehook
    with lost_interrupts_raised():
        Failing()
    assert reported == ["in a del"]
    assert sys.unraisablehook is hook


def test_an_import_is_interrupted_when_it_is_done(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(0)\nexcept:\n    caught = True\n"
        "done = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with default_sigint(), pytest.raises(KeyboardInterrupt):
        import_whole("slow_module")
    assert sys.modules["slow_module"].done
    assert not hasattr(sys.modules["slow_module"], "caught")


# Delays in seconds after Python has found the command's own code; before that, Python itself reports Ctrl-C.
@pytest.mark.slow
@pytest.mark.parametrize("delay", [0, 0.02, 0.1, 0.4, 1, 2, 3])
def test_ctrl_c_is_one_line_at_any_moment(images, tmp_path, delay):
    prelude = "import multitrainer_cli; print('begins', flush=True);"
    options = ["--data", images, "--model", MODEL, "--epochs", 100000, "--batch-size", 8, "--out", tmp_path / "out"]
    with start(*options, prelude=prelude) as process:
        assert process.stdout.readline() == "begins\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, error
    assert re.fullmatch(r"multitrainer: interrupted.*\n", error), error
    if "holds the weights" not in error:
        assert not (tmp_path / "out").exists() or [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]
