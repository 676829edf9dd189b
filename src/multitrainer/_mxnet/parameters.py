"""Parameters: their kind, their Trainer, their arrays and gradients."""

from __future__ import annotations

import contextlib
from typing import Any, Iterable, Iterator, Sequence

from mxnet.context import Context
from mxnet.gluon import Constant, Parameter
from mxnet.gluon.utils import shape_is_known
from mxnet.ndarray import NDArray, sparse

from .arrays import memory_block

# mxnet/initializer.py knows statistics by these endings, too. A SymbolBlock has nothing else to know them by.
STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_var")


def is_auxiliary(param: Parameter) -> bool:
    """Whether ``param`` never gets a gradient: it is a constant, or statistics that the forward pass updates."""
    if not param._differentiable or isinstance(param, Constant):
        return True
    return param.grad_req == "null" and param.name.endswith(STATISTICS)


def layer_prefix(param: Parameter) -> str:
    """Return the part of the name of ``param`` that the other parameters of its layer share."""
    for ending in STATISTICS:
        if param.name.endswith(ending):
            return param.name[: -len(ending)]
    return param.name[: param.name.rfind("_") + 1]


def is_statistic(param: Parameter) -> bool:
    """Whether ``param`` holds statistics that the forward pass updates."""
    return is_auxiliary(param) and not isinstance(param, Constant) and param.name.endswith(STATISTICS)


def trainer_of(param: Parameter) -> Any:
    """Return the Trainer that ``param`` belongs to, or None."""
    return param._trainer


@contextlib.contextmanager
def restoring_owners(params: Sequence[Parameter], optimizer: Any = None) -> Iterator[None]:
    """Give ``params`` and an Optimizer back to the Trainers they belonged to if what is done here fails."""
    owners = [param._trainer for param in params]
    known = getattr(optimizer, "param_dict", None)
    try:
        yield
    except BaseException:
        for param, trainer in zip(params, owners):
            param._trainer = trainer
        if known is not None:
            optimizer.param_dict = known
        raise


def discard_gradient(param: Parameter) -> None:
    """Mark the gradient of ``param`` as used, and set it to 0 if backward passes add to it."""
    if param._grad is None:
        return
    for array in param._data:
        array._fresh_grad = False
    if param.grad_req == "add":
        param.zero_grad()


def gradient_arrays(param: Parameter) -> Sequence[NDArray]:
    """Return the gradient of ``param`` on each context; nothing if it requests none or is not initialized."""
    return param._grad or ()


def has_fresh_gradient(param: Parameter) -> bool:
    """Whether ``param`` has a gradient from a backward pass that no step has used yet."""
    return param._grad is not None and any(array._fresh_grad for array in param._data)


def fresh_gradients(param: Parameter) -> list[bool]:
    """Tell for each array of ``param`` whether it has a gradient that no step has used yet."""
    return [bool(array._fresh_grad) for array in param._data or ()] if param._grad is not None else []


def set_fresh_gradients(param: Parameter, fresh: Sequence[bool]) -> None:
    """Mark the gradients of ``param`` as `fresh_gradients` found them."""
    for array, is_fresh in zip(param._data if param._grad is not None else (), fresh):
        if array._fresh_grad != is_fresh:  # an array that was copied has no gradient to mark
            array._fresh_grad = is_fresh


def values_and_gradients(param: Parameter) -> tuple[list[NDArray], list[NDArray]]:
    """Return the arrays of ``param`` on all contexts, and the arrays of its gradient."""
    return list(param._data or ()), list(param._grad or ())


def is_fresh(weight: NDArray) -> bool:
    """Whether the gradient of one array is from a backward pass that no step has used yet."""
    return bool(weight._fresh_grad)


def mark_gradients_used(weights: Iterable[NDArray]) -> None:
    """Mark the gradients of ``weights`` as used, as a step does."""
    for array in weights:
        array._fresh_grad = False


def mark_gradients_fresh(weights: Iterable[NDArray]) -> None:
    """Mark the gradients of ``weights`` as not used yet, as a backward pass does."""
    for array in weights:
        array._fresh_grad = True


def arrays_and_gradients(param: Parameter) -> list[tuple[NDArray, NDArray]]:
    """Return the array of ``param`` on each context, and its gradient; raise as stock does if it has no values yet."""
    arrays = param._check_and_get(param._data, list)  # `list_data` refuses row_sparse arrays
    return [(array, gradient.as_nd_ndarray()) for array, gradient in zip(arrays, param.list_grad())]


def single_array_and_gradient(param: Parameter) -> tuple[NDArray | None, NDArray | None]:
    """Return the array of ``param`` and its gradient, each None unless there is exactly one."""
    return _single(param._data), _single(param._grad)


def _single(arrays: Sequence[NDArray] | None) -> NDArray | None:
    return arrays[0] if arrays is not None and len(arrays) == 1 else None


def is_initialized(param: Parameter) -> bool:
    """Whether ``param`` has values, which a deferred one gets in the first forward pass."""
    return param._data is not None


def has_sparse_weight(param: Parameter) -> bool:
    """Whether the weight of ``param`` is row_sparse or csr, whatever its gradient is."""
    return param._stype != "default"


def shape(param: Parameter) -> tuple[int, ...] | None:
    """Return the shape of ``param``, or None if it is not known yet."""
    # In a SymbolBlock, only the array may have one.
    known = param.shape if param.shape is not None or param._data is None else param._data[0].shape
    return known if known is not None and shape_is_known(known) else None


def weight_like(param: Parameter, context: Context) -> NDArray:
    """Return an array for which an optimizer creates the same state as for the weight of ``param``."""
    if param._stype == "default":
        return param.list_data()[0].as_nd_ndarray().as_in_context(context)  # as `Updater` passes it on
    return sparse.zeros(param._stype, param.shape, ctx=context, dtype=param.dtype)


def contexts(param: Parameter) -> list[Context]:
    """Return where a Parameter is, or will be once its shape is known; empty if it is not initialized."""
    return list(param.list_ctx()) if param._data is not None or param._deferred_init else []


def load_values(param: Parameter, array: Any, ctx: Any) -> None:
    """Give a Parameter the values of an array that fits; if it is not initialized, create it on ``ctx``."""
    param._load_init(array, None if contexts(param) else ctx)


class ParameterArrays:
    """The arrays that an initialized Parameter has now, with its dtype, contexts and gradients. Nothing is copied."""

    def __init__(self, param: Parameter) -> None:
        names = "_data", "_grad", "_grad_req", "_dtype", "_ctx_list", "_ctx_map", "_deferred_init"
        self._param, self._attributes = param, {name: getattr(param, name) for name in names}

    def put_back(self) -> None:
        """Let the Parameter have these arrays again if it was cast, moved or initialized again since.

        A ``grad_req`` that was set since stays.
        """
        param = self._param
        if list(map(memory_block, self._attributes["_data"])) != list(map(memory_block, param._data or ())):
            grad_req = param.grad_req
            vars(param).update(self._attributes)
            param.grad_req = grad_req
