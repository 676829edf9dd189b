"""Let ``import mxnet`` work with any NumPy that MXNet runs on, or say what to install.

``import multitrainer`` does not import MXNet, so that `multitrainer.use_all_cores` can be called in between. It
installs a finder of modules, which is asked first and does its part when somebody imports mxnet.
"""

from __future__ import annotations

import sys
from importlib import import_module, machinery, metadata, util
from types import ModuleType
from typing import Any, Callable, Sequence

_NUMPY = "numpy>=1.26,<2" if sys.version_info >= (3, 12) else "numpy<1.24"
_INSTALL = f"pip install 'mxnet>=1.9.1,<2' '{_NUMPY}'"


def prepare_import(register: Callable[[], object]) -> None:
    """Prepare for ``import mxnet``, and check what can be checked before it.

    MXNet 1.9.1 reads ``numpy.bool`` while it is imported (``mxnet/numpy/utils.py``), which NumPy 1.24 to 1.26 do not
    have. It is defined meanwhile, and removed afterwards, because other packages use it to find out NumPy's version;
    only ``mx.np.array`` of MXNet needs it later.

    Parameters
    ----------
    register : callable
        Called without arguments when mxnet has been imported; at once if it already is.

    Raises
    ------
    ImportError
        If MXNet or NumPy is not installed, if ``mxnet`` is a folder without code, or if MXNet is MXNet 2; the message
        says what to install. ``import mxnet`` raises it if MXNet cannot be imported with the NumPy that is installed.
    """
    imported = sys.modules.get("mxnet")
    if imported is None:
        _check_installed()
        sys.meta_path.insert(0, _MXNetFinder(register))
    else:
        _check_imported(imported)
        register()


class _MXNetFinder:
    """Finds mxnet as the other finders do, and surrounds its execution."""

    def __init__(self, register: Callable[[], object]) -> None:
        self._register = register

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> machinery.ModuleSpec | None:
        """Return the spec of mxnet, with a loader around its own; None for any other module."""
        if name != "mxnet":
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _MXNetFinder):  # this one, or that of an earlier import of the package
                continue
            find = getattr(finder, "find_spec", None)
            spec: machinery.ModuleSpec | None = find(name, path, target) if find is not None else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module") and not isinstance(spec.loader, _MXNetLoader):
                    spec.loader = _MXNetLoader(spec.loader, self._register)  # type: ignore[assignment]
                return spec
        return None


class _MXNetLoader:
    """Loads mxnet with another loader, which may also load other modules and is therefore not changed."""

    def __init__(self, loader: Any, register: Callable[[], object]) -> None:
        self._loader = loader
        self._register = register

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own loader back, execute it, and register with it."""
        spec = module.__spec__
        if spec is not None and spec.loader is self:
            spec.loader = self._loader
        if module.__loader__ is self:
            module.__loader__ = self._loader
        _execute(self._loader.exec_module, module)
        self._register()


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    """Execute the module mxnet, and define ``numpy.bool`` meanwhile if NumPy does not have it."""
    numpy = import_module("numpy")
    missing = "bool" not in vars(numpy)
    if missing:
        vars(numpy)["bool"] = bool
    try:
        execute(module)
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
            vars(numpy).pop("bool", None)
    _check_imported(module)


def _check_installed() -> None:
    for name, description in (("numpy", "NumPy, which MXNet needs,"), ("mxnet", "MXNet")):
        if sys.modules.get(name) is None and util.find_spec(name) is None:
            raise ModuleNotFoundError(f"{description} is not installed: {_INSTALL}", name=name)
    spec = util.find_spec("mxnet")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    _check_not_namespace(spec, folders)
    if folders:
        _check_version(_installed_version(folders[0]))


def _check_imported(module: ModuleType) -> None:
    _check_not_namespace(module.__spec__, list(getattr(module, "__path__", ())))
    _check_version(getattr(module, "__version__", ""))


def _check_not_namespace(spec: machinery.ModuleSpec | None, folders: list[str]) -> None:
    """Raise an ImportError if mxnet is only a folder: Python imports one of that name if there is no package."""
    if spec is not None and not spec.has_location and folders:
        raise ImportError(
            f"MXNet is not installed, and the folder {folders[0]} has its name, which Python imports in its place: "
            f"{_INSTALL}, or remove what is left of MXNet there"
        )


def _check_version(version: str) -> None:
    if version.partition(".")[0] == "2":
        raise ImportError(
            f"MXNet {version} is not supported, because it has another Gluon; install 1.9.1: {_INSTALL}"
        ) from None


def _installed_version(folder: str | None = None) -> str:
    """Return the version of MXNet that was installed, to that folder if one is given; otherwise an empty text."""
    try:
        found = metadata.distribution("mxnet")
    except metadata.PackageNotFoundError:  # a build of one's own, or one for GPUs
        return ""
    return found.version if folder in (None, str(found.locate_file("mxnet"))) else ""
