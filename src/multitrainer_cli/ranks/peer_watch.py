"""Ranks that end together: each holds a connection to rank 0, which breaks when its process ends for any reason."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time

_FINISHED = b"."  # sent by a rank that has done its work
_FAILING = b"!"  # sent by a rank that is about to end with an error of its own
_PATIENCE = 5.0  # seconds that such a rank waits for the others to find the same error


def own_address(towards: str) -> str:
    """Return the IPv4 address from which this machine reaches the host `towards`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))  # sends nothing: it only chooses the route
        return str(probe.getsockname()[0])


class PeerWatch:
    """Ends this process if another rank of the run ends early.

    Parameter servers do not notice that a worker has ended, and the others would wait forever for its gradients.

    Parameters
    ----------
    rank, size : int
        The number of this rank, and the number of ranks.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size
        self._peers: dict[int, socket.socket] = {}
        self._failing = False
        self._failed: dict[int, threading.Event] = {}

    def listen(self, address: str) -> int:
        """On rank 0: open a port for the other ranks to connect to, and return its number."""
        self._listener = socket.create_server((address, 0), backlog=self._size)
        return int(self._listener.getsockname()[1])

    def accept(self) -> None:
        """On rank 0: wait until all other ranks have connected, then watch them."""
        with self._listener:
            while len(self._peers) < self._size - 1:
                peer, _ = self._listener.accept()
                self._peers[int.from_bytes(peer.recv(4), "big")] = peer
        self._start_threads()

    def connect(self, address: str, port: int) -> None:
        """On every other rank: connect to rank 0 and watch it."""
        self._peers[0] = socket.create_connection((address, port))
        self._peers[0].sendall(self._rank.to_bytes(4, "big"))
        self._start_threads()

    def finish(self) -> None:
        """Tell the other ranks that this one has done its work and may end."""
        self._send(_FINISHED)

    def fail(self) -> None:
        """Tell the other ranks that this one ends with an error; return when they have failed, too, or do not.

        What is wrong with the options is wrong on every rank: each reports it, and has the exit status of the error,
        whichever is the first.
        """
        self._failing = True
        self._send(_FAILING)
        deadline = time.monotonic() + _PATIENCE
        for failed in self._failed.values():
            failed.wait(max(0.0, deadline - time.monotonic()))

    def _send(self, message: bytes) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(message)

    def _start_threads(self) -> None:
        self._failed = {rank: threading.Event() for rank in self._peers}
        for rank, peer in self._peers.items():
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine without power closes no connection
            threading.Thread(target=self._wait_for, args=(rank, peer), daemon=True).start()

    def _wait_for(self, rank: int, peer: socket.socket) -> None:
        message = _receive(peer)
        if message.startswith(_FAILING):
            self._failed[rank].set()
            message = message[len(_FAILING) :] or _receive(peer)
        self._failed[rank].set()
        if message != _FINISHED and not self._failing:
            self._end_process(message.decode("ascii", "replace") or f"rank {rank}")

    def _end_process(self, culprit: str) -> None:
        """End this process, and name the rank that ended first to all that are connected."""
        print(f"multitrainer: error: {culprit} has ended; rank {self._rank} ends with it", file=sys.stderr, flush=True)
        self._send(culprit.encode("ascii"))
        os._exit(1)  # the main thread waits inside MXNet, where nothing can be raised


def _receive(peer: socket.socket) -> bytes:
    try:
        return peer.recv(64)
    except OSError:
        return b""
