from __future__ import annotations

import pytest

from multitrainer_cli.errors import UserError
from multitrainer_cli.training import optimizer


class TestOptimizer:
    def test_is_sgd_with_momentum_by_default(self):
        assert optimizer.parse_optimizer(None, None, None) == ("sgd", {"wd": 1e-4, "momentum": 0.9})

    def test_takes_the_given_rate_and_weight_decay(self):
        assert optimizer.parse_optimizer("Adam", 0.5, 0) == ("adam", {"wd": 0, "learning_rate": 0.5})

    def test_adamw_has_a_weight_decay_of_its_own(self):
        assert optimizer.parse_optimizer("adamw", None, None) == ("adamw", {"wd": 0.01})
        assert optimizer.parse_optimizer("AdamW", 0.5, 0.1) == ("adamw", {"wd": 0.1, "learning_rate": 0.5})

    @pytest.mark.parametrize(
        ("name", "momentum"), [("nag", 0.9), ("sgd", 0.9), ("dcasgd", None), ("signum", None), ("adam", None)]
    )
    def test_has_momentum_if_its_own_is_0_and_works(self, name, momentum):
        assert optimizer.parse_optimizer(name, None, None).settings.get("momentum") == momentum

    @pytest.mark.parametrize("name", ["sdg", "groupadagrad", "test"])
    def test_that_is_unknown_or_unusable_is_refused(self, name):
        with pytest.raises(UserError, match=f"--optimizer {name}: MXNet has no such optimizer; closest: "):
            optimizer.parse_optimizer(name, None, None)
