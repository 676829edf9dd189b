"""Optimizers: those of groups beside the trainer's own, and which Parameters each of them updates.

How they are counted and saved, and which multipliers they get, is decided elsewhere.
"""
