"""GluonCV's classifiers: build one for the classes of the data, find its head, load weights into the rest."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import mxnet as mx
from mxnet import gluon

from multitrainer import _mxnet
from multitrainer.groups.targets import closest_names
from multitrainer.images import ImageTransform
from multitrainer.pretrained import LoadReport, match_file

from ..data.batches import validation_transform
from ..errors import UserError, require
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
    zoo = require("gluoncv.model_zoo")
    known = list(zoo.get_model_list())
    if model.lower() not in known:
        closest = ", ".join(closest_names(model.lower(), known, 5))
        raise UserError(f"--model {model}: GluonCV has no such model; closest: {closest}")
    try:
        net, other = (_make(zoo, model, count) for count in (classes, classes + 1))
    except Exception as error:  # a detector, for example, raises what it likes for this argument
        raise _not_a_classifier(model) from error
    return net, _find_head(net, other, model)


def _make(zoo: Any, model: str, classes: int) -> gluon.HybridBlock:
    with mx.name.NameManager():  # the same names at every call, by which trainer states are saved
        return zoo.get_model(model, classes=classes)


def _find_head(net: gluon.HybridBlock, other: gluon.HybridBlock, model: str) -> str:
    """Return the path of the head: the part that differs in the same network for another number of classes."""
    shapes = {name: param.shape for name, param in _mxnet.parameters_by_path(other).items()}
    names = [name for name, param in _mxnet.parameters_by_path(net).items() if shapes.get(name) != param.shape]
    heads = {name.rsplit(".", 1)[0] for name in names}
    if len(heads) != 1 or "" in heads:
        raise _not_a_classifier(model)
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
    shapes = []
    for context in contexts:
        output = net(mx.nd.zeros((1, 3, own_size, own_size), ctx=context))
        shapes.append(getattr(output, "shape", None))
    if any(shape != (1, classes) for shape in shapes):
        raise _not_a_classifier(model)
    if size is not None and size != own_size:
        check_input_size(net, model, size, classes, contexts[0])


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


def download_weights(model: str) -> Path:
    """Return the file of GluonCV's published weights; it is downloaded once."""
    store = require("gluoncv.model_zoo.model_store")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        return Path(store.get_model_file(model.lower()))
    except ValueError as error:
        raise UserError(
            f"--pretrained: GluonCV publishes no weights for {model} ({error}); use --params FILE or another --model"
        ) from error
    except Exception as error:  # requests, zipfile and portalocker raise different types
        raise UserError(
            f"--pretrained: the weights of {model} cannot be downloaded ({type(error).__name__}); check the network, "
            "or fetch the .params file elsewhere and pass it as --params FILE"
        ) from error


def _not_a_classifier(model: str) -> UserError:
    return UserError(
        f"--model {model} is not an image classifier with one output layer; try mobilenetv2_1.0 or resnet18_v1b"
    )
