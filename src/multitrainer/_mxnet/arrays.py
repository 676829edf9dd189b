"""NDArrays: their memory, its layout, and the graph that records them; and addresses of C functions."""

from __future__ import annotations

import ctypes
import functools
from typing import Iterable

import numpy as np
from mxnet import cpu, nd
from mxnet.base import _LIB, check_call
from mxnet.gluon import Parameter
from mxnet.ndarray import NDArray
from mxnet.runtime import Features


def use_plain_layout(params: Iterable[Parameter]) -> None:
    """Bring the values of ``params`` into the plain layout, which parameter servers and Horovod can read.

    A forward pass outside of ``record`` leaves the weights of convolutions in a layout of MKL-DNN
    (``MKLDNNConvolutionForward`` in src/operator/nn/mkldnn/mkldnn_convolution.cc). ``MXNDArrayGetData``, which gives
    access to an array's memory, restores the plain one first (src/c_api/c_api.cc).
    """
    nd.waitall()  # such a pass may still be under way
    for param in params:
        for array in param._data or ():
            check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(ctypes.c_void_p())))


def copy_to_ndarray(values: np.ndarray) -> NDArray:
    """Return a new NDArray on the CPU with the values of an array.

    `nd.array` copies one value after another, which takes half as long as decoding a JPEG of the same size.
    """
    values = np.ascontiguousarray(values)
    array = nd.empty(values.shape, ctx=cpu(), dtype=values.dtype)
    address = ctypes.c_void_p()
    check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(address)))
    ctypes.memmove(address, values.ctypes.data, values.nbytes)
    return array


def has_gradient(array: NDArray) -> bool:
    """Whether a gradient was attached to ``array``."""
    handle = ctypes.c_void_p()
    check_call(_LIB.MXNDArrayGetGrad(array.handle, ctypes.byref(handle)))
    if handle.value is None:
        return False
    check_call(_LIB.MXNDArrayFree(handle))
    return True


def function_address(function: str) -> int:
    """Return the address of a function of MXNet's C interface or of a library linked to it; 0 if it is not found."""
    found = getattr(_LIB, function, None)
    return 0 if found is None else ctypes.cast(found, ctypes.c_void_p).value or 0


# NDArray::Chunk::IsMKLDNN and Reorder2Default of src/ndarray/ndarray.cc. The functions of the C interface that call the
# second have the engine run it and wait, which an operation that has locked the block must not.
_LAYOUT_FUNCTIONS = "_ZNK5mxnet7NDArray5Chunk8IsMKLDNNEv", "_ZN5mxnet7NDArray5Chunk15Reorder2DefaultEv"


def memory_block(array: NDArray) -> int:
    """Return the address of the block of memory (``NDArray::Chunk``) of ``array``; slices of one array share it.

    The engine has one lock for a block. An NDArray begins with the pointer to it (include/mxnet/ndarray.h).
    """
    return ctypes.c_void_p.from_address(array.handle.value).value or 0


@functools.lru_cache(maxsize=None)
def layout_functions() -> tuple[int, int] | None:
    """Return the addresses of two functions of a block: is it in a layout of MKL-DNN, and bring it into the plain one.

    Both are 0 if MXNet was built without MKL-DNN. The result is None if this build hides them.
    """
    whole, other = nd.zeros(2), nd.zeros(2)
    if not memory_block(whole) == memory_block(whole[1:]) == memory_block(whole.detach()) != memory_block(other):
        return None
    if not Features().is_enabled("MKLDNN"):
        return 0, 0
    is_mkldnn_layout, make_plain = map(function_address, _LAYOUT_FUNCTIONS)
    return (is_mkldnn_layout, make_plain) if is_mkldnn_layout and make_plain else None


def is_recorded(array: NDArray) -> bool:
    """Whether gradients flow to ``array``: it has a gradient attached, or an operator of the recorded graph made it."""
    state = ctypes.c_int()  # MXNet lets only such arrays set it; setting it to the same value changes nothing
    check_call(_LIB.MXNDArrayGetGradState(array.handle, ctypes.byref(state)))
    return _LIB.MXNDArraySetGradState(array.handle, state) == 0
