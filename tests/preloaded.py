"""Python processes that begin with MXNet imported: the import costs more than most of what the tests run in them.

``[*command("worker0"), script, argument]`` does what ``[python, "-W", "ignore", script, argument]`` does, with the
environment, the folder and the pipes of the command, which ends as the script does. For each name, one process imports
MXNet and forks for every command; MXNet survives a fork as long as it has computed nothing. Ranks need different names:
processes that one process forked share the order of sets and the addresses of objects. What MXNet reads from the
environment at its import is that of the tests, and what kills the command kills the script some milliseconds later:
tests of these start Python itself.
"""

import array
import atexit
import functools
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys

PRELOADED = ("multitrainer", "mxnet", "multitrainer.trainer")
SERVES_AT = "mxnet.kvstore.kvstore_server"  # its import serves for ever if DMLC_ROLE says so
FORWARDED = (signal.SIGINT, signal.SIGTERM)


def command(name):
    """Return the command that stands for ``python -W ignore``."""
    return _command_for(_start(name, *PRELOADED))


def server_command(name):
    """Return the command that stands for ``python -W ignore -c "import multitrainer, mxnet"``, where MXNet serves."""
    return _command_for(_start(name, *PRELOADED, fork_at=SERVES_AT))


def horovodrun(count):
    """Return the command that runs a script on ``count`` ranks; the launcher imports MXNet too."""
    launcher = _start("launcher", *PRELOADED, "horovod.runner.launch")
    addresses = [_start(f"rank{rank}", *PRELOADED) for rank in range(count)]
    program = shutil.which("horovodrun", path=os.path.dirname(sys.executable))
    options = ["-np", str(count), "-H", f"localhost:{count}", "--gloo"]
    return [*_command_for(launcher), program, *options, *_command_for(addresses[0][:-1])]


def _command_for(address):
    return [sys.executable, "-S", "-E", __file__, "run", address]


@functools.lru_cache(maxsize=None)
def _start(name, *modules, fork_at=""):
    """Start the process of a name; return its address. It ends with this process, which closes its input."""
    address = f"multitrainer-{os.getpid()}-{name}"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "fork", address, fork_at, *modules],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    atexit.register(process.communicate)
    return address


def _connect(address):
    """Return a socket of Linux' abstract namespace, which leaves no file."""
    return f"\0{address}"


def run(address, *arguments):
    """Have a command run by the process at an address; end as it does."""
    if address.endswith("rank"):
        address += os.environ["HOROVOD_RANK"]
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(_connect(address))
        connection.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
        answers = connection.makefile("rw")
        print(json.dumps(request), file=answers, flush=True)
        pid = int(answers.readline())
        for number in FORWARDED:
            signal.signal(number, lambda number, _: os.kill(pid, number))
        status = int(answers.readline())
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def fork_for_each(address):
    """Fork for every command, until the input is closed. Return in the forked processes, where it can run."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(_connect(address))
        listener.listen()
        print("ready", flush=True)
        children = set()
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                os._exit(0)
            connection, _ = listener.accept()
            with connection:
                children = {pid for pid in children if not os.waitpid(pid, os.WNOHANG)[0]}
                pid = os.fork()
                if not pid:
                    listener.close()
                    return _attend(connection)
                children.add(pid)


def _attend(connection):
    """Fork once more: one process waits, and tells the command how the other one ends, in which this returns."""
    _, [(_, _, data)], *_ = connection.recvmsg(1, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    files = array.array("i", data)
    answers = connection.makefile("rw")
    request = json.loads(answers.readline())
    pid = os.fork()
    if pid:
        for file in (*files, 0, 1, 2):  # a pipe ends when nobody holds it
            os.close(file)
        print(pid, file=answers, flush=True)
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                print(status, file=answers, flush=True)
                os._exit(0)
            if select.select([connection], [], [], 0.005)[0]:  # closed: the command was killed
                os.kill(pid, signal.SIGKILL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    answers.close()
    connection.close()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv[:] = request["arguments"]


class ForkAtImport:
    """A finder of modules that finds none, and forks when a module is asked for."""

    def __init__(self, module, address):
        self._module, self._address = module, address

    def find_spec(self, name, path=None, target=None):
        if name == self._module:
            sys.meta_path.remove(self)
            fork_for_each(self._address)


def fork(address, fork_at, *modules):
    """Import the modules, and fork for each command; do that while they are imported if it is said at which one."""
    if fork_at:
        sys.meta_path.insert(0, ForkAtImport(fork_at, address))
    for module in modules:
        importlib.import_module(module)
    fork_for_each(address)
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    {"run": run, "fork": fork}[sys.argv[1]](*sys.argv[2:])
