"""The file of an average is refused as a whole if anything in it is wrong, and nothing changes then."""

import json
import os
import pickle

import numpy as np
import pytest

from checkpoint_support import replace_entry, rewrite
from multitrainer import MultiLRTrainer, WeightAverage
from support import batches, mlp, moved, snapshot, train

NAME = "net_dense1_weight"


def build(steps=0, prefix="net_", decay=0.9):
    net = mlp(prefix=prefix)
    average = WeightAverage(MultiLRTrainer([net, (net[0], 0)], "sgd", {"learning_rate": 0.1}), decay)
    for batch in batches(steps):
        train(net, average._trainer, [batch])
        average.update()
    return net, average


def state(net, average):
    with average.applied():
        return snapshot(net)


@pytest.fixture
def path(tmp_path):
    build(3)[1].save(tmp_path / "average")
    return tmp_path / "average"


def assert_refused(path, error, match, **options):
    net, average = build(1)
    before, about = state(net, average), repr(average)
    with pytest.raises(error, match=match):
        average.load(path, **options)
    assert not moved(before, state(net, average))
    assert repr(average) == about


def test_is_read_by_numpy_without_pickle(path):
    with np.load(str(path), allow_pickle=False) as file:
        header = json.loads(file["@header"].item())
        assert set(file.files) == {"@header", "net_batchnorm0_gamma", "net_batchnorm0_beta", NAME, "net_dense1_bias"}
    assert header["format"] == "multitrainer average"
    assert (header["decay"], header["warmup"], header["num_updates"], header["is_behind"]) == (0.9, False, 3, False)
    assert header["parameters"][NAME] == {"shape": [2, 4], "dtype": "float32", "averaged": True}
    assert header["parameters"]["net_dense0_bias"] == {"shape": [4], "dtype": "float32", "averaged": False}


def test_the_same_average_gives_the_same_bytes(path, tmp_path):
    _, average = build()
    average.load(path)
    average.save(tmp_path / "again")
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_a_file_that_cannot_be_replaced_stays(path, monkeypatch):
    good = path.read_bytes()
    _, average = build(1)

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space left"):
            average.save(path)
    assert path.read_bytes() == good
    assert os.listdir(str(path.parent)) == ["average"]


def test_every_flipped_byte_of_the_content_is_found(path, tmp_path):
    good, bad = path.read_bytes(), tmp_path / "bad"
    net, average = build(1)
    before, loaded = state(net, average), 0
    for i in range(0, len(good), 7):
        bad.write_bytes(good[:i] + bytes([good[i] ^ 0xFF]) + good[i + 1 :])
        try:
            average.load(bad)
        except ValueError:
            assert not moved(before, state(net, average))
        else:  # a byte that nothing depends on, such as a date
            loaded += 1
            average.save(tmp_path / "again")
            assert (tmp_path / "again").read_bytes() == good
            net, average = build(1)
    assert loaded < len(good) / 7 / 4


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut(path, part):
    good = path.read_bytes()
    path.write_bytes(good[: int(len(good) * part)])
    assert_refused(path, ValueError, "is damaged, or was not written by WeightAverage.save")


@pytest.mark.parametrize(
    ("keys", "value", "match"),
    [
        (["decay"], 1.0, "its decay is 1.0"),
        (["decay"], -1, "its decay is -1"),
        (["decay"], "0.9", "'decay' is missing or of a wrong type"),
        (["warmup"], 1, "'warmup' is missing or of a wrong type"),
        (["num_updates"], -1, "'num_updates' is -1"),
        (["is_behind"], None, "'is_behind' is missing"),
        (["parameters"], [], "'parameters' is missing or of a wrong type"),
        (["parameters", NAME, "averaged"], 1, "'averaged' is missing"),
        (["parameters", NAME, "averaged"], False, f"it holds '{NAME}', which its header does not mention"),
        (["parameters", "net_dense0_weight", "averaged"], True, "it has no member 'net_dense0_weight'"),
        (["parameters", NAME, "shape"], [4, 2], r"float32 \(4, 2\) in the file, float32 \(2, 4\) in this trainer"),
        (["parameters", NAME, "dtype"], "float64", r"float64 \(2, 4\) in the file"),
        (["version"], 2, "has format version 2; only version 1 can be read"),
        (["format"], "x", "holds 'x', not what WeightAverage.save wrote"),
    ],
    ids=str,
)
def test_a_header_that_is_wrong(path, keys, value, match):
    replace_entry(path, path, keys, value)
    assert_refused(path, ValueError, match)


def test_an_array_of_another_shape(path):
    with np.load(str(path)) as file:
        members = {name: file[name] for name in file.files}
    members[NAME] = members[NAME].reshape(4, 2)
    np.savez(str(path), **members)
    os.replace(f"{path}.npz", str(path))
    assert_refused(path, ValueError, f"dtype or shape mismatch for '{NAME}'")


def test_other_files(tmp_path):
    _, average = build(1)
    average._trainer.save_states(tmp_path / "states")
    assert_refused(tmp_path / "states", ValueError, "holds 'multitrainer states', not what WeightAverage.save wrote")
    average.save(tmp_path / "average")
    with pytest.raises(ValueError, match="it has another format"):
        average._trainer.load_states(tmp_path / "average")
    (tmp_path / "pickle").write_bytes(pickle.dumps({}))
    assert_refused(tmp_path / "pickle", ValueError, "looks like a pickle")
    assert_refused(tmp_path / "missing", FileNotFoundError, "missing")


class TestOtherParameters:
    def test_are_refused_by_name(self, path):
        build(1, prefix="other_")[1].save(path)
        assert_refused(
            path, ValueError, r"not in the file: net_batchnorm0_beta.*in the file, not in this trainer: other_"
        )

    def test_a_missing_one(self, path):
        rewrite(path, path, lambda header: header["parameters"].pop("net_dense0_bias"))
        assert_refused(path, ValueError, "not in the file: net_dense0_bias. partial=True loads those that are in both")

    def test_partial_loads_the_others(self, path):
        def rename(header):
            header["parameters"]["new"] = header["parameters"].pop("net_dense0_bias")
            header["parameters"]["net_dense1_bias"]["shape"] = [7]

        _, saved = build()
        saved.load(path)
        rewrite(path, path, rename)
        net, average = build(1)
        before = state(net, average)
        left_out = average.load(path, partial=True)
        assert left_out == {
            "net_dense0_bias": "not in the file",
            "new": "not in this trainer",
            "net_dense1_bias": "float32 (7,) in the file, float32 (2,) in this trainer",
        }
        assert average.num_updates == 3
        after = state(net, average)
        assert moved(before, after) == {NAME, "net_batchnorm0_gamma", "net_batchnorm0_beta"}
        expected = {param.name: array.asnumpy() for param, array in saved._arrays.items()}
        assert (after[NAME] == expected[NAME]).all()

    def test_partial_needs_one_that_fits(self, path):
        build(1, prefix="other_")[1].save(path)
        assert_refused(path, ValueError, "No Parameter is in both", partial=True)

    def test_are_found_in_any_order(self, path):
        net = mlp()
        params = sorted(net.collect_params().values(), key=lambda param: param.name, reverse=True)
        average = WeightAverage(MultiLRTrainer(params, "sgd"))
        average.load(path)
        other, again = build()
        again.load(path)
        assert not moved(state(net, average), state(other, again))


def test_the_order_in_which_averages_began_changes_no_byte(path, tmp_path):
    _, average = build()
    average.load(path)
    average._arrays = dict(reversed(list(average._arrays.items())))
    average.save(tmp_path / "again")
    assert path.read_bytes() == (tmp_path / "again").read_bytes()
