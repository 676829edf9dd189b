"""The multipliers that exported networks carry, as attributes of their symbols' variables."""

from __future__ import annotations

from typing import Iterable, Iterator, Mapping

from mxnet.gluon import Block, Parameter, SymbolBlock
from mxnet.symbol import Symbol

from .. import _mxnet
from ..groups.param_group import FIELDS
from ..groups.targets import check_multiplier


def restore_multipliers(block: Block) -> None:
    """Give the Parameters of imported networks the multipliers that their symbols say.

    A `MultiLRTrainer` that is given the Block does this by itself. This function is for a stock Trainer, and for one
    that is given Parameters instead of the Block.

    Parameters
    ----------
    block : Block
        A SymbolBlock, or a Block that holds some. A multiplier that was set by hand since the import stays.

    Raises
    ------
    ValueError
        Before anything has changed, if an attribute is no finite number >= 0.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import symbolic
    >>> weight = mx.sym.Variable('fc_weight', lr_mult=0.1)
    >>> output = mx.sym.FullyConnected(mx.sym.Variable('data'), weight, name='fc', num_hidden=1)
    >>> net = mx.gluon.SymbolBlock(output, mx.sym.var('data'))
    >>> symbolic.restore_multipliers(net)
    >>> net.collect_params()['fc_weight'].lr_mult
    0.1
    """
    found = symbol_multipliers([block])
    for field, values in found.items():
        for param, number in values.items():
            setattr(param, field, number)
    join_symbols([block])


def symbol_multipliers(blocks: Iterable[Block]) -> dict[str, dict[Parameter, float]]:
    """Return what the symbols of imported networks say, field by field, where nobody has said otherwise since.

    Parameters
    ----------
    blocks : iterable of Block
        SymbolBlocks at or below these are read.
    """
    found: dict[str, dict[Parameter, float]] = {field: {} for field in FIELDS}
    for block, symbol in _symbol_blocks(blocks):
        attributes, arguments = symbol.attr_dict(), set(symbol.list_arguments())
        for name, param in block.collect_params().items():
            # One that has its variable was traced itself, or read before: then its own multiplier is the truth.
            if name in arguments and _mxnet.variable(param) is None:
                for field in FIELDS:
                    number = _attribute(attributes.get(name, {}), field, name)
                    if number is not None and getattr(param, field) == 1:
                        found[field][param] = number
    return found


def join_symbols(blocks: Iterable[Block]) -> None:
    """Tie the Parameters of imported networks to their symbols: read once, exported with the multipliers they get."""
    for block, symbol in _symbol_blocks(blocks):
        params = block.collect_params()
        for name, node in _variables(symbol):
            if name in params and _mxnet.variable(params[name]) is None:
                _mxnet.set_variable(params[name], node)


def record(params: Iterable[Parameter], blocks: Iterable[Block] = ()) -> None:
    """Write the multipliers of ``params`` into the symbols that stand for them, which is what `export` saves.

    A trace shares the variable of each of its Parameters. It has copies where it contains a SymbolBlock; those are
    found at and below ``blocks``.
    """
    changed = {param.name: param for param in params}
    if not changed:
        return
    for param in changed.values():
        node = _mxnet.variable(param)
        if node is not None:
            _mxnet.write_multipliers(node, param)
    for block in {each: None for root in blocks for each in _around_symbol_blocks(root)}:
        symbol = _mxnet.traced_symbol(block)
        for name, node in _variables(symbol) if symbol is not None else ():
            if name in changed:
                _mxnet.write_multipliers(node, changed[name])


def on_global_statistics(blocks: Iterable[Block]) -> set[Parameter]:
    """Return the Parameters of the BatchNorms of imported networks that run on their running statistics for good."""
    found: set[Parameter] = set()
    for block, symbol in _symbol_blocks(blocks):
        params, attributes = block.collect_params(), symbol.attr_dict()
        for node in symbol.get_internals():
            if attributes.get(node.name, {}).get("use_global_stats") in ("True", "1"):
                found.update(params[name] for name in node.get_children().list_outputs() if name in params)
    return found


def _symbol_blocks(blocks: Iterable[Block]) -> Iterator[tuple[Block, Symbol]]:
    for block in blocks:
        if isinstance(block, SymbolBlock):
            yield block, _mxnet.traced_symbol(block)
        yield from _symbol_blocks(child for _, child in _mxnet.children(block))


def _around_symbol_blocks(block: Block) -> list[Block]:
    """Return every SymbolBlock at or below ``block`` and what lies around it."""
    found = [inner for _, child in _mxnet.children(block) for inner in _around_symbol_blocks(child)]
    return [block, *found] if found or isinstance(block, SymbolBlock) else []


def _variables(symbol: Symbol) -> Iterator[tuple[str, Symbol]]:
    """Yield the variables of ``symbol`` with their names; they are shared, so what is written to them stays."""
    names, nodes = set(symbol.list_inputs()), symbol.get_internals()
    for i, name in enumerate(nodes.list_outputs()):
        if name in names:
            yield name, nodes[i]


def _attribute(attributes: Mapping[str, str], field: str, name: str) -> float | None:
    """Return the multiplier in the attributes of a variable, or None."""
    text = attributes.get(f"__{field}__")
    if text is None:
        return None
    where = f"the symbol's attribute __{field}__ of {name!r}"
    try:
        return float(check_multiplier(float(text), where))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(
            f"{where} must be a finite number >= 0, got {text!r}; correct it where the symbol was made, "
            f"mx.sym.Variable({name!r}, {field}=1)"
        ) from error
