"""Optimizers that MXNet lacks. How multipliers reach an optimizer, and the fused update, are elsewhere."""
