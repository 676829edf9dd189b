"""Keep the multipliers of a trainer's Parameters in force: changes, schedules, the update clock, the optimizer's table.

What a multiplier of 0 does to a layer is in `freezing`.
"""
