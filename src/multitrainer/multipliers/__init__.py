"""Keep the multipliers of a trainer's Parameters true: changes, schedules, the update clock, the optimizer's copy.

What a multiplier of 0 does to a layer is in `freezing`.
"""
