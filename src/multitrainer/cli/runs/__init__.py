"""The folder of a run: what is written there, and how a run is resumed from it."""
