"""NDArrays: layouts, attached gradients, blocks of memory and addresses of C functions."""

import ctypes

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from multitrainer import _mxnet
from support import bits, convolution


def in_mkldnn_layout(array):
    is_mkldnn_layout, _ = _mxnet.layout_functions()
    function = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(is_mkldnn_layout)
    return function(_mxnet.memory_block(array))


@pytest.mark.skipif(not mx.runtime.Features().is_enabled("MKLDNN"), reason="MXNet was built without MKL-DNN")
def test_use_plain_layout_leaves_no_weight_in_a_layout_of_mkldnn():
    params = convolution().collect_params().values()
    mx.nd.waitall()
    assert any(in_mkldnn_layout(param.data()) for param in params)
    _mxnet.use_plain_layout(params)
    assert not any(in_mkldnn_layout(param.data()) for param in params)


def test_use_plain_layout_changes_no_value_and_accepts_deferred_parameters():
    expected = bits([param.data() for param in convolution().collect_params().values()])
    params = list(convolution().collect_params().values())
    _mxnet.use_plain_layout([*params, mx.gluon.Parameter("deferred", shape=(0, 2), allow_deferred_init=True)])
    assert bits([param.data() for param in params]) == expected


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64"])
def test_copy_to_ndarray_gives_the_values_whatever_their_strides(dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for given in (values, values[::-1, :, 1:3], values.transpose(2, 0, 1)):
        array = _mxnet.copy_to_ndarray(given)
        assert (array.dtype, array.context) == (np.dtype(dtype).type, mx.cpu())
        np.testing.assert_array_equal(array.asnumpy(), given)


def test_copy_to_ndarray_does_not_share_memory():
    values = np.zeros((2, 2), np.uint8)
    array = _mxnet.copy_to_ndarray(values)
    values[:] = 1
    array += 2
    assert (array.asnumpy().max(), values.max()) == (2, 1)


def test_has_gradient_only_if_one_is_attached():
    array = mx.nd.ones(2)
    assert not _mxnet.has_gradient(array)
    array.attach_grad()
    assert _mxnet.has_gradient(array)
    assert not _mxnet.has_gradient(array.detach())


def test_function_address_is_that_of_the_function():
    version = ctypes.c_int()
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int))(_mxnet.function_address("MXGetVersion"))
    assert function(ctypes.byref(version)) == 0
    assert version.value // 10000 == int(mx.__version__.split(".")[0])
    assert _mxnet.function_address("MXNoSuchFunction") == 0


def test_slices_share_the_block_of_memory_of_their_array():
    array = mx.nd.ones((4, 2))
    assert _mxnet.memory_block(array) == _mxnet.memory_block(array[1:3]) == _mxnet.memory_block(array.detach()) != 0
    assert _mxnet.memory_block(array) != _mxnet.memory_block(array.copy())


def test_is_recorded_if_gradients_flow_to_the_array():
    array = mx.nd.ones(2)
    assert not _mxnet.is_recorded(array)
    assert not _mxnet.is_recorded(array * 2)
    array.attach_grad()
    assert _mxnet.is_recorded(array)
    assert not _mxnet.is_recorded(array * 2)
    with autograd.record():
        assert _mxnet.is_recorded(array * 2)
        assert not _mxnet.is_recorded(mx.nd.ones(2) * 2)


@pytest.mark.parametrize("fresh", [False, True])
def test_is_recorded_keeps_the_state_of_the_gradient(fresh):
    array = mx.nd.ones(2)
    array.attach_grad()
    array._fresh_grad = fresh
    _mxnet.is_recorded(array)
    assert array._fresh_grad == fresh


@pytest.mark.skipif(not mx.runtime.Features().is_enabled("MKLDNN"), reason="MXNet was built without MKL-DNN")
def test_layout_functions_say_and_change_the_layout():
    _, make_plain = _mxnet.layout_functions()
    params = [param.data() for param in convolution().collect_params().values()]
    mx.nd.waitall()
    for array in params:
        if in_mkldnn_layout(array):
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(make_plain)(_mxnet.memory_block(array))
        assert not in_mkldnn_layout(array)
