"""The only place that uses private attributes of MXNet: a module for each kind of object that they belong to.

What they mean for multipliers and freezing is decided elsewhere.
"""
# ruff: noqa: F401

from .arrays import (
    copy_to_ndarray,
    function_address,
    has_gradient,
    is_recorded,
    layout_functions,
    memory_block,
    use_plain_layout,
)
from .blocks import (
    BatchNorm,
    Structure,
    children,
    held_parameters,
    mark_statistics,
    own_parameters,
    parameters_by_path,
    set_use_global_stats,
    use_global_stats,
    without_side_effects,
)
from .kvstores import (
    chosen_update_on_kvstore,
    compresses_gradients,
    has_sent_optimizer,
    has_sparse_weights,
    kvstore_fits,
    let_workers_update,
    servers_update,
    set_stored_weights,
    store_updates,
    why_not_workers,
    workers_should_update,
)
from .modules import (
    fixed_parameters,
    module_optimizer,
    module_parameters,
    modules_inside,
    names_by_index,
    updates_on_servers,
)
from .multiplier_support import supports_multiplier
from .optimizers import NOT_STATE, set_states, updater_of, weight_decays
from .parameters import (
    STATISTICS,
    ParameterArrays,
    arrays_and_gradients,
    contexts,
    discard_gradient,
    fresh_gradients,
    gradient_arrays,
    has_fresh_gradient,
    has_sparse_weight,
    is_auxiliary,
    is_fresh,
    is_initialized,
    is_statistic,
    layer_prefix,
    load_values,
    mark_gradients_fresh,
    mark_gradients_used,
    restoring_owners,
    set_fresh_gradients,
    shape,
    single_array_and_gradient,
    trainer_of,
    values_and_gradients,
    weight_like,
)
from .random_generators import cpu_generators
from .symbol_batchnorms import SymbolBatchNorm, symbol_batchnorms
from .symbols import input_count, own_symbol, set_variable, traced_symbol, variable, write_multipliers
from .threads import worker_threads
from .traces import (
    cached_op,
    drop_static_operators,
    forget_trace,
    is_hybridized,
    mark_for_replacement,
    set_operator_factory,
)
from .trainer_stores import number_of_trainer, sharing_connection
from .trainers import append_parameters, check_one_horovod_rank, scales_loss, without_parameters
from .update_counts import (
    ReplayableCount,
    SchedulerError,
    set_update_counts,
    times_updated,
    update_counts,
    updates_made,
)
