"""Import MXNet with any NumPy that it runs on, or say what to install."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from types import ModuleType

_NUMPY = "numpy>=1.26,<2" if sys.version_info >= (3, 12) else "numpy<1.24"
_INSTALL = f"pip install 'mxnet>=1.9.1,<2' '{_NUMPY}'"


def import_mxnet() -> None:
    """Import mxnet, and define ``numpy.bool`` meanwhile if NumPy does not have it (1.24 to 1.26).

    MXNet 1.9.1 reads ``numpy.bool`` while it is imported (``mxnet/numpy/utils.py``). The name is removed afterwards,
    because other packages use it to find out NumPy's version; only ``mx.np.array`` of MXNet needs it later.

    Raises
    ------
    ImportError
        If MXNet or NumPy is not installed, if ``mxnet`` is a folder without code, if MXNet is MXNet 2, or if it cannot
        be imported with the NumPy that is installed; the message says what to install.
    """
    if sys.modules.get("mxnet") is None:
        _import_with_numpy_bool()
    _check_not_namespace(sys.modules["mxnet"])
    _check_version(getattr(sys.modules["mxnet"], "__version__", ""))


def _import_with_numpy_bool() -> None:
    numpy = _import("numpy", "NumPy, which MXNet needs,")
    missing = "bool" not in vars(numpy)
    if missing:
        vars(numpy)["bool"] = bool
    try:
        _import("mxnet", "MXNet")
    except Exception as error:
        _check_version(_installed_version())
        if not isinstance(error, AttributeError):
            raise
        raise ImportError(
            f"MXNet cannot be imported with NumPy {numpy.__version__} ({error}). "
            f"Install one that it can: pip install '{_NUMPY}'"
        ) from error
    finally:
        if missing:
            del vars(numpy)["bool"]


def _import(name: str, description: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(f"{description} is not installed: {_INSTALL}", name=name) from None


def _check_not_namespace(module: ModuleType) -> None:
    """Raise an ImportError if ``module`` is only a folder: Python imports one of that name if there is no package."""
    if getattr(module, "__file__", None) is None and hasattr(module, "__path__"):
        folder = next(iter(module.__path__), "mxnet")
        raise ImportError(
            f"MXNet is not installed, and the folder {folder} has its name, which Python imports in its place: "
            f"{_INSTALL}, or remove what is left of MXNet there"
        )


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
