"""Training: the network, its parameter groups and learning rates, cached features, the loop over epochs.

The batches come from `data`; the folder of a run and its checkpoints are in `runs`.
"""
