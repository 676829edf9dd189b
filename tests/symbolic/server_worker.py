"""Trains a Module as the worker of a parameter server; prints what moved and which errors later calls raise."""

# isort: off
import multitrainer  # noqa: F401
import mxnet as mx

# isort: on
import json

from module_support import bound, convolution, update
from multitrainer import symbolic


def main():
    symbol = convolution()
    module = bound(symbol)
    optimizer = mx.optimizer.create("sgd", learning_rate=0.05, sym=symbol)
    symbolic.set_lr_mult(optimizer, {"conv1_weight": 0})
    symbolic.set_lr_mult(optimizer, {"conv1_bias": 2})
    module.init_optimizer("dist_sync", optimizer)
    before = dict(optimizer.lr_mult)
    answer = {"moved": sorted(update(module))}
    for function in (symbolic.set_lr_mult, symbolic.set_wd_mult):
        try:
            function(module, {"conv1_bias": 0})
        except RuntimeError as error:
            answer[function.__name__] = str(error)
    answer["unchanged"] = before == optimizer.lr_mult
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
