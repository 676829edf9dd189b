"""Save and restore the gradients that a trainer has collected and not used yet."""

from __future__ import annotations

import math
from typing import Any, Mapping, Sequence

import numpy as np
from mxnet.gluon import Parameter
from mxnet.ndarray import NDArray

from ..gradients.accumulation import NOTHING, Collected
from .archive import Reader
from .encoding import Encoder
from .header import entry
from .object_decoding import ObjectDecoder
from .paths import component
from .trainer_state import TrainerState

PATH = "@accumulated"


def check_can_be_saved(trainer: TrainerState) -> None:
    """Raise a RuntimeError if several ranks have collected gradients, because one of them writes the file."""
    steps = trainer.accumulation.collected.steps
    if steps and trainer.num_ranks > 1:
        raise RuntimeError(
            f"the states cannot be saved now: each of the {trainer.num_ranks} ranks has collected gradients of its own "
            f"in {steps} of {trainer.accumulation.steps} steps, and the file is written by one. Save after an update, "
            "when trainer.accumulated is 0; trainer.flush() on all ranks makes one"
        )


def encode(encoder: Encoder, trainer: TrainerState) -> dict[str, Any]:
    """Encode what was collected as an entry of the header; no entry if nothing was."""
    steps, batch_size, scale, gradients = trainer.accumulation.collected
    if not steps:
        return {}
    nodes = {
        param.name: encoder.encode(tuple(arrays), f"{PATH}/{component(param.name)}")
        for param, arrays in gradients.items()
    }
    collected = {"steps": steps, "batch_size": batch_size, "scale": scale, "gradients": nodes}
    return {"accumulated": {"accumulate": trainer.accumulation.steps, **collected}}


def decode(
    reader: Reader,
    record: dict[str, Any] | None,
    trainer: TrainerState,
    loaded: Mapping[str, int],
    objects: ObjectDecoder,
) -> Collected:
    """Decode what was collected.

    Parameters
    ----------
    reader : Reader
        The file.
    record : dict or None
        The entry of the header.
    trainer : TrainerState
        The trainer that the file is loaded into.
    loaded : dict of str to int
        The Parameters that are loaded, and their indices.
    objects : ObjectDecoder
        The decoder of the file.

    Raises
    ------
    ValueError
        If the trainer cannot go on with it, or the file is damaged.
    """
    if record is None:
        return NOTHING
    steps, of, batch_size, scale = _numbers(reader, record)
    _check_goes_on(reader, trainer, steps, of)
    nodes, gradients = entry(reader, record, "gradients", dict), {}
    for name, node in nodes.items():
        path = f"{PATH}/{component(name)}"
        if name in loaded:
            param = trainer.params[loaded[name]]
            gradients[param] = _arrays(reader, objects.values.decode(node, path), trainer, param)
        else:
            reader.skip(path)
    return Collected(steps, batch_size, scale, gradients)


def _numbers(reader: Reader, record: dict[str, Any]) -> tuple[int, int, float, float]:
    steps, of = (entry(reader, record, name, int) for name in ("steps", "accumulate"))
    batch_size, scale = (float(entry(reader, record, name, float, int)) for name in ("batch_size", "scale"))
    if not (0 < steps < of and 0 <= batch_size < math.inf and math.isfinite(scale)):
        raise reader.damaged(f"it has collected {steps} of {of} steps, of batch size {batch_size} and scale {scale}")
    return steps, of, batch_size, scale


def _check_goes_on(reader: Reader, trainer: TrainerState, steps: int, of: int) -> None:
    begin = f"{reader.path} was saved when {steps} of {of} steps had been collected"
    drop = "or drop what was collected: keep='accumulated'"
    if trainer.accumulation.steps != of:
        raise ValueError(
            f"{begin}, but this trainer has accumulate={trainer.accumulation.steps}: build it with accumulate={of}, "
            f"{drop}"
        )
    if trainer.num_ranks > 1:
        raise ValueError(
            f"{begin}, but {trainer.num_ranks} ranks would each add its gradients: save after an update, {drop}"
        )


def _arrays(reader: Reader, arrays: Any, trainer: TrainerState, param: Parameter) -> Sequence[NDArray | None]:
    """Check the gradients of one Parameter, and bring them to their contexts."""
    if not isinstance(arrays, tuple) or not all(_fits(array, param) for array in arrays):
        raise reader.damaged(f"the gradients of {param.name!r} are of another kind")
    if len(arrays) != len(trainer.contexts):
        raise ValueError(
            f"{reader.path} has gradients that were collected on {len(arrays)} contexts, but this trainer has "
            f"{len(trainer.contexts)}: use as many, or drop what was collected: keep='accumulated'"
        )
    return [None if array is None else array.as_in_context(context) for array, context in zip(arrays, trainer.contexts)]


def _fits(array: Any, param: Parameter) -> bool:
    if not isinstance(array, NDArray):
        return array is None
    return array.shape == tuple(param.shape) and np.dtype(array.dtype) == np.dtype(param.dtype)
