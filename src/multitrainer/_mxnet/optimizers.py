"""Optimizers and their Updaters: weight decay, states, and which attributes are state."""

from __future__ import annotations

from typing import Any, Collection, Sequence

from mxnet.optimizer import Optimizer, Updater

# Attributes that every Optimizer has but that are not its state: a trainer creates them, sets them at each step, or
# saves them in another form.
NOT_STATE = frozenset(
    (
        *("param_dict", "idx2name", "sym_info", "lr_mult", "wd_mult", "lr_scheduler", "rescale_grad"),
        *("num_update", "_index_update_count", "_all_index_update_counts"),
        *("aggregate_num", "allow_np_array"),  # depend on the environment of the process
    )
)


def weight_decays(optimizer: Optimizer, indices: Sequence[int]) -> list[Any]:
    """Return the weight decay of each index."""
    return optimizer._get_wds(indices)


def updater_of(kvstore: Any) -> Updater:
    """Return the Updater of a kvstore that updates in this process."""
    return kvstore._updater


def set_states(updater: Updater, kept: Collection[int], states: dict[int, Any], in_place: bool) -> None:
    """Replace the states of an Updater, except those of the indices ``kept``.

    Unless the new states are ``in_place``, the Updater moves each to the context of its weight at the first use.
    """
    own = {index: state for index, state in updater.states.items() if index in kept}
    updater.states_synced = {**{i: updater.states_synced[i] for i in own}, **dict.fromkeys(states, in_place)}
    updater.states = {**own, **states}
