from __future__ import annotations

import itertools

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from multitrainer_cli.training.losses import Objective, SoftTargets
from multitrainer_cli.training.mixup import Mixup

# What torch.nn.functional.cross_entropy gives for OUTPUTS and LABELS with reduction="none", a weight or not, and a
# label_smoothing.
OUTPUTS = [
    [1.5409961082440433, -0.2934289057609464, -2.1787893820745574],
    [0.5684312772806678, -1.084522342424021, -1.3985953953708767],
    [0.4033468476292993, 0.8380263329976598, -0.7192575784693592],
    [-0.40334352493217457, -0.5966353626151273, 0.18203648506130554],
]
LABELS = [0, 2, 1, 2]
WEIGHTS = [0.5, 1.0, 2.0]
TORCH = {
    (0.0, False): [0.16885163545499998, 2.2532243644067833, 0.6195973812999231, 0.7010704310664142],
    (0.0, True): [0.08442581772749999, 4.506448728813567, 0.6195973812999231, 1.4021408621328284],
    (0.1, False): [0.35399198559911965, 2.177187706886837, 0.6859961611944357, 0.746538826322078],
    (0.1, True): [0.40481579324590633, 4.275427152137247, 0.7409875898421958, 1.3794303879663996],
}
# The same with 0.3 * one_hot(LABELS) + 0.7 * the one_hot of the label two rows further on, in place of LABELS.
TORCH_MIXED = [1.6136918172373749, 4.2754271521372464, 0.6827384526237535, 1.3794303879663998]
TOLERANCE = 2e-5  # of MKL-DNN's logarithm


class Shares(Mixup):
    """Mixup with given shares in place of drawn ones."""

    def shares(self, seed, epoch):
        return iter(GIVEN)


GIVEN = [0.3, 0.8, 1.0]


def log_softmax(outputs):
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def losses_of(objective, images, labels):
    """Return the losses of the first batch if the outputs of the network are OUTPUTS."""
    batch = next(objective.batches([(mx.nd.array(images), mx.nd.array(labels))], 0, 1))
    return objective.loss(mx.nd.array(OUTPUTS), batch.targets).asnumpy()


@pytest.mark.parametrize(("smoothing", "weighted"), sorted(TORCH))
def test_losses_are_those_of_torch(smoothing, weighted):
    objective = Objective(SoftTargets(3, smoothing, WEIGHTS if weighted else None))
    losses = losses_of(objective, np.zeros((4, 1)), LABELS)
    np.testing.assert_allclose(losses, TORCH[smoothing, weighted], atol=TOLERANCE)


def test_losses_of_mixed_labels_are_those_of_torch():
    objective = Objective(SoftTargets(3, 0.1, WEIGHTS), Shares(1, 1))
    np.testing.assert_allclose(losses_of(objective, np.zeros((4, 1)), LABELS), TORCH_MIXED, atol=TOLERANCE)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_and_gradients_follow_the_formula(smoothing):
    generator = np.random.RandomState(1)
    outputs, labels = generator.normal(size=(6, 4)), generator.randint(0, 4, 6)
    weights = generator.uniform(0.1, 3, 4)
    targets = ((1 - smoothing) * np.eye(4)[labels] + smoothing / 4) * weights
    objective = Objective(SoftTargets(4, smoothing, weights))
    batch = next(objective.batches([(mx.nd.zeros((6, 1)), mx.nd.array(labels))], 0, 1))
    array = mx.nd.array(outputs)
    array.attach_grad()
    with autograd.record():
        losses = objective.loss(array, batch.targets)
    losses.backward()
    logarithms = log_softmax(outputs)
    np.testing.assert_allclose(losses.asnumpy(), -(targets * logarithms).sum(axis=1), atol=TOLERANCE)
    expected = np.exp(logarithms) * targets.sum(axis=1, keepdims=True) - targets
    np.testing.assert_allclose(array.grad.asnumpy(), expected, atol=TOLERANCE)


def test_without_options_images_and_labels_stay_as_they_are():
    images, labels = mx.nd.ones((2, 1)), mx.nd.array([0, 1])
    batch = next(Objective().batches([(images, labels)], 0, 1))
    assert (batch.images, batch.labels, batch.targets) == (images, labels, labels)


def test_images_and_targets_are_mixed_with_the_share_of_their_batch():
    images = np.arange(8.0).reshape(4, 2)
    loader = [(mx.nd.array(images), mx.nd.array(LABELS))] * 3
    batches = list(Objective(SoftTargets(3), Shares(1, 1)).batches(loader, 0, 1))
    assert len(batches) == 3
    for share, batch in zip(GIVEN, batches):
        for mixed, whole in ((batch.images, images), (batch.targets, np.eye(3)[LABELS])):
            expected = share * whole + (1 - share) * np.roll(whole, 2, axis=0)
            np.testing.assert_allclose(mixed.asnumpy(), expected, rtol=1e-6)


def test_the_accuracy_counts_the_label_with_the_larger_share():
    loader = [(mx.nd.zeros((4, 1)), mx.nd.array(LABELS))] * 3
    batches = Objective(SoftTargets(3), Shares(1, 1)).batches(loader, 0, 1)
    assert [batch.labels.asnumpy().tolist() for batch in batches] == [[1, 2, 0, 2], LABELS, LABELS]


def test_the_seed_and_the_epoch_decide_what_is_drawn():
    def draw(seed, epoch):
        loader = itertools.repeat((mx.nd.arange(4), mx.nd.array(LABELS)), 3)
        batches = Objective(SoftTargets(3), Mixup(1.0, 5)).batches(loader, seed, epoch)
        return [batch.images.asnumpy().tolist() for batch in batches]

    assert draw(1, 2) == draw(1, 2)
    assert len({str(draw(*each)) for each in ((1, 2), (1, 3), (2, 2))}) == 3


def test_labels_alone_cannot_be_mixed():
    with pytest.raises(ValueError, match="expected `targets`"):
        Objective(mixup=Mixup(1, 1))
