"""What ranks exchange: sums, the weights and decisions of rank 0, and shares of an order."""

from __future__ import annotations

import contextlib
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence, TypeVar

import mxnet as mx
import numpy as np
from mxnet import gluon

from multitrainer import MultiLRTrainer, ParamGroup

from ..errors import UserError

_CHUNK = 2**20  # bytes broadcast in one sum

_Item = TypeVar("_Item")


class Ranks:
    """The processes that train together, seen from one of them. This base class is one process alone.

    A subclass sets `rank`, `size` and `local_rank`, and overrides `sum` and `make_trainer`.

    Parameters
    ----------
    kvstore : str
        Sums the gradients of this process's devices.
    """

    rank, size = 0, 1
    local_rank = 0

    def __init__(self, kvstore: str = "device") -> None:
        self.kvstore = kvstore

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0

    def share(self, order: Sequence[_Item]) -> Sequence[_Item]:
        """Return this rank's share of an order that is the same on all ranks."""
        return order[self.rank :: self.size]

    def even_share(self, order: Sequence[_Item]) -> Sequence[_Item]:
        """Return this rank's share of an order, after dropping the remainder so that all shares are equally long."""
        return self.share(order[: len(order) - len(order) % self.size])

    def batch_share(self, batch_size: int) -> int:
        """Return this rank's part of a batch size; raise a UserError if the ranks cannot divide it evenly."""
        if batch_size % self.size:
            raise UserError(
                f"a batch of {batch_size} images cannot be divided among {self.size} ranks; choose a --batch-size "
                f"that is a multiple of {self.size}"
            )
        return batch_size // self.size

    def step_batch_size(self, images: int) -> int:
        """Return the batch size to pass to `Trainer.step`, given the images in the batch of this rank."""
        return images

    def make_trainer(
        self, groups: list[ParamGroup], optimizer: str, settings: dict[str, float], **options: Any
    ) -> MultiLRTrainer:
        """Make a trainer whose updates are the same on every rank; it gets the options as keywords."""
        return MultiLRTrainer(groups, optimizer, settings, kvstore=self.kvstore, **options)

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """Return the sum of every rank's array, in float32."""
        return numbers

    def any(self, condition: bool) -> bool:
        """Return on every rank whether the condition holds on at least one."""
        return bool(self.sum(np.array([float(condition)], "float32"))[0])

    def broadcast_parameters(self, params: Iterable[gluon.Parameter]) -> None:
        """Set the Parameters of every rank to the values that they have on rank 0, averaged over its devices.

        Only statistics differ between devices. Afterwards they do not, so that what is measured is what is saved.
        """
        params = list(params)
        values = [_average_over_devices(param) for param in params]
        if self.size == 1 or not values:
            return
        flat = np.concatenate([value.ravel() for value in values])
        summed = self.sum(flat if self.is_first else np.zeros_like(flat))
        if self.is_first:
            return
        ends = np.cumsum([value.size for value in values])
        for param, value, part in zip(params, values, np.split(summed, ends[:-1])):
            param.set_data(mx.nd.array(part.reshape(value.shape), dtype=value.dtype))

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Return on every rank the bytes that rank 0 passes; what the other ranks pass is ignored."""
        if self.size == 1:
            return data
        sent = data if self.is_first else b""
        high, low = self.sum(np.array([len(sent) >> 16, len(sent) & 0xFFFF], "float32"))  # float32 holds 24 bits
        length = int(high) * 2**16 + int(low)
        parts = []
        for begin in range(0, length, _CHUNK):
            chunk = np.zeros(_CHUNK, "float32")  # always the same length: parameter servers keep a key for each length
            piece = np.frombuffer(sent[begin : begin + _CHUNK], np.uint8)
            chunk[: piece.size] = piece
            parts.append(self.sum(chunk).astype(np.uint8).tobytes())
        return b"".join(parts)[:length]

    def check_same(self, what: str, value: Any) -> None:
        """Raise a UserError on all ranks if `value` is not the same on each; `what` names it in the message."""
        checksum = zlib.crc32(repr(value).encode())
        own = np.array([checksum >> 16, checksum & 0xFFFF], "float32")  # float32 holds 24 bits
        first = self.sum(own if self.is_first else np.zeros_like(own))
        if self.any(bool((own != first).any())):
            raise UserError(f"the ranks were given different {what}; start every rank with the same")

    def run_on_first(self, function: Callable[[], Any]) -> Any:
        """Call a function on rank 0 alone, and return its result or raise its UserError on every rank.

        With several ranks the result travels as JSON.
        """
        if self.size == 1:
            return function()
        outcome: dict[str, Any] = {}
        if self.is_first:
            try:
                outcome = {"result": function()}
            except UserError as error:
                outcome = {"error": str(error)}
        outcome = json.loads(self.broadcast_bytes(json.dumps(outcome).encode()))
        if "error" in outcome:
            raise UserError(outcome["error"])
        return outcome["result"]

    @contextlib.contextmanager
    def local_copy(self, path: Path) -> Iterator[Path]:
        """Yield the path of a file that holds what rank 0 has at `path`; only rank 0 needs to have it."""
        if self.size == 1:
            yield path
            return
        data = self.broadcast_bytes(path.read_bytes() if self.is_first else b"")
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            copy.write_bytes(data)
            yield copy

    def finish(self) -> None:
        """Tell the other ranks that this one has done its work."""

    def fail(self) -> None:
        """Tell the other ranks that this one ends with an error, and give them time to end with the same."""


def _average_over_devices(param: gluon.Parameter) -> np.ndarray:
    """Set a Parameter to its average over the devices, unless all have the same values, and return these."""
    copies = [copy.asnumpy() for copy in param.list_data()]
    if all(copy.tobytes() == copies[0].tobytes() for copy in copies):
        return copies[0]
    average = np.asarray(sum(copies) / len(copies), copies[0].dtype)
    for array in param.list_data():  # `set_data` would make a kvstore that updates forget its states
        array[:] = average
    return average
