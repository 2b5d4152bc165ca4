"""The settings of DQN and its extensions, and the rules that they keep together."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal

import numpy as np

from purejaxdqn.agents.torso import TorsoConfig
from purejaxdqn.training.declaration import setting
from purejaxdqn.training.schedules import largest

_GREEDY_TARGETS = ("q_learning", "double_q_learning")
_PERSISTENT = "persistent_advantage_learning"
_QUANTILES = ("quantile", "implicit_quantile", "proposed_quantile")

# Settings of one range, under one heading of `--help`, or of one component.
_fraction = functools.partial(setting, at_least=0, at_most=1)
_replay = functools.partial(setting, group="replay")
_priorities = functools.partial(_fraction, group="replay", read_if={"prioritised": True})
_network = functools.partial(setting, group="network")
_atoms = functools.partial(_network, may_change=False, read_if={"representation": "categorical"})
_exploration = functools.partial(setting, group="exploration")


@dataclasses.dataclass(frozen=True)
class DQNConfig(TorsoConfig):
    """Every setting of DQN and its extensions; the defaults are the agent `double_n_step`."""

    agent: str = "double_n_step"
    steps_per_update: int = setting(
        4,
        "Environment steps (of all environments) between rounds of updates; a multiple of "
        "num_envs.",
    )
    updates_per_iteration: int = setting(1, "Gradient steps in each round of updates.")
    prefill_steps: int = _replay(
        1_000, "Environment steps of uniformly random play before anything is learned."
    )
    replay_capacity: int = _replay(
        10_000, "Transitions that the replay holds; the oldest are dropped."
    )
    batch_size: int = _replay(128, "Transitions per gradient step.")
    sample_with_replacement: bool = _replay(
        True,
        "Whether a batch may hold a transition twice; without, sampling takes batch_size^2 steps.",
    )
    prioritised: bool = _replay(
        False,
        "Whether transitions are replayed in proportion to their priorities, and not uniformly.",
    )
    priority_exponent: float = _priorities(
        0.5, "How much priorities count: 0 samples uniformly, 1 in proportion."
    )
    importance_exponent: float = _priorities(
        0.4,
        "How far sampling by priority is corrected for at the first gradient step; rises in a "
        "straight line to 1, wholly, where the run ends.",
        may_change=False,
    )
    representation: Literal[
        "values", "categorical", "quantile", "implicit_quantile", "proposed_quantile"
    ] = setting(
        "values",
        "What the network says of an action: its value, or its returns' distribution on fixed "
        "atoms (C51), by fixed quantiles (QR-DQN), by drawn ones (IQN), or by proposed ones (FQF).",
        group="network",
    )
    num_atoms: int = _atoms(51, "Atoms of the distribution.", at_least=2)
    value_min: float = _atoms(0.0, "The lowest atom: the least discounted return there may be.")
    value_max: float = _atoms(
        100.0, "The highest atom: the greatest discounted return there may be."
    )
    label: Literal["projection", "gaussian"] = setting(
        "projection",
        "What the atoms learn: the target's distribution, moved onto them (C51), or one number, "
        "with a Gaussian around it (HL-Gauss).",
        group="network",
        read_if={"representation": "categorical"},
    )
    label_width: float = setting(
        0.75,
        "The Gaussian's deviation, in distances of atoms.",
        group="network",
        above=0,
        read_if={"representation": "categorical", "label": "gaussian"},
    )
    num_quantiles: int = _network(
        32, "Quantiles of the distribution.", read_if={"representation": _QUANTILES}
    )
    num_cosines: int = _network(
        64,
        "Cosines by which a fraction is told to the network.",
        read_if={"representation": _QUANTILES[1:]},
    )
    fraction_learning_rate: float = setting(
        1e-4,
        "RMSprop's step size at first for the layer that proposes fractions; falls as "
        "learning_rate does.",
        above=0,
        read_if={"representation": "proposed_quantile"},
    )
    dueling: bool = _network(
        False, "Whether the network is split into a state's value and the actions' advantages."
    )
    head_sizes: tuple[int, ...] = _network(
        (),
        "Widths of hidden layers between features and outputs: a set in each stream of a dueling "
        "network, and behind the embedding of fractions.",
    )
    ensemble: Literal["none", "min", "mean"] = _network(
        "none",
        "Whether there are several networks, and which of their values counts: the smallest "
        "(Maxmin) or the mean. Each transition teaches one of them.",
    )
    num_members: int = _network(
        2, "Networks of the ensemble.", read_if={"ensemble": ("min", "mean")}
    )
    noisy: bool = _exploration(
        False, "Whether the network's weights are noisy, and explore in epsilon's place."
    )
    noise: Literal["batch", "transition"] = _network(
        "batch",
        "Whether all transitions of a batch share the noise of a network, or each transition draws "
        "its own: that of noisy weights, and the fractions of implicit quantiles.",
        read_if=({"noisy": True}, {"representation": "implicit_quantile"}),
    )
    td_error: Literal[
        "q_learning",
        "double_q_learning",
        "minto",
        "expected_sarsa",
        "soft_q_learning",
        "persistent_advantage_learning",
    ] = setting(
        "double_q_learning",
        "How the target is formed; of a distribution, whether its next action is picked as in "
        "double_q_learning or as in q_learning.",
        read_if={"munchausen": False},
    )
    munchausen: bool = setting(
        False,
        "Whether the reward is raised by the log-probability of the action taken, with a soft "
        "target in place of td_error (values and quantiles only).",
    )
    munchausen_coefficient: float = _fraction(
        0.9, "How much of that log-probability is added.", read_if={"munchausen": True}
    )
    advantage_coefficient: float = _fraction(
        0.9,
        "How much of the gap to the best action is taken off.",
        read_if={"td_error": "persistent_advantage_learning"},
    )
    temperature: float = setting(
        0.03,
        "Of the soft targets: how much entropy counts.",
        above=0,
        read_if=({"td_error": "soft_q_learning"}, {"munchausen": True}),
    )
    penalty: Literal["squared", "huber", "masked_squared"] = setting(
        "squared",
        "What is minimised of the TD error: half its square, the Huber loss, or the mean square "
        "over all outputs with all but the taken action's masked (2 / num_actions times the "
        "first).",
        read_if={"representation": "values"},
    )
    huber_threshold: float = setting(
        1.0,
        "Error from which on the Huber loss grows linearly.",
        above=0,
        read_if=({"representation": "values", "penalty": "huber"}, {"representation": _QUANTILES}),
    )
    n_step: int = setting(
        5,
        "Steps of one environment that a transition spans: so many rewards before the bootstrap. A "
        "schedule is rounded.",
        may_change=True,
    )
    optimizer: Literal["adam", "rmsprop"] = setting(
        "adam", "Adam, or RMSprop with Keras's constants (decay 0.9, epsilon 1e-7, no momentum)."
    )
    target_period: int = setting(
        50,
        "Gradient steps between two updates of the target network; 1 bootstraps from the current "
        "weights, as without a target network.",
    )
    target_step_size: float = setting(
        1.0,
        "How far an update goes towards the online network: 1 copies it, less is Polyak averaging.",
        above=0,
        at_most=1,
        remedy="1 copies the online network",
    )
    epsilon_schedule: Literal["linear", "multiplicative"] = _exploration(
        "linear",
        "How epsilon, the probability of a random action, falls from epsilon_start to "
        "epsilon_end: in a straight line from step 0, or by a factor at each step after the "
        "prefill.",
        read_if={"noisy": False},
    )
    epsilon_decay: float = _fraction(
        0.999,
        "Factor on epsilon per environment step.",
        may_change=False,
        group="exploration",
        read_if={"epsilon_schedule": "multiplicative", "noisy": False},
    )

    def problems_together(self) -> Iterator[str]:
        """Yields what settings that are allowed each by itself make wrong together."""
        yield from super().problems_together()
        for name in ("steps_per_update", "prefill_steps", "replay_capacity"):
            yield from self.multiple_problems(name, "num_envs", self.num_envs)
        yield from self.whole_iteration_problems("steps_per_update")
        low, high = self.value_min, self.value_max
        if not np.float32(low) < np.float32(high):
            yield f"value_min ({low}) must be below value_max ({high}), also in single precision"
        if self.munchausen and self.representation == "categorical":
            yield (
                "munchausen needs a representation of values or quantiles: with 'categorical' its "
                "soft target would leave the atoms"
            )
        is_gaussian = self.representation == "categorical" and self.label == "gaussian"
        takes_any = self.representation == "values" or (
            is_gaussian and self.td_error != _PERSISTENT
        )  # a target that is one number
        if self.td_error not in _GREEDY_TARGETS and not takes_any:
            yield (
                f"td_error ({self.td_error!r}) must be one of {', '.join(_GREEDY_TARGETS)} with "
                f"representation {self.representation!r}"
            )
        if self.ensemble != "none" and self.representation != "values":
            yield (
                f"ensemble ({self.ensemble!r}) must be 'none' with representation "
                f"{self.representation!r}: its members put out values"
            )
        if self.ensemble != "none" and self.td_error == _PERSISTENT and not self.munchausen:
            yield (
                f"ensemble ({self.ensemble!r}) must be 'none' with td_error {_PERSISTENT!r}: the "
                "gap is that of one network"
            )
        if self.prioritised and not self.sample_with_replacement:
            yield "prioritised replay samples with replacement: leave sample_with_replacement True"
        capacity, prefill, period = self.replay_capacity, self.prefill_steps, self.target_period
        never = "the replay would never hold a whole transition"
        for name, limit, most, why in (
            ("batch_size", "replay_capacity", capacity, "lower the one or raise the other"),
            ("batch_size", "prefill_steps", prefill, "learning starts when the prefill is over"),
            ("n_step", "replay_capacity / num_envs", capacity // self.num_envs, never),
        ):
            if largest(getattr(self, name)) > most:
                yield f"{name} ({getattr(self, name)}) must be at most {limit} ({most}): {why}"
        if prefill >= (total := self.total_steps):
            yield (
                f"prefill_steps ({prefill}) must be below total_steps ({total}): nothing would be "
                "learned"
            )
        if period > max(self.num_updates, 1):
            yield (
                f"target_period ({period} gradient steps) must be at most the {self.num_updates} "
                "gradient steps of the run: the target network would never be updated"
            )
