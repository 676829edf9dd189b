"""From a network to its stages: the Blocks that it runs one after another, found in its graph."""

from __future__ import annotations

from collections import Counter
from typing import Any, Iterator, List, Sequence

from mxnet.gluon import Block, Parameter, SymbolBlock
from mxnet.gluon.nn import HybridSequential, Sequential
from mxnet.gluon.rnn import HybridSequentialRNNCell, SequentialRNNCell

from .. import _mxnet
from ..groups.targets import collect, describe
from .dataflow import Flow, flows

_NORMS = ("gamma", "beta", "alpha", *_mxnet.STATISTICS)  # a layer of nothing else goes with the one before it


def stages(net: Block) -> list[Block]:
    """Return the stages of a network: Blocks in the order it runs them, which together hold every Parameter once.

    The order is that of the network's graph, not the order in which its Blocks were made. Nothing is computed, no
    Parameter has to be initialized, and shapes that are deferred stay so.

    Parameters
    ----------
    net : Block
        A classifier, a segmentation network, a detector, an RNN, or any other network whose parts follow one another.

    Returns
    -------
    list of Block
        A stage is what the network itself has as one (``layer1`` of a ResNet), with the one layer that may lie before
        it (DenseNet's transitions); or the layers before the first of these, or several that lie between two. A
        network that is one row of layers has a stage for each, with the BatchNorm after it. The last stage is the
        output; a network with several outputs (the auxiliary one of FCN, classes and boxes of SSD, the region
        proposals of Faster R-CNN) has them all there. Where no Block of the network holds just a stage, one is made
        that does; it is a target for a multiplier, and cannot be called.

    Raises
    ------
    TypeError
        If ``net`` is not a Block.
    ValueError
        If the parts do not follow one another: two branches side by side are no stages. Where a recipe asks for
        stages, pass the Blocks yourself then.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import stages
    >>> net = mx.gluon.model_zoo.vision.resnet18_v1(prefix='net_')
    >>> [stage.name for stage in stages(net)]
    ['stage1', 'net_stage1', 'net_stage2', 'net_stage3', 'net_stage4', 'net_dense0']
    """
    return [
        as_block(net, [node for layer in stage for node in layer], f"stage{number}")
        for number, stage in enumerate(layers_by_stage(net), 1)
    ]


class Stage(Block):
    """A part of a network that none of its own Blocks holds alone. It is a target, and is never called."""

    def forward(self, *args: Any) -> Any:
        """Raise an error: the network is what runs."""
        raise NotImplementedError(f"{self.name} only holds a part of a network; call the network")

    def __repr__(self) -> str:
        parts = [child for _, child in _mxnet.children(self)] + list(self.params.values())
        return f"Stage({', '.join(map(describe, parts))})"


class Node:
    """A Block of a network, or some of one's Parameters where ``block`` is None."""

    def __init__(self, block: Block | None, own: Sequence[Parameter], children: Sequence[Node] = ()) -> None:
        self.block = block
        self.children = [child for child in children if child.params]
        self._own = list(own)
        self.params: list[Parameter] = [*own, *(param for child in self.children for param in child.params)]

    def targets(self) -> Iterator[Block | Parameter]:
        """Yield the outermost Blocks that hold these Parameters and no others, and one by one those left over."""
        if self.block is not None and set(self.block.collect_params().values()) == set(self.params):
            yield self.block
            return
        yield from self._own
        for child in self.children:
            yield from child.targets()

    @property
    def is_sequence(self) -> bool:
        """Whether the children are run in turn; of a symbol's parts that is for its graph to say."""
        block = self.block
        if block is None or isinstance(block, (SymbolBlock, SequentialRNNCell, HybridSequentialRNNCell)):
            return bool(self.children)
        if isinstance(block, HybridSequential):
            return type(block).hybrid_forward is HybridSequential.hybrid_forward
        return isinstance(block, Sequential) and type(block).forward is Sequential.forward

    @property
    def repeated(self) -> set[type]:
        """The kinds of Block, residual ones say, that this is a row of: each is one layer, whatever it holds."""
        kinds = Counter(
            type(c.block) for c in self.children if c.block is not None and c.children and not c.is_sequence
        )
        return {kind for kind, count in kinds.items() if count > (1 if self.is_sequence else 2)}

    @property
    def holds_stage(self) -> bool:
        """Whether there is a row of such Blocks at or below this."""
        return bool(self.repeated) or any(child.holds_stage for child in self.children)

    @property
    def is_norm(self) -> bool:
        """Whether there is nothing but what a normalization or an activation learns, or nothing that learns."""
        return all(param.name.endswith(_NORMS) or _mxnet.is_auxiliary(param) for param in self.params)

    def __str__(self) -> str:
        return describe(self.params[0] if self.block is None else self.block)


Layer = List[Node]  # what shares one place in the order


_Stage = List[Layer]


def layers_by_stage(net: Block) -> list[_Stage]:
    """Return the stages of ``net``, each as its layers; errors as `stages` raises them."""
    if not isinstance(net, Block):
        raise TypeError(f"expected a network, which is a Block, got {describe(net)}")
    if not collect(net, describe(net)):
        raise ValueError(f"{describe(net)} holds no Parameter, so it has no stages")
    cure = "pass its Blocks, from input to output, instead of the network"
    try:
        found = flows(net)
    except ValueError as error:
        root = _tree(net, None)
        if root.is_sequence:
            return _Order(None).stages(root)
        raise ValueError(
            f"{describe(net)} cannot be ordered, for no symbol runs through it ({error}); {cure}"
        ) from error
    for flow in found:
        try:
            return _Order(flow).stages(_tree(net, flow))
        except _BranchesError as error:
            branches = error
    raise ValueError(f"{describe(net)} cannot be ordered: {branches}; {cure}")


def as_block(net: Block, nodes: Sequence[Node], name: str) -> Block:
    """Return the Block that holds just ``nodes``: the network's own if it has one, else a new `Stage`."""
    own = _holder(net, {param for node in nodes for param in node.params})
    if own is not None:
        return own
    stage = Stage(prefix=f"{name}_")
    for number, target in enumerate(target for node in nodes for target in node.targets()):
        if isinstance(target, Block):
            stage.register_child(target, str(number))
        else:
            stage.params.update({target.name: target})
    return stage


def _holder(block: Block, params: set[Parameter]) -> Block | None:
    held = set(block.collect_params().values())
    if held == params or not params < held:
        return block if held == params else None
    found = (_holder(child, params) for _, child in _mxnet.children(block))
    return next((child for child in found if child is not None), None)


class _BranchesError(ValueError):
    """Two parts of a network of which neither comes before the other."""


class _Order:
    """Puts the parts of a network in order: by its graph, or where there is none as its sequences run."""

    def __init__(self, flow: Flow | None) -> None:
        self._flow = flow

    def stages(self, root: Node) -> list[_Stage]:
        """Return the stages of a whole network, the output last and by itself."""
        while True:
            *trunk, output = self._arrange(root.children) if root.children else [[root]]
            if trunk or len(output) > 1 or not output[0].children:
                break
            root = output[0]
        found = self._joined([self._stages(node[0], root) for node in trunk])
        if len(found) == 1 and len(found[0]) == 1 and len(found[0][0]) == 1:
            found = self._stages(found[0][0][0], None)
        if len(found) == 1:
            found = [[layer] for layer in found[0]]
        last = self._stages(output[0], root) if self._is_row(output[0]) else [[output]]
        if not (len(last[0]) == 1 and all(node.is_norm for node in output)):
            return found + last
        return self._joined([found, last])

    def _is_row(self, node: Node) -> bool:
        """Whether a part is a body rather than an output: a row of residual Blocks, say."""
        return node.holds_stage and self._stages(node, None) != [[[node]]]

    def _stages(self, node: Node, parent: Node | None) -> list[_Stage]:
        """Return the stages inside one part; just one of one layer where it cannot or should not be divided."""
        whole = [[[node]]]
        is_layer = parent is not None and type(node.block) in parent.repeated
        if not node.children or is_layer or not (parent is None or node.is_sequence or node.holds_stage):
            return whole
        try:
            groups = self._arrange(node.children)
        except _BranchesError:
            return whole
        return self._joined([self._stages(group[0], node) if len(group) == 1 else [[group]] for group in groups])

    @staticmethod
    def _joined(parts: Sequence[list[_Stage]]) -> list[_Stage]:
        """Chain parts: normalization goes with a layer, a layer between two rows with the second, several stay."""
        found: list[_Stage] = []
        between: _Stage = []
        for part in parts:
            if len(part) > 1 or len(part[0]) > 1 or _is_named(part[0][0]):
                if between and _is_norm(between[0]) and len(between) == 1:
                    part = [[between[0] + part[0][0], *part[0][1:]], *part[1:]]
                elif len(between) == 1 and found:
                    part = [between + part[0], *part[1:]]
                elif between:
                    found.append(between)
                between = []
                found += part
                continue
            layer = part[0][0]
            before = between or (found[-1] if found else [])
            if before and (_is_norm(layer) or _is_norm(before[-1])):
                before[-1] = before[-1] + layer
            else:
                between.append(layer)
        return found + ([between] if between else [])

    def _arrange(self, nodes: Sequence[Node]) -> list[Layer]:
        """Return ``nodes`` one after another, those that nothing comes after together at the end."""
        if self._flow is None:
            return [[node] for node in nodes]
        nodes, after = self._disentangled(nodes)
        reached = [node for node in nodes if any(param in self._flow.uses for param in node.params)]
        needed = {node for node in reached for other in reached if node in after[other]}
        trunk = sorted((node for node in reached if node in needed), key=lambda node: len(after[node]))
        ends = [node for node in reached if node not in needed]
        for i, node in enumerate(trunk):
            for other in trunk[:i]:
                if other not in after[node]:
                    raise _BranchesError(f"neither of {other} and {node} comes before the other")
        for node in ends:
            if len(ends) > 1 and (self._is_row(node) or not after[node]):
                raise _BranchesError(f"{ends[0]} and {ends[1]} are branches side by side")
        rest = [node for node in nodes if node not in reached]
        return [[node] for node in trunk] + ([ends + rest] if ends + rest else [])

    def _disentangled(self, nodes: Sequence[Node]) -> tuple[list[Node], dict[Node, set[Node]]]:
        """Divide those that are run by turns; return all, and for each those that it comes after."""
        flow = self._flow
        assert flow is not None
        nodes = _side_by_side(nodes, flow)
        while True:
            masks = {node: flow.mask(node.params) for node in nodes}
            before = {node: flow.before(node.params) for node in nodes}
            after = {node: {o for o in nodes if o is not node and before[node] & masks[o]} for node in nodes}
            by_turns = [node for node in nodes if any(node in after[other] for other in after[node])]
            if not by_turns:
                return nodes, after
            if not any(node.children for node in by_turns):
                raise _BranchesError(f"{by_turns[0]} and {by_turns[1]} each come before the other")
            parts = [node.children if node in by_turns and node.children else [node] for node in nodes]
            nodes = _side_by_side([part for each in parts for part in each], flow)


def _side_by_side(nodes: Sequence[Node], flow: Flow) -> list[Node]:
    """Join Parameters without a Block that meet the data in one operator."""
    loose: dict[float, list[Parameter]] = {}
    for node in nodes:
        if node.block is None and not node.children:
            loose.setdefault(flow.place(node.params), []).extend(node.params)
    joined = [Node(None, params) for params in loose.values()]
    return [node for node in nodes if node.block is not None or node.children] + joined


def _is_norm(layer: Layer) -> bool:
    return all(node.is_norm for node in layer)


def _is_named(layer: Layer) -> bool:
    """Whether the names inside a SymbolBlock set a layer apart as a part of its own."""
    return len(layer) == 1 and layer[0].block is None and bool(layer[0].children)


def _tree(net: Block, flow: Flow | None) -> Node:
    """Return ``net`` as Nodes; a Parameter that several Blocks share is with the one that uses it first."""
    blocks: dict[Block, list[Parameter]] = {}

    def visit(block: Block) -> None:
        if block not in blocks:
            blocks[block] = list(block.params.values())
            for _, child in _mxnet.children(block):
                visit(child)

    visit(net)
    count = Counter(param for params in blocks.values() for param in params)
    owner: dict[Parameter, tuple[float, Block]] = {}
    for block, params in blocks.items():
        place = flow.place([p for p in params if count[p] == 1] or params) if flow is not None else 0
        for param in params:
            if param not in owner or place < owner[param][0]:
                owner[param] = (place, block)
    return _node(net, {param: block for param, (_, block) in owner.items()}, flow, set())


def _node(block: Block, owner: dict[Parameter, Block], flow: Flow | None, seen: set[Block]) -> Node:
    seen.add(block)
    own = [param for param in block.params.values() if owner[param] is block]
    if isinstance(block, SymbolBlock):
        return _by_name(block, own)
    children = [_node(child, owner, flow, seen) for _, child in _mxnet.children(block) if child not in seen]
    if not any(child.params for child in children):
        return Node(block, own)
    return Node(block, [], [*(Node(None, [param]) for param in own), *children])


def _by_name(block: SymbolBlock, params: Sequence[Parameter]) -> Node:
    """Return a SymbolBlock as the Blocks that it was made of, as far as names tell: ``net0_stage1_conv0_weight``."""
    names: dict[str, Any] = {}
    for param in params:
        inner = names
        for word in _mxnet.stem(param).strip("_").split("_"):
            inner = inner.setdefault(word, {})
        inner.setdefault("", []).append(param)

    def parts(inner: dict[str, Any]) -> list[Node]:
        found = []
        for word, value in inner.items():
            below = [Node(None, value)] if word == "" else parts(value)
            found.append(below[0] if len(below) == 1 else Node(None, [], below))
        return found

    return Node(block, [], parts(names))
