"""GluonCV's model zoo: which of its names are image classifiers, and what each of them needs to be built.

The rules follow GluonCV 0.10. Whatever they miss is built, and judged by its parameters and its output.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from mxnet import gluon

from multitrainer.groups.targets import closest_names
from multitrainer.saved_run import make_classifier

from ..arguments import defaults
from ..errors import UserError, require

# Many of these would download the weights of a backbone before they could be seen to be no classifiers.
OTHER_TASKS = (
    (r".*_int8", "is quantized: it can predict, but not be trained"),
    (r"resnet\d+_v1[bd]_0\.\d+", "is pruned, and GluonCV builds it for its own 1000 classes only"),
    (r".*_(kinetics[47]00|ucf101|hmdb51|sthsthv2)|(i3d|slowfast)_.*|resnet\d+_v1b_custom", "takes clips of video"),
    (r"(ssd|yolo3|center_net)_.*|.*_rcnn_.*", "finds objects, for which see docs/detection.md"),
    (r"(fcn|psp|deeplab|icnet|danet|fastscnn)_.*|hrnet_.*_s", "labels pixels, for which see docs/segmentation.md"),
    (r"(simple|mobile|alpha)_pose_.*", "finds the joints of people"),
    (r"monodepth2_.*", "estimates distances"),
    (r"siamrpn_.*", "follows an object through a video"),
)


def make(model: str, classes: int) -> gluon.HybridBlock:
    """Make an image classifier, not yet initialized, whose parameters have the same names every time.

    Parameters
    ----------
    model : str
        The name in GluonCV's model zoo.
    classes : int
        The number of classes of the data.

    Raises
    ------
    UserError
        If there is no such model, or it is no image classifier.
    """
    name, zoo = model.lower(), require("gluoncv.model_zoo")
    _check_task(name, list(zoo.get_model_list()))
    try:
        return make_classifier(name, classes)
    except Exception as error:  # what is built for another task raises what it likes for these arguments
        raise not_a_classifier(model) from error


def _check_task(name: str, known: list[str]) -> None:
    """Raise a UserError unless the name is known and may be that of an image classifier."""
    if name not in known:
        accepted = [each for each in known if not any(re.fullmatch(pattern, each) for pattern, _ in OTHER_TASKS)]
        closest = ", ".join(closest_names(name, accepted, 5))
        raise UserError(f"--model {name}: GluonCV has no such model; closest: {closest}")
    for pattern, answer in OTHER_TASKS:
        if re.fullmatch(pattern, name):
            raise UserError(f"--model {name} {answer}; choose an image classifier, such as {defaults.MODEL}")


def not_a_classifier(model: str) -> UserError:
    """Return the error that a network has other parameters or another output than a classifier of images."""
    return UserError(
        f"--model {model} is not an image classifier with one output layer; try {defaults.MODEL} or resnet18_v1b"
    )


def check_published(model: str) -> str:
    """Return the name under which GluonCV publishes the weights of a model; raise a UserError if it does not."""
    name = re.sub(r"(hrnet_.*)_c", r"\1_cls", model.lower())
    try:
        require("gluoncv.model_zoo.model_store").short_hash(name)
    except ValueError as error:
        raise UserError(
            f"--pretrained: GluonCV publishes no weights for {model}; use --params FILE or another --model"
        ) from error
    return name


def download_weights(model: str) -> Path:
    """Return the file of GluonCV's published weights; it is downloaded once."""
    name = check_published(model)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        return Path(require("gluoncv.model_zoo.model_store").get_model_file(name))
    except Exception as error:  # requests, zipfile and portalocker raise different types
        raise UserError(
            f"--pretrained: the weights of {model} cannot be downloaded ({type(error).__name__}); check the network, "
            "or fetch the .params file elsewhere and pass it as --params FILE"
        ) from error
