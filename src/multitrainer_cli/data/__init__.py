"""Folders of images: what they hold, how they are divided into training and validation, and batches from them.

What is done with the batches is in `training`; what a run writes about its images, in `runs`.
"""

import multitrainer as multitrainer  # before mxnet: on Python 3.12 it is what makes `import mxnet` work
