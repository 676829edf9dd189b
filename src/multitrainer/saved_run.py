"""`load_run`: the network, the classes and the transform of a run that ``multitrainer finetune`` has written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import mxnet as mx
from mxnet import gluon

from .images import ImageTransform
from .pretrained import LoadReport, match_file

RECORD, FORMAT = "run.json", 1
WEIGHTS = ("best", "last")


class SavedRun(NamedTuple):
    """What `load_run` returns; it unpacks into its three fields.

    Attributes
    ----------
    net : HybridBlock
        The network with its weights, hybridized. It takes a batch of images, float32 of shape (N, 3, size, size), and
        returns their scores before the softmax, of shape (N, number of classes).
    classes : list of str
        The name of each output.
    transform : ImageTransform
        Turns an image, or the path of one, into an input of the network, as in the run's validation.

    Examples
    --------
    >>> from multitrainer import SavedRun
    >>> SavedRun._fields
    ('net', 'classes', 'transform')
    """

    net: gluon.HybridBlock
    classes: list[str]
    transform: ImageTransform


def load_run(
    path: str | os.PathLike[str], weights: str = "best", ctx: mx.Context | Sequence[mx.Context] | None = None
) -> SavedRun:
    """Load the network of a run of ``multitrainer finetune``, its classes, and the transform of its images.

    Parameters
    ----------
    path : str or PathLike
        The folder of the run, ``--out``.
    weights : str
        ``"best"``: those of the epoch with the best validation accuracy; ``"last"``: those of the last epoch.
    ctx : Context or list of Context, optional
        Where to put the network; by default, the current context.

    Returns
    -------
    SavedRun
        The network, the classes and the transform.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, if it holds no run, or if no epoch of the run has ended yet.
    ValueError
        If `weights` is something else, if a file of the run is damaged or was written by a newer multitrainer, if the
        weights are not of the run's network and classes, or if GluonCV does not have the network.
    ImportError
        If GluonCV is not installed.

    Examples
    --------
    The first lines write what a run leaves.

    >>> import json, os, tempfile
    >>> import mxnet as mx
    >>> from gluoncv.model_zoo import get_model
    >>> from multitrainer import load_run
    >>> net, folder = get_model('cifar_resnet20_v1', classes=2), tempfile.mkdtemp()
    >>> net.initialize()
    >>> _ = net(mx.nd.zeros((1, 3, 32, 32)))
    >>> net.save_parameters(os.path.join(folder, 'best.params'))
    >>> size = {'size': 32, 'resize': 32, 'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}
    >>> record = {'format': 1, 'model': 'cifar_resnet20_v1', 'classes': ['cat', 'dog'], 'input': size}
    >>> with open(os.path.join(folder, 'run.json'), 'w') as file:
    ...     json.dump(record, file)

    >>> net, classes, transform = load_run(folder)
    >>> image = transform(mx.nd.zeros((40, 60, 3), dtype='uint8'))
    >>> probability = net(image.expand_dims(0)).softmax()[0]
    >>> classes[int(probability.argmax().asscalar())] in ('cat', 'dog')
    True
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}: expected {' or '.join(map(repr, WEIGHTS))}")
    folder = Path(path)
    record = read_record(folder)
    file = folder / f"{weights}.params"
    if not file.exists():
        raise FileNotFoundError(
            f"the run in {folder} has no {file.name}: no epoch of it has ended yet, or the file was removed; train it "
            "with --resume"
        )
    transform = _read_transform(record, folder)
    net = _build(record["model"], len(record["classes"]), folder)
    _load_weights(net, file, mx.current_context() if ctx is None else ctx)
    net.hybridize()
    return SavedRun(net, list(record["classes"]), transform)


def read_record(folder: Path) -> dict[str, Any]:
    """Read ``run.json`` in the folder of a run, and check the fields that every run has: model, classes and input.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no run in it.
    ValueError
        If the file is damaged or was written by a newer multitrainer.
    """
    path = folder / RECORD
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the --out of `multitrainer finetune`")
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no run: it has no {RECORD}; give the folder that `multitrainer finetune` has written to"
        )
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        written_as = record["format"]
        if type(written_as) is not int or written_as < FORMAT:
            raise ValueError(f"'format' is {written_as!r}, not {FORMAT}")
        if written_as == FORMAT:
            _check_fields(record)
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(path, error) from error
    if written_as > FORMAT:
        raise ValueError(
            f"{path} was written by a newer multitrainer (format {written_as}, this one reads {FORMAT}); upgrade it"
        )
    return dict(record)


def parse_json(text: str) -> Any:
    """Return what a JSON text holds; raise a ValueError if it is none, or too deep for Python's reader."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def _check_fields(record: dict[str, Any]) -> None:
    for field, kind in (("model", str), ("classes", list), ("input", dict)):
        if not isinstance(record[field], kind):
            raise ValueError(f"{field!r} is a {type(record[field]).__name__}, not a {kind.__name__}")
    if not record["classes"] or not all(isinstance(name, str) for name in record["classes"]):
        raise ValueError("'classes' is not a list of names")


def _read_transform(record: dict[str, Any], folder: Path) -> ImageTransform:
    try:
        return ImageTransform.from_dict(record["input"])
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(folder / RECORD, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = f"there is no {error}" if isinstance(error, LookupError) else error
    return ValueError(f"{path} is damaged ({reason}); put a copy of it back, or train again")


def _build(model: str, classes: int, folder: Path) -> gluon.HybridBlock:
    try:
        from gluoncv import model_zoo
    except ImportError as error:
        raise ImportError(
            f"the network of {folder} is {model} of GluonCV, which cannot be imported ({error}); "
            "pip install 'multitrainer[finetune]'"
        ) from error
    if model.lower() not in model_zoo.get_model_list():
        raise ValueError(f"{folder / RECORD} names the model {model!r}, which this GluonCV does not have; upgrade it")
    try:
        return make_classifier(model, classes)
    except Exception as error:  # what is built for another task raises what it likes for these arguments
        raise ValueError(
            f"{folder / RECORD} names the model {model!r}, which is not an image classifier ({error}); put a copy of "
            "the file back, or train again"
        ) from error


def make_classifier(model: str, classes: int) -> gluon.HybridBlock:
    """Make a classifier of GluonCV's model zoo, not initialized, whose parameters have the same names every time."""
    from gluoncv import model_zoo

    name = model.lower()
    options: dict[str, Any] = {"num_classes" if name.startswith("hrnet_") else "classes": classes}
    if name.startswith("nasnet_"):
        options["use_aux"] = False  # a second output, which helps to train from scratch
    with mx.name.NameManager():
        return model_zoo.get_model(name, pretrained=False, **options)


def _load_weights(net: gluon.HybridBlock, file: Path, ctx: mx.Context | Sequence[mx.Context]) -> None:
    match = match_file(net, file)
    reason = _misfit(match.report)
    if reason:
        raise ValueError(
            f"{file} does not hold the weights of the network and classes in {RECORD}: {reason}; put back the file "
            "that the run has written"
        )
    match.load(ctx)


def _misfit(report: LoadReport) -> str:
    """Say how a file differs from a network; return an empty text if it holds all of its weights and no others."""
    for name, (there, here) in report.other_shape.items():
        return f"{name} has shape {there} in it, not {here}"
    for name in report.not_in_file:
        return f"it has no {name}"
    for name in report.not_in_network:
        return f"the network has no {name}"
    return ""
