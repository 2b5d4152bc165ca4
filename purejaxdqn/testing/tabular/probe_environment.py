"""Five probe environments whose values are known, as one: each episode plays one of them.

Their values show mistakes that a loss cannot see: a time limit that is learned as a death, gamma
where gamma to the n belongs, rewards of another episode.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import Environment
from purejaxdqn.types import Array, TimeStep

MAX_STEPS = 5  # odd, so that the delayed reward is cut off between its two observations
NUM_ACTIONS = 2
NUM_OBS = 8

# The observations of each probe.
PROBES: dict[str, tuple[int, ...]] = {
    "constant reward": (0,),
    "value by observation": (1, 2),
    "delayed reward": (3, 4),
    "time limit": (5,),
    "choice": (6, 7),
}
# Where its episodes may start.
STARTS = {name: obs[:1] if name == "delayed reward" else obs for name, obs in PROBES.items()}
# By observation and action. The delayed reward moves between two observations, the time limit stays
# where it is; the others end after one step.
REWARD = np.array([[1, 1], [-1, -1], [2, 2], [0, 0], [1, 1], [1, 1], [1, 0], [0, 1]], np.float32)
FOLLOWING = np.array([0, 1, 2, 4, 3, 5, 6, 7], np.int32)
IS_END = np.array([1, 1, 1, 0, 0, 0, 1, 1], bool)


def compute_known_values(discount: float) -> np.ndarray:
    """Computes the optimal values `[observations, A]`, in closed form."""
    values = REWARD.astype(np.float64)
    loop = 1 / (1 - discount**2)
    values[3], values[4], values[5] = discount * loop, loop, 1 / (1 - discount)
    return values


@flax.struct.dataclass
class ProbeState:
    """The number `[]` int32 of the observation, and the steps `[]` int32 of the episode."""

    number: Array
    num_steps: Array


def make_probe_environment(names: Sequence[str] = tuple(PROBES)) -> Environment:
    """Makes one environment of some `PROBES`: each episode plays one of them, drawn at random.

    Its observations are one-hot `[8]`; it has two actions.
    """
    starts = np.concatenate([STARTS[name] for name in names]).astype(np.int32)

    def observe(number: Array) -> Array:
        return jax.nn.one_hot(number, NUM_OBS)

    def reset(key: Array) -> tuple[ProbeState, Array]:
        number = jax.random.choice(key, jnp.asarray(starts))
        return ProbeState(number, jnp.zeros((), jnp.int32)), observe(number)

    def step(key: Array, state: ProbeState, action: Array) -> tuple[ProbeState, TimeStep]:
        del key
        reward = jnp.asarray(REWARD)[state.number, action]
        terminated = jnp.asarray(IS_END)[state.number]
        state = ProbeState(jnp.asarray(FOLLOWING)[state.number], state.num_steps + 1)
        truncated = state.num_steps >= MAX_STEPS
        return state, TimeStep(observe(state.number), reward, terminated, truncated)

    space = gymnasium.spaces.Box(0, 1, (NUM_OBS,), np.float32)
    return Environment("probes", reset, step, NUM_ACTIONS, space, None, MAX_STEPS)
