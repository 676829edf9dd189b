"""What is exported is loaded without multitrainer, and differences from the network are found."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

from multitrainer_cli.errors import UserError
from multitrainer_cli.exporting.verification import compare, random_inputs, run_plain_mxnet

SCORES = np.array([[1, 5, 2], [8, 0, -3]], np.float32)


def test_equal_outputs_agree():
    assert compare(SCORES, SCORES.copy(), "MXNet") == (2, 0)


def test_the_difference_is_relative_to_the_largest_output():
    assert compare(SCORES, SCORES + np.float32(4e-5), "MXNet").difference == pytest.approx(5e-6, rel=0.01)


@pytest.mark.parametrize("found", [SCORES + np.float32(1e-3), SCORES[:, :2], SCORES * np.nan])
def test_other_outputs_are_refused(found):
    with pytest.raises(UserError, match="onnxruntime computes other outputs than the network"):
        compare(SCORES, found, "onnxruntime")


def test_a_tie_may_be_broken_either_way():
    tied = np.array([[8, 8 + 1e-6, 0]], np.float32)
    assert compare(tied, tied[:, [1, 0, 2]], "MXNet").inputs == 1


def test_another_class_is_refused():
    close = np.array([[8, 8.0009, 0]], np.float32)  # each output is within the tolerance, and their order changes
    with pytest.raises(UserError, match="chooses another class"):
        compare(close, np.array([[8.0005, 8.0004, 0]], np.float32), "MXNet")


def test_a_network_that_diverged_is_named_so():
    with pytest.raises(UserError, match="training has diverged"):
        compare(SCORES * np.inf, SCORES, "MXNet")


def test_zeros_agree_with_zeros():
    assert compare(SCORES * 0, SCORES * 0, "MXNet").difference == 0


def test_the_random_inputs_are_always_the_same():
    inputs = random_inputs(8)
    assert inputs.shape == (4, 3, 8, 8)
    assert inputs.dtype == np.float32
    assert (inputs == random_inputs(8)).all()


@pytest.mark.slow
def test_exported_files_run_in_a_process_of_their_own(tmp_path, monkeypatch):
    net = mx.gluon.nn.Dense(3, in_units=3 * 4 * 4)
    net.initialize()
    net.hybridize()
    inputs = random_inputs(4)
    expected = net(mx.nd.array(inputs)).asnumpy()
    net.export(str(tmp_path / "ü net"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mxnet.py").write_text("raise ImportError('the current folder must not matter')")
    found = run_plain_mxnet(tmp_path / "ü net-symbol.json", tmp_path / "ü net-0000.params", inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_files_that_mxnet_cannot_load_are_an_error_of_one_line(tmp_path):
    (tmp_path / "symbol.json").write_text("{")
    (tmp_path / "params").write_bytes(b"")
    with pytest.raises(UserError, match="MXNet cannot load what was exported") as error:
        run_plain_mxnet(tmp_path / "symbol.json", tmp_path / "params", random_inputs(4))
    assert "\n" not in str(error.value)
