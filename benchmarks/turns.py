"""Let contestants make steps in turn, each in a process of its own, so that neither memory nor libraries mix."""

from __future__ import annotations

import multiprocessing
import os
import time

import machine

WARM_UP = 2  # steps, not timed; the first of them traces the network


def take_turns(contestants, rounds, enough=0):
    """Return by name what each contestant says of itself, the seconds of its steps round by round, and its peak MB.

    A contestant is a function, its arguments, and the environment of its process; the function returns another one,
    which makes a step and waits for its end, and anything to compare. There are `rounds[0]` rounds at least and
    `rounds[1]` at most, and between them none begins after `enough` seconds.
    """
    spawned = multiprocessing.get_context("spawn")  # MXNet does not survive a fork
    lines, started = {}, []
    for name, (build, arguments, environment) in contestants.items():
        lines[name], theirs = spawned.Pipe()
        started.append(spawned.Process(target=serve, args=(theirs, build, arguments), daemon=True))
        start(started[-1], environment)
        theirs.close()  # so that `recv` raises EOFError if the process fails
    said = {name: line.recv() for name, line in lines.items()}
    seconds = {name: [] for name in lines}
    names, begin = list(lines), time.perf_counter()
    for number in range(rounds[1]):
        if number >= rounds[0] and time.perf_counter() - begin > enough:
            break
        at = number % len(names)
        for name in names[at:] + names[:at]:
            seconds[name].append(ask(lines[name], True))
    memory = {name: ask(line, False) for name, line in lines.items()}
    for process in started:
        process.join()
    return said, seconds, memory


def start(process, environment):
    """Start a process that finds these variables in its environment."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)


def ask(line, again):
    line.send(again)
    return line.recv()


def serve(line, build, arguments):
    """Build a contestant; send the seconds of a step whenever it is asked for one, and at last the peak memory."""
    step, said = build(*arguments)
    for _ in range(WARM_UP):
        step()
    line.send(said)
    while line.recv():
        begin = time.perf_counter()
        step()
        line.send(time.perf_counter() - begin)
    line.send(machine.peak_memory())
