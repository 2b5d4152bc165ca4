"""A reservoir: the replay holds a uniform sample of everything that was ever played.

Vitter, "Random sampling with a reservoir" (1985), algorithm R: the step of number `n` (from 0 on)
takes a place that is drawn from 0 to `n`, and none if the place is beyond the capacity. New is the
`replay`. Its `add` uses its key, as what is dropped is drawn. It keeps whole transitions, as
neighbours are not kept together.

    cd experiments
    purejaxdqn train --import recipes.reservoir --agent reservoir --num-seeds 10
    purejaxdqn sweep --import recipes.reservoir --agent reservoir --replay-capacity 2000 10000
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from purejaxdqn import DQNConfig, agents, dqn
from purejaxdqn.training.loop import Train
from purejaxdqn.types import Array, Replay, Sample, Step, Window, shared_counter


@flax.struct.dataclass
class Reservoir:
    """Steps `[N, ...]`, and how many were ever added."""

    steps: Step
    num_added: Array = shared_counter()


def reservoir_replay(capacity: int, batch_size: int, time_limit: int = 1) -> Replay:
    """Makes the replay; its arguments are those of `uniform_replay`."""

    def init(step: Step, key: Array | None = None) -> Reservoir:
        empty = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape[1:]), x.dtype), step)
        return Reservoir(empty, jnp.zeros((), jnp.int32))

    def add(state: Reservoir, step: Step, key: Array) -> Reservoir:
        numbers = state.num_added + jnp.arange(len(step.reward))
        drawn = jax.random.randint(key, numbers.shape, 0, numbers + 1)
        places = jnp.where(numbers < capacity, numbers, drawn)
        # Of two steps that take the same place, the later one stays.
        is_lost = jnp.triu(places[:, jnp.newaxis] == places[jnp.newaxis], 1).any(axis=1)
        places = jnp.where(is_lost, capacity, places)

        def write(kept: Array, new: Array) -> Array:
            return kept.at[places].set(new, mode="drop")

        return Reservoir(jax.tree.map(write, state.steps, step), state.num_added + len(numbers))

    def sample(state: Reservoir, key: Array) -> Sample:
        num_held = jnp.minimum(state.num_added, capacity)
        indices = jax.random.randint(key, (batch_size,), 0, num_held)
        one: Any = jax.tree.map(lambda x: x[indices], state.steps)
        columns: Any = [x[:, jnp.newaxis] for x in (*one[1:5], jnp.ones(batch_size, bool))]
        extras = jax.tree.map(lambda x: x[:, jnp.newaxis], one.extras)
        windows = Window._make((one.obs, *columns, one.next_obs, extras, None))
        return Sample(windows, indices, jnp.full((batch_size,), 1.0) / num_held)

    return Replay(init, add, sample, lambda state, indices, priorities: state)


def reservoir(config: DQNConfig) -> Train:
    """Makes the training run of the settings."""
    return dqn(config, replay=reservoir_replay(config.replay_capacity, config.batch_size))


agents.register("reservoir", DQNConfig(n_step=1), reservoir, "a sample of everything played")
