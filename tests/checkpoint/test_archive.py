"""Archives are safe to read and never half written: damage, attacks, and processes that are killed while they save."""

import collections
import copy
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile

import mxnet as mx
import numpy as np
import pytest

from multitrainer.checkpoint import archive
from support import PATIENCE, bits

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


def as_npy(text, dtype):
    """Return an .npy file of a text."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array(text, dtype=dtype))
    return stream.getvalue()


def with_end64(data, size):
    """Let a zip file end like one of more than 4 GB, which has the size of its directory in a record of its own."""
    entries, _, offset = struct.unpack("<HLL", data[-12:-2])
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1)
    return data[:-22] + end64 + locator + data[-22:-10] + struct.pack("<LLH", 2**32 - 1, offset, 0)


@pytest.mark.slow
def test_damaged_files(tmp_path):
    """Each loads as saved or raises ValueError, within 2 s and 200 MB; nothing changes, and no code is run."""
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
from support import PATIENCE, bits, bits

def build():
    params = mx.gluon.ParameterDict()
    for name in "abc":
        params.get(name, shape=(100, 1000), init=mx.init.One())
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


class TestWrite:
    def test_numpy_reads_what_was_written(self, tmp_path):
        arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b/0": np.array(7, "int8"), "c": np.ones((0, 4))}
        archive.write(tmp_path / "states", {"x": [1, None]}, [*arrays.items(), ("d", mx.nd.ones((2,)))])
        with np.load(str(tmp_path / "states"), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        assert json.loads(found.pop(archive.HEADER).item()) == {"x": [1, None]}
        assert found.pop("d").tolist() == [1, 1]
        assert bits(found) == bits(arrays)

    def test_a_failure_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "states"
        path.write_bytes(b"before")

        class Failing:
            def asnumpy(self):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            archive.write(path, {}, [("one", np.ones(3)), ("two", Failing())])
        assert path.read_bytes() == b"before"
        assert os.listdir(str(tmp_path)) == ["states"]

    @pytest.mark.parametrize(
        "header",
        [float("nan"), [float("inf")], 10**302, {"a": 1e308 * 10}, {1: 2, "1": 3}],
        ids=lambda value: str(value)[:9],
    )
    def test_a_header_that_cannot_be_read_is_refused(self, header, tmp_path):
        with pytest.raises(ValueError, match=r"not JSON compliant|an integer of 303 digits|a key occurs twice"):
            archive.write(tmp_path / "states", header, [])
        assert not list(tmp_path.iterdir())

    def test_names_have_a_limit_together(self, tmp_path):
        """What could not be loaded is refused when it is saved."""
        names = [f"{i:950}" for i in range(4200)]
        entry = 46 + 950 + len(".npy")
        fits = archive.MAX_HEADER_BYTES // entry
        archive.write(tmp_path / "states", {}, ((name, np.ones(0)) for name in names[:fits]))
        archive.Reader(tmp_path / "states").close()
        (tmp_path / "states").unlink()
        with pytest.raises(ValueError, match=r"the names and numbers beside the arrays take 4,1\d\d,\d\d\d bytes"):
            archive.write(tmp_path / "states", {}, ((name, np.ones(0)) for name in names[: fits + 1]))
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
    def test_the_header_has_a_limit(self, more, fits, tmp_path):
        header = "x" * (archive.MAX_HEADER_BYTES - 2 + more)  # and two quotes
        if fits:
            archive.write(tmp_path / "states", header, [])
            with archive.Reader(tmp_path / "states") as reader:
                assert reader.header == header
        else:
            with pytest.raises(ValueError, match="beside the arrays take 4,194,305 bytes; a file can hold at most"):
                archive.write(tmp_path / "states", header, [])


def test_is_archive(tmp_path):
    archive.write(tmp_path / "states", {}, [])
    (tmp_path / "pickle").write_bytes(pickle.dumps({}))
    assert archive.is_archive(tmp_path / "states")
    assert not archive.is_archive(tmp_path / "pickle")


class TestReader:
    @pytest.fixture
    def path(self, tmp_path):
        arrays = [("a", np.arange(6.0).reshape(2, 3)), ("b/0", np.ones(2)), ("b/1/x", np.ones(2)), ("b0", np.ones(3))]
        archive.write(tmp_path / "states", {"x": 1}, arrays)
        return tmp_path / "states"

    def members(self, path, change, compression=zipfile.ZIP_STORED):
        """Write the file with other members; `change` changes a dict of their bytes."""
        with zipfile.ZipFile(str(path)) as file:
            members = {name: file.read(name) for name in file.namelist()}
        change(members)
        with zipfile.ZipFile(str(path), "w", compression) as file:
            for name, data in members.items():
                file.writestr(name, data)

    def test_arrays_and_header(self, path):
        with archive.Reader(path) as reader:
            assert reader.header == {"x": 1}
            assert reader.array("a", "float64", (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
            assert reader.array("b0", "float64", (3,)).tolist() == [1, 1, 1]

    def test_the_file_is_closed(self, path, tmp_path):
        (tmp_path / "bad").write_bytes(b"PK\3\4" + bytes(200))
        before = len(os.listdir("/proc/self/fd"))
        with archive.Reader(path) as reader:
            pass
        with pytest.raises(ValueError, match="is damaged") as error:
            archive.Reader(tmp_path / "bad")
        assert (reader.header, error.type) == ({"x": 1}, ValueError)  # both are alive
        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize(
        ("dtype", "shape"), [("float32", (2, 3)), ("int64", (2, 3)), ("float64", (3, 2)), ("float64", (6,))]
    )
    def test_another_dtype_or_shape_is_refused(self, dtype, shape, path):
        with archive.Reader(path) as reader, pytest.raises(ValueError, match="dtype or shape mismatch for 'a'"):
            reader.array("a", dtype, shape)

    def test_a_member_of_another_length_than_its_shape_is_refused(self, path):
        self.members(path, lambda members: members.update({"a.npy": members["a.npy"] + bytes(8)}))
        with archive.Reader(path) as reader, pytest.raises(ValueError, match="'a' holds 56 bytes, which is not the"):
            reader.array("a", "float64", (2, 3))

    def test_an_array_is_read_once(self, path):
        with archive.Reader(path) as reader:
            reader.array("a", "float64", (2, 3))
            for key in ("a", "missing"):
                with pytest.raises(ValueError, match=f"it has no member {key!r}"):
                    reader.array(key, "float64", (2, 3))

    def test_an_array_that_was_not_read_is_named(self, path):
        with archive.Reader(path) as reader:
            reader.array("a", "float64", (2, 3))
            with pytest.raises(ValueError, match="it holds 'b/0', which its header does not mention"):
                reader.check_all_read()
            reader.skip("b")  # and what is below it, but not b0
            with pytest.raises(ValueError, match="it holds 'b0', which"):
                reader.check_all_read()
            reader.skip("b0")
            reader.check_all_read()

    def test_a_flipped_bit_is_noticed(self, path):
        data = bytearray(path.read_bytes())
        data[data.index(np.arange(6.0).tobytes()) + 9] ^= 1
        path.write_bytes(bytes(data))
        with archive.Reader(path) as reader, pytest.raises(ValueError, match=r"is damaged.*checksum mismatch for 'a'"):
            reader.array("a", "float64", (2, 3))

    @pytest.mark.parametrize(
        ("name", "data", "reason"),
        [
            ("code.py", b"import os", "its member 'code.py' is not an .npy file"),
            ("@header.npy", b"", "struct|checksum|its header is not text"),
            ("@header.npy", as_npy(7, "int64"), "its header is not text"),
            ("@header.npy", as_npy([b"[]"], "S2"), "its header is not text"),
            ("@header.npy", as_npy(" " * ((4 << 20) + 1), f"S{(4 << 20) + 1}"), "its header takes 4,194,433 bytes"),
            ("@header.npy", as_npy(b"{", "S1"), "its header is not valid JSON"),
            ("@header.npy", as_npy(b'{"a": 1, "a": 2}', "S16"), r"not valid JSON \(a key occurs twice in one object\)"),
            ("@header.npy", as_npy(b"NaN", "S3"), r"not valid JSON \(nan|NaN is not a finite number\)"),
            ("@header.npy", as_npy(b"1e999", "S5"), r"not valid JSON \(1e999 is not a finite number\)"),
            ("@header.npy", as_npy(b"1" * 303, "S303"), r"not valid JSON \(an integer of 303 digits\)"),
            ("@header.npy", as_npy(b"[" * 100_000, "S100000"), "not valid JSON"),
            ("@header.npy", as_npy(b"\xff", "S1"), "not valid JSON"),
        ],
        ids=range(12),
    )
    def test_bad_members_are_refused(self, name, data, reason, path):
        self.members(path, lambda members: members.update({name: data}))
        with pytest.raises(ValueError, match=f"is damaged, or was not written by save_states: .*({reason})"):
            archive.Reader(path)

    def test_an_integer_of_302_digits_is_read(self, path):
        self.members(path, lambda members: members.update({"@header.npy": as_npy(b"1" * 302, "S302")}))
        with archive.Reader(path) as reader:
            assert reader.header == int("1" * 302)

    def test_a_file_without_a_header_is_refused(self, path):
        self.members(path, lambda members: members.pop("@header.npy"))
        with pytest.raises(ValueError, match="it has no member '@header'"):
            archive.Reader(path)

    def test_two_members_of_one_name_are_refused(self, path):
        with warnings.catch_warnings(), zipfile.ZipFile(str(path), "a") as file:
            warnings.simplefilter("ignore")
            file.writestr("a.npy", b"")
        with pytest.raises(ValueError, match=r"it has two members 'a\.npy'"):
            archive.Reader(path)

    def test_compressed_members_are_refused(self, path):
        self.members(path, lambda members: None, zipfile.ZIP_DEFLATED)
        with pytest.raises(ValueError, match="is compressed"):
            archive.Reader(path)

    def test_members_longer_than_the_file_are_refused(self, path):
        """Ten entries of the directory that all point to one array would be read ten times."""
        with zipfile.ZipFile(str(path), "a") as file:
            for i in range(10):
                again = copy.copy(file.getinfo("a.npy"))
                again.filename = f"again{i}.npy"
                file.filelist.append(again)
            file._didModify = True
            for member in file.filelist:
                member.file_size = member.compress_size = 400
        with pytest.raises(ValueError, match="its members are longer than the file"):
            archive.Reader(path)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda data: b"", "it does not begin like an .npz file"),
            (lambda data: b"PK\3\4", "it does not begin like an .npz file"),
            (lambda data: b"x" + data, "it does not begin like an .npz file"),
            (lambda data: data[:-1], "it does not end like an .npz file"),
            (lambda data: data[:-2] + b"\1\0", "it does not end like an .npz file"),
            (lambda data: data[:-10] + struct.pack("<LLH", (4 << 20) + 1, 0, 0), "its directory takes 4,194,305 bytes"),
            (lambda data: with_end64(data, (4 << 20) + 1), "its directory takes 4,194,305 bytes"),
            (lambda data: data.replace(b"PK\1\2", b"PK\1\3"), "is damaged.*Bad magic number for central directory"),
            (lambda data: pickle.dumps({}), r"looks like a pickle.*load_states\(fname, allow_pickle=True\)"),
        ],
        ids=range(9),
    )
    def test_bad_ends_of_the_zip_file_are_refused(self, change, reason, path):
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(ValueError, match=reason):
            archive.Reader(path)

    def test_the_directory_of_a_zip64_file(self, path):
        data = path.read_bytes()
        size = struct.unpack("<L", data[-10:-6])[0]
        path.write_bytes(with_end64(data, size))
        with archive.Reader(path) as reader:
            assert reader.header == {"x": 1}

    def test_an_offset_to_no_member_is_refused(self, path):
        data = path.read_bytes()
        begin = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)  # the entry of 'a' in the directory
        path.write_bytes(data[: begin + 42] + struct.pack("<L", 7) + data[begin + 46 :])
        with archive.Reader(path) as reader, pytest.raises(ValueError, match="no member begins at byte 7"):
            reader.array("a", "float64", (2, 3))

    def test_a_file_that_numpy_wrote_again(self, path, tmp_path):
        """NumPy pads what comes before the data of an array in another way, from version to version."""
        with np.load(str(path)) as arrays, open(str(tmp_path / "again"), "wb") as file:
            np.savez(file, **arrays)
        with archive.Reader(tmp_path / "again") as reader:
            assert reader.header == {"x": 1}
            assert reader.array("b0", "float64", (3,)).tolist() == [1, 1, 1]
