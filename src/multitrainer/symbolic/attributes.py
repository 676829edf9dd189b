"""Multipliers as attributes of the variables of symbols: read from imported networks, written for `export`."""

from __future__ import annotations

from typing import Iterable, Iterator, Mapping

from mxnet.gluon import Block, Parameter, SymbolBlock
from mxnet.symbol import Symbol

from .. import _mxnet
from ..groups.param_group import FIELDS
from ..groups.targets import check_multiplier


def restore_multipliers(block: Block) -> None:
    """Set the multipliers of the Parameters of imported networks to those in their symbols.

    A `MultiLRTrainer` that gets the Block does this by itself. This function is for a stock Trainer, and for a
    `MultiLRTrainer` that gets Parameters instead of the Block.

    Parameters
    ----------
    block : Block
        A SymbolBlock, or a Block that contains some. Multipliers that were set since the import stay.

    Raises
    ------
    ValueError
        Before anything changes, if an attribute is not a finite number >= 0.

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
    for field, multipliers in symbol_multipliers([block]).items():
        for param, number in multipliers.items():
            setattr(param, field, number)
    share_variables([block])


def symbol_multipliers(blocks: Iterable[Block]) -> dict[str, dict[Parameter, float]]:
    """Return the multipliers in the symbols of imported networks, by field, for Parameters that have none yet.

    Parameters
    ----------
    blocks : iterable of Block
        The symbols of SymbolBlocks at or below these are read.
    """
    found: dict[str, dict[Parameter, float]] = {field: {} for field in FIELDS}
    for block, symbol in _symbol_blocks(blocks):
        attributes, arguments = symbol.attr_dict(), set(symbol.list_arguments())
        for name, param in block.collect_params().items():
            # A Parameter that has a variable was traced or read before: its own multiplier counts.
            if name in arguments and _mxnet.variable(param) is None:
                for field in FIELDS:
                    number = parse_multiplier(attributes.get(name, {}), field, name)
                    if number is not None and getattr(param, field) == 1:
                        found[field][param] = number
    return found


def share_variables(blocks: Iterable[Block]) -> None:
    """Make the Parameters of imported networks share the variables of their symbols.

    Their symbols are not read again, and `export` saves the multipliers that they get.
    """
    for block, symbol in _symbol_blocks(blocks):
        params = block.collect_params()
        for name, node in _variables(symbol):
            if name in params and _mxnet.variable(params[name]) is None:
                _mxnet.set_variable(params[name], node)


def write_to_symbols(params: Iterable[Parameter], blocks: Iterable[Block] = ()) -> None:
    """Write the multipliers of ``params`` to their variables, so that `export` saves them.

    A trace shares the variables of its Parameters, but has copies of them if it contains a SymbolBlock. Such traces
    are looked for at and below ``blocks``.
    """
    changed = {param.name: param for param in params}
    if not changed:
        return
    for param in changed.values():
        node = _mxnet.variable(param)
        if node is not None:
            _mxnet.write_multipliers(node, param)
    for block in {each: None for root in blocks for each in _containing_symbol_blocks(root)}:
        symbol = _mxnet.traced_symbol(block)
        for name, node in _variables(symbol) if symbol is not None else ():
            if name in changed:
                _mxnet.write_multipliers(node, changed[name])


def _symbol_blocks(blocks: Iterable[Block]) -> Iterator[tuple[Block, Symbol]]:
    """Yield the SymbolBlocks at and below ``blocks`` with their symbols."""
    for block in blocks:
        if isinstance(block, SymbolBlock):
            yield block, _mxnet.traced_symbol(block)
        yield from _symbol_blocks(child for _, child in _mxnet.children(block))


def _containing_symbol_blocks(block: Block) -> list[Block]:
    """Return the SymbolBlocks at and below ``block``, and the Blocks there that contain them."""
    found = [inner for _, child in _mxnet.children(block) for inner in _containing_symbol_blocks(child)]
    return [block, *found] if found or isinstance(block, SymbolBlock) else []


def _variables(symbol: Symbol) -> Iterator[tuple[str, Symbol]]:
    """Yield the names and variables of ``symbol``, which are not copies: attributes written to them stay."""
    names, nodes = set(symbol.list_inputs()), symbol.get_internals()
    for i, name in enumerate(nodes.list_outputs()):
        if name in names:
            yield name, nodes[i]


def parse_multiplier(attributes: Mapping[str, str], field: str, name: str) -> float | None:
    """Return the multiplier ``field`` in the attributes of the variable ``name``, or None if it has none.

    Raises
    ------
    ValueError
        If the attribute is not a finite number >= 0.
    """
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
