"""The `multitrainer` command on one rank; ``{index}`` in an argument is the number of the worker."""

import os
import signal
import sys

from multitrainer_cli import main

if __name__ == "__main__":
    # A shell ignores SIGINT in its background processes, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    index = os.environ.get("WORKER_INDEX", os.environ.get("HOROVOD_RANK", ""))
    sys.exit(main([argument.replace("{index}", index) for argument in sys.argv[1:]]))
