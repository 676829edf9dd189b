"""Files of states that cannot hurt, and cannot be half a file: damaged, made to hurt, killed while they are written."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import mxnet as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multitrainer import files, statefile, values
from support import PATIENCE, bits

HERE = pathlib.Path(__file__).parent


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
        statefile.write(path, {}, [("one", np.ones(3)), ("two", Failing())])
    assert path.read_bytes() == b"before"
    assert os.listdir(str(tmp_path)) == ["states"]


def test_compressed_by_somebody(tmp_path):
    with open(str(tmp_path / "states"), "wb") as file:
        np.savez_compressed(file, **{statefile.HEADER: np.array(b"{}"), "a": np.ones(3)})
    with pytest.raises(ValueError, match="is compressed"):
        statefile.Reader(tmp_path / "states")


def test_rewritten_by_numpy(tmp_path):
    """Which pads what an array begins with in another way, from version to version."""
    statefile.write(tmp_path / "states", {"a": 1}, [("one", np.ones((2, 3)))])
    with np.load(str(tmp_path / "states")) as arrays, open(str(tmp_path / "again"), "wb") as file:
        np.savez(file, **arrays)
    with statefile.Reader(tmp_path / "again") as reader:
        assert reader.header == {"a": 1}
        assert (reader.array("one", "float64", (2, 3)) == 1).all()


def test_more_names_than_a_file_may_have(tmp_path):
    """What would be refused when it is loaded is refused when it is saved."""
    for header, arrays in (["x" * statefile.MOST], []), ({}, ((f"{i:1000}", np.ones(0)) for i in range(4100))):
        with pytest.raises(ValueError, match="the names and numbers beside the arrays take"):
            statefile.write(tmp_path / "states", header, arrays)
    assert not list(tmp_path.iterdir())


def test_it_is_flushed_before_it_is_moved(tmp_path, monkeypatch):
    """So that a machine that stops has the old file or the new one: file, move, folder."""
    done = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(files.os, name, record(done, name, getattr(os, name)))
    statefile.write(tmp_path / "states", {}, [])
    assert done == ["fsync", "replace", "fsync"]


def record(done, name, function):
    def go(*args):
        done.append(name)
        return function(*args)

    return go


DTYPES = st.sampled_from(statefile.DTYPES)
ND_DTYPES = st.sampled_from(["float16", "float32", "float64", "int8", "int32", "int64", "uint8"])
SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)


def filled(dtype, shape, seed):
    """Return an array of any bits that the dtype can have."""
    raw = np.random.RandomState(seed).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return (
        np.frombuffer(raw, "uint8").reshape(-1).view("uint8" if dtype == "bool" else dtype).reshape(shape).astype(dtype)
    )


@st.composite
def row_sparse(draw):
    rows = sorted(draw(st.sets(st.integers(0, 5))))
    data = filled("float32", (len(rows), 2), draw(st.integers(0, 99)))
    return mx.nd.sparse.row_sparse_array((data, np.array(rows, "int64")), shape=(6, 2))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**50), 10**50)
    | st.floats(allow_nan=False)
    | st.just(float("nan"))  # one of them: in a number that is no array, a nan is a nan
    | st.text(max_size=5)
    | st.floats(width=32, allow_nan=False).map(np.float32)
    | st.integers(-5, 5).map(np.int16)
)
ARRAYS = (
    st.builds(lambda *args: mx.nd.array(filled(*args), dtype=args[0]), ND_DTYPES, SHAPES, st.integers(0, 99))
    | st.builds(filled, DTYPES, SHAPES, st.integers(0, 99))
    | row_sparse()
)
TREES = st.recursive(
    SCALARS | ARRAYS,
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.lists(parts, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(-9, 9) | st.none(), parts, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees=st.dictionaries(st.text(max_size=5), TREES, max_size=4))
def test_random_trees_come_back(trees, tmp_path_factory):
    """Bit for bit and type for type; with what was written as the pattern, and without one."""
    path = tmp_path_factory.getbasetemp() / "trees"
    packer = values.Packer()
    nodes = {name: packer.value(tree, values.key(name)) for name, tree in trees.items()}
    statefile.write(path, nodes, packer.arrays)
    for like in (trees, dict.fromkeys(trees, values.ANYTHING)):
        with statefile.Reader(path) as reader:
            unpacker = values.Unpacker(reader, mx.cpu())
            back = {name: unpacker.value(reader.header[name], values.key(name), like[name]) for name in trees}
            reader.finish()
        assert bits(back) == bits(trees)
    with np.load(str(path), allow_pickle=False) as file:
        assert all(file[key] is not None for key in file.files)
