"""Rank-based priorities: how likely a transition is depends on its error's rank alone.

Schaul et al., "Prioritized experience replay" (2016), section 3.3: `P(i)` is in proportion to
`rank(i)^-exponent`. New is the `replay`: a ring of the package's and an array of errors, sorted
anew for each batch. A new transition ranks first.

    cd experiments
    purejaxdqn train --import recipes.rank_based --agent rank_based --num-seeds 10
    purejaxdqn sweep --import recipes.rank_based --agent rank_based --rank-exponent 0 0.7 1
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn, environments, setting
from purejaxdqn.replay import UniformReplayState, uniform_replay
from purejaxdqn.training.loop import Train
from purejaxdqn.training.schedules import following
from purejaxdqn.types import Array, Replay, Sample, Step, Window


@dataclasses.dataclass(frozen=True)
class RankBasedConfig(DQNConfig):
    """DQN's settings, and how much ranks count."""

    rank_exponent: float = setting(0.7, "How much ranks count; 0 for not at all.", at_least=0)


@flax.struct.dataclass
class RankedState:
    """A ring, and the error of each of its entries; below 0 where nothing was written."""

    ring: UniformReplayState
    errors: Array  # [N]


def rank_based_replay(
    capacity: int, batch_size: int, time_limit: int | None = 1, exponent: Array | float = 0.7
) -> Replay:
    """Makes the replay; its first arguments are those of `uniform_replay`."""
    ring = uniform_replay(capacity, batch_size, time_limit)

    def init(step: Step, key: Array | None = None) -> RankedState:
        return RankedState(ring.init(step, key), jnp.full(capacity, -1.0))

    def add(state: RankedState, step: Step, key: Array | None = None) -> RankedState:
        newest = jnp.full(len(step.reward), jnp.maximum(state.errors.max(), 1.0))
        place = state.ring.insert_row * len(newest)
        errors = jax.lax.dynamic_update_slice_in_dim(state.errors, newest, place, axis=0)
        return RankedState(ring.add(state.ring, step, key), errors)

    def sample(state: RankedState, key: Array) -> Sample:
        order = jnp.argsort(-state.errors)
        is_held = state.errors[order] >= 0
        mass = jnp.where(is_held, (1.0 + jnp.arange(capacity)) ** -exponent, 0.0)
        up_to = jnp.cumsum(mass)
        drawn = jax.random.uniform(key, (batch_size,), maxval=up_to[-1])
        ranks = jnp.minimum(jnp.searchsorted(up_to, drawn, "right"), is_held.sum() - 1)
        indices = order[ranks].astype(jnp.int32)
        windows = jax.vmap(lambda index: window_at(state, index, 1))(indices)
        return Sample(windows, indices, mass[ranks] / mass.sum())

    def update(state: RankedState, indices: Array, errors: Array) -> RankedState:
        sizes = jnp.nan_to_num(jnp.abs(errors), nan=state.errors.max())
        return RankedState(state.ring, state.errors.at[indices].set(sizes))

    def window_at(state: RankedState, index: Array, num_steps: int) -> Window:
        assert ring.window_at is not None
        return ring.window_at(state.ring, index, num_steps)

    return Replay(init, add, sample, update, window_at)


def rank_based(config: RankBasedConfig) -> Train:
    """Makes the training run of the settings."""
    interval = environments.make(config.env).truncation_interval
    sizes = config.replay_capacity, config.batch_size, interval
    return dqn(config, replay=following(lambda now: rank_based_replay(*sizes, now.rank_exponent)))


agents.register("rank_based", RankBasedConfig(), rank_based, "priorities by rank")
