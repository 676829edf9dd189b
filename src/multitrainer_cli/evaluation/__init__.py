"""Measuring a finished run: on which images, what is counted, and how it is shown.

The network itself comes from `inference`.
"""

import multitrainer as multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work
