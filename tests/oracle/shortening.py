"""Shorten a program that differs from the reference."""

import dataclasses

from programs import MODES, Program
from running import difference

from multitrainer import MultiLRTrainer


def shorten(program, kind, budget=300, subject=MultiLRTrainer):
    """Return the smallest program found with a difference of the same kind."""
    left = [budget]

    def fails(candidate):
        left[0] -= 1
        try:
            found = difference(candidate, subject)
        except Exception:  # the reference or stock MXNet cannot run it
            return False
        return found is not None and found.kind == kind

    changed = True
    while changed and left[0] > 0:
        changed = False
        for candidate in _smaller(program):
            if left[0] <= 0:
                break
            if fails(candidate):
                program, changed = candidate, True
                break
    return program


def _smaller(program):
    """Yield programs with a part left out, the largest parts first."""
    replace, ops = dataclasses.replace, program.ops
    size = len(ops)
    while size:
        for start in range(0, len(ops), size):
            yield replace(program, ops=ops[:start] + ops[start + size :])
        size //= 2
    for part in program.stages:
        yield replace(program, stages=tuple(each for each in program.stages if each != part))
    for entry in program.entries:
        yield replace(program, entries=tuple(each for each in program.entries if each != entry))
    plain = Program((), ())
    for name in ("contexts", "store", "fast", "optimizer", "lr_scheduler", "trainers", "request", "deferred"):
        value = getattr(plain, name) if name != "fast" else False
        if getattr(program, name) != value:
            yield replace(program, **{name: value})
    if program.heads == 2:
        yield replace(program, heads=1)
    for mode in MODES[: MODES.index(program.mode)]:
        yield replace(program, mode=mode)
