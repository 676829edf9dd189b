from __future__ import annotations

import signal
import threading

import pytest

from cli_support import default_sigint
from multitrainer_cli.training.interrupts import Interrupts


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
