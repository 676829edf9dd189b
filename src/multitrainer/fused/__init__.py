"""The fused update: one engine operation updates all Parameters of a trainer, with the same bits as MXNet's operators.

It holds the compiled kernels, the parsing of floats as MXNet does it, and the decision whether an update is covered.
Which Parameters take part, and with which multipliers, is decided elsewhere.
"""
