"""The ONNX model of an exported network: written by MXNet's exporter, checked by onnx, run by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np

from ..errors import UserError, require

EXTRA = "onnx"
OPSET = 13  # the newest operators that MXNet 1.9.1 writes; it labels them with the newest that onnx knows


def check_installed() -> None:
    """Raise a UserError if a package of the extra ``onnx`` is missing, or too new for MXNet's exporter."""
    require("onnx.mapping", EXTRA)  # MXNet's exporter needs it; onnx 1.19 removed it
    require("onnxruntime", EXTRA)


def save_onnx(prefix: Path, size: int, path: Path) -> None:
    """Convert the symbol and parameters that Gluon's ``export`` wrote to an ONNX model for batches of any size.

    Parameters
    ----------
    prefix : Path
        What ``export`` was called with: ``-symbol.json`` and ``-0000.params`` are added to it.
    size : int
        The side of the square images that the network takes.
    path : Path
        The file to write.

    Raises
    ------
    UserError
        If MXNet's exporter cannot convert an operator, or writes a model that is not valid.
    """
    onnx = require("onnx", EXTRA)
    symbol, arguments, auxiliary = mx.model.load_checkpoint(str(prefix), 0)
    _check_operators(symbol)
    try:
        mx.onnx.export_model(
            symbol,
            [arguments, auxiliary],
            [(1, 3, size, size)],
            np.float32,
            str(path),
            dynamic=True,
            dynamic_input_shapes=[("batch", 3, size, size)],
        )
        model = onnx.load(str(path))
        _correct(model)
        onnx.checker.check_model(model, full_check=True)
    except OSError:
        raise
    except Exception as error:  # the exporter raises many types, and onnx its own
        raise _cannot_convert(" ".join(map(str, error.args)) or type(error).__name__) from error
    onnx.save(model, str(path))


def run_onnxruntime(path: Path, inputs: np.ndarray) -> np.ndarray:
    """Return the outputs of an ONNX model for all inputs, computed as one batch of one and one of the others.

    Raises
    ------
    UserError
        If onnxruntime cannot run the model.
    """
    onnxruntime = require("onnxruntime", EXTRA)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        batches = [session.run(None, {"data": batch})[0] for batch in (inputs[:1], inputs[1:])]
    except Exception as error:  # onnxruntime has a type for each status, without a common one
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--onnx: onnxruntime cannot run the model ({reason}); nothing was written") from error
    return np.concatenate(batches)


def _check_operators(symbol: mx.symbol.Symbol) -> None:
    """Raise a UserError that names the operators of a symbol which MXNet's exporter does not know."""
    operators = {node["op"] for node in json.loads(symbol.tojson())["nodes"]} - {"null"}
    unknown = sorted(operators - set(require("mxnet.onnx").get_operator_support()))
    if unknown:
        raise _cannot_convert(f"it does not know the operator {', '.join(unknown)}")


def _correct(model: Any) -> None:
    """Let a model say which operators it uses, and that its parameters are constants and not inputs."""
    onnx = require("onnx", EXTRA)
    opset = onnx.helper.make_opsetid("", OPSET)
    del model.opset_import[:]
    model.opset_import.append(opset)
    model.ir_version = onnx.helper.find_min_ir_version_for([opset])  # older onnxruntimes refuse a newer one
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def _cannot_convert(reason: str) -> UserError:
    return UserError(
        f"--onnx: MXNet's exporter cannot convert this network: {reason}. Nothing was written; leave --onnx out, or "
        "train another --model"
    )
