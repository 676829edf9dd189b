"""GluonCV's ResNet v1b, MobileNet and MobileNet v2 in plain PyTorch, for benchmarks/whole_step.py.

A network is a sequence of its stages, those of `multitrainer.stages`. It holds the arrays of GluonCV's network in the
same order, so that weights can be copied one by one; tests/test_whole_step.py does so and compares the outputs. What is
changed in place is what PyTorch's own networks change in place.
"""

from __future__ import annotations

import functools

from torch import nn


def convolution(inputs, outputs, kernel=1, stride=1, groups=1, activation=nn.ReLU):
    """Return a convolution without a bias, BatchNorm, and the activation unless it is None."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([] if activation is None else [activation(inplace=True)]))


class Residual(nn.Module):
    """A block of ResNet: the activated sum of its layers and of its input, which `shortcut` may reshape."""

    def __init__(self, layers, shortcut):
        super().__init__()
        self.layers, self.shortcut, self.activation = layers, shortcut, nn.ReLU(inplace=True)

    def forward(self, x):
        """Return the output for a batch."""
        y = self.layers(x)
        y += x if self.shortcut is None else self.shortcut(x)
        return self.activation(y)


def basic(inputs, width, stride):
    layers = convolution(inputs, width, 3, stride), convolution(width, width, 3, activation=None)
    return nn.Sequential(*layers), width


def bottleneck(inputs, width, stride):
    outputs = 4 * width
    layers = convolution(inputs, width), convolution(width, width, 3, stride)
    return nn.Sequential(*layers, convolution(width, outputs, activation=None)), outputs


def resnet(block, depths, classes):
    """Return ResNet v1b, which strides in the 3x3 convolutions of its bottlenecks: He et al., 2016."""
    stages, inputs = [nn.Sequential(convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1))], 64
    for number, depth in enumerate(depths):
        blocks = []
        for stride in [1 if number == 0 else 2] + [1] * (depth - 1):
            layers, outputs = block(inputs, 64 << number, stride)
            same = stride == 1 and inputs == outputs
            shortcut = None if same else convolution(inputs, outputs, stride=stride, activation=None)
            blocks.append(Residual(layers, shortcut))
            inputs = outputs
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages, classifier(inputs, classes))


def classifier(inputs, classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def mobilenet(classes):
    """Return MobileNet 1.0: Howard et al., 2017."""
    stages, inputs = [convolution(3, 32, 3, 2)], 32
    widths = [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    for outputs, stride in zip(widths, [1, 2, 1, 2, 1, 2, *[1] * 5, 2, 1]):
        stages += [convolution(inputs, inputs, 3, stride, groups=inputs), convolution(inputs, outputs)]
        inputs = outputs
    return nn.Sequential(*stages, classifier(inputs, classes))


class InvertedResidual(nn.Module):
    """A block of MobileNet v2, which adds its input if shapes allow."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        inner = inputs * expansion
        layers = [] if expansion == 1 else [convolution(inputs, inner, activation=nn.ReLU6)]
        layers.append(convolution(inner, inner, 3, stride, groups=inner, activation=nn.ReLU6))
        self.layers = nn.Sequential(*layers, convolution(inner, outputs, activation=None))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        """Return the output for a batch."""
        return x + self.layers(x) if self.adds else self.layers(x)


def mobilenet_v2(classes):
    """Return MobileNet v2 1.0: Sandler et al., 2018."""
    stages, inputs = [convolution(3, 32, 3, 2, activation=nn.ReLU6)], 32
    settings = [(16, 1, 1), (24, 2, 2), (32, 2, 3), (64, 2, 4), (96, 1, 3), (160, 2, 3), (320, 1, 1)]
    for outputs, first, depth in settings:
        for stride in [first] + [1] * (depth - 1):
            stages.append(InvertedResidual(inputs, outputs, stride, 1 if inputs == 32 and outputs == 16 else 6))
            inputs = outputs
    stages.append(convolution(inputs, 1280, activation=nn.ReLU6))
    output = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1280, classes, 1, bias=False), nn.Flatten())
    return nn.Sequential(*stages, output)


NETWORKS = {
    "resnet50_v1b": functools.partial(resnet, bottleneck, (3, 4, 6, 3)),
    "resnet18_v1b": functools.partial(resnet, basic, (2, 2, 2, 2)),
    "mobilenet1.0": mobilenet,
    "mobilenetv2_1.0": mobilenet_v2,
}


def arrays(net):
    """Return the arrays of a network in the order of GluonCV's, which counts no batches in BatchNorm."""
    return [array for name, array in net.state_dict().items() if not name.endswith("num_batches_tracked")]
