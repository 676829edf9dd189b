"""Files of states that cannot hurt, and cannot be half a file: damaged, made to hurt, killed while they are written."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from multitrainer.checkpoint import archive, atomic
from support import PATIENCE

HERE = pathlib.Path(__file__).parent.parent


def python(script, *arguments):
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )


@pytest.mark.slow
def test_damaged_files(tmp_path):
    """Each loads equal or raises ValueError, in 2 s of one processor and 200 MB; nothing changes, nothing runs."""
    process = python(HERE / "damage.py", tmp_path)
    output, _ = process.communicate(timeout=PATIENCE)
    verdicts = json.loads((tmp_path / "verdicts.json").read_text())
    assert process.returncode == 0, f"after {list(verdicts)[-1]}: {output[-2000:]}"
    wrong = {kind: verdict for kind, verdict in verdicts.items() if verdict not in ("refused", "loaded")}
    assert not wrong
    count = collections.Counter(verdicts.values())
    assert sum(count.values()) >= 300
    assert count["loaded"] < 30  # bits that nobody reads: dates, permissions


SAVE_UNTIL_KILLED = """
import os, pathlib, random, signal, sys, time
import multitrainer, mxnet as mx
from multitrainer import MultiLRTrainer
from support import PATIENCE, bits

def build():
    params = mx.gluon.ParameterDict()
    for name in "abc":
        params.get(name, shape=(300, 1000), init=mx.init.One())
    params.initialize()
    return params, MultiLRTrainer(params, "adam")

def save_for_ever(path):
    params, trainer = build()
    trainer.load_states(path)
    while True:
        with mx.autograd.record():
            loss = sum(param.data().sum() for param in params.values())
        loss.backward()
        trainer.step(1)
        trainer.save_states(path)

folder = pathlib.Path(sys.argv[1])
path, rng = folder / "states", random.Random(3)
params, trainer = build()
trainer.save_states(path)
last, halves, moves = 0, 0, 0
for _ in range(50):
    before = os.stat(str(path)).st_mtime_ns
    child = os.fork()
    if not child:
        try:
            save_for_ever(path)
        finally:
            os._exit(1)
    deadline = time.monotonic() + PATIENCE
    while os.stat(str(path)).st_mtime_ns == before and time.monotonic() < deadline:
        time.sleep(0.001)  # until it has saved once, however busy the machine is
    time.sleep(rng.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended by itself"
    trainer.load_states(path)
    counts = {last} if not trainer.optimizer.num_update else set(trainer.optimizer._index_update_count.values())
    assert counts == {trainer.optimizer.num_update} and min(counts) >= last, (counts, last)
    # Adam's mean after n steps of one gradient: the arrays are of the step that the counts say.
    means = {state[0].asnumpy().tobytes() for state in trainer._updaters[0].states.values()}
    assert len(means) <= 1, "arrays of different steps in one file"
    moves += trainer.optimizer.num_update > last
    last = trainer.optimizer.num_update
    for name in os.listdir(str(folder)):
        if name.endswith(".tmp"):
            halves += 1
            os.remove(str(folder / name))
print(moves, halves)
"""


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    """A process that saves in a loop is killed: the file loads every time, all of it from one step."""
    (tmp_path / "save.py").write_text(SAVE_UNTIL_KILLED)
    (tmp_path / "states").mkdir()
    process = python(tmp_path / "save.py", tmp_path / "states")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    moves, halves = map(int, output.split()[-2:])
    assert moves > 10  # it did save
    assert halves > 10  # and was killed while it did


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "states"
    path.write_bytes(b"before")

    class Failing:
        def asnumpy(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive.write(path, {}, [("one", np.ones(3)), ("two", Failing())])
    assert path.read_bytes() == b"before"
    assert os.listdir(str(tmp_path)) == ["states"]


def test_compressed_by_somebody(tmp_path):
    with open(str(tmp_path / "states"), "wb") as file:
        np.savez_compressed(file, **{archive.HEADER: np.array(b"{}"), "a": np.ones(3)})
    with pytest.raises(ValueError, match="is compressed"):
        archive.Reader(tmp_path / "states")


def test_rewritten_by_numpy(tmp_path):
    """Which pads what an array begins with in another way, from version to version."""
    archive.write(tmp_path / "states", {"a": 1}, [("one", np.ones((2, 3)))])
    with np.load(str(tmp_path / "states")) as arrays, open(str(tmp_path / "again"), "wb") as file:
        np.savez(file, **arrays)
    with archive.Reader(tmp_path / "again") as reader:
        assert reader.header == {"a": 1}
        assert (reader.array("one", "float64", (2, 3)) == 1).all()


def test_more_names_than_a_file_may_have(tmp_path):
    """What would be refused when it is loaded is refused when it is saved."""
    for header, arrays in (
        (["x" * archive.MAX_HEADER_BYTES], []),
        ({}, ((f"{i:1000}", np.ones(0)) for i in range(4100))),
    ):
        with pytest.raises(ValueError, match="the names and numbers beside the arrays take"):
            archive.write(tmp_path / "states", header, arrays)
    assert not list(tmp_path.iterdir())


def test_it_is_flushed_before_it_is_moved(tmp_path, monkeypatch):
    """So that a machine that stops has the old file or the new one: file, move, folder."""
    done = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(atomic.os, name, record(done, name, getattr(os, name)))
    archive.write(tmp_path / "states", {}, [])
    assert done == ["fsync", "replace", "fsync"]


def record(done, name, function):
    def go(*args):
        done.append(name)
        return function(*args)

    return go
