"""``python -m multitrainer_cli``: the command, even if its script is not on the PATH."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
