"""Puts components into an agent, or leaves them out of it, in every combination of an ablation."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from purejaxdqn import agents
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.checks import ConfigError, ensure, nearest_names
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.settings import RunConfig, parse

Component = Mapping[str, Any]  # settings by name; the first one is the switch
Combination = tuple[bool, ...]  # of each component, whether it is in

_DRAWN: Component = {"num_quantiles": 8, "adam_epsilon": 1e-5}
COMPONENTS: dict[str, Component] = {
    "double": {"td_error": "double_q_learning"},
    "minto": {"td_error": "minto"},
    "maxmin": {"ensemble": "min"},
    "dueling": {"dueling": True},
    "n_step": {"n_step": 5},
    "prioritised": {"prioritised": True},
    "munchausen": {"munchausen": True},
    "noisy": {"noisy": True},
    "layer_norm": {"layer_norm": True},
    "categorical": {"representation": "categorical", "adam_epsilon": 1e-5},
    "hl_gauss": {"representation": "categorical", "label": "gaussian", "adam_epsilon": 1e-5},
    "quantile": {"representation": "quantile", "adam_epsilon": 1e-5},
    "implicit_quantile": {"representation": "implicit_quantile", **_DRAWN},
    "proposed_quantile": {"representation": "proposed_quantile", **_DRAWN},
    "expected_sarsa": {"td_error": "expected_sarsa"},
    "soft": {"td_error": "soft_q_learning"},
    "persistent": {"td_error": "persistent_advantage_learning"},
    "huber": {"penalty": "huber"},
    "constant_learning_rate": {"learning_rate_end_fraction": 1.0},
    "unclipped": {"max_grad_norm": float("inf")},
}


def find_components(names: Sequence[str], base: RunConfig) -> dict[str, Component]:
    """Finds components by name, in the order of `COMPONENTS`.

    A setting of the base with its value, such as "discount=0.9", is one too; these come last.

    Raises:
      ConfigError: for names that are none, or components that cannot stand beside each other or in
        the base.
    """
    is_list = isinstance(names, Sequence | Mapping) and not isinstance(names, str)
    is_list = is_list and all(isinstance(name, str) for name in names)
    ensure(is_list, "components", names, "a list of names, such as ['double', 'dueling']")
    if not names:
        raise ConfigError(f"components is empty: name some of {', '.join(COMPONENTS)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"components {list(names)} must differ from each other")
    found = {name: COMPONENTS[name] for name in COMPONENTS if name in names}
    found |= {name: _read_component(name, base) for name in names if name not in COMPONENTS}
    switches = {name: next(iter(component)) for name, component in found.items()}
    for one, other in itertools.combinations(found, 2):
        if (setting := switches[one]) == switches[other]:
            raise ConfigError(f"{one} and {other} both set {setting}: leave one of them out")
    plain, agent = _find_plain(base), base.agent or type(base).__name__
    for name, setting in switches.items():
        if not hasattr(base, setting):
            raise ConfigError(f"{name} cannot be put in: the settings of {agent} have no {setting}")
        value, without = getattr(base, setting), getattr(plain, setting)
        is_fixed = isinstance(value, str) or name not in COMPONENTS  # else given by hand goes first
        if is_fixed and value not in (without, found[name][setting]):
            raise ConfigError(
                f"{name} cannot be put in: the base has {setting} {value!r} already; leave the "
                f"component out, or set --{setting.replace('_', '-')} {without}"
            )
    return found


def configure(
    base: RunConfig, components: Mapping[str, Component], combination: Combination
) -> RunConfig:
    """Makes the base's settings with the components that are in, and without the others."""
    plain = _find_plain(base)
    changes: dict[str, Any] = {}
    for component, is_in in zip(components.values(), combination, strict=True):
        switch = next(iter(component))
        in_base = getattr(base, switch) != getattr(plain, switch)
        for setting, value in component.items():
            without, own = getattr(plain, setting), getattr(base, setting)
            if value is without and isinstance(value, bool):  # it is part of the agent itself
                without, in_base = not value, True
            if is_in and own == without:
                changes[setting] = value
            elif not is_in and in_base and (setting == switch or own == value):
                changes[setting] = without
    return dataclasses.replace(base, **changes)


def configure_all(
    base: RunConfig, components: Mapping[str, Component]
) -> dict[Combination, RunConfig]:
    """Makes the settings of all combinations.

    Raises:
      ConfigError: naming every combination that cannot be trained, and why.
    """
    base.validate()
    declared = settings_of(type(base))
    configs, problems = {}, []
    for combination in itertools.product((False, True), repeat=len(components)):
        configs[combination] = config = configure(base, components, combination)
        chosen = [*itertools.compress(components, combination)]
        switches = {name: declared[next(iter(components[name]))] for name in chosen}
        reasons = [
            f"{name} changes nothing: {one} is read only where {one.read_only_where()}"
            for name, one in switches.items()
            if not one.is_read(config)
        ]
        try:
            config.validate()
        except ConfigError as error:
            reasons.append(str(error))
        problems += [f"{'+'.join(chosen) or 'none'}: {reason}" for reason in reasons]
    for at, name in enumerate(components):
        pairs = [(one, (*one[:at], True, *one[at + 1 :])) for one in configs if not one[at]]
        if any(configs[without] == configs[with_it] for without, with_it in pairs):
            problems.append(f"{name} changes nothing: the agent has it already, give another value")
    if problems:
        raise ConfigError("combinations that cannot be trained: " + "; ".join(problems))
    return configs


def _find_plain(base: RunConfig) -> RunConfig:
    """Returns the settings without any component: plain DQN's, beside the defaults of a class."""
    plain = type(base)()
    if not isinstance(plain, DQNConfig):
        return plain
    return dataclasses.replace(plain, **{**vars(agents.get("dqn").config), "agent": plain.agent})


def _read_component(name: str, base: RunConfig) -> Component:
    """Reads a component such as "discount=0.9"."""
    setting, equals, text = name.partition("=")
    declared = {n: one for n, one in settings_of(type(base)).items() if n != "agent"}
    if not equals:
        raise ConfigError(
            f"component {name!r} must be one of {nearest_names(name, COMPONENTS)}, or a setting "
            "with its value, such as discount=0.9"
        )
    if setting not in declared:
        raise ConfigError(
            f"component {name!r} must name a setting of {type(base).__name__}, such as "
            f"{nearest_names(setting, declared)}"
        )
    return {setting: parse(declared[setting], text)}
