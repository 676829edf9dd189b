"""A run of the comparison, trained in this process."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

pytest.importorskip("gluoncv")
pytest.importorskip("sklearn")

from cli_support import arrays
from multitrainer_cli.demo import fine_tuning
from multitrainer_cli.demo.datasets import CLASSES, load_digits
from multitrainer_cli.demo.regimes import REGIMES, build_network
from multitrainer_cli.errors import UserError
from multitrainer_cli.training.optimizer import parse_optimizer


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The weights of the source have not learned anything."""
    path = tmp_path_factory.mktemp("source") / "source.params"
    mx.random.seed(0)
    build_network(CLASSES, [mx.cpu()])[0].save_parameters(str(path))
    return fine_tuning.Settings(path, 2, 25, parse_optimizer(None, None, None), [mx.cpu()])


def same_outcome(one, other):
    timed = ("seconds_per_epoch", "megabytes")
    return {key: one[key] for key in one if key not in timed} == {key: other[key] for key in other if key not in timed}


@pytest.mark.slow
def test_a_run_gives_the_same_row_again_and_the_accuracy_of_the_weights_it_keeps(settings, tmp_path):
    run = fine_tuning.Run("backbone at 0.1", 0.03, 4)
    row = fine_tuning.fine_tune(settings, run, kept_in=tmp_path / "kept.params")
    assert same_outcome(row, fine_tuning.fine_tune(settings, run))
    assert not same_outcome(row, fine_tuning.fine_tune(settings, run._replace(seed=5)))
    assert (row["regime"], row["learning_rate"], row["seed"]) == tuple(run)
    unseen = load_digits().draw(fine_tuning.SHOTS, fine_tuning.UNSEEN, 4)[1]
    net, _ = build_network(CLASSES, [mx.cpu()])
    net.load_parameters(str(tmp_path / "kept.params"))
    scores = net(mx.nd.array(unseen.images)).asnumpy()
    assert (scores.argmax(axis=1) == unseen.labels).mean() == pytest.approx(row["val_accuracy"], abs=1 / 400)


@pytest.mark.slow
def test_a_frozen_backbone_keeps_the_weights_of_the_source(settings, tmp_path):
    fine_tuning.fine_tune(settings, fine_tuning.Run("backbone frozen", 0.03, 0), kept_in=tmp_path / "kept.params")
    kept, source = arrays(tmp_path / "kept.params"), arrays(settings.source)
    assert not np.array_equal(kept["output.weight"], source["output.weight"])
    for name in source:
        if name.startswith("features."):
            np.testing.assert_array_equal(kept[name], source[name], err_msg=name)


def test_training_that_diverges_counts_as_accuracy_0(settings):
    row = fine_tuning.fine_tune(settings, fine_tuning.Run("one learning rate", 1e30, 0))
    assert (row["val_accuracy"], row["train_loss"]) == (0.0, None)


@pytest.mark.parametrize("name", REGIMES)
def test_an_optimizer_that_ignores_multipliers_is_named(settings, name):
    run, wrong = fine_tuning.Run(name, 0.1, 0), settings._replace(optimizer=parse_optimizer("sgd", None, -1.0))
    net, head = build_network(CLASSES, [mx.cpu()])
    assert fine_tuning.make_trainer(settings, run, net, head).learning_rates
    wrong.optimizer.settings["learning_rat"] = 1
    with pytest.raises((UserError, TypeError), match="learning_rat"):
        fine_tuning.make_trainer(wrong, run, net, head)


def test_a_file_that_is_not_a_source_is_named(settings, tmp_path):
    (tmp_path / "source.params").write_text("something else")
    with pytest.raises(UserError, match="was not written by this command; delete it and run again"):
        fine_tuning.fine_tune(
            settings._replace(source=tmp_path / "source.params"), fine_tuning.Run("backbone frozen", 1, 0)
        )
