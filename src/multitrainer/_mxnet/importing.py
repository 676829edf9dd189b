"""Import MXNet with any NumPy that it runs on, or say what to install."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata

_NUMPY = "numpy>=1.26,<2" if sys.version_info >= (3, 12) else "numpy<1.24"
_INSTALL = f"pip install 'mxnet>=1.9.1,<2' '{_NUMPY}'"


def import_mxnet() -> None:
    """Import mxnet, and define ``numpy.bool`` meanwhile if NumPy does not have it (1.24 to 1.26).

    MXNet 1.9.1 reads ``numpy.bool`` while it is imported (``mxnet/numpy/utils.py``). The name is removed afterwards,
    because other packages use it to find out NumPy's version; only ``mx.np.array`` of MXNet needs it later.

    Raises
    ------
    ImportError
        If MXNet is not installed, if it is MXNet 2, or if it cannot be imported with the NumPy that is installed; the
        message says what to install.
    """
    if sys.modules.get("mxnet") is None:
        _import_with_numpy_bool()
    _check_version(getattr(sys.modules["mxnet"], "__version__", ""))


def _import_with_numpy_bool() -> None:
    import numpy

    missing = "bool" not in vars(numpy)
    if missing:
        vars(numpy)["bool"] = bool
    try:
        importlib.import_module("mxnet")
    except ModuleNotFoundError as error:
        if error.name != "mxnet":
            raise
        raise ModuleNotFoundError(f"MXNet is not installed: {_INSTALL}", name="mxnet") from None
    except AttributeError as error:
        _check_version(_installed_version())
        raise ImportError(
            f"MXNet cannot be imported with NumPy {numpy.__version__} ({error}). "
            f"Install one that it can: pip install '{_NUMPY}'"
        ) from error
    finally:
        if missing:
            del vars(numpy)["bool"]


def _check_version(version: str) -> None:
    if version.partition(".")[0] == "2":
        raise ImportError(
            f"MXNet {version} is not supported, because it has another Gluon; install 1.9.1: {_INSTALL}"
        ) from None


def _installed_version() -> str:
    try:
        return metadata.version("mxnet")
    except metadata.PackageNotFoundError:  # a build of one's own, or one for GPUs
        return ""
