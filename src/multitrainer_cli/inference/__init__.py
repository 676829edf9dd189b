"""A finished run at work: load it, find images for it, and rank the classes of each.

What it is measured on, and how, is in `evaluation`.
"""

import multitrainer as multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work
