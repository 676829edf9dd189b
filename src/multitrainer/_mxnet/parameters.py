"""Parameters: what kind they are, their arrays and gradients, the variables that stand for them."""

from __future__ import annotations

import contextlib
from typing import Any, Iterable, Iterator, Sequence

from mxnet.context import Context
from mxnet.gluon import Constant, Parameter
from mxnet.gluon.utils import shape_is_known
from mxnet.ndarray import NDArray, sparse
from mxnet.symbol import Symbol

# mxnet/initializer.py goes by the same endings. A SymbolBlock has nothing else that tells its statistics apart.
STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_var")


def is_auxiliary(param: Parameter) -> bool:
    """Whether no gradient ever moves ``param``: a constant, or statistics that the forward pass keeps."""
    if not param._differentiable or isinstance(param, Constant):
        return True
    return param.grad_req == "null" and param.name.endswith(STATISTICS)


def stem(param: Parameter) -> str:
    """Return what the name of ``param`` shares with the other parameters of its layer."""
    for ending in STATISTICS:
        if param.name.endswith(ending):
            return param.name[: -len(ending)]
    return param.name[: param.name.rfind("_") + 1]


def is_statistic(param: Parameter) -> bool:
    """Whether ``param`` holds statistics that a forward pass keeps."""
    return is_auxiliary(param) and not isinstance(param, Constant) and param.name.endswith(STATISTICS)


def owner(param: Parameter) -> Any:
    """Return the Trainer that ``param`` belongs to, or None."""
    return param._trainer


@contextlib.contextmanager
def restoring_owners(params: Sequence[Parameter]) -> Iterator[None]:
    """Give ``params`` back to the Trainers they belonged to if what is done here fails."""
    owners = [param._trainer for param in params]
    try:
        yield
    except BaseException:
        for param, trainer in zip(params, owners):
            param._trainer = trainer
        raise


def discard_gradient(param: Parameter) -> None:
    """Make the gradient of ``param`` count as used, and drop what was added up in it."""
    if param._grad is None:
        return
    for array in param._data:
        array._fresh_grad = False
    if param.grad_req == "add":
        param.zero_grad()


def has_fresh_gradient(param: Parameter) -> bool:
    """Whether a backward pass has written a gradient of ``param`` that no step has used yet."""
    return param._grad is not None and any(array._fresh_grad for array in param._data)


def use_gradients(weights: Iterable[NDArray]) -> None:
    """Note that the gradients of ``weights`` were used, as a step does."""
    for array in weights:
        array._fresh_grad = False


def array_and_gradient(param: Parameter) -> tuple[NDArray | None, NDArray | None]:
    """Return the only array of ``param`` and its gradient, or None where there is not exactly one."""
    both = param._data, param._grad
    return tuple(found[0] if found and len(found) == 1 else None for found in both)  # type: ignore[return-value]


def is_initialized(param: Parameter) -> bool:
    """Whether ``param`` has its values, which a deferred one gets in the first forward pass."""
    return param._data is not None


def shape(param: Parameter) -> tuple[int, ...] | None:
    """Return the shape of ``param``, or None if it is not known yet; that of a SymbolBlock may be its array's alone."""
    known = param.shape if param.shape is not None or param._data is None else param._data[0].shape
    return known if known is not None and shape_is_known(known) else None


def weight_like(param: Parameter, context: Context) -> NDArray:
    """Return an array for an optimizer to make the state of ``param`` for, as it would for the weight itself."""
    if param._stype == "default":
        return param.list_data()[0].as_nd_ndarray().as_in_context(context)  # as `Updater` gives it to an optimizer
    return sparse.zeros(param._stype, param.shape, ctx=context, dtype=param.dtype)


def variable(param: Parameter) -> Symbol | None:
    """Return the variable that stands for ``param`` in traces, or None if it has not been traced."""
    return param._var


def set_variable(param: Parameter, node: Symbol) -> None:
    """Make ``node`` the variable that stands for ``param``."""
    param._var = node


def write_attributes(node: Symbol, param: Parameter) -> None:
    """Write the multipliers of ``param`` to a variable, and so into every symbol that shares it."""
    node._set_attr(__lr_mult__=str(param.lr_mult), __wd_mult__=str(param.wd_mult))
