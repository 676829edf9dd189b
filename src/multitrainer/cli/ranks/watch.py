"""Ranks that end together: each holds a connection to rank 0, which closes when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

_WELL = b"."  # what a rank says before it leaves when all is done


def own_address(towards: str) -> str:
    """Return the IPv4 address of this machine that is on the way to the host `towards`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))  # sends nothing: it only chooses the way
        return str(probe.getsockname()[0])


class Watch:
    """Ends this process when another rank of the run has ended early.

    Parameter servers do not notice that a worker is gone, and the others would wait for its gradients for ever.

    Parameters
    ----------
    rank, size : int
        This rank, and how many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size
        self._peers: dict[int, socket.socket] = {}

    def listen(self, address: str) -> int:
        """On rank 0: open the port that the others are to connect to, and return its number."""
        self._listener = socket.create_server((address, 0), backlog=self._size)
        return int(self._listener.getsockname()[1])

    def accept(self) -> None:
        """On rank 0: wait for all others."""
        with self._listener:
            while len(self._peers) < self._size - 1:
                peer, _ = self._listener.accept()
                self._peers[int.from_bytes(peer.recv(4), "big")] = peer
        self._start()

    def connect(self, address: str, port: int) -> None:
        """On every other rank: connect to rank 0."""
        self._peers[0] = socket.create_connection((address, port))
        self._peers[0].sendall(self._rank.to_bytes(4, "big"))
        self._start()

    def leave(self) -> None:
        """Say that this rank's work is done; from now on the others may end as they like."""
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(_WELL)

    def _start(self) -> None:
        for rank, peer in self._peers.items():
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that lost its power says nothing
            threading.Thread(target=self._wait, args=(rank, peer), daemon=True).start()

    def _wait(self, rank: int, peer: socket.socket) -> None:
        try:
            said = peer.recv(64)
        except OSError:
            said = b""
        if said != _WELL:
            self._end(said.decode("ascii", "replace") or f"rank {rank}")

    def _end(self, who: str) -> None:
        print(f"multitrainer: error: {who} has ended; rank {self._rank} ends with it", file=sys.stderr, flush=True)
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(who.encode("ascii"))
        os._exit(1)  # the main thread waits inside MXNet, where nothing can be raised
