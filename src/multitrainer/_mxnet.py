"""Import MXNet on any NumPy it can run on; the one place that touches MXNet's private attributes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import itertools
import operator
import sys
import weakref
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, Callable, Collection, Iterable, Iterator, Sequence


def _import_mxnet() -> None:
    """Import mxnet, with ``numpy.bool`` lent to it where NumPy no longer has it (1.24 to 1.26).

    MXNet 1.9.1 reads ``numpy.bool`` while it is imported (``mxnet/numpy/utils.py``). The name is taken back afterwards,
    for other packages look for it to tell NumPy's versions apart; of MXNet only ``mx.np.array`` misses it then.

    Raises
    ------
    ImportError
        On a NumPy that MXNet cannot be imported with, naming the one to install.
    """
    if "mxnet" in sys.modules:
        return
    import numpy

    lent = "bool" not in vars(numpy)
    if lent:
        vars(numpy)["bool"] = bool
    try:
        importlib.import_module("mxnet")
    except AttributeError as error:
        wanted = "numpy>=1.26,<2" if sys.version_info >= (3, 12) else "numpy<1.24"
        raise ImportError(
            f"MXNet cannot be imported with NumPy {numpy.__version__} ({error}). "
            f"Install one that it can: pip install '{wanted}'"
        ) from error
    finally:
        if lent:
            del vars(numpy)["bool"]


_import_mxnet()

from mxnet import autograd, nd  # noqa: E402
from mxnet.base import _LIB, check_call  # noqa: E402
from mxnet.context import Context  # noqa: E402
from mxnet.gluon import Block, Constant, HybridBlock, Parameter, SymbolBlock, Trainer  # noqa: E402
from mxnet.gluon.nn.basic_layers import _BatchNorm  # noqa: E402
from mxnet.gluon.utils import shape_is_known  # noqa: E402
from mxnet.module import BucketingModule, Module, SequentialModule  # noqa: E402
from mxnet.name import NameManager  # noqa: E402
from mxnet.ndarray import CachedOp, NDArray, sparse  # noqa: E402
from mxnet.optimizer import Optimizer, Updater  # noqa: E402
from mxnet.runtime import Features  # noqa: E402
from mxnet.symbol import Symbol  # noqa: E402

BatchNorm = _BatchNorm  # the base of BatchNorm, BatchNormReLU, SyncBatchNorm and GluonCV's own

# mxnet/initializer.py goes by the same endings. A SymbolBlock has nothing else that tells its statistics apart.
STATISTICS = ("running_mean", "running_var", "moving_mean", "moving_var")


def is_auxiliary(param: Parameter) -> bool:
    """Whether no gradient ever moves ``param``: a constant, or statistics that the forward pass keeps."""
    if not param._differentiable or isinstance(param, Constant):
        return True
    return param.grad_req == "null" and param.name.endswith(STATISTICS)


def mark_statistics(block: Block) -> None:
    """Note on the Parameters of SymbolBlocks below ``block`` which are statistics: MXNet's SymbolBlock does not."""
    if isinstance(block, SymbolBlock):
        names = set(block._cached_graph[1].list_auxiliary_states())
        for param in block.params.values():
            if param.name in names:
                param._differentiable = False
    for _, child in children(block):
        mark_statistics(child)


def stem(param: Parameter) -> str:
    """Return what the name of ``param`` shares with the other parameters of its layer."""
    for ending in STATISTICS:
        if param.name.endswith(ending):
            return param.name[: -len(ending)]
    return param.name[: param.name.rfind("_") + 1]


def is_statistic(param: Parameter) -> bool:
    """Whether ``param`` holds statistics that a forward pass keeps."""
    return is_auxiliary(param) and not isinstance(param, Constant) and param.name.endswith(STATISTICS)


def children(block: Block) -> Iterator[tuple[str, Block]]:
    """Yield the direct children of ``block`` with the names they are registered under."""
    return iter(block._children.items())


def own_parameters(block: Block) -> dict[str, Parameter]:
    """Return the Parameters of ``block`` itself, without its children's, by attribute."""
    return dict(block._reg_params)


def held_parameters(block: Block) -> list[Parameter]:
    """Return the Parameters of ``block`` itself, those included that are not its attributes."""
    return list(dict.fromkeys([*block._reg_params.values(), *block.params.values()]))


class Structure:
    """The Blocks at and below some Blocks, and whether a child or a Parameter was replaced since.

    Parameters
    ----------
    roots : iterable of Block
        The outermost Blocks.
    """

    def __init__(self, roots: Iterable[Block]) -> None:
        blocks: dict[Block, None] = {}
        for root in roots:
            root.apply(blocks.setdefault)
        self._blocks = list(blocks)
        self._members = [members for block in blocks for members in (block._children, block._reg_params)]
        self._seen = self._now()

    def parameters(self) -> dict[Parameter, None]:
        """Return the Parameters that the Blocks hold, each once."""
        return dict.fromkeys(param for block in self._blocks for param in held_parameters(block))

    def _now(self) -> list[Any]:
        return list(itertools.chain.from_iterable(map(operator.methodcaller("values"), self._members)))

    def changed(self) -> bool:
        """Whether a Block or a Parameter was added, removed or replaced."""
        return self._now() != self._seen


def parameters_by_path(block: Block) -> dict[str, Parameter]:
    """Return all Parameters of ``block`` by attribute path, the names in a file of ``save_parameters``."""
    return block._collect_params_with_prefix()


def owner(param: Parameter) -> Any:
    """Return the Trainer that ``param`` belongs to, or None."""
    return param._trainer


def set_owner(param: Parameter, trainer: Trainer | None) -> None:
    """Give ``param`` back to the Trainer it belonged to."""
    param._trainer = trainer


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


class _LeftOut:
    """Stands in for a Parameter that an update passes over: the loops of trainers skip what requests no gradient."""

    grad_req, _grad = "null", None

    def __init__(self, param: Parameter) -> None:
        self._param = param

    def __getattr__(self, name: str) -> Any:
        return getattr(self._param, name)


@contextlib.contextmanager
def leaving_out(trainer: Trainer, params: Collection[Parameter]) -> Iterator[None]:
    """Let ``trainer`` exchange and update nothing of ``params``; the Parameters themselves do not change.

    Replacing the list takes one assignment, so an interrupt leaves no Parameter half changed.
    """
    everything = trainer._params
    try:
        if params:
            trainer._params = [_LeftOut(param) if param in params else param for param in everything]
        yield
    finally:
        trainer._params = everything


def discard_gradient(param: Parameter) -> None:
    """Make the gradient of ``param`` count as used, and drop what was added up in it."""
    if param._grad is None:
        return
    for array in param._data:
        array._fresh_grad = False
    if param.grad_req == "add":
        param.zero_grad()


def has_gradient(array: NDArray) -> bool:
    """Whether a gradient was attached to ``array``."""
    handle = ctypes.c_void_p()
    check_call(_LIB.MXNDArrayGetGrad(array.handle, ctypes.byref(handle)))
    if handle.value is None:
        return False
    check_call(_LIB.MXNDArrayFree(handle))
    return True


def has_fresh_gradient(param: Parameter) -> bool:
    """Whether a backward pass has written a gradient of ``param`` that no step has used yet."""
    return param._grad is not None and any(array._fresh_grad for array in param._data)


def use_gradients(weights: Iterable[NDArray]) -> None:
    """Note that the gradients of ``weights`` were used, as a step does."""
    for array in weights:
        array._fresh_grad = False


def array_and_gradient(param: Parameter) -> tuple[NDArray | None, NDArray | None]:
    """Return the only array of ``param`` and its gradient, or None where there is not exactly one."""
    both = param._data, param._grad
    return tuple(found[0] if found and len(found) == 1 else None for found in both)  # type: ignore[return-value]


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


class Counting:
    """One count of updates by an optimizer on one device, which stock can make once more: see `repeated`."""

    def __init__(self, optimizer: Optimizer, context: Context) -> None:
        optimizer._set_current_context(context.device_id)
        self._optimizer = optimizer
        self._counts, self._num_update = dict(optimizer._index_update_count), optimizer.num_update
        self._answers: list[tuple[Any, BaseException | None]] = []

    def count(self, indices: Sequence[int]) -> Iterator[tuple[Sequence[int], list[Any]]]:
        """Count one update of each index, as stock's Updater does; yield the indices of each operator and their rates.

        Raises
        ------
        SchedulerError
            If the lr_scheduler raised something, be it no ``Exception``.
        """
        optimizer = self._optimizer
        # A scheduler is asked for every operator, with what ``num_update`` is by then.
        together = len(indices) if optimizer.lr_scheduler is None else max(optimizer.aggregate_num, 1)
        for start in range(0, len(indices), together):
            part = indices[start : start + together]
            optimizer._update_count(part)
            answered = SimpleNamespace(**{**vars(optimizer), "lr": self._rate(), "lr_scheduler": None})
            yield part, Optimizer._get_lrs(answered, part)

    def _rate(self) -> Any:
        if self._optimizer.lr_scheduler is None:
            return self._optimizer.lr
        try:
            self._answers.append((self._optimizer.lr_scheduler(self._optimizer.num_update), None))
        except BaseException as error:
            self._answers.append((None, error))
            raise SchedulerError from error
        return self._answers[-1][0]

    def take_back(self) -> None:
        """Make the optimizer forget the updates counted since."""
        self._optimizer._index_update_count.clear()
        self._optimizer._index_update_count.update(self._counts)
        self._optimizer.num_update = self._num_update

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Take the count back for stock to make: what the lr_scheduler said or raised is repeated, not asked twice."""
        optimizer, scheduler = self._optimizer, self._optimizer.lr_scheduler
        answers = list(self._answers)

        def repeat(num_update: int) -> Any:
            if not answers:
                return scheduler(num_update)
            answer, error = answers.pop(0)
            if error is not None:
                raise error
            return answer

        self.take_back()
        try:
            if scheduler is not None:
                optimizer.lr_scheduler = repeat
            yield
        finally:
            if optimizer.lr_scheduler is repeat:
                optimizer.lr_scheduler = scheduler


class SchedulerError(Exception):
    """An lr_scheduler raised what is its cause."""


def weight_decays(optimizer: Optimizer, indices: Sequence[int]) -> list[Any]:
    """Return the weight decay of each index."""
    return optimizer._get_wds(indices)


def times_updated(optimizer: Optimizer, indices: Sequence[int]) -> list[int]:
    """Return how often each index was updated on the current device."""
    return [optimizer._index_update_count[index] for index in indices]


def is_hybridized(block: Block) -> bool:
    """Whether the next call of ``block`` is traced, or runs a trace made before."""
    return isinstance(block, HybridBlock) and block._active


def forget_trace(block: Block) -> None:
    """Make the next call of a hybridized ``block`` trace it again."""
    if isinstance(block, HybridBlock):
        block._clear_cached_op()


# Whose operators keep hold of the arrays of gradients that they were first run with.
_static_blocks: weakref.WeakSet[HybridBlock] = weakref.WeakSet()


def _is_static(block: HybridBlock) -> bool:
    return bool(dict(block._flags).get("static_shape"))


def drop_static_operators(params: Collection[Parameter]) -> None:
    """Let networks with ``static_shape=True`` build the operators again that take some of ``params``.

    An operator goes on as it was when the gradients that are requested change, and writes wrong ones or none. The
    trace stays, for `export`.
    """
    for block in list(_static_blocks):
        if any(source in params for is_data, source in block._cached_op_args if not is_data):
            if block._backend is None:
                block._cached_op = None
            else:
                block._clear_cached_op()  # the backend divides the graph as it was traced


# On a Block, where copies and pickles take it along: that its operators are replaced.
_REPLACED = "_multitrainer_replaced"


def replace_traces(block: Block) -> None:
    """Run what `replace_operators` was given in the place of the operator of each trace of a hybridized ``block``."""
    if isinstance(block, HybridBlock):
        setattr(block, _REPLACED, True)
        if block._cached_op is not None:
            _replace_operator(block)


def _replace_operator(block: HybridBlock) -> None:
    if block._backend is None and isinstance(block._cached_op, CachedOp):  # a backend's graph is not to be divided
        sources = [None if is_data else source for is_data, source in block._cached_op_args]
        block._cached_op = _make(block._cached_op, block._cached_graph[1], sources, block._flags)


def _build_cache(block: HybridBlock, *args: Any) -> None:
    _stock_build_cache(block, *args)
    if _is_static(block):
        _static_blocks.add(block)
    if _REPLACED in vars(block):
        _replace_operator(block)


# A method of the class, and not of each Block: one on a Block would stay bound to it in its copies, and its pickles
# would need this package. It does what MXNet's does for every Block that is not marked.
_stock_build_cache = HybridBlock._build_cache
HybridBlock._build_cache = _build_cache
_static_blocks.update(found for found in gc.get_objects() if issubclass(type(found), HybridBlock) and _is_static(found))
_make: Callable[..., Any]


def replace_operators(make: Callable[..., Any]) -> None:
    """Give the operators of marked Blocks to ``make``; see `prefix.Trace`."""
    global _make
    _make = make


def cached_op(symbol: Symbol, is_parameter: Sequence[bool], flags: Sequence[tuple[str, Any]]) -> CachedOp:
    """Return ``symbol`` as an operator, hybridized with ``flags``; it has to know which inputs are Parameters."""
    indices = {kind: [i for i, each in enumerate(is_parameter) if each is kind] for kind in (False, True)}
    return CachedOp(symbol, [("data_indices", indices[False]), ("param_indices", indices[True]), *flags])


def is_recorded(array: NDArray) -> bool:
    """Whether gradients flow to ``array``: it is a variable, or an operator of the recorded graph made it."""
    state = ctypes.c_int()  # MXNet sets it for those alone, and to what it was changes nothing
    check_call(_LIB.MXNDArrayGetGradState(array.handle, ctypes.byref(state)))
    return _LIB.MXNDArraySetGradState(array.handle, state) == 0


def use_global_stats(layer: _BatchNorm) -> bool:
    """Whether ``layer`` normalizes with its running statistics, in training too."""
    return bool(layer._kwargs["use_global_stats"])


def set_use_global_stats(layer: _BatchNorm, value: bool) -> None:
    """Choose the statistics that ``layer`` normalizes with from its next trace on."""
    layer._kwargs["use_global_stats"] = value


def updates_made(optimizer: Optimizer) -> int:
    """Return how many updates of single Parameters ``optimizer`` has made, on all devices together."""
    return sum(sum(counts.values()) for counts in optimizer._all_index_update_counts.values())


# Attributes of every Optimizer that its trainer makes anew, sets at each step, or saves in a way of its own.
NOT_STATE = frozenset(
    (
        *("param_dict", "idx2name", "sym_info", "lr_mult", "wd_mult", "lr_scheduler", "rescale_grad"),
        *("num_update", "_index_update_count", "_all_index_update_counts"),
        *("aggregate_num", "allow_np_array"),  # of the process, by its environment
    )
)


def update_counts(optimizer: Optimizer) -> dict[int, int]:
    """Return how often each index was updated; a kvstore keeps the count of one index on one device only."""
    counts: dict[int, int] = {}
    for on_device in optimizer._all_index_update_counts.values():
        for index, count in on_device.items():
            counts[index] = max(count, counts.get(index, 0))
    return counts


def set_update_counts(optimizer: Optimizer, counts: dict[int, int], contexts: Sequence[Context]) -> None:
    """Give every device the same counts."""
    devices = {0, *optimizer._all_index_update_counts, *(context.device_id for context in contexts)}
    optimizer._all_index_update_counts = {device: dict(counts) for device in sorted(devices)}
    optimizer._set_current_context(contexts[0].device_id)


def updater_of(kvstore: Any) -> Updater:
    """Return the Updater of a kvstore that updates in this process."""
    return kvstore._updater


def set_states(updater: Updater, kept: Collection[int], states: dict[int, Any], in_place: bool) -> None:
    """Give an Updater new states; unless they are ``in_place``, it moves each to its weight when it is first used."""
    own = {index: state for index, state in updater.states.items() if index in kept}
    updater.states_synced = {**{i: updater.states_synced[i] for i in own}, **dict.fromkeys(states, in_place)}
    updater.states = {**own, **states}


def is_initialized(param: Parameter) -> bool:
    """Whether ``param`` has its values, which a deferred one gets in the first forward pass."""
    return param._data is not None


def shape(param: Parameter) -> tuple[int, ...] | None:
    """Return the shape of ``param``, or None if it is not known yet; that of a SymbolBlock may be its array's alone."""
    known = param.shape if param.shape is not None or param._data is None else param._data[0].shape
    return known if known is not None and shape_is_known(known) else None


def weight_like(param: Parameter, context: Context) -> NDArray:
    """Return an array for an optimizer to make the state of ``param`` for, as it would for the weight itself."""
    if param._stype == "default":
        return param.list_data()[0].as_nd_ndarray().as_in_context(context)  # as `Updater` gives it to an optimizer
    return sparse.zeros(param._stype, param.shape, ctx=context, dtype=param.dtype)


def traced_symbol(block: Block) -> Symbol | None:
    """Return the symbol that ``block`` runs and exports: that of a SymbolBlock, or of the trace made last."""
    graph = block._cached_graph if isinstance(block, HybridBlock) else ()
    return graph[1] if graph else None


def variable(param: Parameter) -> Symbol | None:
    """Return the variable that stands for ``param`` in traces, or None if it has not been traced."""
    return param._var


def set_variable(param: Parameter, node: Symbol) -> None:
    """Make ``node`` the variable that stands for ``param``."""
    param._var = node


def write_attributes(node: Symbol, param: Parameter) -> None:
    """Write the multipliers of ``param`` to a variable, and so into every symbol that shares it."""
    node._set_attr(__lr_mult__=str(param.lr_mult), __wd_mult__=str(param.wd_mult))


def modules_inside(module: Any) -> Iterator[Module]:
    """Yield every Module that has an optimizer in ``module``, be it a chain, a set of buckets or a Module itself."""
    if isinstance(module, SequentialModule):
        for part in module._modules:
            yield from modules_inside(part)
    elif isinstance(module, BucketingModule):
        yield from module._buckets.values()
    elif isinstance(module, Module):
        yield module


def module_optimizer(module: Module) -> Optimizer:
    """Return the Optimizer of ``module``."""
    return module._optimizer


def updates_on_servers(module: Module) -> bool:
    """Whether parameter servers update, with a copy of the optimizer that was pickled for them."""
    return bool(module._update_on_kvstore) and "dist" in module._kvstore.type


def module_parameters(module: Module) -> list[str]:
    """Return the names of the parameters of ``module``, fixed ones included, in its order."""
    return list(module._param_names)


def fixed_parameters(module: Module) -> set[str]:
    """Return the names of the parameters that ``module`` never updates."""
    return set(module._fixed_param_names)


def names_by_index(module: Module) -> dict[int, str]:
    """Return what each index that ``module`` updates stands for; empty where it goes by name (on a kvstore)."""
    if module._update_on_kvstore:
        return {}
    devices = len(module._context)
    return {i * devices + k: name for i, name in enumerate(module._param_names) for k in range(devices)}


@contextlib.contextmanager
def undisturbed(block: Block) -> Iterator[None]:
    """Let ``block`` be traced by a symbol with nothing to show for it: no hook runs, no Parameter keeps a variable."""
    blocks: dict[Block, None] = {}
    block.apply(lambda each: blocks.setdefault(each))
    hooks = [(each, each._forward_hooks, each._forward_pre_hooks) for each in blocks]
    variables = [(param, param._var) for each in blocks for param in each.params.values()]
    try:
        for each in blocks:
            each._forward_hooks, each._forward_pre_hooks = OrderedDict(), OrderedDict()
        with NameManager(), autograd.pause():
            yield
    finally:
        for each, after, before in hooks:
            each._forward_hooks, each._forward_pre_hooks = after, before
        for param, node in variables:
            param._var = node


def own_symbol(block: SymbolBlock) -> Symbol:
    """Return the symbol that a SymbolBlock runs."""
    return block._cached_graph[1]


def symbol_inputs(block: SymbolBlock) -> int:
    """Return how many inputs a SymbolBlock takes."""
    return len(block._cached_graph[0])
