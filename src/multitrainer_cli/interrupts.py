"""Ctrl-C at a moment when it does no harm, and without being lost."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
from typing import Any, Iterator

_AGAIN = 0.01  # seconds until an interrupt that was lost is raised again


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


def import_whole(module: str) -> Any:
    """Import a module, and raise KeyboardInterrupt only then if Ctrl-C is pressed meanwhile.

    Modules that guard their imports with a bare ``except`` would lose it.
    """
    with Interrupts() as interrupts:
        imported = importlib.import_module(module)
        interrupts.check()
    return imported


@contextlib.contextmanager
def lost_interrupts_raised() -> Iterator[None]:
    """Raise KeyboardInterrupt again if Python has raised it where it must be ignored, such as in a ``__del__``."""
    previous_hook = sys.unraisablehook

    def raise_again(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Not here, where it would be ignored again.
            threading.Timer(_AGAIN, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        else:
            previous_hook(unraisable)

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = previous_hook


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
