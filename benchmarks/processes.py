"""Start and end the processes of a cluster, in a network namespace that counts what they send. Linux only."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # linux/sched.h
DIE_WITH_PARENT, ADOPT_ORPHANS = 1, 36  # linux/prctl.h
GET_FLAGS, SET_FLAGS, UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h


def adopt_orphans():
    """Make this process the parent of every process whose own parent ends, so that `end_children` ends it too."""
    LIBC.prctl(ADOPT_ORPHANS, 1)


def start(command, env, log):
    """Start a process that is killed when this one ends."""
    env = {**os.environ, **env}
    options = {"start_new_session": True, "preexec_fn": lambda: LIBC.prctl(DIE_WITH_PARENT, signal.SIGKILL)}
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)


def wait_for_all(processes, limit):
    """Wait at most `limit` seconds; raise RuntimeError as soon as one fails, because the others would wait for it."""
    codes, deadline = [None], time.monotonic() + limit
    while None in codes:
        time.sleep(0.05)
        codes = [process.poll() for process in processes]
        if any(codes):
            raise RuntimeError(f"a process failed, exit codes {codes}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"not done within {limit} s")


def end_children():
    """Kill every child of this process by its id, until none is left."""
    while True:
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def children():
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if parent == os.getpid():
            yield int(stat.parent.name)


def isolate_network():
    """Enter a new network namespace; return False if the system does not allow it."""
    for flags in (NEW_NETWORK, NEW_USER | NEW_NETWORK):  # the first is for root, the second for most users
        child = os.fork()  # tries it first, because a process cannot leave a namespace
        if not child:
            try:
                enter_namespace(flags)
            except BaseException:
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            enter_namespace(flags)
            return True
    return False


def enter_namespace(flags):
    user, group = os.getuid(), os.getgid()
    if LIBC.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    if flags & NEW_USER:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path("/proc/self", file).write_text(text)
    with socket.socket() as any_socket:  # a new loopback interface is down
        request = struct.pack("16sH14x", b"lo", 0)
        state = struct.unpack_from("H", fcntl.ioctl(any_socket, GET_FLAGS, request), 16)[0]
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH14x", b"lo", state | UP))
    with socket.socket() as listener, socket.socket() as caller:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        caller.connect(listener.getsockname())


def loopback_bytes():
    """Return the bytes sent on the loopback interface so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))
