"""`ServerRanks` before it connects; two of them on real servers are in tests/distributed/test_finetune.py."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from multitrainer import ParamGroup
from multitrainer_cli.errors import UserError
from multitrainer_cli.ranks import parameter_servers
from multitrainer_cli.ranks.parameter_servers import DMLC_VARIABLES, ServerRanks
from support import mlp


@pytest.mark.parametrize("unset", [*DMLC_VARIABLES, "DMLC_ROLE"])
def test_a_variable_that_is_not_set_is_named(monkeypatch, unset):
    for name in (*DMLC_VARIABLES, "DMLC_ROLE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv(unset)
    with pytest.raises(UserError, match=rf"--kvstore dist_sync: {unset} not set; start a scheduler, servers and worke"):
        ServerRanks("dist_sync")


@pytest.fixture
def ranks(monkeypatch, capsys):
    """`ServerRanks` on a local store, which sums as a server with a single worker does."""
    for name in (*DMLC_VARIABLES, "DMLC_ROLE"):
        monkeypatch.setenv(name, "1")
    return ServerRanks("local")


def test_sums_of_arrays_of_any_length_do_not_mix(ranks):
    for length in (1, 3, 1, 3, 2):
        numbers = np.random.RandomState(length).rand(length).astype("float32")
        np.testing.assert_array_equal(ranks.sum(numbers), numbers)


def test_gradients_are_summed_over_all_ranks(ranks):
    assert ranks.step_batch_size(8) == 8
    ranks.size = 3
    assert ranks.step_batch_size(8) == 24


def test_trainers_use_the_connection(ranks):
    """On which each has keys of its own; tests/distributed/test_two_trainers.py has several on real servers."""
    trainer = ranks.make_trainer([ParamGroup(mlp())], "sgd", {"learning_rate": 0.1})
    assert trainer._kvstore_params["kvstore"] is ranks._connection


def test_ctrl_c_has_its_handler_again_after_the_wait():
    before = signal.getsignal(signal.SIGINT)
    with parameter_servers._ctrl_c_ends_process():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is before
