"""The settings of a run, and the rules that they keep."""

from __future__ import annotations

import dataclasses
import functools
import sys
import typing
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from purejaxdqn import environments
from purejaxdqn.types import ConfigError


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every training run sets, whatever it learns by; all that sweeps and reports ask for.

    Floats may be swept within one compiled program; the others set shapes and lengths.
    """

    env: str = "CartPole-v1"
    """The environment, by its gymnasium name."""
    total_steps: int = 100_000
    """Environment steps per seed, over all its environments, from the first one on."""
    num_envs: int = 4
    """Environments stepped side by side within one seed."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the network's hidden layers."""
    layer_norm: bool = False
    """Whether hidden layers are normalised before their ReLU."""
    discount: float = 0.99
    """Gamma, per step of one environment."""
    learning_rate: float = 3e-4
    """The optimiser's step size at the first gradient step."""
    learning_rate_end_fraction: float = 0.05
    """Fraction of learning_rate left at the last gradient step, falling linearly; 1: constant."""
    adam_epsilon: float = 1e-3
    """What Adam, or RAdam, adds to its denominator; larger ones keep small gradients small."""
    max_grad_norm: float = 10.0
    """Gradients are scaled down to this global norm; inf never does."""
    epsilon_start: float = 1.0
    """Probability of a random action at first."""
    epsilon_end: float = 0.04
    """Probability of a random action once exploration has decayed."""
    epsilon_fraction: float = 0.2
    """Fraction of total_steps over which epsilon falls in a straight line."""
    eval_interval: int = 5_000
    """Environment steps between evaluations; one before learning and one at the end come on top,
    and are the only ones if this is longer than the run."""
    eval_episodes: int = 100
    """Greedy episodes per evaluation and seed; their steps do not count as training."""

    @property
    def prefill_steps(self) -> int:
        """Environment steps before anything is learned."""
        return 0

    @property
    def steps_per_update(self) -> int:
        """Environment steps (of all environments) between rounds of updates."""
        raise NotImplementedError

    @property
    def updates_per_iteration(self) -> int:
        """Gradient steps in each round of updates."""
        raise NotImplementedError

    @property
    def num_iterations(self) -> int:
        """Rounds of acting and learning in a run."""
        return (self.total_steps - self.prefill_steps) // self.steps_per_update

    @property
    def num_updates(self) -> int:
        """Gradient steps in a run."""
        return self.num_iterations * self.updates_per_iteration

    def validate(self) -> None:
        """Refuses settings that cannot be kept, on concrete values, before anything is traced.

        Raises:
          ConfigError: with every setting at fault, its value, what is allowed, and the remedy.
        """
        problems = [*_range_problems(self)]
        if not problems:  # the relations below divide by these numbers
            problems = [*_evaluation_problems(self), *self._relation_problems()]
        if problems:
            raise ConfigError("\n".join(problems))
        environments.make(self.env)

    def _relation_problems(self) -> Iterator[str]:
        """What settings that are allowed each by itself make wrong together."""
        raise NotImplementedError


def ensure_kind(config: Any, kind: type[RunConfig]) -> None:
    """Refuses settings that an experiment cannot take.

    Raises:
      ConfigError: if they are not of this kind.
    """
    if not isinstance(config, kind):
        raise ConfigError(
            f"the experiment takes settings of {kind.__name__}, and not of "
            f"{type(config).__name__}: give the one, or train with another experiment"
        )


@functools.cache
def _type_hints(kind: Any) -> dict[str, Any]:  # slow, and wanted for each of many runs
    return typing.get_type_hints(kind)


def field_types(kind: Any) -> dict[str, Any]:
    """The types of a settings' class by name, also where the annotations are strings."""
    hints = _type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def float_fields(config: RunConfig) -> tuple[str, ...]:
    """The settings that enter a compiled program as arguments, and so can be swept within one."""
    return tuple(name for name, kind in field_types(type(config)).items() if kind is float)


@dataclasses.dataclass(frozen=True)
class DQNConfig(RunConfig):
    """Every setting of DQN and its extensions."""

    steps_per_update: int = 4
    """Environment steps (of all environments) between rounds of updates; a multiple of num_envs."""
    updates_per_iteration: int = 1
    """Gradient steps in each round of updates."""
    prefill_steps: int = 1_000
    """Environment steps of uniformly random play before anything is learned."""
    replay_capacity: int = 10_000
    """Transitions that the replay holds; the oldest are dropped."""
    batch_size: int = 128
    """Transitions per gradient step."""
    sample_with_replacement: bool = True
    """Whether a batch may hold a transition twice; without, sampling takes batch_size^2 steps."""
    prioritised: bool = False
    """Whether transitions are replayed in proportion to their priorities, and not uniformly."""
    priority_exponent: float = 0.5
    """How much priorities count: 0 samples uniformly, 1 in proportion (prioritised replay only)."""
    importance_exponent: float = 0.4
    """How far sampling by priority is corrected for at the first gradient step; rises in a straight
    line to 1, wholly, where the run ends (prioritised replay only)."""
    representation: Literal[
        "values", "categorical", "quantile", "implicit_quantile", "proposed_quantile"
    ] = "values"
    """What the network says of an action: its value, or its returns' distribution on fixed atoms
    (C51), by fixed quantiles (QR-DQN), by drawn ones (IQN), or by proposed ones (FQF)."""
    num_atoms: int = 51
    """Atoms of the categorical representation."""
    value_min: float = 0.0
    """The lowest atom: the least discounted return there may be."""
    value_max: float = 100.0
    """The highest atom: the greatest discounted return there may be."""
    num_quantiles: int = 32
    """Quantiles of the three quantile representations."""
    num_cosines: int = 64
    """Cosines by which a fraction is told to the network (implicit_quantile and proposed_quantile).
    """
    fraction_learning_rate: float = 1e-4
    """RMSprop's step size at first for the layer that proposes fractions; falls as learning_rate
    does (proposed_quantile only)."""
    dueling: bool = False
    """Whether the network is split into a state's value and the actions' advantages."""
    head_sizes: tuple[int, ...] = ()
    """Widths of hidden layers between features and outputs: a set in each stream of a dueling
    network, and behind the embedding of fractions (implicit_quantile and proposed_quantile)."""
    noisy: bool = False
    """Whether the network's weights are noisy, and explore in epsilon's place."""
    td_error: Literal[
        "q_learning",
        "double_q_learning",
        "expected_sarsa",
        "soft_q_learning",
        "persistent_advantage_learning",
    ] = "double_q_learning"
    """How the target is formed; of a distribution, whether its next action is picked as in
    double_q_learning or as in q_learning."""
    munchausen: bool = False
    """Whether the reward is raised by the log-probability of the action taken, with a soft target
    in place of td_error (values and quantiles only)."""
    munchausen_coefficient: float = 0.9
    """How much of that log-probability is added (munchausen only)."""
    advantage_coefficient: float = 0.9
    """How much of the gap to the best action is taken off (persistent_advantage_learning only)."""
    temperature: float = 0.03
    """Of the soft targets: how much entropy counts (soft_q_learning and munchausen only)."""
    penalty: Literal["squared", "huber", "masked_squared"] = "squared"
    """What is minimised of the TD error: half its square, the Huber loss, or the mean square over
    all outputs with all but the taken action's masked (2 / num_actions times the first); of
    values only."""
    huber_threshold: float = 1.0
    """Error from which on the Huber loss grows linearly (penalty huber, and quantiles)."""
    n_step: int = 5
    """Steps of one environment that a transition spans: so many rewards before the bootstrap."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Adam, or RMSprop with Keras's constants (decay 0.9, epsilon 1e-7, no momentum)."""
    target_period: int = 50
    """Gradient steps between two updates of the target network; 1 bootstraps from the current
    weights, as without a target network."""
    target_step_size: float = 1.0
    """How far an update goes towards the online network: 1 copies it, less is Polyak averaging."""
    epsilon_schedule: Literal["linear", "multiplicative"] = "linear"
    """How epsilon, the probability of a random action, falls from epsilon_start to epsilon_end: in
    a straight line from step 0, or by a factor at each step after the prefill."""
    epsilon_decay: float = 0.999
    """Factor on epsilon per environment step (multiplicative schedule only)."""

    def _relation_problems(self) -> Iterator[str]:
        return _dqn_problems(self)


@dataclasses.dataclass(frozen=True)
class PQNConfig(RunConfig):
    """Every setting of PQN."""

    total_steps: int = 500_000
    num_envs: int = 10
    hidden_sizes: tuple[int, ...] = (64, 64)
    layer_norm: bool = True
    adam_epsilon: float = 1e-5
    learning_rate: float = 2.5e-3
    eval_interval: int = 25_000
    num_steps: int = 50
    """Steps of each environment between rounds of updates."""
    num_epochs: int = 4
    """Times that a round of updates goes through all that was played since the one before."""
    num_minibatches: int = 2
    """Gradient steps in each epoch; num_envs * num_steps transitions are dealt out to them."""
    q_lambda: float = 0.9
    """Lambda of the Q(lambda) returns: 0 bootstraps after one step, 1 where the episode or the
    rollout ends."""

    @property
    def steps_per_update(self) -> int:
        """Environment steps (of all environments) between rounds of updates."""
        return self.num_envs * self.num_steps

    @property
    def updates_per_iteration(self) -> int:
        """Gradient steps in each round of updates."""
        return self.num_epochs * self.num_minibatches

    def _relation_problems(self) -> Iterator[str]:
        per_iteration = self.steps_per_update
        yield from _iteration_problems(self, "num_envs * num_steps")
        if per_iteration % self.num_minibatches:
            largest = min(self.num_minibatches, per_iteration)
            nearest = next(n for n in range(largest, 0, -1) if per_iteration % n == 0)
            yield (
                f"num_minibatches ({self.num_minibatches}) must divide num_envs * num_steps "
                f"({per_iteration}) without rest: try {nearest}"
            )


_WIDEST = 10**6  # units of a layer
_MOST_EVALUATIONS = 10**5  # of a run; they are kept one by one
_GREEDY_TARGETS = ("q_learning", "double_q_learning")
# Floats by the values that they may have.
_FRACTIONS = frozenset(
    {"discount", "q_lambda", "epsilon_start", "epsilon_end", "epsilon_fraction", "epsilon_decay"}
    | {"priority_exponent", "importance_exponent"}
    | {"learning_rate_end_fraction", "munchausen_coefficient", "advantage_coefficient"}
)
_POSITIVE = frozenset(
    {"learning_rate", "fraction_learning_rate", "adam_epsilon", "huber_threshold", "temperature"}
)


def _range_problems(config: RunConfig) -> Iterator[str]:
    kinds = field_types(type(config))
    floats = float_fields(config)
    for name in floats:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            yield f"{name} ({value!r}) must be a number"
            return  # it cannot be compared
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            yield f"{name} must be at most {sys.float_info.max:.1e}"
            return
    for name in [name for name, kind in kinds.items() if kind is bool]:
        if not isinstance(getattr(config, name), bool):
            yield f"{name} ({getattr(config, name)!r}) must be True or False"
    for name in [name for name, kind in kinds.items() if kind is int]:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield f"{name} ({value!r}) must be a whole number of at least 1"
        elif value > 2**31 - 1:
            yield f"{name} ({value}) must be at most {2**31 - 1}: counters are 32 bits wide"
    for name in [name for name, kind in kinds.items() if kind == tuple[int, ...]]:
        sizes = getattr(config, name)
        if not isinstance(sizes, tuple) or not all(
            type(size) is int and size > 0 for size in sizes
        ):
            yield f"{name} ({sizes!r}) must be a tuple of whole numbers of at least 1"
        elif max(sizes, default=0) > _WIDEST:
            yield f"{name} ({sizes!r}) must be at most {_WIDEST:,} each"
    for name, annotation in kinds.items():
        allowed = typing.get_args(annotation)
        if typing.get_origin(annotation) is Literal and getattr(config, name) not in allowed:
            yield f"{name} ({getattr(config, name)!r}) must be one of {', '.join(allowed)}"
    for name in floats:
        if name in _FRACTIONS and not 0 <= getattr(config, name) <= 1:
            yield f"{name} ({getattr(config, name)}) must lie between 0 and 1"
    single = np.finfo(np.float32)  # in which they enter the programs
    for name in floats:
        value = getattr(config, name)
        if name in _POSITIVE and not float(single.tiny) <= value <= float(single.max):
            yield (
                f"{name} ({value}) must be positive and finite, such as 0.001, also in single "
                f"precision ({single.tiny:.1e} to {single.max:.1e})"
            )
    if not config.max_grad_norm >= float(single.tiny):
        yield (
            f"max_grad_norm ({config.max_grad_norm}) must be positive, also in single precision "
            f"(from {single.tiny:.1e}); inf turns clipping off"
        )


def _evaluation_problems(config: RunConfig) -> Iterator[str]:
    if config.total_steps // config.eval_interval > _MOST_EVALUATIONS:
        yield (
            f"eval_interval ({config.eval_interval}) makes more than {_MOST_EVALUATIONS:,} "
            f"evaluations of total_steps ({config.total_steps}): raise it"
        )


def _multiple(config: RunConfig, name: str, of: str, base: int) -> Iterator[str]:
    value = getattr(config, name)
    if value % base:
        below, above = value // base * base, (value // base + 1) * base
        nearest = f"{below} or {above}" if below else f"{above}"
        yield f"{name} ({value}) must be a multiple of {of} ({base}): try {nearest}"


def _iteration_problems(config: RunConfig, of: str) -> Iterator[str]:
    """Whether a run is so many whole iterations, each of `steps_per_update` as `of` calls them."""
    # So that every multiple of eval_interval, and the last step, fall on the end of an iteration.
    for name in ("eval_interval", "prefill_steps", "total_steps"):
        yield from _multiple(config, name, of, config.steps_per_update)
    if config.num_updates > 2**31 - 1:
        yield (
            f"the gradient steps of the run ({config.num_updates}) must be at most {2**31 - 1}: "
            "lower total_steps or the gradient steps of each iteration"
        )


def _dqn_problems(config: DQNConfig) -> Iterator[str]:
    single = np.finfo(np.float32)  # in which floats enter the programs
    if not float(single.tiny) <= config.target_step_size <= 1:
        yield (
            f"target_step_size ({config.target_step_size}) must be above 0 (from "
            f"{single.tiny:.1e}) and at most 1: "
            "1 copies the online network"
        )
    limits = (config.value_min, config.value_max)
    finite = max(map(abs, limits)) <= float(single.max)
    if not (finite and np.float32(limits[0]) < np.float32(limits[1])):
        yield (
            f"value_min ({config.value_min}) must be finite and below value_max "
            f"({config.value_max}), also in single precision"
        )
    if config.num_atoms < 2:
        yield f"num_atoms ({config.num_atoms}) must be at least 2"
    if config.munchausen and config.representation == "categorical":
        yield (
            "munchausen needs a representation of values or quantiles: with 'categorical' its soft "
            "target would leave the atoms"
        )
    if config.representation != "values" and config.td_error not in _GREEDY_TARGETS:
        yield (
            f"td_error ({config.td_error!r}) must be one of {', '.join(_GREEDY_TARGETS)} with "
            f"representation {config.representation!r}"
        )
    if config.prioritised and not config.sample_with_replacement:
        yield "prioritised replay samples with replacement: leave sample_with_replacement True"
    for name in ("steps_per_update", "prefill_steps", "replay_capacity"):
        yield from _multiple(config, name, "num_envs", config.num_envs)
    yield from _iteration_problems(config, "steps_per_update")
    if config.batch_size > config.replay_capacity:
        yield (
            f"batch_size ({config.batch_size}) must be at most replay_capacity "
            f"({config.replay_capacity}): lower the one or raise the other"
        )
    if config.batch_size > config.prefill_steps:
        yield (
            f"batch_size ({config.batch_size}) must be at most prefill_steps "
            f"({config.prefill_steps}): learning starts when the prefill is over"
        )
    max_rows = config.replay_capacity // config.num_envs
    if config.n_step > max_rows:
        yield (
            f"n_step ({config.n_step}) must be at most replay_capacity / num_envs ({max_rows}): "
            "the replay would never hold a whole transition"
        )
    if config.prefill_steps >= config.total_steps:
        yield (
            f"prefill_steps ({config.prefill_steps}) must be below total_steps "
            f"({config.total_steps}): nothing would be learned"
        )
    if config.target_period > max(config.num_updates, 1):
        yield (
            f"target_period ({config.target_period} gradient steps) must be at most the "
            f"{config.num_updates} gradient steps of the run: the target network would never be "
            "updated"
        )
