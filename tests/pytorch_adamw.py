"""Record what `torch.optim.AdamW` does, for `tests/optimizers/test_adamw.py`: ``python tests/pytorch_adamw.py``.

It needs PyTorch and NumPy, and no MXNet: the two need not run in one process.
"""

import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".json")
STEPS = 100
SHAPE = (4, 3)
PAUSE = range(30, 60)  # the updates in which the last group has no gradient
GROUPS = [(0.1, 1), (1, 0), (3, 2), (1, 1)]  # multipliers of learning rate and weight decay
CASES = {
    "defaults": {},
    "large decay": {"learning_rate": 0.01, "wd": 0.3},
    "large epsilon": {"learning_rate": 0.01, "epsilon": 1e-3, "wd": 0},
    "other betas": {"learning_rate": 0.003, "beta1": 0.8, "beta2": 0.95},
}


def weight(group):
    """Return the first value of the weight of a group."""
    return (0.1 * np.random.RandomState(group).randn(*SHAPE)).astype("float32")


def gradient(group, step):
    """Return the gradient of a group in one step, of any size."""
    values = np.random.RandomState(1000 * (group + 1) + step)
    return (10 ** values.uniform(-4, 1) * values.randn(*SHAPE)).astype("float32")


def train(torch, learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8, wd=0.01):
    """Return the weights of all groups after the last step."""
    weights = [torch.nn.Parameter(torch.tensor(weight(group))) for group in range(len(GROUPS))]
    groups = [
        {"params": [each], "lr": learning_rate * lr_mult, "weight_decay": wd * wd_mult}
        for each, (lr_mult, wd_mult) in zip(weights, GROUPS)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(beta1, beta2), eps=epsilon)
    for step in range(STEPS):
        for group, each in enumerate(weights):
            is_paused = group == len(GROUPS) - 1 and step in PAUSE
            each.grad = None if is_paused else torch.tensor(gradient(group, step))
        optimizer.step()
    return [each.detach().numpy().ravel().tolist() for each in weights]


if __name__ == "__main__":
    import torch

    recorded = {name: train(torch, **settings) for name, settings in CASES.items()}
    FILE.write_text(json.dumps({"torch": torch.__version__, **recorded}) + "\n")
