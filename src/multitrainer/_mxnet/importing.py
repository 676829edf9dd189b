"""Import MXNet with any NumPy that it runs on."""

from __future__ import annotations

import importlib
import sys


def import_mxnet() -> None:
    """Import mxnet, and define ``numpy.bool`` meanwhile if NumPy does not have it (1.24 to 1.26).

    MXNet 1.9.1 reads ``numpy.bool`` while it is imported (``mxnet/numpy/utils.py``). The name is removed afterwards,
    because other packages use it to find out NumPy's version; only ``mx.np.array`` of MXNet needs it later.

    Raises
    ------
    ImportError
        If MXNet cannot be imported with the NumPy that is installed; the message names the one to install.
    """
    if "mxnet" in sys.modules:
        return
    import numpy

    missing = "bool" not in vars(numpy)
    if missing:
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
        if missing:
            del vars(numpy)["bool"]
