"""The folder of a run: who may write to it, the files in it, and how a run is resumed from it.

What is trained, and in which order the files are written, is in ``training`` and ``demo``.
"""

import multitrainer as multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work
