"""GluonCV's classifiers: build one for the classes of the data, find its head, load weights into the rest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import mxnet as mx
from mxnet import gluon

from multitrainer import _mxnet
from multitrainer.images import ImageTransform
from multitrainer.pretrained import LoadReport, match_file

from ..data.batches import validation_transform
from ..errors import UserError
from . import zoo
from .other_size import check_input_size

# The models that take another size than ImageNet's 224.
INPUT_SIZES = {"cifar": 32, "inceptionv3": 299, "xception": 299}


def has_weights(args: argparse.Namespace) -> bool:
    """Return whether the network starts from weights that are published or in a file."""
    return bool(args.pretrained or args.params)


def input_size(model: str) -> int:
    """Return the side, in pixels, of the square images that a model takes."""
    return next((size for start, size in INPUT_SIZES.items() if model.lower().startswith(start)), 224)


def transform(model: str, size: int | None = None) -> ImageTransform:
    """Return what makes the input of a model when it is validated; of another `size` than its own, if one is given."""
    return validation_transform(size or input_size(model))


def build(model: str, classes: int) -> tuple[gluon.HybridBlock, str]:
    """Build a GluonCV classifier, not yet initialized.

    Parameters
    ----------
    model : str
        The name in GluonCV's model zoo.
    classes : int
        The number of classes of the data.

    Returns
    -------
    net : HybridBlock
        The network.
    head : str
        The attribute path of the part whose shape depends on the number of classes.
    """
    net, other = (zoo.make(model, count) for count in (classes, classes + 1))
    return net, _find_head(net, other, model)


def _find_head(net: gluon.HybridBlock, other: gluon.HybridBlock, model: str) -> str:
    """Return the path of the head: the part that differs in the same network for another number of classes."""
    shapes = {name: param.shape for name, param in _mxnet.parameters_by_path(other).items()}
    paths: dict[gluon.Parameter, list[str]] = {}  # GoogLeNet's output has two: head.2 and output
    for name, param in _mxnet.parameters_by_path(net).items():
        if shapes.get(name) != param.shape:
            paths.setdefault(param, []).append(name)
    names = [min(each, key=lambda path: path.count(".")) for each in paths.values()]
    heads = {name.rsplit(".", 1)[0] for name in names}
    if len(heads) != 1 or "" in heads:
        raise zoo.not_a_classifier(model)
    path = heads.pop()
    # The only layer with parameters in MobileNetV2's `output` is output.0; the shorter path means the same.
    while "." in path:
        parent = path.rsplit(".", 1)[0]
        if len(find(net, parent).collect_params().keys()) != len(names):
            break
        path = parent
    return path


def find(net: gluon.Block, path: str) -> Any:
    """Return the Block or Parameter at an attribute path such as ``features.0.weight``.

    Raises
    ------
    UserError
        If there is nothing at this path, or it has no parameters; the message lists the names that exist there.
    """
    found: Any = net
    walked: list[str] = []
    for part in path.split("."):
        members = _members(found)
        if part not in members:
            owner = ".".join(walked) or "the network"
            raise UserError(
                f"{path!r} is not a part of the network: {owner} has {', '.join(members) or 'nothing below it'}"
            )
        found = members[part]
        walked.append(part)
    return found


def _members(node: Any) -> dict[str, Any]:
    """Return the children that hold parameters, and the own parameters, by the name that a path gives them."""
    if not isinstance(node, gluon.Block):
        return {}
    blocks = {name: child for name, child in _mxnet.children(node) if child.collect_params().keys()}
    return {**blocks, **_mxnet.own_parameters(node)}


def initialize(
    net: gluon.HybridBlock, contexts: list[mx.Context], model: str, classes: int, size: int | None = None
) -> None:
    """Initialize every parameter, and check that the output of the network is a score for each class.

    Parameters
    ----------
    net : HybridBlock
        The network.
    contexts : list of Context
        The devices.
    model : str
        Its name in GluonCV's model zoo.
    classes : int
        The number of classes.
    size : int, optional
        The side of its input, if that is not the model's own.

    Raises
    ------
    UserError
        If it has another output, or cannot take input of this size.
    """
    own_size = input_size(model)
    net.initialize(mx.init.Xavier(), ctx=contexts)
    _check_graph(net, model)
    shapes = []
    for context in contexts:
        output = net(mx.nd.zeros((1, 3, own_size, own_size), ctx=context))
        shapes.append(getattr(output, "shape", None))
    if any(shape != (1, classes) for shape in shapes):
        raise zoo.not_a_classifier(model)
    if size is not None and size != own_size:
        check_input_size(net, model, size, classes, contexts[0])


def _check_graph(net: gluon.HybridBlock, model: str) -> None:
    """Refuse a network that cannot be hybridized, which GluonCV's layers do not promise; nothing is computed."""
    try:
        with mx.name.NameManager():
            net(mx.sym.var("data"))
    except Exception as error:  # whatever a layer raises that expects arrays
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--model {model} cannot be hybridized under MXNet {mx.__version__}, as training needs: {reason}"
        ) from error


def explain_failure(error: mx.MXNetError, model: str) -> Exception:
    """Return what to raise in place of an error of MXNet during training: a UserError if there is a cure."""
    if "could not construct a sub-memory" in str(error):  # channels that AVX-512's blocks of 16 do not divide
        return UserError(
            f"--model {model}: MKL-DNN cannot train this network on this CPU; set the environment variable "
            "DNNL_MAX_CPU_ISA=AVX2, or choose another model"
        )
    if "out of memory" in str(error):
        return UserError("a device is out of memory; lower --batch-size, and raise --accumulate to make up for it")
    return error


def load_backbone(net: gluon.HybridBlock, head: str, file: Path) -> None:
    """Load all parameters except those of the head.

    Parameters
    ----------
    net : HybridBlock
        An initialized network.
    head : str
        The path of its head, which keeps its values.
    file : Path
        A parameter file of the same network, for any number of classes.

    Raises
    ------
    UserError
        If the file cannot be read or is not of this network.
    """
    if file.is_dir():
        raise UserError(f"--params {file} is a folder; name the file of weights, such as {file / 'best.params'}")
    try:
        match = match_file(net, file, head=find(net, head))
    except (OSError, ValueError) as error:
        raise UserError(f"{error}; check --params") from error
    _check_fit(match.report, file)
    match.load()


def _check_fit(report: LoadReport, file: Path) -> None:
    problems = []
    if report.not_in_file:
        wanted = len(report.loaded) + len(report.other_shape) + len(report.not_in_file)
        problems.append(
            f"{len(report.not_in_file)} of {wanted} parameters are missing from it ({report.not_in_file[0]}, ...)"
        )
    if report.not_in_network:
        extra = report.not_in_network
        problems.append(f"{len(extra)} of its arrays are not in the network ({extra[0]}, ...)")
    for name, (there, here) in list(report.other_shape.items())[:1]:
        problems.append(f"{name} has shape {there} in it and {here} in the network")
    if problems:
        raise UserError(f"{file} does not fit this --model: {'; '.join(problems)}")
