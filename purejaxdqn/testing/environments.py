"""Checks that an environment keeps its contract."""

import itertools
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import Environment
from purejaxdqn.testing.programs import COMPILABLE, Program, clone_keys, find_types, to_numpy
from purejaxdqn.testing.requirements import (
    NUM_LANES,
    describe_type,
    drop_keys,
    is_key,
    require,
    require_close,
    require_float_scalar,
    require_same_types,
)
from purejaxdqn.types import Array, ArrayTree, TimeStep

_ONE_ENVIRONMENT = f"It is a function of ONE environment, batched with vmap. {COMPILABLE}"


def check_environment(env: Environment, key: Array, *, random_reset: bool = True) -> None:
    """Checks the environment contract: see `Environment` and `TimeStep`.

    - It works under `jit` and `vmap`, in 32-bit and in 64-bit mode.
    - The same key, state and action give the same bits, and different keys different resets.
    - Shapes and dtypes are fixed, so that `scan` can carry the state; those of an observation are
      the observation space's, and observations lie in it. Rewards are finite float scalars.
    - `terminated` and `truncated` are separate bool scalars; `truncated` is True from the
      `max_steps`-th step on and not before.
    - `step` never starts a new episode by itself.

    Args:
      env: the environment; some `max_steps` steps of it are played at random.
      key: `[]` PRNG key of everything that is drawn.
      random_reset: False for an environment whose episodes all start alike.

    Raises:
      AssertionError: if something is wrong.
    """
    _check_description(env)
    for x64 in (False, True):
        with jax.enable_x64(x64):
            _check_types(env, key, "in 64-bit mode" if x64 else "in 32-bit mode")
    start_key, play_key = jax.random.split(key)
    # Two steps longer than an episode.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    actions = rng.integers(0, env.num_actions, (env.max_steps + 2, NUM_LANES), np.int32)
    fresh = _check_starts(env, start_key, actions[0], random_reset)
    _check_episodes(env, play_key, actions, fresh)


def _check_description(env: Environment) -> None:
    require(isinstance(env, Environment), f"{env!r} is not an Environment: build one")
    is_count = [type(count) is int and count >= 1 for count in (env.num_actions, env.max_steps)]
    is_box = isinstance(env.observation_space, gymnasium.spaces.Box)
    is_number = env.threshold is None or isinstance(env.threshold, (int, float))
    for name, is_right, rule in (
        ("name", isinstance(env.name, str) and bool(env.name), "a string that is not empty"),
        ("num_actions", is_count[0], "a whole number of at least 1"),
        ("max_steps", is_count[1], "a whole number of at least 1"),
        ("observation_space", is_box, "a gymnasium.spaces.Box"),
        ("threshold", is_number, "a number, or None where none is agreed on"),
    ):
        require(is_right, f"Environment.{name} is {getattr(env, name)!r}: it must be {rule}")


def _check_types(env: Environment, key: Array, mode: str) -> None:
    answer = find_types(f"env.reset {mode}", _ONE_ENVIRONMENT, env.reset, key)
    require(
        isinstance(answer, tuple) and len(answer) == 2,
        f"env.reset answers with {answer!r}: it must return (state, obs)",
    )
    state, obs = answer
    action = jax.ShapeDtypeStruct((), jnp.int32)
    answer = find_types(f"env.step {mode}", _ONE_ENVIRONMENT, env.step, key, state, action)
    require(
        isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], TimeStep),
        f"env.step answers with {answer!r}: it must return (state, TimeStep)",
    )
    next_state, timestep = answer
    space = env.observation_space
    dtypes = {jax.dtypes.canonicalize_dtype(space.dtype)}
    if jnp.issubdtype(space.dtype, jnp.floating):
        dtypes.add(jax.dtypes.canonicalize_dtype(np.float64))  # JAX's default float of the mode
    for name, found in (("env.reset", obs), ("env.step", timestep.obs)):
        require(
            found.shape == space.shape and found.dtype in dtypes,
            f"the observation of {name} is {describe_type(found)} {mode}, but observation_space "
            f"says {np.dtype(space.dtype).name}{list(space.shape)}: correct the one or the other",
        )
    pairs = {"state": (state, next_state), "observation": (obs, timestep.obs)}
    for name, (before, after) in pairs.items():
        require_same_types(
            before,
            after,
            f"the {name} has other types after env.step than after env.reset {mode}, so that scan "
            "cannot carry it",
            "give every array one dtype and shape: jnp.zeros((), jnp.int32), x.astype(y.dtype)",
        )
    require_float_scalar(timestep.reward, f"the reward {mode}")
    for name in ("terminated", "truncated"):
        flag = getattr(timestep, name)
        require(
            getattr(flag, "shape", None) == () and flag.dtype == bool,
            f"{name} is {describe_type(flag)} {mode}: it must be a bool scalar",
        )


def _lies_in_space(space: gymnasium.spaces.Box, obs: Any) -> Any:
    # Rounding may carry an observation that sits on a bound beyond it.
    slack = 1e-5 if np.issubdtype(space.dtype, np.floating) else 0
    low = space.low - slack * np.maximum(1, np.abs(space.low))
    high = space.high + slack * np.maximum(1, np.abs(space.high))
    return ((obs >= low.astype(obs.dtype)) & (obs <= high.astype(obs.dtype))).all()


def _check_starts(
    env: Environment, key: Array, action: np.ndarray, random_reset: bool
) -> ArrayTree:
    """Checks the first step of episodes side by side, and returns their first states."""

    def first_step(keys: Array, action: Array) -> Any:
        reset_key, step_key = keys
        state, obs = env.reset(reset_key)
        return (state, obs), env.step(step_key, state, action)

    def start(keys: Array, actions: Array) -> Any:
        alone = first_step(jax.random.clone(keys)[0], actions[0])
        resets, firsts = jax.vmap(first_step)(keys, actions)
        return resets[0], resets[1], *map(drop_keys, (resets, alone, (resets, firsts)))

    program = Program("env.reset and the first env.step", _ONE_ENVIRONMENT, start)
    fresh, *found = program(jax.random.split(key, (NUM_LANES, 2)), action)
    obs, resets, alone, together = to_numpy(found)
    require_close(
        alone,
        jax.tree.map(lambda x: x[0], together),
        "an environment alone and the same one in a batch answer differently",
        "write reset and step for ONE environment: no sum, mean or draw over a batch axis",
    )
    require(
        not random_reset or any((leaf != leaf[:1]).any() for leaf in resets),
        f"{NUM_LANES} different keys give {NUM_LANES} times the same reset: draw it from the "
        "key, or pass random_reset=False if episodes are meant to start alike",
    )
    require(
        _lies_in_space(env.observation_space, obs),
        f"an observation of env.reset lies outside of observation_space ({env.observation_space}): "
        "correct the one or the other",
    )
    return fresh


# What is known of a step: terminated, truncated, whether the observation lies in the space, whether
# the reward is finite, and whether the answer depends on the step's key.
_Played = tuple[Array, Array, Array, Array, Array]


def _check_episodes(env: Environment, key: Array, actions: np.ndarray, fresh: ArrayTree) -> None:
    """Plays `actions` `[T, lanes]` from fresh states, also after the end of an episode."""

    def play_one(state: ArrayTree, xs: tuple[Array, Array]) -> tuple[ArrayTree, _Played]:
        (step_key, other_key), action = xs
        other_state, other = env.step(other_key, clone_keys(state), action)
        next_state, timestep = env.step(step_key, state, action)
        answers = (next_state, timestep.obs), (other_state, other.obs)
        pairs = zip(*map(drop_keys, answers), strict=True)
        same = [jnp.array_equal(x, y, equal_nan=True) for x, y in pairs]
        return next_state, (
            timestep.terminated,
            timestep.truncated,
            _lies_in_space(env.observation_space, timestep.obs),
            jnp.isfinite(timestep.reward),
            ~jnp.stack(same).all(),
        )

    program = Program(
        "playing whole episodes",
        _ONE_ENVIRONMENT,
        lambda states, *steps: jax.lax.scan(jax.vmap(play_one), states, steps),
    )
    keys = jax.random.split(key, (*actions.shape, 2))
    states, rows = [fresh], []
    # At once up to two steps before the limit, and then one by one.
    almost = max(env.max_steps - 2, 0)
    for first, end in itertools.pairwise([0, *range(almost, len(actions) + 1)]):
        state, row = program(states[-1], keys[first:end], actions[first:end])
        states.append(state)
        rows.append(row)
    _check_played(env, to_numpy(jax.tree.map(lambda *x: np.concatenate(x), *rows)))
    if env.max_steps == 1:
        return  # no step comes before the last one, to compare it with
    # Fresh states with only the step counter set to the end.
    before, after = (
        np.asarray(program(_set_clock(fresh, *pair), keys[:1], actions[:1])[1][0][0])
        for pair in (states[1:3], states[2:0:-1])
    )
    require(
        bool(before.all()) or not after[~before].all(),
        f"terminated becomes True at step {env.max_steps} because the time limit (max_steps) is "
        "reached: report it as truncated alone, so that the value is bootstrapped. If the task's "
        "own rules end it there, raise max_steps",
    )


def _check_played(env: Environment, played: _Played) -> None:
    terminated, truncated, in_space, finite_reward, depends_on_key = played
    steps = np.arange(1, len(terminated) + 1)[:, np.newaxis]
    over = terminated | (steps >= env.max_steps)
    in_episode = np.cumsum(over, axis=0) - over == 0
    is_last = in_episode & over
    is_before = in_episode & ~over

    def find(wrong: Any) -> int:
        """Finds the first step, counted from 1, at which something is wrong; 0 if none is."""
        return int(np.argmax(wrong.any(axis=1))) + 1 if wrong.any() else 0

    outside = find(in_episode & ~in_space)
    require(
        not outside,
        f"the observation after step {outside} of an episode lies outside of "
        f"observation_space ({env.observation_space}): correct the one or the other",
    )
    infinite = find(in_episode & ~finite_reward)
    require(
        not infinite,
        f"the reward of step {infinite} of an episode is NaN or infinite: it must be finite",
    )
    hint = (
        "Return the state and the observation that the action led to, also at the end of an "
        "episode; step_and_reset is what starts the next one"
    )
    # Dynamics without noise, but noise in the last answer: a new start was drawn.
    require(
        bool((depends_on_key & is_before).any()) or not (depends_on_key & is_last).any(),
        "the last step of an episode depends on the step's key, and no other step does: env.step "
        f"starts a new episode by itself. {hint}",
    )
    early = find(truncated & (steps < env.max_steps))
    require(
        not early,
        f"truncated is True at step {early} of an episode, but max_steps is {env.max_steps}: it "
        "means the time limit and nothing else; return truncated=num_steps >= max_steps",
    )
    wrong = ~truncated & (steps >= env.max_steps)
    if not (late := find(wrong)):
        return
    lane = int(np.argmax(wrong[late - 1]))
    ended = find(over[: late - 1, lane : lane + 1])
    remedy = (
        f". As the episode was over at step {ended}, env.step seems to start a new one by itself. "
        f"{hint}, and truncated stays True from max_steps on"
        if ended
        else ": count the steps in the state and return truncated=num_steps >= max_steps, apart "
        "from terminated"
    )
    raise AssertionError(
        f"truncated is False at step {late} of an episode, but max_steps is {env.max_steps}{remedy}"
    )


def _set_clock(fresh: ArrayTree, then: ArrayTree, other: ArrayTree) -> ArrayTree:
    """Puts the clocks of states of another time into fresh states `[lanes, ...]`.

    A clock is a number that is the same in all lanes, whatever their keys and actions, and differs
    between two times.
    """

    def leaf(fresh: Array, then: Array, other: Array) -> Array:
        if is_key(fresh):
            return fresh
        is_clock = (then == then[:1]).all(0) & (other == other[:1]).all(0) & (then[0] != other[0])
        return jnp.where(is_clock[jnp.newaxis], then, fresh)

    return jax.tree.map(leaf, fresh, then, other)
