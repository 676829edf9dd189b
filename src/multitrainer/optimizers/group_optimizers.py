"""Read which optimizers the groups of a trainer ask for, before any of them is created."""

from __future__ import annotations

import copy
import types
from typing import Any, Mapping, NamedTuple, Sequence

from mxnet.gluon import Parameter
from mxnet.optimizer import Optimizer, create

from ..groups import OPTIMIZER, OptimizerChoice, ResolvedGroups
from ..groups.targets import closest_names


class GroupOptimizer(NamedTuple):
    """The optimizer of one group: an object, or the name and the settings with which one is created."""

    group: str
    given: str | Optimizer
    settings: dict[str, Any]
    params: list[Parameter]  # those that it updates

    @property
    def kind(self) -> type:
        """The class of the optimizer."""
        return optimizer_class(self.given)

    @property
    def lr_scheduler(self) -> Any:
        """The scheduler that it has or will get."""
        return _lr_scheduler(self.given, self.settings)

    def create(self, params: Sequence[Parameter]) -> Optimizer:
        """Create the optimizer as `gluon.Trainer` does; ``params`` are all those of the trainer.

        Raises
        ------
        ValueError
            If the optimizer does not accept the settings.
        """
        if isinstance(self.given, Optimizer):
            return self.given
        try:
            return create(self.given, param_dict=dict(enumerate(params)), **self.settings)
        except Exception as error:
            raise ValueError(
                f"optimizer {self.given!r} of group {self.group!r} cannot be created with {self.settings}: {error}"
            ) from error


def optimizer_class(optimizer: Any) -> type:
    """Give the class of an optimizer written as `gluon.Trainer` takes it; MXNet itself refuses unknown names."""
    if isinstance(optimizer, Optimizer):
        return type(optimizer)
    return Optimizer.opt_registry.get(str(optimizer).lower(), Optimizer)


def read_group_optimizers(
    resolved: ResolvedGroups,
    optimizer: Any,
    optimizer_params: Mapping[str, Any] | None,
    in_use: Mapping[str, Optimizer] | None = None,
) -> list[GroupOptimizer]:
    """List the optimizers of the groups, in the order of the groups; change nothing.

    Parameters
    ----------
    resolved : ResolvedGroups
        A group whose Parameters all got the optimizer of a later one is left out.
    optimizer, optimizer_params
        Those of the trainer.
    in_use : dict of str to Optimizer, optional
        The optimizers that earlier groups of the trainer have, by the name of the group.

    Raises
    ------
    ValueError
        If an optimizer is unknown, if it needs settings of the trainer that it cannot have, or if an optimizer or an
        lr_scheduler would serve twice.
    """
    members: dict[int, list[Parameter]] = {}
    for param, i in resolved.deciding[OPTIMIZER].items():
        members.setdefault(i, []).append(param)
    found = []
    for i, params in sorted(members.items()):
        group = resolved.groups[i]
        choice: Any = group.optimizer_choice
        if choice.optimizer is None:
            choice = _from_trainer(group.name, choice.params, optimizer, optimizer_params or {})
        elif isinstance(choice.optimizer, str):
            _check_name(group.name, choice.optimizer)
        found.append(GroupOptimizer(group.name, choice.optimizer, choice.params, params))
    users = {id(optimizer): "the trainer", id(_lr_scheduler(optimizer, optimizer_params or {})): "the trainer"}
    for name, used in (in_use or {}).items():
        users.update(dict.fromkeys((id(used), id(used.lr_scheduler)), f"group {name!r}"))
    _check_distinct(found, users)
    return found


def _from_trainer(
    name: str, settings: dict[str, Any], optimizer: Any, trainer_settings: Mapping[str, Any]
) -> OptimizerChoice:
    """Take the class and the settings of the trainer's optimizer, and replace some of the settings."""
    if not isinstance(optimizer, str):
        raise ValueError(
            f"optimizer_params of group {name!r}: the settings of the trainer's optimizer are not known, because it is "
            "an object or the group is added later; name the optimizer of the group, such as optimizer='sgd', and give "
            "all of its settings"
        )
    _check_name(name, optimizer)
    inherited = dict(trainer_settings)
    if inherited.get("lr_scheduler") is not None and "lr_scheduler" not in settings:
        if "learning_rate" in settings:
            raise ValueError(
                f"optimizer_params of group {name!r} set a learning_rate, but the lr_scheduler of the trainer's "
                "optimizer would apply to the group too; give the group an lr_scheduler (None for a constant rate), "
                "or use lr_mult"
            )
        inherited["lr_scheduler"] = _copied(name, inherited["lr_scheduler"])
    if settings.get("lr_scheduler") is not None:
        inherited.pop("learning_rate", None)  # MXNet would write it into the scheduler
    return OptimizerChoice(optimizer, {**inherited, **settings})


def _copied(name: str, scheduler: Any) -> Any:
    """Copy the trainer's lr_scheduler: schedulers count their calls."""
    try:
        return copy.deepcopy(scheduler)
    except Exception as error:
        raise ValueError(
            f"group {name!r} takes over the lr_scheduler {scheduler!r} of the trainer's optimizer, which cannot be "
            f"copied ({error}); give the group an lr_scheduler of its own"
        ) from error


def _check_name(group: str, name: str) -> None:
    if name.lower() not in Optimizer.opt_registry:
        closest = ", ".join(map(repr, closest_names(name.lower(), Optimizer.opt_registry)))
        raise ValueError(f"group {group!r}: there is no optimizer {name!r}; the closest are {closest}")


def _check_distinct(found: Sequence[GroupOptimizer], users: dict[int, str]) -> None:
    """Raise a ValueError if two of the optimizers, those of other ``users`` included, are or share one object."""
    for each in found:
        where = f"group {each.group!r}"
        if isinstance(each.given, Optimizer) and users.setdefault(id(each.given), where) != where:
            raise ValueError(
                f"the optimizer of {where} is the object that {users[id(each.given)]} has too, and would count every "
                "update twice; give each an Optimizer of its own"
            )
        shared = each.lr_scheduler
        is_stateless = shared is None or isinstance(shared, (types.FunctionType, types.BuiltinFunctionType))
        if not is_stateless and users.setdefault(id(shared), where) != where:
            raise ValueError(
                f"the lr_scheduler of {where} is the object that {users[id(shared)]} has too, and schedulers count "
                "their calls; give each one of its own, such as copy.deepcopy(lr_scheduler)"
            )


def _lr_scheduler(given: Any, settings: Mapping[str, Any]) -> Any:
    return given.lr_scheduler if isinstance(given, Optimizer) else settings.get("lr_scheduler")
