"""Check what was exported: load it where multitrainer cannot be imported, and compare its outputs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError

TOLERANCE = 1e-4  # of the largest output; float32 operations in another order differ by less than 1e-5
RANDOM_INPUTS = 4

# None in sys.modules makes an import fail. MXNet 1.9.1 reads numpy.bool, which NumPy 1.24 removed.
_PLAIN_MXNET = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]
sys.modules.update(dict.fromkeys(("multitrainer", "multitrainer_cli", "gluoncv")))
import numpy
if not hasattr(numpy, "bool"):
    numpy.bool = bool
import mxnet as mx
symbol, parameters, inputs, outputs = sys.argv[1:]
net = mx.gluon.SymbolBlock.imports(symbol, ["data"], parameters)
numpy.save(outputs, net(mx.nd.array(numpy.load(inputs))).asnumpy())
"""


class Agreement(NamedTuple):
    """How far the outputs of an exported network are from those of the network."""

    inputs: int
    difference: float  # the largest one, divided by the largest output


def random_inputs(size: int) -> np.ndarray:
    """Return inputs of a network that have the mean and deviation of normalized images, always the same ones."""
    return np.random.RandomState(0).normal(size=(RANDOM_INPUTS, 3, size, size)).astype(np.float32)


def run_plain_mxnet(symbol: Path, parameters: Path, inputs: np.ndarray) -> np.ndarray:
    """Return the outputs of exported files, loaded in a process that can import neither multitrainer nor GluonCV.

    Raises
    ------
    UserError
        If they cannot be loaded there.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, computed = Path(folder, "inputs.npy"), Path(folder, "outputs.npy")
        np.save(str(given), inputs)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _PLAIN_MXNET, *map(str, (symbol, parameters, given, computed))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
            raise UserError(f"MXNet cannot load what was exported ({lines[-1]}); nothing was written")
        return np.load(str(computed))


def compare(expected: np.ndarray, found: np.ndarray, loader: str) -> Agreement:
    """Check that outputs agree within `TOLERANCE`, and choose the same class for each input.

    Parameters
    ----------
    expected, found : numpy.ndarray
        The outputs of the network and of its export, of shape (inputs, classes).
    loader : str
        What ran the export, for the message.

    Raises
    ------
    UserError
        If they do not agree, or the network's outputs are not finite.
    """
    if not np.isfinite(expected).all():
        raise UserError(
            "the network's outputs are not finite, so that its export cannot be checked; its training has diverged: "
            "train again with a smaller --lr, or try the other --weights"
        )
    scale = max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    difference = float(np.abs(found - expected).max() / scale) if found.shape == expected.shape else np.inf
    if not difference <= TOLERANCE:
        raise UserError(
            f"{loader} computes other outputs than the network: they differ by {difference:.2g} of the largest one, "
            f"and {TOLERANCE:g} is tolerated; nothing was written"
        )
    # Two classes whose scores are this close are a tie.
    chosen = np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]
    if (expected.max(axis=1) - chosen > TOLERANCE * scale).any():
        raise UserError(f"{loader} chooses another class than the network; nothing was written")
    return Agreement(len(expected), difference)
