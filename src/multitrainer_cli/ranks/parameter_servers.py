"""Ranks that MXNet's parameter servers connect."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any, Iterator

import mxnet as mx
import numpy as np

from multitrainer import MultiLRTrainer, ParamGroup

from ..errors import UserError
from .exchange import Ranks
from .peer_watch import PeerWatch, own_address

DMLC_VARIABLES = ("DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT", "DMLC_NUM_WORKER", "DMLC_NUM_SERVER")


class ServerRanks(Ranks):
    """The workers of MXNet's parameter servers, started with the ``DMLC_`` variables."""

    def __init__(self, kvstore: str) -> None:
        super().__init__(kvstore)
        missing = [name for name in (*DMLC_VARIABLES, "DMLC_ROLE") if name not in os.environ]
        if missing:
            raise UserError(
                f"--kvstore {kvstore}: {', '.join(missing)} not set; start a scheduler, servers and workers with "
                "DMLC_ROLE=scheduler, server and worker, as docs/distributed.md shows, or leave --kvstore out on one "
                "machine"
            )
        scheduler = "{}:{}".format(*(os.environ[name] for name in DMLC_VARIABLES[:2]))
        print(f"{kvstore}: joining the scheduler at {scheduler}", flush=True)
        with _ctrl_c_ends_process():
            self._connection = mx.kv.create(kvstore)
        self.rank, self.size = self._connection.rank, self._connection.num_workers
        self._sum_keys: dict[int, int] = {}  # array length -> key on the servers
        self._watch = PeerWatch(self.rank, self.size)
        if self.size > 1:
            self._connect_watch()

    def _connect_watch(self) -> None:
        """Connect the watch of every rank to rank 0, whose address and port travel as a sum over the servers."""
        numbers = np.zeros(6, "float32")
        if self.is_first:
            address = own_address(os.environ["DMLC_PS_ROOT_URI"])
            port = self._watch.listen(address)
            numbers[:] = [*map(int, address.split(".")), port >> 8, port & 0xFF]
        *address_bytes, high, low = (int(number) for number in self.sum(numbers))
        if self.is_first:
            self._watch.accept()
        else:
            self._watch.connect(".".join(map(str, address_bytes)), high * 256 + low)

    def step_batch_size(self, images: int) -> int:
        """Return the images of all ranks, because the servers sum the gradients."""
        return images * self.size

    def make_trainer(
        self, groups: list[ParamGroup], optimizer: str, settings: dict[str, float], **options: Any
    ) -> MultiLRTrainer:
        """Make a trainer on the connection, where it has keys of its own."""
        return MultiLRTrainer(groups, optimizer, settings, kvstore=self._connection, **options)

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """Return the sum that the servers compute."""
        array = mx.nd.array(numbers)
        if numbers.size not in self._sum_keys:
            self._sum_keys[numbers.size] = len(self._sum_keys)
            self._connection.init(self._sum_keys[numbers.size], array)
        self._connection.pushpull(self._sum_keys[numbers.size], array)
        return array.asnumpy()

    def finish(self) -> None:
        """Let the other ranks end without ending them early."""
        self._watch.finish()

    def fail(self) -> None:
        """Let the other ranks end with the same error, if it is theirs, before the end of this one ends them."""
        self._watch.fail()


@contextlib.contextmanager
def _ctrl_c_ends_process() -> Iterator[None]:
    """Let Ctrl-C end the process while it waits inside MXNet, where Python cannot raise anything."""
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
