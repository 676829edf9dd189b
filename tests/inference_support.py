"""The commands that use a finished run, as processes of their own that read and write bytes."""

from __future__ import annotations

import os
import subprocess
import sys


def start(*arguments: object, prelude: str = "", environment: dict | None = None) -> subprocess.Popen:
    """Start `multitrainer` with these arguments; `prelude` is Python code that it runs first."""
    code = f"{prelude}import sys; from multitrainer_cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environment or {})},
    )
