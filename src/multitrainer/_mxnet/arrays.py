"""NDArrays as the engine and MKL-DNN see them."""

from __future__ import annotations

import ctypes
import functools
from typing import Iterable

from mxnet import nd
from mxnet.base import _LIB, check_call
from mxnet.gluon import Parameter
from mxnet.ndarray import NDArray
from mxnet.runtime import Features


def use_plain_layout(params: Iterable[Parameter]) -> None:
    """Put the values of ``params`` into the layout that parameter servers and Horovod can read.

    A forward pass outside of ``record`` leaves the weights of convolutions in a layout of MKL-DNN's own
    (``MKLDNNConvolutionForward`` in src/operator/nn/mkldnn/mkldnn_convolution.cc). ``MXNDArrayGetData``, which gives
    access to an array's memory, puts it back first (src/c_api/c_api.cc).
    """
    nd.waitall()  # such a pass may still be under way, or what it asked for
    for param in params:
        for array in param._data or ():
            check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(ctypes.c_void_p())))


def has_gradient(array: NDArray) -> bool:
    """Whether a gradient was attached to ``array``."""
    handle = ctypes.c_void_p()
    check_call(_LIB.MXNDArrayGetGrad(array.handle, ctypes.byref(handle)))
    if handle.value is None:
        return False
    check_call(_LIB.MXNDArrayFree(handle))
    return True


def address(function: str) -> int:
    """Return where a function of MXNet's C interface, or of a library it is linked with, is in memory; 0 if nowhere."""
    found = getattr(_LIB, function, None)
    return 0 if found is None else ctypes.cast(found, ctypes.c_void_p).value or 0


# NDArray::Chunk::IsMKLDNN and Reorder2Default of src/ndarray/ndarray.cc. The functions of the C interface that call the
# second have the engine run it, and wait; an operation that holds the block must not.
_LAYOUT = "_ZNK5mxnet7NDArray5Chunk8IsMKLDNNEv", "_ZN5mxnet7NDArray5Chunk15Reorder2DefaultEv"


def memory_block(array: NDArray) -> int:
    """Return the address of the block (``NDArray::Chunk``) that holds ``array``; all parts of one array share it.

    The engine keeps one lock for a block. An NDArray begins with the pointer to it (include/mxnet/ndarray.h).
    """
    return ctypes.c_void_p.from_address(array.handle.value).value or 0


@functools.lru_cache(maxsize=None)
def layout_functions() -> tuple[int, int] | None:
    """Return the addresses of two functions of a block: whether MKL-DNN alone can read it, and to make it plain.

    Both are 0 if MXNet was built without MKL-DNN. None means that this build hides them.
    """
    whole, other = nd.zeros(2), nd.zeros(2)
    if not memory_block(whole) == memory_block(whole[1:]) == memory_block(whole.detach()) != memory_block(other):
        return None
    if not Features().is_enabled("MKLDNN"):
        return 0, 0
    is_foreign, make_plain = map(address, _LAYOUT)
    return (is_foreign, make_plain) if is_foreign and make_plain else None


def is_recorded(array: NDArray) -> bool:
    """Whether gradients flow to ``array``: it is a variable, or an operator of the recorded graph made it."""
    state = ctypes.c_int()  # MXNet sets it for those alone, and to what it was changes nothing
    check_call(_LIB.MXNDArrayGetGradState(array.handle, ctypes.byref(state)))
    return _LIB.MXNDArraySetGradState(array.handle, state) == 0
