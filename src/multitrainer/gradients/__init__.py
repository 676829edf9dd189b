"""Gradients between the backward pass and the update: sums over steps, norms, clipping, and what the update changed.

The exchange, the update itself, and which Parameters take part are decided elsewhere.
"""
