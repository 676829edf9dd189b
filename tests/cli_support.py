"""Image folders to run the command on, and the command as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

# SIGINT is ignored in what a shell starts in the background, and so in the processes started from there.
COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from multitrainer.cli import main; sys.exit(main())"
)
MODEL = "cifar_resnet20_v1"
COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (200, 50, 40)}


def write_images(folder: Path, per_class: int, classes=("blue", "green", "red"), size=(40, 36)) -> Path:
    from PIL import Image

    generator = np.random.RandomState(per_class)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            noise = generator.randint(-40, 40, (size[1], size[0], 3))
            pixels = np.clip(noise + np.array(COLOURS.get(name, (128, 128, 128))), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(str(folder / name / f"{number:03}.{'png' if number % 2 else 'jpg'}"))
    return folder


class Process(subprocess.Popen):
    """A process that a failing test does not wait for."""

    def __exit__(self, kind, *rest):
        if kind is not None:
            self.kill()
        super().__exit__(kind, *rest)


def start(*arguments: object, prelude: str = "", **options) -> Process:
    return Process(
        [sys.executable, "-c", prelude + COMMAND, "finetune", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        **options,
    )


def rows_of(out: Path) -> list:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list) -> list:
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]


@contextlib.contextmanager
def default_sigint():
    """Let SIGINT do what it does in a terminal; a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield lambda: os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
