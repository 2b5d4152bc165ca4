"""`check_environment`: good environments pass, and each kind of broken one is found."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn import environments
from purejaxdqn.environments import Environment
from purejaxdqn.testing import check_environment
from purejaxdqn.types import Array, TimeStep

KEY = jax.random.key(0)
MAX_STEPS = 6


@flax.struct.dataclass
class WalkerState:
    """A point on a line."""

    position: Array
    num_steps: Array


def observe(state):
    return jnp.stack([state.position, -state.position])


def reset(key):
    state = WalkerState(jax.random.uniform(key, (), minval=-0.5, maxval=0.5), jnp.int32(0))
    return state, observe(state)


def step(key, state, action, *, noise=0.0):
    """To the left or to the right, until it is too far out."""
    move = jnp.where(action == 1, 0.4, -0.4)
    if noise:
        move += noise * jax.random.uniform(key, minval=-1)
    move = move.astype(state.position.dtype)
    state = WalkerState(state.position + move, state.num_steps + 1)
    terminated = jnp.abs(state.position) > 1
    return state, TimeStep(observe(state), move, terminated, state.num_steps >= MAX_STEPS)


SPACE = gymnasium.spaces.Box(-2, 2, (2,), np.float32)
WALKER = Environment("walker", reset, step, 2, SPACE, None, MAX_STEPS)


def walker(**changes: Any) -> Environment:
    return WALKER._replace(**changes)


def changed_step(change: Callable[..., Any], env: Environment = WALKER) -> Environment:
    """An environment whose answers are `change(key, old_state, state, timestep)`."""

    def new_step(key, old_state, action):
        return change(key, old_state, *env.step(key, old_state, action))

    return env._replace(step=new_step)


def changed_timestep(**fields: Callable[[TimeStep], Any]) -> Environment:
    def change(key, old_state, state, timestep):
        return state, timestep._replace(**{name: f(timestep) for name, f in fields.items()})

    return changed_step(change)


def start_again(key, old_state, state, timestep, keep=()):
    """What vectorised environments do that reset by themselves."""
    new_state, new_obs = reset(jax.random.fold_in(key, 1))
    ended = timestep.terminated | timestep.truncated
    new_state = new_state.replace(**{name: getattr(state, name) for name in keep})
    state = jax.tree.map(lambda new, old: jnp.where(ended, new, old), new_state, state)
    return state, timestep._replace(obs=jnp.where(ended, new_obs, timestep.obs))


def start_again_at_the_same_place(key, old_state, state, timestep):
    return start_again(jax.random.key(7), old_state, state, timestep)


def packed() -> Environment:
    """Position and clock in one array, as many environments have it."""

    def pack(state):
        return jnp.stack([state.position, state.num_steps.astype(state.position.dtype)])

    def unpack(packed):
        return WalkerState(packed[0], packed[1].astype(jnp.int32))

    def packed_reset(key):
        state, obs = reset(key)
        return pack(state), obs

    def packed_step(key, state, action):
        state, timestep = step(key, unpack(state), action)
        return pack(state), timestep

    return walker(reset=packed_reset, step=packed_step)


def with_own_key() -> Environment:
    """A state that carries a PRNG key."""

    def keyed_reset(key):
        reset_key, own_key = jax.random.split(key)
        state, obs = reset(reset_key)
        return (own_key, state), obs

    def keyed_step(key, state, action):
        own_key, use_key = jax.random.split(state[0])
        state, timestep = step(use_key, state[1], action, noise=0.05)
        return (own_key, state), timestep

    return walker(reset=keyed_reset, step=keyed_step)


def countdown() -> Environment:
    """The clock runs backwards, and is all there is."""

    def countdown_step(key, state, action):
        left = state - 1
        return left, TimeStep(jnp.ones(1), jnp.float32(1), jnp.bool(False), left <= 0)

    def countdown_reset(key):
        return jnp.int32(MAX_STEPS), jnp.ones(1)

    space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    return walker(reset=countdown_reset, step=countdown_step, observation_space=space)


def frozen(key, old_state, state, timestep):
    """Nothing moves after the end of an episode but the clock."""
    is_over = jnp.abs(old_state.position) > 1
    position = jnp.where(is_over, old_state.position, state.position)
    state = state.replace(position=position)
    return state, timestep._replace(obs=observe(state), terminated=jnp.abs(position) > 1)


# Of several that share their code, one is checked each time.
SLOW = {"CliffWalkingSlippery-v1", "FrozenLake8x8-v1", "TwoRooms-v0", "CartPole-v0"}
BEGIN_ALIKE = ("CliffWalking", "FrozenLake", "DeepSea", "Asterix", "Seaquest", "SpaceInvaders")
GOOD_ENVIRONMENTS = {
    **{name: environments.make(name) for name in environments.names()},
    "walker": WALKER,
    "noisy walker": walker(step=functools.partial(step, noise=0.1)),
    "packed": packed(),
    "with its own key": with_own_key(),
    "frozen": changed_step(frozen),
    "bandit": changed_timestep(truncated=lambda t: jnp.bool(True))._replace(max_steps=1),
}


HIDDEN = itertools.count(1)  # no function of its arguments


def reset_with_hidden_randomness(key):
    state, _ = reset(key)
    state = state.replace(position=state.position + next(HIDDEN) / 100)
    return state, observe(state)


def reset_that_reuses_its_key(key):
    state, _ = reset(key)
    state = state.replace(position=state.position + 0.1 * jax.random.uniform(key))
    return state, observe(state)


def step_that_branches(key, state, action):
    return step(key, state, 1 if action == 1 else 0)


def step_that_broadcasts(key, state, action):
    state, timestep = step(key, state, action)
    return state, timestep._replace(obs=timestep.obs * jnp.ones((1, 2)))


def step_of_gymnasium(key, state, action):
    state, timestep = step(key, state, action)
    return timestep.obs, timestep.reward, timestep.terminated, timestep.truncated, {}


def step_with_a_bare_tuple(key, state, action):
    state, timestep = step(key, state, action)
    return state, tuple(timestep)


def reset_to_float32(key):
    state, obs = reset(key)
    return state.replace(position=state.position.astype(jnp.float32)), obs.astype(jnp.float32)


def step_to_default_float(key, state, action):
    state, timestep = step(key, state, action)
    return state.replace(position=state.position.astype(float)), timestep


def centred_over_the_batch(key, old_state, state, timestep):
    obs = jax.pure_callback(
        lambda obs: np.asarray(obs) - np.asarray(obs).reshape(-1, 2)[:, :1].mean(),
        jax.ShapeDtypeStruct((2,), jnp.float32),
        timestep.obs.astype(jnp.float32),
        vmap_method="broadcast_all",
    )
    return state, timestep._replace(obs=obs.astype(timestep.obs.dtype))


BROKEN_ENVIRONMENTS = {
    # Time limits
    "truncation folded into terminated, on top": (
        changed_timestep(terminated=lambda t: t.terminated | t.truncated),
        r"terminated becomes True at step 6 because the time limit .* truncated alone",
    ),
    "truncation folded into terminated, packed": (
        changed_step(
            lambda key, old, state, t: (state, t._replace(terminated=t.terminated | t.truncated)),
            packed(),
        ),
        "terminated becomes True at step 6 because",
    ),
    "truncation folded into terminated, with a countdown": (
        changed_step(
            lambda key, old, state, t: (state, t._replace(terminated=t.truncated)), countdown()
        ),
        "terminated becomes True at step 6 because",
    ),
    "truncation replaced by terminated": (
        changed_timestep(
            terminated=lambda t: t.terminated | t.truncated, truncated=lambda t: jnp.bool(False)
        ),
        r"truncated is False at step 6 of an episode, but max_steps is 6",
    ),
    "termination folded into truncated": (
        changed_timestep(truncated=lambda t: t.terminated | t.truncated),
        r"truncated is True at step \d of an episode, but max_steps is 6: it means the time limit",
    ),
    "a step too early": (walker(max_steps=7), "truncated is True at step 6 .* max_steps is 7"),
    "a step too late": (walker(max_steps=5), "truncated is False at step 5 .* max_steps is 5"),
    "only at the very step": (
        changed_step(
            lambda key, old, state, t: (state, t._replace(truncated=state.num_steps == MAX_STEPS))
        ),
        "truncated is False at step 7 .* max_steps is 6",
    ),
    # Resetting by itself
    "auto-reset": (
        changed_step(start_again),
        "depends on the step's key, and no other step does: env.step starts a new episode by",
    ),
    "auto-reset with the clock going on": (
        changed_step(functools.partial(start_again, keep=["num_steps"])),
        "env.step starts a new episode by itself. Return the state and the observation that",
    ),
    "auto-reset to a fixed place": (
        changed_step(start_again_at_the_same_place),
        r"the episode was over at step \d, env.step seems to start a new one by itself",
    ),
    "auto-reset of a noisy environment": (
        changed_step(start_again, walker(step=functools.partial(step, noise=0.1))),
        r"the episode was over at step \d, env.step seems to start a new one by itself",
    ),
    # Types
    "state that changes its dtype": (
        changed_step(lambda k, o, state, t: (state.replace(num_steps=state.num_steps * 1.0), t)),
        r"other types after env.step .*the part .num_steps is int32\[\] and then float32\[\]",
    ),
    "state that changes its shape": (
        changed_step(lambda k, o, state, t: (state.replace(position=state.position[None]), t)),
        r"the part .position is float32\[\] and then float32\[1\]",
    ),
    "state that changes its structure": (
        changed_step(lambda k, o, state, t: ((state, state), t)),
        "the state has other types after env.step",
    ),
    "state that changes its dtype in 64 bits": (
        walker(reset=reset_to_float32, step=step_to_default_float),
        r"in 64-bit mode.*the part .position is float32\[\] and then float64\[\]",
    ),
    "observation of another shape": (
        walker(observation_space=gymnasium.spaces.Box(-2, 2, (3,), np.float32)),
        r"the observation of env.reset is float32\[2\] .* observation_space says float32\[3\]",
    ),
    "observation of another dtype": (
        changed_timestep(obs=lambda t: t.obs.astype(jnp.float16)),
        r"the observation of env.step is float16\[2\]",
    ),
    "observation space of bytes": (
        walker(observation_space=gymnasium.spaces.Box(0, 255, (2,), np.uint8)),
        r"the observation of env.reset is float32\[2\] .* says uint8\[2\]",
    ),
    "integer reward": (
        changed_timestep(reward=lambda t: jnp.int32(1)),
        r"the reward in 32-bit mode is int32\[\]",
    ),
    "reward with an axis": (
        changed_timestep(reward=lambda t: jnp.ones(1)),
        r"the reward in 32-bit mode is float32\[1\]: it must be a float scalar",
    ),
    "terminated that is no bool": (
        changed_timestep(terminated=lambda t: t.terminated.astype(jnp.int32)),
        r"terminated is int32\[\] in 32-bit mode: it must be a bool scalar",
    ),
    "truncated with an axis": (
        changed_timestep(truncated=lambda t: t.truncated[None]),
        r"truncated is bool\[1\] in 32-bit mode",
    ),
    "gymnasium's five answers": (walker(step=step_of_gymnasium), "must return .state, TimeStep"),
    "no TimeStep": (walker(step=step_with_a_bare_tuple), r"it must return \(state, TimeStep\)"),
    # Values
    "observation of a step outside of the space": (
        walker(observation_space=gymnasium.spaces.Box(-1, 1, (2,), np.float32)),
        r"the observation after step \d of an episode lies outside of observation_space",
    ),
    "observation of a reset outside of the space": (
        walker(observation_space=gymnasium.spaces.Box(-0.1, 2, (2,), np.float32)),
        "an observation of env.reset lies outside of observation_space",
    ),
    "observation that is not a number": (
        changed_timestep(obs=lambda t: jnp.where(t.obs > 0.5, jnp.nan, t.obs).astype(t.obs.dtype)),
        r"the observation after step \d of an episode lies outside",
    ),
    "reward that is not a number": (
        changed_timestep(reward=lambda t: jnp.sqrt(t.reward)),
        r"the reward of step \d of an episode is NaN or infinite",
    ),
    # Purity
    "hidden randomness": (
        walker(reset=reset_with_hidden_randomness),
        "gives different answers to the same arguments: .* none from numpy",
    ),
    "constant reset": (
        walker(reset=lambda key: reset(jax.random.key(3))),
        "16 different keys give 16 times the same reset",
    ),
    "a key used twice": (walker(reset=reset_that_reuses_its_key), "uses a PRNG key twice"),
    "a branch on an array": (
        walker(step=step_that_branches),
        r"(?s)env.step in 32-bit mode raises TracerBoolConversionError.*jnp.where or jax.lax.cond",
    ),
    "broadcasting between ranks": (
        walker(step=step_that_broadcasts),
        r"(?s)env.step in 32-bit mode raises ValueError.*no broadcasting",
    ),
    "a mean over the batch": (
        changed_step(centred_over_the_batch),
        "an environment alone and the same one in a batch answer differently",
    ),
    # Description
    "no name": (walker(name=""), "Environment.name is ''"),
    "no actions": (walker(num_actions=0), "num_actions is 0: it must be a whole number"),
    "max_steps that is no int": (walker(max_steps=1e3), "max_steps is 1000.0"),
    "discrete observations": (
        walker(observation_space=gymnasium.spaces.Discrete(4)),
        r"observation_space is Discrete\(4\): it must be a gymnasium.spaces.Box",
    ),
    "a threshold in words": (walker(threshold="high"), "threshold is 'high'"),
}


class TestCheckEnvironment:
    @pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.slow) if name in SLOW or "/" in name else name
            for name in GOOD_ENVIRONMENTS
        ],
    )
    def test_good(self, name):
        random_reset = not any(word in name for word in BEGIN_ALIKE)
        check_environment(GOOD_ENVIRONMENTS[name], KEY, random_reset=random_reset)

    def test_episodes_that_start_alike(self):
        with pytest.raises(AssertionError, match="pass random_reset=False"):
            check_environment(countdown(), KEY)
        check_environment(countdown(), KEY, random_reset=False)

    @pytest.mark.parametrize("name", BROKEN_ENVIRONMENTS)
    def test_broken(self, name):
        env, message = BROKEN_ENVIRONMENTS[name]
        with pytest.raises(AssertionError, match=message):
            check_environment(env, KEY, random_reset="countdown" not in name)

    def test_in_64_bits(self):
        with jax.enable_x64(True):
            check_environment(WALKER, KEY)
