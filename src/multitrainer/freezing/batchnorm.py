"""Let the BatchNorm layers of frozen Blocks normalize with their running statistics, which then stay as they are.

As in Keras, this holds for a BatchNorm layer if none of its own parameters trains. One without trainable parameters
follows those that it was named with in a group, or those of the Block around it. MXNet writes the choice into the trace
of every hybridized parent, so those traces are dropped. A SymbolBlock has it in its symbol, where it is changed.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

from mxnet.gluon import Block, Parameter, SymbolBlock

from .. import _mxnet
from .stale_traces import CallWatch
from .state import is_frozen
from .user_warning import warn

# What a BatchNorm had before is kept on the layer, so that copies and pickles of it have it too.
_BEFORE = "_multitrainer_before"


def hold_statistics(
    roots: Sequence[Block],
    pending: Callable[[], bool],
    companions: Mapping[Parameter, Sequence[Parameter]] = MappingProxyType({}),
) -> set[Parameter]:
    """Choose the statistics of every BatchNorm layer below ``roots``, and drop the traces that used other ones.

    Parameters
    ----------
    roots : sequence of Block
        The known Blocks: a network, or parts of it.
    pending : callable () -> bool
        Whether the next update belongs to a forward pass that was made before. Called only if a layer is switched.
    companions : dict of Parameter to sequence of Parameter, optional
        The trainable Parameters of the group that holds a statistic.

    Returns
    -------
    set of Parameter
        All parameters of the layers that were found.
    """
    found: dict[Any, list[tuple[Any, ...]]] = {}
    for root in roots:
        for layer, path in _batchnorms(root, ()):
            found.setdefault(layer, []).append(path)
    wanted = {
        layer: _is_group_frozen(layer, companions) or any(map(_is_frozen, paths)) for layer, paths in found.items()
    }
    switched = {layer: frozen for layer, frozen in wanted.items() if frozen != _holds_statistics(layer)}
    stale = {
        block
        for layer, frozen in switched.items()
        if _mxnet.use_global_stats(layer) != (frozen or getattr(layer, _BEFORE))
        for path in found[layer]
        for block in path
    }
    # First the traces: if this is interrupted, the next call finds the same layers to switch.
    for block in stale:
        _mxnet.forget_trace(block)
    for layer, frozen in switched.items():
        _switch(layer, frozen)
    inner = {block for paths in found.values() for path in paths for block in path[1:]}
    outermost = [path for layer, paths in found.items() if layer in stale for path in paths if path[0] not in inner]
    # Nobody calls a slice of a network: the first Block on the path that can be traced is the one to watch.
    watched = {next((block for block in path if _mxnet.is_hybridized(block)), None) for path in outermost}
    for block in watched - {None}:
        CallWatch(block, pending())
    return {param for layer in found for param in layer.params.values()}


def warn_of_statistics(frozen: Iterable[Parameter], params: Iterable[Parameter], held: Iterable[Parameter]) -> None:
    """Warn about statistics that still move although their layer is frozen.

    Parameters
    ----------
    frozen : iterable of Parameter
        The frozen Parameters.
    params : iterable of Parameter
        All Parameters, among them the statistics.
    held : iterable of Parameter
        The parameters of layers whose statistics stay as they are.
    """
    prefixes = {_mxnet.layer_prefix(param) for param in frozen}
    if not prefixes:
        return
    held = set(held)
    moving = [
        param.name
        for param in params
        if _mxnet.layer_prefix(param) in prefixes and _mxnet.is_statistic(param) and param not in held
    ]
    if moving:
        warn(
            f"frozen, but their BatchNorm statistics still move: {', '.join(moving[:3])}"
            f"{', ...' if len(moving) > 3 else ''}. Name the Block that holds the layers instead of its Parameters, as "
            "in MultiLRTrainer([net, ...]) or freeze(block)"
        )


def _batchnorms(block: Block, path: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield each BatchNorm layer at or below ``block``, with the Blocks that lead to it; the layer is the last.

    A BatchNorm operator of a SymbolBlock is a layer too.
    """
    path = (*path, block)
    if isinstance(block, _mxnet.BatchNorm):
        yield block, path
    if isinstance(block, SymbolBlock):
        for operator in _mxnet.symbol_batchnorms(block):
            yield operator, (*path, operator)
    for _, child in _mxnet.children(block):
        yield from _batchnorms(child, path)


def _switch(layer: Any, frozen: bool) -> None:
    """Let one layer use its running statistics, or the statistics that it used before it was frozen."""
    if frozen:
        if not hasattr(layer, _BEFORE):
            setattr(layer, _BEFORE, _mxnet.use_global_stats(layer))
        _mxnet.set_use_global_stats(layer, True)
    else:
        _mxnet.set_use_global_stats(layer, getattr(layer, _BEFORE))
        delattr(layer, _BEFORE)


def _holds_statistics(layer: Any) -> bool:
    """Whether we made one layer use its running statistics; not if that was interrupted half-way."""
    return hasattr(layer, _BEFORE) and _mxnet.use_global_stats(layer)


def _is_frozen(path: Sequence[Block]) -> bool:
    """Whether all trainable parameters are frozen in the innermost Block of ``path`` that has any."""
    for block in reversed(path):
        trainable = _trainable(block)
        if trainable:
            return _are_frozen(trainable)
    return False


def _is_group_frozen(layer: Block, companions: Mapping[Parameter, Sequence[Parameter]]) -> bool:
    """Whether a layer without trainable parameters is in a group whose trainable Parameters are all frozen."""
    members = [member for param in layer.params.values() for member in companions.get(param, ())]
    return bool(members) and not _trainable(layer) and _are_frozen(members)


def _trainable(block: Block) -> list[Parameter]:
    return [param for param in block.collect_params().values() if not _mxnet.is_auxiliary(param)]


def _are_frozen(params: Iterable[Parameter]) -> bool:
    return all(param.lr_mult == 0 and is_frozen(param) for param in params)
