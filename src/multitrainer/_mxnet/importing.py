"""Import MXNet with any NumPy it can run on."""

from __future__ import annotations

import importlib
import sys


def import_mxnet() -> None:
    """Import mxnet, with ``numpy.bool`` lent to it where NumPy no longer has it (1.24 to 1.26).

    MXNet 1.9.1 reads ``numpy.bool`` while it is imported (``mxnet/numpy/utils.py``). The name is taken back afterwards,
    for other packages look for it to tell NumPy's versions apart; of MXNet only ``mx.np.array`` misses it then.

    Raises
    ------
    ImportError
        On a NumPy that MXNet cannot be imported with, naming the one to install.
    """
    if "mxnet" in sys.modules:
        return
    import numpy

    lent = "bool" not in vars(numpy)
    if lent:
        vars(numpy)["bool"] = bool
    try:
        importlib.import_module("mxnet")
    except AttributeError as error:
        wanted = "numpy>=1.26,<2" if sys.version_info >= (3, 12) else "numpy<1.24"
        raise ImportError(
            f"MXNet cannot be imported with NumPy {numpy.__version__} ({error}). "
            f"Install one that it can: pip install '{wanted}'"
        ) from error
    finally:
        if lent:
            del vars(numpy)["bool"]
