"""Image folders to run the command on, and the command as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import mxnet as mx
import numpy as np

from support import PATIENCE

# SIGINT is ignored in what a shell starts in the background, and so in the processes started from there.
HEAR_CTRL_C = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
COMMAND = "from multitrainer_cli import main; sys.exit(main())"
MODEL = "cifar_resnet20_v1"
FILES = ["best.params", "checkpoint", "classes.txt", "finetune.png", "last.params", "metrics.jsonl", "run.json"]
COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (200, 50, 40)}


def write_images(folder: Path, per_class: int, classes=("blue", "green", "red"), size=(40, 36)) -> Path:
    """Write a folder of images for each class, which differ in colour; return the folder of these folders."""
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
    """A process that is killed if the test fails while it runs."""

    def __exit__(self, kind, *rest):
        if kind is not None:
            self.kill()
        super().__exit__(kind, *rest)


def start(*arguments: object, prelude: str = "", **options) -> Process:
    """Start `multitrainer finetune` as a process of its own; `prelude` is Python code that it runs first."""
    return run_python(HEAR_CTRL_C + prelude + COMMAND, "finetune", *arguments, **options)


def run_python(code: str, *arguments: object, **options) -> Process:
    """Start Python code as a process of its own, with pipes."""
    return Process(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        stdin=options.pop("stdin", subprocess.PIPE),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        **options,
    )


def rows_of(out: Path) -> list:
    """Return the metrics of the run in a folder."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def scalars_of(out: Path) -> list:
    """Return the tag, the step and the value of all scalars in the event files of a run, in order."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((out / "tensorboard").glob("events*")):
        data = path.read_bytes()
        while data:  # a record: its length, a checksum, the event, a checksum
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def without_times(rows: list) -> list:
    """Return rows of metrics without the fields that differ from run to run."""
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]


def finetune(images: Path, *options: object, epochs: int = 2) -> int:
    """Run the command on images in this process; return its exit status."""
    from multitrainer_cli import main

    common = ["--data", images, "--model", MODEL, "--batch-size", 8, "--lr", 0.02, "--epochs", epochs]
    return main(["finetune", *map(str, [*common, *options])])


def contents(folder: Path) -> dict:
    """Return the bytes of all files in a folder, by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def arrays(path: Path) -> dict:
    """Return the arrays of a file of parameters, by name."""
    return {name: array.asnumpy() for name, array in mx.nd.load(str(path)).items()}


@contextlib.contextmanager
def default_sigint():
    """Let SIGINT do what it does in a terminal; a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield lambda: os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def assert_same(one: Path, other: Path) -> None:
    """Check that two runs have the same metrics, but for times, and the same bits of weights."""
    assert without_times(rows_of(one)) == without_times(rows_of(other))
    for name in ("best.params", "last.params"):
        first, second = arrays(one / name), arrays(other / name)
        assert first.keys() == second.keys()
        for key, array in first.items():
            np.testing.assert_array_equal(array, second[key], err_msg=f"{name}: {key}")


def kill_again_and_again(options: list, out: Path, total: int) -> int:
    """Kill the command at random moments after an epoch until it ends by itself; return how often it was killed."""

    def count():
        return len(rows_of(out)) if (out / "metrics.jsonl").exists() else 0

    for kills, wait in enumerate(np.random.RandomState(0).uniform(0, 0.4, 60)):
        rows = count()
        with start(*options, "--out", out, "--resume") as process:
            while process.poll() is None and count() < min(rows + 2, total):
                time.sleep(0.02)
            if process.poll() is None and count() < total:
                time.sleep(wait)
                process.send_signal(signal.SIGKILL)
            _, error = process.communicate(timeout=PATIENCE)
        if process.returncode == 0:
            return kills
        assert process.returncode == -signal.SIGKILL, error
    raise AssertionError("it never ended by itself")
