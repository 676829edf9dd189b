"""The folder of a run: who may write to it, the files in it, and how a run is resumed from it.

What is trained, and in which order the files are written, is in ``training`` and ``demo``.
"""
