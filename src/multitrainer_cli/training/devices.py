"""The devices that --ctx names, and the threads of those that are CPUs."""

from __future__ import annotations

import re

import mxnet as mx

from multitrainer import cores

from ..errors import UserError


def parse_contexts(text: str | None, local_rank: int = 0) -> list[mx.Context]:
    """Turn ``gpu(0),gpu(1)`` into contexts that exist; by default, every process of a machine takes its own GPU."""
    count = mx.context.num_gpus()
    if text is None:
        return [mx.gpu(local_rank % count) if count else mx.cpu()]
    contexts = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(cpu|gpu)(?:\((\d+)\))?\s*", part)
        if match is None:
            raise UserError(f"--ctx {text}: expected cpu, gpu(0) or gpu(0),gpu(1), not {part.strip()!r}")
        kind, number = match.group(1), int(match.group(2) or 0)
        if kind == "gpu" and number >= count:
            raise UserError(
                f"--ctx {text}: MXNet sees {count} GPUs, so there is no gpu({number}); use --ctx cpu, or install "
                "an MXNet built for this machine's CUDA"
            )
        contexts.append(mx.Context(kind, number))
    if len(set(contexts)) < len(contexts):
        raise UserError(f"--ctx {text}: a device is named twice")
    return contexts


def count_threads(contexts: list[mx.Context]) -> int | None:
    """Return the number of threads that compute on each CPU of these contexts; None if there is no CPU."""
    return cores.count_threads() if any(context.device_type == "cpu" for context in contexts) else None


def describe_threads(contexts: list[mx.Context]) -> str:
    """Return the end of a sentence that names the devices: with how many threads MXNet computes on them."""
    threads = count_threads(contexts)
    if threads is None:
        return ""
    each = " each" if len(contexts) > 1 else ""
    return f" with {threads} thread{'s' if threads > 1 else ''}{each}"
