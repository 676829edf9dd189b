"""Ctrl-C at a moment when it does no harm."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupts:
    """Notes Ctrl-C, so that the training can stop between two batches; a second Ctrl-C ends the process at once.

    Python raises KeyboardInterrupt wherever it happens to be. With MXNet that is often the ``__del__`` of an array,
    where the exception is printed and lost.

    Examples
    --------
    >>> with Interrupts() as interrupts:
    ...     interrupts.check()
    """

    def __init__(self) -> None:
        self._pressed = False
        self._previous_handler: Any = None

    def __enter__(self) -> Interrupts:
        # A handler that the user has set stays; and only the main thread may set one.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _in_main_thread():
            self._previous_handler = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)

    def _note(self, *_: object) -> None:
        self._pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._pressed:
            raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
