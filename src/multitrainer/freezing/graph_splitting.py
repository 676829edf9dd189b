"""Divide the graph of a trace in two, without changing the order in which its operators run."""

from __future__ import annotations

import json
from typing import Any, Collection, Sequence

import mxnet as mx
from mxnet.symbol import Symbol


def divide(symbol: Symbol, trained: Collection[str]) -> tuple[Symbol, list[str], Symbol] | None:
    """Divide a graph before the first operator that takes one of the ``trained`` variables.

    Parameters
    ----------
    symbol : Symbol
        The graph.
    trained : collection of str
        Names of variables.

    Returns
    -------
    tuple of Symbol, list of str, Symbol, or None
        The operators before that one, with every output that is needed later; the names of these outputs in the rest;
        and the rest. Both parts run their operators in the order of the whole graph, so random numbers are drawn in
        that order too. None if no operator comes before, none takes a trained variable, or the order cannot be kept.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer.freezing.graph_splitting import divide
    >>> hidden = mx.sym.FullyConnected(mx.sym.var('data'), name='hidden', num_hidden=2)
    >>> output = mx.sym.FullyConnected(mx.sym.relu(hidden), name='output', num_hidden=2)
    >>> first, between, rest = divide(output, {'output_weight', 'output_bias'})
    >>> first.list_inputs(), between, rest.list_inputs()
    (['data', 'hidden_weight', 'hidden_bias'], ['frozen output 0'], ['frozen output 0', 'output_weight', 'output_bias'])
    """
    graph = json.loads(symbol.tojson())
    nodes = graph["nodes"]
    trains = [node["op"] == "null" and node["name"] in trained for node in nodes]
    stop = next((i for i, node in enumerate(nodes) if any(trains[source[0]] for source in node["inputs"])), 0)
    entries = [*(source for node in nodes[stop:] for source in node["inputs"]), *graph["heads"]]
    needed = sorted({(node, output) for node, output, *_ in entries if node < stop and nodes[node]["op"] != "null"})
    # A graph runs in the order of a depth-first walk from its heads, so the order of the heads matters.
    cut = next((each for each in (needed, needed[::-1]) if _runs_in_order(nodes, each)), [])
    if not cut:
        return None
    names = [f"frozen output {i}" for i in range(len(cut))]
    place = {entry: len(nodes) + i for i, entry in enumerate(cut)}

    def moved(entry: Sequence[int]) -> Sequence[int]:
        node, output, *_ = entry
        return [place[node, output], 0, 0] if (node, output) in place else entry

    rest = [{**node, "inputs": [moved(source) for source in node["inputs"]]} for node in nodes]
    rest += [{"op": "null", "name": name, "inputs": []} for name in names]
    if not _runs_in_order(rest, list(map(moved, graph["heads"]))):
        return None
    heads = []
    for head in map(moved, graph["heads"]):
        if head[0] >= len(nodes):  # gradients start at an operator, not at a variable
            rest.append({"op": "_copy", "name": f"copy of {names[head[0] - len(nodes)]}", "inputs": [head]})
            head = [len(rest) - 1, 0, 0]
        heads.append(head)
    return _graph(symbol, graph, nodes, [[*entry, 0] for entry in cut]), names, _graph(symbol, graph, rest, heads)


# The backward passes of these operators read their first input.
_READ_FIRST = (
    *("BatchNorm", "Convolution", "Deconvolution", "Embedding", "FullyConnected", "GroupNorm", "InstanceNorm"),
    *("LayerNorm", "RNN"),
)


def read_backward(symbol: Symbol, trained: Collection[str]) -> set[str]:
    """Find the inputs of a graph that its backward pass is known to read.

    MXNet 1.9.1 computes wrong gradients with ``static_alloc=True``, or raises in the backward pass, if only sums take
    an input that is not a Parameter and needs no gradient, such as ``x`` in ``x + w``.

    Parameters
    ----------
    symbol : Symbol
        The graph.
    trained : collection of str
        Its inputs that need a gradient.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer.freezing.graph_splitting import read_backward
    >>> x, w = mx.sym.var('x'), mx.sym.var('w')
    >>> read_backward(x + w, {'w'})
    set()
    >>> read_backward(mx.sym.FullyConnected(x, w, no_bias=True, num_hidden=2), {'w'})
    {'x'}
    """
    nodes = json.loads(symbol.tojson())["nodes"]
    needs: list[bool] = []
    read = set()
    for node in nodes:
        needs.append(node["name"] in trained if node["op"] == "null" else any(needs[i] for i, *_ in node["inputs"]))
        if needs[-1] and node["op"] in _READ_FIRST:
            first = nodes[node["inputs"][0][0]]
            read.update([first["name"]] if first["op"] == "null" else [])
    return read


def shield(symbol: Symbol, inputs: Collection[str]) -> Symbol:
    """Put a BlockGrad behind some inputs of a graph that only sums may take; see `read_backward`.

    Parameters
    ----------
    symbol : Symbol
        The graph.
    inputs : collection of str
        Names of inputs that need no gradient.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer.freezing.graph_splitting import shield
    >>> shield(mx.sym.var('x') + mx.sym.var('w'), {'x'}).get_internals().list_outputs()[1:3]
    ['shield of x_output', 'w']
    """
    graph = json.loads(symbol.tojson())
    nodes = graph["nodes"]
    named = [i for i, node in enumerate(nodes) if node["op"] == "null" and node["name"] in inputs]
    shields = {i: len(nodes) + k for k, i in enumerate(named)}
    behind = [{**node, "inputs": [[shields.get(j, j), *rest] for j, *rest in node["inputs"]]} for node in nodes]
    behind += [{"op": "BlockGrad", "name": f"shield of {nodes[i]['name']}", "inputs": [[i, 0, 0]]} for i in named]
    return _graph(symbol, graph, behind, graph["heads"])


def _runs_in_order(nodes: Sequence[dict[str, Any]], heads: Sequence[Sequence[int]]) -> bool:
    """Whether a graph with these heads runs its operators in the order of ``nodes`` (DFSVisit in nnvm's graph.h)."""
    order: list[int] = []
    seen: set[int] = set()
    stack = [head[0] for head in reversed(heads)]
    while stack:
        node = stack.pop()
        if node < 0:  # its inputs were all visited
            order.append(~node)
        elif node not in seen:
            seen.add(node)
            stack.append(~node)
            stack.extend(source[0] for source in reversed(nodes[node]["inputs"]))
    operators = [node for node in order if nodes[node]["op"] != "null"]
    return operators == sorted(operators)


def _graph(symbol: Symbol, graph: dict[str, Any], nodes: list[dict[str, Any]], heads: list[Sequence[int]]) -> Symbol:
    """Make a graph of the same kind as ``symbol`` with other nodes; those that ``heads`` do not need are dropped."""
    variables = [i for i, node in enumerate(nodes) if node["op"] == "null"]
    text = json.dumps({"nodes": nodes, "arg_nodes": variables, "heads": heads, "attrs": graph["attrs"]})
    loaded = mx.sym.load_json(text)
    return loaded if type(symbol) is Symbol else loaded.as_np_ndarray()
