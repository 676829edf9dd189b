"""Gradients between the exchange and the update: their norms, clipping, and what the update made of them.

The exchange itself, the update, and which Parameters take part are decided elsewhere.
"""
