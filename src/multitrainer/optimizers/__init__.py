"""Optimizers: AdamW, those of groups beside the trainer's own, and which Parameters each of them updates.

How they are counted and saved, which multipliers they get, and the fused update are elsewhere.
"""
