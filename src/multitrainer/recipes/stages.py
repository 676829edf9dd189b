"""Find the stages of a network: the Blocks that it runs one after another, in the order of its graph."""

from __future__ import annotations

from typing import Any, List, Sequence

from mxnet.gluon import Block, Parameter

from .. import _mxnet
from ..groups.targets import collect, describe
from .dataflow import Dataflow, dataflows
from .network_tree import Node, join_loose_parameters, make_tree

Layer = List[Node]  # nodes that share one place in the order
LayersOfStage = List[Layer]


def stages(net: Block) -> list[Block]:
    """Return the stages of a network: Blocks in the order it runs them, which together hold every Parameter once.

    The order is that of the network's graph, not the order in which its Blocks were made. Nothing is computed, no
    Parameter has to be initialized, and deferred shapes stay deferred.

    Parameters
    ----------
    net : Block
        A classifier, a segmentation network, a detector, an RNN, or any other network whose parts follow one another.

    Returns
    -------
    list of Block
        A stage is a Block that repeats residual or similar Blocks (``layer1`` of a ResNet), with the single layer that
        may come before it (DenseNet's transitions); or the layers before the first such Block; or several layers
        between two of them. In a network that is a plain sequence of layers, each layer is a stage, with the BatchNorm
        after it. The last stage is the output; if the network has several outputs (the auxiliary one of FCN, classes
        and boxes of SSD, the region proposals of Faster R-CNN), it holds them all. If no Block of the network holds
        exactly the stage, a new one is made that does; it is a target for a multiplier, and cannot be called.

    Raises
    ------
    TypeError
        If ``net`` is not a Block.
    ValueError
        If the parts do not follow one another: two branches side by side are not stages. To use a recipe on such a
        network, pass its Blocks.

    Examples
    --------
    >>> import mxnet as mx
    >>> from multitrainer import stages
    >>> net = mx.gluon.model_zoo.vision.resnet18_v1(prefix='net_')
    >>> [stage.name for stage in stages(net)]
    ['stage1', 'net_stage1', 'net_stage2', 'net_stage3', 'net_stage4', 'net_dense0']
    """
    return [
        as_block(net, [node for layer in layers for node in layer], f"stage{number}")
        for number, layers in enumerate(layers_by_stage(net), 1)
    ]


class Stage(Block):
    """A part of a network that none of its own Blocks holds exactly; a target that is never called."""

    def forward(self, *args: Any) -> Any:
        """Raise NotImplementedError: only the network can be called."""
        raise NotImplementedError(f"{self.name} only holds a part of a network; call the network")

    def __repr__(self) -> str:
        parts = [child for _, child in _mxnet.children(self)] + list(self.params.values())
        return f"Stage({', '.join(map(describe, parts))})"


def layers_by_stage(net: Block) -> list[LayersOfStage]:
    """Return the layers of each stage of ``net``; raise the errors of `stages`."""
    if not isinstance(net, Block):
        raise TypeError(f"expected a network, which is a Block, got {describe(net)}")
    if not collect(net, describe(net)):
        raise ValueError(f"{describe(net)} holds no Parameter, so it has no stages")
    cure = "pass its Blocks, from input to output, instead of the network"
    try:
        found = dataflows(net)
    except ValueError as error:
        root = make_tree(net, None)
        if root.is_sequence:
            return _StageFinder(None).find(root)
        raise ValueError(
            f"{describe(net)} cannot be ordered, for no symbol runs through it ({error}); {cure}"
        ) from error
    for dataflow in found:
        try:
            return _StageFinder(dataflow).find(make_tree(net, dataflow))
        except _BranchesError as error:
            branches = error
    raise ValueError(f"{describe(net)} cannot be ordered: {branches}; {cure}")


def as_block(net: Block, nodes: Sequence[Node], name: str) -> Block:
    """Return a Block that holds exactly ``nodes``: one of the network if there is one, else a new `Stage`."""
    existing = _find_block(net, {param for node in nodes for param in node.params})
    if existing is not None:
        return existing
    stage = Stage(prefix=f"{name}_")
    for number, target in enumerate(target for node in nodes for target in node.targets()):
        if isinstance(target, Block):
            stage.register_child(target, str(number))
        else:
            stage.params.update({target.name: target})
    return stage


def _find_block(block: Block, params: set[Parameter]) -> Block | None:
    """Return the outermost Block at or inside ``block`` that holds exactly ``params``."""
    held = set(block.collect_params().values())
    if held == params:
        return block
    if not params < held:
        return None
    found = (_find_block(child, params) for _, child in _mxnet.children(block))
    return next((child for child in found if child is not None), None)


class _BranchesError(ValueError):
    """Neither of two parts of a network comes before the other."""


class _StageFinder:
    """Divides a network into stages by its dataflow, or by the order of its sequences if there is none."""

    def __init__(self, dataflow: Dataflow | None) -> None:
        self._dataflow = dataflow

    def find(self, root: Node) -> list[LayersOfStage]:
        """Return the stages of the network; the output is the last one."""
        while True:
            *trunk, output = self._order(root.children) if root.children else [[root]]
            if trunk or len(output) > 1 or not output[0].children:
                break
            root = output[0]
        found = self._merge([self._divide(layer[0], root) for layer in trunk])
        if len(found) == 1 and len(found[0]) == 1 and len(found[0][0]) == 1:
            found = self._divide(found[0][0][0], None)
        if len(found) == 1:
            found = [[layer] for layer in found[0]]
        last = self._divide(output[0], root) if self._is_body(output[0]) else [[output]]
        if found and len(last[0]) == 1 and _is_norm(output):
            return self._merge([found, last])
        return found + last

    def _is_body(self, node: Node) -> bool:
        """Whether a node repeats residual Blocks, say, so that it is a body of the network rather than an output."""
        return node.holds_stage and self._divide(node, None) != [[[node]]]

    def _divide(self, node: Node, parent: Node | None) -> list[LayersOfStage]:
        """Return the stages inside a node; if it is one layer or cannot be divided, one stage of one layer."""
        undivided = [[[node]]]
        is_layer = parent is not None and type(node.block) in parent.repeated
        if not node.children or is_layer or not (parent is None or node.is_sequence or node.holds_stage):
            return undivided
        try:
            layers = self._order(node.children)
        except _BranchesError:
            return undivided
        return self._merge([self._divide(layer[0], node) if len(layer) == 1 else [[layer]] for layer in layers])

    @staticmethod
    def _merge(parts: Sequence[list[LayersOfStage]]) -> list[LayersOfStage]:
        """Chain the stages of successive parts, and put single layers between them into stages.

        A normalization joins the layer before it. A single layer between two stages joins the later one; several
        layers become a stage of their own.
        """
        found: list[LayersOfStage] = []
        between: LayersOfStage = []
        for part in parts:
            first, *later = part
            layer = first[0]
            if later or len(first) > 1 or _is_named(layer):
                if len(between) == 1 and _is_norm(between[0]):
                    first = [between[0] + layer, *first[1:]]
                elif len(between) == 1 and found:
                    first = between + first
                elif between:
                    found.append(between)
                between = []
                found += [first, *later]
                continue
            before = between or (found[-1] if found else [])
            if before and (_is_norm(layer) or _is_norm(before[-1])):
                before[-1] = before[-1] + layer
            else:
                between.append(layer)
        return found + ([between] if between else [])

    def _order(self, nodes: Sequence[Node]) -> list[Layer]:
        """Return ``nodes`` as layers, one after another; nodes on which no other depends share the last layer."""
        if self._dataflow is None:
            return [[node] for node in nodes]
        nodes, predecessors = self._untangle(nodes, self._dataflow)
        reached = [node for node in nodes if any(param in self._dataflow.first_uses for param in node.params)]
        followed = {node for node in reached for other in reached if node in predecessors[other]}
        trunk = sorted((node for node in reached if node in followed), key=lambda node: len(predecessors[node]))
        ends = [node for node in reached if node not in followed]
        for i, node in enumerate(trunk):
            for other in trunk[:i]:
                if other not in predecessors[node]:
                    raise _BranchesError(f"neither of {other} and {node} comes before the other")
        for node in ends:
            if len(ends) > 1 and (self._is_body(node) or not predecessors[node]):
                raise _BranchesError(f"{ends[0]} and {ends[1]} are branches side by side")
        last = ends + [node for node in nodes if node not in reached]
        return [[node] for node in trunk] + ([last] if last else [])

    @staticmethod
    def _untangle(nodes: Sequence[Node], dataflow: Dataflow) -> tuple[list[Node], dict[Node, set[Node]]]:
        """Replace nodes that come before each other by their children; return all nodes and their predecessors."""
        nodes = join_loose_parameters(nodes, dataflow)
        while True:
            masks = {node: dataflow.mask(node.params) for node in nodes}
            upstream = {node: dataflow.upstream(node.params) for node in nodes}
            predecessors = {
                node: {other for other in nodes if other is not node and upstream[node] & masks[other]}
                for node in nodes
            }
            tangled = [node for node in nodes if any(node in predecessors[other] for other in predecessors[node])]
            if not tangled:
                return nodes, predecessors
            if not any(node.children for node in tangled):
                raise _BranchesError(f"{tangled[0]} and {tangled[1]} each come before the other")
            parts = [node.children if node in tangled and node.children else [node] for node in nodes]
            nodes = join_loose_parameters([part for each in parts for part in each], dataflow)


def _is_norm(layer: Layer) -> bool:
    return all(node.is_norm for node in layer)


def _is_named(layer: Layer) -> bool:
    """Whether a layer stands for a Block that was found by names inside a SymbolBlock."""
    return len(layer) == 1 and layer[0].block is None and bool(layer[0].children)
