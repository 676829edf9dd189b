"""Norms and updates by their formulas, in float64."""

import numpy as np

from support import CONTEXTS, mlp

STORES = [None, {}, {"update_on_kvstore": False}, {"kvstore": "local"}]  # None is one context


def network(store=None, **kwargs):
    return mlp(CONTEXTS if store is not None else None, batchnorm=False, **kwargs)


def contexts(store):
    return CONTEXTS if store is not None else None


def norm(arrays):
    """Return the norm of all values of ``arrays`` together."""
    return np.sqrt(sum(float(np.square(np.asarray(array, np.float64)).sum()) for array in arrays))


def gradients(net):
    """Return the gradients of the trained Parameters by name, summed over contexts."""
    return {
        name: sum(grad.asnumpy().astype(np.float64) for grad in param.list_grad())
        for name, param in net.collect_params().items()
        if param.grad_req != "null"
    }
