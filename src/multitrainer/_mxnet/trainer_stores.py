"""Keys of its own for each trainer on the one connection of a process to parameter servers.

MXNet gives the Parameters of every trainer the keys 0, 1, 2, ... and creates a connection for every trainer. Both fail
with a second trainer (src/kvstore/kvstore_dist.h, MXNet 1.9.1): only the first connection of a process sends initial
values and can pass the barrier at its creation, the servers stop when it is freed, and the initial value of a key that
they know counts as a gradient, for which they wait on the other workers.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import hashlib
import itertools
import re
from typing import Any, Hashable, Iterator

import numpy as np
from mxnet import kvstore, nd
from mxnet.gluon import Trainer

from .kvstores import servers_update

# A server is chosen by `key * 9973 % num_servers` in 32 bits: a key above the last one overflows. The first leaves the
# keys below to stock trainers and the user; up to 12 servers divide it, so each gets what it would get from key 0 on.
_FIRST_KEY, _LAST_KEY = 55_440, 2**31 // 9973


class TrainerStore(kvstore.KVStore):
    """What one trainer sees of a connection: every key that it begins is a new one on the servers.

    Parameters
    ----------
    connection : KVStore
        It stays open as long as this object exists.
    keys : iterator of int
        The free keys of the connection.
    """

    def __init__(self, connection: kvstore.KVStore, keys: Iterator[int]) -> None:
        super().__init__(connection.handle)
        self.connection, self._free_keys = connection, keys
        self._keys: dict[Hashable, int] = {}

    def __del__(self) -> None:
        """Leave the handle to the connection."""

    def broadcast(self, key: Any, value: Any, out: Any, priority: int = 0) -> None:
        """Begin a key with the value of rank 0; see `mxnet.kvstore.KVStore.broadcast`."""
        self._begin(key)
        super().broadcast(self._keys[key], value, out, priority)

    def init(self, key: Any, value: Any) -> None:
        """Begin a key with the value of rank 0; see `mxnet.kvstore.KVStore.init`."""
        self._begin(key)
        super().init(self._keys[key], value)

    def pushpull(self, key: Any, value: Any, out: Any = None, priority: int = 0) -> None:
        """Add up the values of the workers; see `mxnet.kvstore.KVStore.pushpull`."""
        super().pushpull(self._keys[key], value, out, priority)

    def push(self, key: Any, value: Any, priority: int = 0) -> None:
        """Send a value; see `mxnet.kvstore.KVStore.push`."""
        super().push(self._keys[key], value, priority)

    def pull(self, key: Any, out: Any = None, priority: int = 0, ignore_sparse: bool = True) -> None:
        """Fetch the sum; see `mxnet.kvstore.KVStore.pull`."""
        super().pull(self._keys[key], out, priority, ignore_sparse)

    def _begin(self, key: Hashable) -> None:
        free = next(self._free_keys)
        if free > _LAST_KEY:
            raise RuntimeError(
                f"the trainers of this process have used all {_LAST_KEY - _FIRST_KEY} keys that parameter servers "
                "can tell apart: every Parameter of every trainer needs one. Start another job for the other trainers"
            )
        self._keys[key] = free


class _Connection:
    """The connection of this process to the servers, and what uses it."""

    def __init__(self, store: kvstore.KVStore) -> None:
        self.store = store
        self.users: dict[str, str] = {}  # who updates, "servers" or "workers" -> the last trainer for which they do
        self._free_keys = itertools.count(_FIRST_KEY)
        self._comparison: TrainerStore | None = None

    def make_store(self) -> TrainerStore:
        """Make a store with keys of its own."""
        return TrainerStore(self.store, self._free_keys)

    def check_free(self, trainer: Trainer, updating: str) -> None:
        """Raise a RuntimeError if the servers update for another trainer, or would update for this one only."""
        if "servers" in self.users or (updating == "servers" and self.users):
            other = "servers" if "servers" in self.users else "workers"
            raise RuntimeError(
                f"{_describe(trainer)}, for which the {updating} update, cannot use the parameter servers beside "
                f"{self.users[other]}, for which the {other} update: the servers have one optimizer and one set of "
                "keys, and keep them as long as they run, even if a trainer was deleted. Let the workers update for "
                "every trainer: a synchronous kvstore such as 'dist_sync', dense weights and gradients, "
                "update_on_kvstore=False; or give all Parameters to one trainer, as groups"
            )

    def compare(self, trainer: Trainer, number: int) -> None:
        """Raise a RuntimeError on all ranks if they begin different trainers, or if the servers do not add up."""
        own = nd.array([1, *_fingerprint(trainer, number)])
        if self._comparison is None:
            self._comparison = self.make_store()
            self._comparison.broadcast("trainer", nd.zeros_like(own), nd.zeros_like(own))
            nd.waitall()
            self.store._barrier()  # before the first sum, which a rank that pulls late would get
        total = own.copy()
        self._comparison.pushpull("trainer", total)
        agrees = (total == own * self.store.num_workers).asnumpy()
        if not agrees[0]:
            raise RuntimeError(
                f"the workers cannot update for {_describe(trainer)}: the servers have the optimizer of another "
                "trainer, and apply it to every gradient. Give all trainers on parameter servers "
                "update_on_kvstore=False, stock trainers too"
            )
        if not agrees.all():
            raise RuntimeError(
                f"the ranks begin different trainers: this one begins {_describe(trainer)}, trainer {number} of those "
                "that it created for parameter servers. Create the trainers in the same order on every rank, with the "
                "same networks, and make their first steps in the same order"
            )


_connection: _Connection | None = None  # kept open: servers stop when it is closed, and cannot be reached again
_numbers = itertools.count(1)


@atexit.register
def _disconnect() -> None:
    """Close the connection before MXNet shuts down, unless a trainer that still exists uses it."""
    global _connection
    _connection = None


def number_of_trainer(trainer: Trainer) -> int:
    """Return the number of a new trainer among those for parameter servers in this process; 0 if it is for none."""
    return next(_numbers) if _wants_servers(trainer) else 0


@contextlib.contextmanager
def sharing_connection(trainer: Trainer, number: int) -> Iterator[None]:
    """Let ``trainer`` set up its kvstore on the one connection of this process, with keys of its own.

    If the servers update, the keys are those of stock Trainer, because the servers' optimizer goes by them.

    Raises
    ------
    RuntimeError
        Before anything is set up: if the servers cannot be shared with the trainers that use them, or if the ranks
        begin different trainers; or if gradients are to be compressed.
    ValueError
        If the connection is of another type.
    """
    if not _wants_servers(trainer):
        yield
        return
    settings, updating = trainer._kvstore_params, "servers" if servers_update(trainer) else "workers"
    if trainer._compression_params:  # it would be set on the connection, for all trainers
        raise RuntimeError(
            f"{_describe(trainer)} cannot compress gradients: MXNet 1.9.1 does not support it on a distributed "
            "kvstore. Leave compression_params out"
        )
    wanted = settings["kvstore"]
    connection = _connect(wanted)
    connection.check_free(trainer, updating)
    if updating == "workers":
        connection.compare(trainer, number)
    settings["kvstore"] = connection.store if updating == "servers" else connection.make_store()
    try:
        yield
    finally:
        settings["kvstore"] = wanted
    connection.users[updating] = _describe(trainer)


def _wants_servers(trainer: Trainer) -> bool:
    wanted = trainer._kvstore_params["kvstore"]
    return isinstance(wanted, (str, kvstore.KVStore)) and "dist" in _type(wanted)


def _connect(wanted: Any) -> _Connection:
    global _connection
    if isinstance(wanted, str):
        store = _connection.store if _connection else _open_connection() or kvstore.create(wanted)
        if _mode(store) != _mode(wanted):
            raise ValueError(
                f"kvstore {wanted!r} cannot be created beside {store.type!r}: a process has one connection to the "
                f"parameter servers. Give every trainer kvstore={store.type!r}"
            )
    else:
        store = wanted.connection if isinstance(wanted, TrainerStore) else wanted
    if _connection is None or _connection.store is not store:
        _connection = _Connection(store)
    return _connection


def _open_connection() -> kvstore.KVStore | None:
    """Find a connection that the user or a stock Trainer made: to create another would never return."""
    stores = (found for found in gc.get_objects() if type(found) is kvstore.KVStore)
    return next((store for store in stores if "dist" in store.type), None)


def _type(store: Any) -> str:
    return (store if isinstance(store, str) else store.type).lower()


def _mode(store: Any) -> tuple[bool, bool]:
    return "async" in _type(store), "device" in _type(store)


def _describe(trainer: Trainer) -> str:
    names = [param.name for param in trainer._params]
    return f"the trainer of {', '.join(names[:2])}{', ...' if len(names) > 2 else ''} ({len(names)} Parameters)"


def _fingerprint(trainer: Trainer, number: int) -> list[int]:
    """Return bytes that are equal on all ranks if they begin the same trainer.

    The numbers in names are left out: a rank may have made other networks before, which take up numbers.
    """
    params = [(re.sub(r"\d+", "", param.name), param.shape, np.dtype(param.dtype).name) for param in trainer._params]
    return list(hashlib.sha256(repr((number, params)).encode()).digest())
