"""The processes that train together: which images are whose, what they add up, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence, TypeVar

import mxnet as mx
import numpy as np
from mxnet import gluon

from ... import MultiLRTrainer, ParamGroup
from ..errors import UserError, report
from .watch import Watch, own_address

KVSTORES = ("device", "local", "dist_sync", "dist_device_sync", "horovod")
DMLC = ("DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT", "DMLC_NUM_WORKER", "DMLC_NUM_SERVER")
_KEYS = 1_000_000  # more than a network has Parameters
_CHUNK = 2**20  # bytes that are given to other ranks at once

_Item = TypeVar("_Item")


class Ranks:
    """The processes that train together, seen from one of them; here, one process alone.

    Parameters
    ----------
    kvstore : str
        What sums the gradients of this process's devices.
    """

    rank, size = 0, 1
    local_rank = 0

    def __init__(self, kvstore: str = "device") -> None:
        self.kvstore = kvstore

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes files."""
        return self.rank == 0

    def share(self, order: Sequence[_Item], even: bool = True) -> Sequence[_Item]:
        """Return this rank's part of what all ranks have in one order; ``even``, all get the same number."""
        return order[self.rank : len(order) - len(order) % self.size if even else None : self.size]

    def batch_of_all(self, mine: int) -> int:
        """Return what `step` is to divide the gradients by, given the images that this rank had."""
        return mine

    def trainer(self, groups: list[ParamGroup], optimizer: str, settings: dict[str, float]) -> MultiLRTrainer:
        """Return a trainer that makes the same update on every rank."""
        return MultiLRTrainer(groups, optimizer, settings, kvstore=self.kvstore)

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """Return the sum over all ranks, in float32."""
        return numbers

    def broadcast(self, params: Iterable[gluon.Parameter]) -> None:
        """Give every rank the values that rank 0 has."""
        params = list(params)
        values = [param.list_data()[0].asnumpy() for param in params]
        if self.size == 1 or not values:
            return
        flat = np.concatenate([value.ravel() for value in values])
        summed = self.sum(flat if self.first else np.zeros_like(flat))
        if self.first:
            return
        ends = np.cumsum([value.size for value in values])
        for param, value, part in zip(params, values, np.split(summed, ends[:-1])):
            param.set_data(mx.nd.array(part.reshape(value.shape), dtype=value.dtype))

    def agree(self, what: str, value: Any) -> None:
        """Raise a UserError on all ranks where one has another ``value`` than the others."""
        checksum = zlib.crc32(repr(value).encode())
        mine = np.array([checksum >> 16, checksum & 0xFFFF], "float32")  # float32 holds 16 bits of each
        theirs = self.sum(mine if self.first else np.zeros_like(mine))
        if self.sum(np.array([float((mine != theirs).any())], "float32"))[0]:
            raise UserError(f"the ranks were given different {what}; start every rank with the same")

    def give(self, data: bytes) -> bytes:
        """Return on every rank the bytes that rank 0 has."""
        if self.size == 1:
            return data
        given = data if self.first else b""
        high, low = self.sum(np.array([len(given) >> 16, len(given) & 0xFFFF], "float32"))
        parts = []
        for begin in range(0, int(high) * 2**16 + int(low), _CHUNK):
            chunk = np.zeros(_CHUNK, "float32")  # of one length, for which there is one key
            mine = np.frombuffer(given[begin : begin + _CHUNK], np.uint8)
            chunk[: mine.size] = mine
            parts.append(self.sum(chunk).astype(np.uint8).tobytes())
        return b"".join(parts)[: int(high) * 2**16 + int(low)]

    def decide(self, question: Callable[[], Any]) -> Any:
        """Return on every rank what rank 0 answers, something that JSON can hold; its UserError is raised on all."""
        if self.size == 1:
            return question()
        answer: dict[str, Any] = {}
        if self.first:
            try:
                answer = {"answer": question()}
            except UserError as error:
                answer = {"error": str(error)}
        answer = json.loads(self.give(json.dumps(answer).encode()))
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["answer"]

    @contextlib.contextmanager
    def local_copy(self, path: Path) -> Iterator[Path]:
        """Give every rank a file with what is in the one of rank 0; the other ranks need not have that."""
        if self.size == 1:
            yield path
            return
        data = self.give(path.read_bytes() if self.first else b"")
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / path.name
            copy.write_bytes(data)
            yield copy

    def leave(self) -> None:
        """Say that this rank's work is done."""


class _Store(mx.kv.KVStoreBase):
    """The one connection to the servers, with keys of its own: a server never forgets a key's first value."""

    type, rank, num_workers = "", 0, 1  # of `store`; KVStoreBase has properties here, which say nothing

    def __init__(self, store: Any, first_key: int) -> None:
        self._store = store
        self._first = first_key
        self.type, self.rank, self.num_workers = store.type, store.rank, store.num_workers

    def broadcast(self, key: int, value: Any, out: Any, priority: int = 0) -> None:
        self._store.broadcast(self._first + key, value, out, priority)

    def pushpull(self, key: int, value: Any, out: Any = None, priority: int = 0) -> None:
        self._store.pushpull(self._first + key, value, out, priority)

    def is_capable(self, capability: str) -> bool:
        return False  # the workers update

    def _barrier(self) -> None:
        self._store._barrier()


class ServerRanks(Ranks):
    """The workers of MXNet's parameter servers, started with the ``DMLC_`` variables."""

    def __init__(self, kvstore: str) -> None:
        super().__init__(kvstore)
        missing = [name for name in (*DMLC, "DMLC_ROLE") if name not in os.environ]
        if missing:
            raise UserError(
                f"--kvstore {kvstore}: {', '.join(missing)} not set; start a scheduler, servers and workers with "
                "DMLC_ROLE=scheduler, server and worker, as the README shows, or leave --kvstore out on one machine"
            )
        where = "{}:{}".format(*(os.environ[name] for name in DMLC[:2]))
        print(f"{kvstore}: joining the scheduler at {where}", flush=True)
        with _ctrl_c_ends():
            self._connection = mx.kv.create(kvstore)
        self.rank, self.size = self._connection.rank, self._connection.num_workers
        self._stores = 0
        self._sums: dict[int, int] = {}  # a key for each length
        self._watch = Watch(self.rank, self.size)
        if self.size > 1:
            self._begin_watch()

    def _begin_watch(self) -> None:
        """Tell all ranks where rank 0 listens, by the only way there is so far."""
        numbers = np.zeros(6, "float32")
        if self.first:
            address = own_address(os.environ["DMLC_PS_ROOT_URI"])
            port = self._watch.listen(address)
            numbers[:] = [*map(int, address.split(".")), port >> 8, port & 0xFF]
        *address_bytes, high, low = (int(number) for number in self.sum(numbers))
        if self.first:
            self._watch.accept()
        else:
            self._watch.connect(".".join(map(str, address_bytes)), high * 256 + low)

    def _store(self) -> _Store:
        self._stores += 1
        return _Store(self._connection, self._stores * _KEYS)

    def batch_of_all(self, mine: int) -> int:
        """Return the images of all ranks: the servers sum the gradients."""
        return mine * self.size

    def trainer(self, groups: list[ParamGroup], optimizer: str, settings: dict[str, float]) -> MultiLRTrainer:
        """Return a trainer with keys of its own on the servers."""
        return MultiLRTrainer(groups, optimizer, settings, kvstore=self._store())

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """Return what the servers add up."""
        array = mx.nd.array(numbers)
        if numbers.size not in self._sums:
            self._sums[numbers.size] = len(self._sums)
            self._connection.init(self._sums[numbers.size], array)
        self._connection.pushpull(self._sums[numbers.size], array)
        return array.asnumpy()

    def leave(self) -> None:
        """Let the others end as they like."""
        self._watch.leave()


class HorovodRanks(Ranks):
    """The processes that ``horovodrun`` started."""

    def __init__(self) -> None:
        super().__init__("horovod")
        try:
            from ... import horovod
        except ImportError as error:
            raise UserError(f"--kvstore horovod: {error}") from error
        self._trainer = horovod.DistributedMultiLRTrainer
        self._hvd = horovod.hvd
        self._hvd.init()
        self.rank, self.size, self.local_rank = self._hvd.rank(), self._hvd.size(), self._hvd.local_rank()

    def trainer(self, groups: list[ParamGroup], optimizer: str, settings: dict[str, float]) -> MultiLRTrainer:
        """Return a trainer whose gradients Horovod averages."""
        return self._trainer(groups, optimizer, settings)

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """Return what Horovod adds up."""
        summed = self._hvd.allreduce(mx.nd.array(numbers), average=False, name=f"sum of {numbers.size}")
        return np.asarray(summed.asnumpy())


def together(kvstore: str | None, work: Callable[[Ranks], int]) -> int:
    """Do the work of this rank; where one rank fails, all end.

    Parameters
    ----------
    kvstore : str, optional
        One of `KVSTORES`.
    work : callable
        Gets the `Ranks` and returns the exit status. What it prints is seen on rank 0 alone, but for errors.

    Returns
    -------
    int
        The exit status. Where there are other ranks and it is not 0, this process ends here instead: MXNet's own end
        of a worker waits for all others.
    """
    _check_started_by(kvstore)
    if kvstore is None or not kvstore.startswith(("dist", "horovod")):
        return work(Ranks(kvstore or "device"))
    ranks = HorovodRanks() if kvstore == "horovod" else ServerRanks(kvstore)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if ranks.first else nowhere):
            status = work(ranks)
    except BaseException as error:
        if ranks.size == 1:
            raise
        status = report(error, f"rank {ranks.rank}: ")
    if status and ranks.size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    ranks.leave()
    return status


def _check_started_by(kvstore: str | None) -> None:
    """Refuse to train alone what was started as one of several: each would do the same, and write to the same files."""
    workers = int(os.environ.get("DMLC_NUM_WORKER", "1")) if os.environ.get("DMLC_ROLE") == "worker" else 1
    for name, size, kind in (
        ("DMLC_NUM_WORKER", workers, "dist_sync"),
        ("HOROVOD_SIZE", int(os.environ.get("HOROVOD_SIZE", "1")), "horovod"),
    ):
        if size > 1 and not (kvstore or "").startswith(kind.split("_")[0]):
            raise UserError(f"{name} says that this is one of {size} processes; add --kvstore {kind} to train together")


@contextlib.contextmanager
def _ctrl_c_ends() -> Any:
    """Let Ctrl-C end a process that waits inside MXNet, where Python cannot raise anything."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
