"""Gradients between the backward pass and the update."""
