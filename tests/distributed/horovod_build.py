"""Build Horovod for the installed MXNet, unless it is built: `tox -e horovod` runs this before the tests.

If tools are missing, it names them and succeeds; the tests then skip themselves.
"""

import os
import shutil
import subprocess
import sys

REQUIREMENT = "horovod==0.28.1"
TOOLS = ("cmake", "make", "c++")
OPTIONS = {
    "HOROVOD_WITH_MXNET": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITHOUT_MPI": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
}


def main():
    if works():
        return "Horovod is built already"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"SKIPPED: Horovod cannot be built without {' and '.join(missing)}"
    print(f"building {REQUIREMENT}: about 5 minutes on 2 cores", flush=True)
    install()
    if not works():  # pip used a wheel from its cache that was built for other frameworks or another MXNet
        install("--no-cache-dir", "--force-reinstall", "--no-deps")
    if not works():
        sys.exit(python("-c", "import horovod.mxnet").stdout)
    return "Horovod is built"


def works():
    return python("-c", "import horovod.mxnet").returncode == 0


def install(*options):
    done = python("-m", "pip", "install", "--no-build-isolation", *options, REQUIREMENT)
    if done.returncode:
        sys.exit(done.stdout)


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **OPTIONS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


if __name__ == "__main__":
    print(main())
