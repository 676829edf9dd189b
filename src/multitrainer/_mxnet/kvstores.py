"""Who updates: the workers, a kvstore in this process, or parameter servers; read from a stock Trainer's settings."""

from __future__ import annotations

import os
from typing import Collection

from mxnet.gluon import Parameter, Trainer


def workers_should_update(trainer: Trainer) -> bool:
    """Whether the user left it open who updates on a distributed kvstore, and the workers can."""
    return (
        trainer._kvstore_params["update_on_kvstore"] is None
        and "MXNET_UPDATE_ON_KVSTORE" not in os.environ
        and "dist" in _store_type(trainer)
        and "async" not in _store_type(trainer)
        and not (trainer._contains_sparse_weight or trainer._contains_sparse_grad)
    )


def let_workers_update(trainer: Trainer) -> None:
    """Choose that the workers update, before the kvstore is set up."""
    trainer._kvstore_params["update_on_kvstore"] = False


def why_not_workers(trainer: Trainer) -> str | None:
    """Say why the workers cannot update, or were told not to; None if they can."""
    store, is_sparse = _store_type(trainer), trainer._contains_sparse_weight or trainer._contains_sparse_grad
    if trainer._kvstore_params["update_on_kvstore"]:
        return "update_on_kvstore is True"
    if trainer._update_on_kvstore:
        return "the kvstore was set up to update, with the first step"
    if "async" in store:
        return f"kvstore {store!r} updates on the parameter servers"
    if trainer._contains_sparse_weight or (is_sparse and "dist" in store):
        return f"row_sparse weights, and row_sparse gradients on several machines, are updated by kvstore {store!r}"
    return None


def servers_update(trainer: Trainer) -> bool:
    """Whether parameter servers update, or will once the kvstore is set up."""
    if trainer._kv_initialized:
        return has_sent_optimizer(trainer)
    chosen = trainer._kvstore_params["update_on_kvstore"]
    if chosen is None:
        chosen = not workers_should_update(trainer) and os.environ.get("MXNET_UPDATE_ON_KVSTORE", "1") != "0"
    return "dist" in _store_type(trainer) and (chosen or "async" in _store_type(trainer))


def has_sent_optimizer(trainer: Trainer) -> bool:
    """Whether the kvstore that was set up sent the optimizer to parameter servers."""
    return bool(trainer._distributed and trainer._update_on_kvstore)


def compresses_gradients(trainer: Trainer) -> bool:
    """Whether a kvstore compresses gradients, or will once it is set up; it keeps what that leaves out for later."""
    return bool(trainer._compression_params) and not (trainer._kv_initialized and trainer._kvstore is None)


def set_stored_weights(trainer: Trainer, params: Collection[Parameter]) -> None:
    """Replace the weights of ``params`` that a kvstore of this process keeps, because it updates, by their values."""
    store, updater = trainer._kvstore, trainer._kvstore._updater
    try:
        store._set_updater(lambda _, pushed, stored: pushed.copyto(stored))
        for index, param in enumerate(trainer._params):
            if param in params:
                store.push(index, param._data[0])
    finally:
        store._set_updater(updater)


def store_updates(trainer: Trainer) -> bool:
    """Whether a kvstore that was set up updates, in this process or on servers."""
    return bool(trainer._update_on_kvstore)


def chosen_update_on_kvstore(trainer: Trainer) -> bool | None:
    """Tell whether the user, or `let_workers_update`, chose the kvstore to update; None if that was left open."""
    return trainer._kvstore_params["update_on_kvstore"]


def has_sparse_weights(trainer: Trainer) -> bool:
    """Whether a weight is stored as row_sparse; a kvstore updates it and holds it, and contexts have a few rows."""
    return bool(trainer._contains_sparse_weight)


def kvstore_fits(trainer: Trainer, param: Parameter) -> bool:
    """Whether the kvstore, if it was set up, can take ``param`` too: for sparse ones, stock may choose another."""
    if not trainer._kv_initialized or trainer._contains_sparse_weight:
        return True
    return param._stype == "default" and (param._grad_stype == "default" or not trainer._distributed)


def _store_type(trainer: Trainer) -> str:
    store = trainer._kvstore_params["kvstore"]
    return store if isinstance(store, str) else getattr(store, "type", "")
