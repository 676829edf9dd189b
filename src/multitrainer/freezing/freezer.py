"""Freeze and unfreeze Parameters, and bring gradients, traces and BatchNorm layers in line with that."""

from __future__ import annotations

from types import MappingProxyType
from typing import Callable, Collection, Container, Iterable, Mapping, Sequence

from mxnet.gluon import Block, Parameter

from .. import _mxnet
from . import trace_splitting
from .batchnorm import hold_statistics, warn_of_statistics
from .gradients import request_gradients, restore_gradients, switch_off_gradients
from .known_blocks import KnownBlocks
from .state import (
    change_count,
    is_frozen,
    mark_frozen,
    mark_unfrozen,
    stop_waiting,
    wait_for_backward,
    waiting_for_backward,
)


class Freezer:
    """Freezes and unfreezes the Parameters of one trainer as their ``lr_mult`` says.

    Parameters
    ----------
    params : sequence of Parameter
        All Parameters of the trainer, statistics included.
    trainable : sequence of Parameter
        Those that a multiplier can move.

    Attributes
    ----------
    blocks : KnownBlocks
        The Blocks whose layers, traces and new Parameters are looked at.
    """

    def __init__(self, params: Sequence[Parameter], trainable: Sequence[Parameter]) -> None:
        self._params, self._trainable = params, trainable
        self.blocks = KnownBlocks()
        self._companions: Mapping[Parameter, Sequence[Parameter]] = {}
        self._blocks_checked = True
        self._departed: set[Parameter] = set()  # those that had left the known Blocks at the last step
        self._record_state(self._with_lr_mult_0())

    @property
    def freezes(self) -> bool:
        """Whether a Parameter is frozen."""
        return bool(self._frozen)

    @property
    def is_up_to_date(self) -> bool:
        """Whether nobody froze or unfroze Parameters since the last `apply`, or requested a gradient that was off."""
        return self._changes == change_count() and all(param.grad_req == "null" for param in self._switched_off)

    def departed(self) -> set[Parameter]:
        """Give the Parameters that left the known Blocks, and so may have no gradient."""
        return set(self.blocks.departed(self._trainable))

    def use_departed(self, store_updates: bool) -> None:
        """Mark the gradients of Parameters as used that left the known Blocks since the last step.

        A kvstore that updates leaves them marked as fresh, so they would be used again and again.
        """
        departed = self.departed()
        if store_updates:
            _mark_used(departed - self._departed)
        self._departed = departed

    def left_out(self, collected: Container[Parameter] = ()) -> set[Parameter]:
        """Give the Parameters that the next update leaves out.

        They are the frozen ones, and of those that were unfrozen or added since the backward pass, or that left the
        known Blocks, the ones without a gradient. ``collected`` are those of which earlier steps collected one.
        """
        departed = {p for p in self.departed() if not (p in collected or _mxnet.has_fresh_gradient(p))}
        return {*self._frozen, *waiting_for_backward(self._trainable), *departed}

    def add_blocks(self, blocks: Iterable[Block]) -> None:
        """Add Blocks to the known ones; the next `apply` looks at all of them."""
        self.blocks.add(blocks)
        self.recheck_blocks()

    def add_companions(self, companions: Mapping[Parameter, Sequence[Parameter]]) -> None:
        """Note which trainable Parameters are in the group of a statistic; see `hold_statistics`."""
        self._companions = {**self._companions, **companions}

    def add_parameters(self, params: Sequence[Parameter], trainable: Sequence[Parameter], exchanged: bool) -> None:
        """Take in Parameters that were added to the trainer.

        If a backward pass was made that did not reach them, they wait for the next one, as unfrozen Parameters do.

        Parameters
        ----------
        params, trainable : sequence of Parameter
            As for the constructor: the earlier ones, then the new ones.
        exchanged : bool
            Whether the gradients of the next update have been exchanged already; then those of the new ones are not
            used.
        """
        new = trainable[len(self._trainable) :]
        if exchanged:
            for param in new:
                _mxnet.discard_gradient(param)
        if exchanged or gradient_pending(self._trainable):
            wait_for_backward(new)
        self._params, self._trainable = params, trainable
        self.blocks.forget_traces_of_newcomers(new)

    def recheck_blocks(self) -> None:
        """Let the next `apply` look at all known Blocks, even if no multiplier changed."""
        self._blocks_checked = False

    def freeze_before_assignment(self, multipliers: Mapping[Parameter, float]) -> None:
        """Freeze the Parameters that get the multiplier 0, while each still has the multiplier it will get back."""
        for param, number in multipliers.items():
            if number == 0 and isinstance(param.lr_mult, (int, float)) and param.lr_mult > 0:
                freeze_parameter(param)

    def apply(
        self, previous: Mapping[Parameter, float], requested: Collection[Parameter], backward_done: bool = False
    ) -> None:
        """Freeze what has the multiplier 0, unfreeze what has another, and update gradients and Blocks.

        Parameters
        ----------
        previous : dict of Parameter to float
            The multipliers of all trainable Parameters at the last call, kept for those that are frozen now.
        requested : collection of Parameter
            Those that were given a multiplier: one above 0 requests a gradient even if ``grad_req`` was 'null'.
        backward_done : bool
            Whether the backward pass for the next update has been made, even if it left no gradient.
        """
        to_freeze, frozen = self._with_lr_mult_0(), set(filter(is_frozen, self._trainable))
        changed = (to_freeze ^ frozen) | (to_freeze ^ self._frozen)
        without_gradient = {p for p in requested if p.grad_req == "null" and p.lr_mult != 0 and p not in frozen}
        if changed or without_gradient or not (self._blocks_checked and self.is_up_to_date):
            pending = backward_done or (bool(changed or without_gradient) and gradient_pending(self._trainable))
            for param in to_freeze:
                freeze_parameter(param, previous[param])
            unfreeze_parameters(frozen - to_freeze)
            unfrozen = (changed - to_freeze) | without_gradient
            request_gradients({p: "write" for p in unfrozen.intersection(requested) if p.grad_req == "null"})
            if pending:
                wait_for_backward(unfrozen)
            held = self._update_blocks(pending, to_freeze)
            if not self._blocks_checked or changed & to_freeze:
                warn_of_statistics(to_freeze, self._params, held)
            self._blocks_checked = True
        self._record_state(to_freeze)

    def restore(self, saved: Mapping[Parameter, tuple[float, str, float]]) -> None:
        """Freeze Parameters as they were when they were saved; `apply` does the rest.

        Parameters
        ----------
        saved : dict of Parameter to (float, str, float)
            The multiplier to set, and ``grad_req`` and ``lr_mult`` from before the Parameter was frozen.
        """
        for param, (lr_mult, _, _) in saved.items():
            if lr_mult == 0:
                freeze_parameter(param)
        frozen = {param: values for param, values in saved.items() if is_frozen(param)}
        request_gradients({param: grad_req for param, (_, grad_req, _) in frozen.items() if param.grad_req != "null"})
        for param, (_, grad_req, before) in frozen.items():
            mark_frozen(param, grad_req, before)

    def end_step(self, store_updates: bool = False) -> None:
        """Note that a step was made: no Parameter waits any longer for its backward pass."""
        stop_waiting(self._trainable)
        if store_updates:
            _mark_used(self._departed)

    def check_no_unowned_parameter(self) -> None:
        """Raise a ValueError if a Parameter came to a known Block, would train, and belongs to no trainer."""
        unowned = self.blocks.unowned_parameters()
        if unowned:
            layers = self.blocks.layers_of(unowned)
            where = f" of layer {_shortened(map(repr, layers))}" if layers else ""
            raise ValueError(
                f"{_shortened(param.name for param in unowned)}{where} would never be trained: they came to "
                "the network after its trainer was built, and belong to no trainer. Call trainer.add(layer), with a "
                "multiplier if they need one: trainer.add([(layer, 10)]). If they are not to be trained, call "
                "multitrainer.freeze(layer, within=net), also if their lr_mult is 0 already, or set their grad_req to "
                "'null'"
            )

    def _with_lr_mult_0(self) -> set[Parameter]:
        return {param for param in self._trainable if param.lr_mult == 0}

    def _update_blocks(self, pending: bool, frozen: Collection[Parameter]) -> set[Parameter]:
        roots, params = self.blocks.roots, self._trainable
        if frozen:
            switch_off_gradients(roots, params)
        return update_blocks(roots, frozen, lambda: pending or gradient_pending(params), self._companions)

    def _record_state(self, frozen: set[Parameter]) -> None:
        self._changes, self._frozen = change_count(), frozen
        self._switched_off = [param for param in frozen if param.grad_req == "null"]


def _shortened(texts: Iterable[str]) -> str:
    """Join the first three of ``texts``."""
    texts = list(texts)
    return ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")


def _mark_used(params: Iterable[Parameter]) -> None:
    with_gradient = [param for param in params if param.grad_req != "null"]
    _mxnet.mark_gradients_used(weight for param in with_gradient for weight, _ in _mxnet.arrays_and_gradients(param))


def freeze_parameter(param: Parameter, lr_mult: float | None = None) -> None:
    """Freeze one Parameter; ``lr_mult`` is the multiplier it gets back if it already holds the 0."""
    if not is_frozen(param):
        mark_frozen(param, param.grad_req, param.lr_mult if lr_mult is None else lr_mult)
    param.lr_mult = 0.0


def unfreeze_parameters(params: Collection[Parameter]) -> None:
    """Request the gradients of Parameters as before they were frozen; gradients from before are not used."""
    restore_gradients(params)
    for param in params:
        mark_unfrozen(param)


def update_blocks(
    roots: Sequence[Block],
    params: Iterable[Parameter],
    pending: Callable[[], bool],
    companions: Mapping[Parameter, Sequence[Parameter]] = MappingProxyType({}),
) -> set[Parameter]:
    """Bring traces and BatchNorm layers of known Blocks in line with what is frozen; see `hold_statistics`."""
    if any(map(is_frozen, params)):
        trace_splitting.divide_traces(roots)
    return hold_statistics(roots, pending, companions)


def gradient_pending(params: Iterable[Parameter]) -> bool:
    """Whether a backward pass was made whose gradients no update has used yet."""
    return any(_mxnet.has_fresh_gradient(param) for param in params if not is_frozen(param))
