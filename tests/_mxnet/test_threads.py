"""The number of threads that MXNet computes with is the one that its engine has."""

import os

import pytest

from support import run_python

CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, max(1, CPUS // 2)),  # on x86
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"MXNET_OMP_MAX_THREADS": str(CPUS)}, CPUS),
        ({"MXNET_OMP_MAX_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1", "MXNET_OMP_MAX_THREADS": "2", "MXNET_ENGINE_TYPE": "NaiveEngine"}, 1),
    ],
    ids=str,
)
def test_the_number_is_what_the_environment_makes_of_it(environment, threads):
    done = run_python(
        f"""
        import os
        for name in ("OMP_NUM_THREADS", "MXNET_OMP_MAX_THREADS"):
            os.environ.pop(name, None)
        os.environ.update({environment})
        from multitrainer._mxnet import worker_threads
        import mxnet as mx
        product = mx.nd.dot(mx.nd.ones((300, 300)), mx.nd.ones((300, 300)))
        print(worker_threads(), worker_threads(), product.sum().asscalar() == 300 ** 3)
        """
    )
    assert done.stdout == f"{threads} {threads} True\n", done.stderr
