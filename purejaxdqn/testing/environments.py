"""Checks that an environment keeps its contract."""

import functools
import itertools
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import Environment, step_and_reset
from purejaxdqn.testing import require
from purejaxdqn.testing.programs import COMPILABLE, clone_keys, find_types, pure_jit, to_numpy
from purejaxdqn.testing.require import NUM_LANES, describe_type, drop_keys, is_key
from purejaxdqn.testing.stacks import check_stacks
from purejaxdqn.types import BATCH, Array, ArrayTree, TimeStep

_ONE_ENVIRONMENT = f"It is a function of ONE environment, batched with vmap. {COMPILABLE}"
_ONE_LEGAL = "legal_actions must allow at least one where an episode goes on"
_CORRECT = "correct the one or the other"
_NUM_STEPS = 200  # played without a time limit


def check_environment(env: Environment, key: Array, *, random_reset: bool = True) -> None:
    """Checks the environment contract: see `Environment` and `TimeStep`.

    - It works under `jit` and `vmap`, in 32-bit and in 64-bit mode.
    - The same key, state and action give the same bits, and different keys different resets.
    - Shapes and dtypes are fixed, so that `scan` can carry the state; those of an observation are
      the observation space's, and observations lie in it. Rewards are finite float scalars.
    - `terminated` and `truncated` are separate bool scalars; `truncated` is True from the
      `max_steps`-th step on and not before, unless the environment `truncates_early`; and never
      where there are no `max_steps`.
    - `step` never starts a new episode by itself.
    - `legal_actions`, if there are any, are bool, and at least one may be taken wherever an episode
      goes on. No other action is ever taken here.
    - A `step_and_reset` of its own ends episodes where `step` does, of the same key, and acts on
      `TimeStep.obs` where one goes on.
    - What `for_evaluation` makes is an environment of the same actions and observations.
    - Each observation of `frames` repeats those before it.
    - `render` draws one picture, `[H, W, 3]` uint8, of each state.

    On the host, each state is stepped once: the same keys and actions must give the same episodes.

    Args:
      env: the environment; some `max_steps` steps of it, or 200, are played at random.
      key: `[]` PRNG key of everything that is drawn.
      random_reset: False for an environment whose episodes all start alike.

    Raises:
      AssertionError: if something is wrong.
    """
    _check_description(env)
    for x64 in (False, True):
        with jax.enable_x64(x64):
            _check_types(env, key, "in 64-bit mode" if x64 else "in 32-bit mode")
    env = _keep_legal(env)
    start_key, play_key = jax.random.split(key)
    # Two steps longer than an episode.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    shape = ((env.max_steps or _NUM_STEPS) + 2, NUM_LANES)
    actions = rng.integers(0, env.num_actions, shape, np.int32)
    check_stacks(env, key, actions)
    if env.is_host:
        _check_on_host(env, key, actions, random_reset)
        return
    fresh = _check_starts(env, start_key, actions[0], random_reset)
    _check_episodes(env, play_key, actions, fresh)
    if env.step_and_reset is not None:
        _check_step_and_reset(env, play_key, actions[: 2 * _NUM_STEPS])
    if env.for_evaluation is not None:
        _check_evaluated(env, key)


def _keep_legal(env: Environment) -> Environment:
    """Makes the same environment, where each illegal action stands for the legal one after it."""
    legal_actions = env.legal_actions
    if legal_actions is None:
        return env

    def reset(key: Array) -> tuple[Any, Array]:
        state, obs = env.reset(key)
        return (state, obs), obs

    def step(key: Array, state: Any, action: Array) -> tuple[Any, TimeStep]:
        order = (action + jnp.arange(env.num_actions)) % env.num_actions
        action = order[jnp.argmax(legal_actions(state[1])[order])].astype(jnp.int32)
        state, timestep = env.step(key, state[0], action)
        return (state, timestep.obs), timestep

    return env._replace(reset=reset, step=step)


def _has_legal(env: Environment, obs: Array) -> Array:
    """Tells whether an action may be taken."""
    return jnp.bool(True) if env.legal_actions is None else env.legal_actions(obs).any()


def _check_description(env: Environment) -> None:
    require.that(isinstance(env, Environment), f"{env!r} is not an Environment: build one")
    counts = (env.num_actions, 1 if env.max_steps is None else env.max_steps)
    is_count = [type(count) is int and count >= 1 for count in counts]
    is_box = isinstance(env.observation_space, gymnasium.spaces.Box)
    is_number = env.threshold is None or isinstance(env.threshold, (int, float))
    is_legal = env.legal_actions is None or callable(env.legal_actions)
    for name, is_right, rule in (
        ("name", isinstance(env.name, str) and bool(env.name), "a string that is not empty"),
        ("num_actions", is_count[0], "a whole number of at least 1"),
        ("max_steps", is_count[1], "a whole number of at least 1, or None without a time limit"),
        ("truncates_early", isinstance(env.truncates_early, bool), "True or False"),
        ("observation_space", is_box, "a gymnasium.spaces.Box"),
        ("threshold", is_number, "a number, or None where none is agreed on"),
        ("legal_actions", is_legal, "a function of an observation, or None where all are legal"),
    ):
        require.that(is_right, f"Environment.{name} is {getattr(env, name)!r}: it must be {rule}")


def _check_types(env: Environment, key: Array, mode: str) -> None:
    def find(name: str, rule: str, second: type, *args: Any) -> Any:
        answer = find_types(f"env.{name} {mode}", _ONE_ENVIRONMENT, getattr(env, name), *args)
        is_right = isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], second)
        require.that(is_right, f"env.{name} answers with {answer!r}: it must return {rule}")
        return answer

    state, obs = find("reset", "(state, obs)", object, key)
    if env.legal_actions is not None:
        name = f"env.legal_actions {mode}"
        legal = find_types(name, _ONE_ENVIRONMENT, env.legal_actions, obs)
        is_right = getattr(legal, "shape", None) == (env.num_actions,) and legal.dtype == bool
        rule = f"bool[{env.num_actions}], whether each action may be taken"
        require.that(is_right, f"{name} answers with {legal!r}: it must return {rule}")
    action = jax.ShapeDtypeStruct((), jnp.int32)
    next_state, timestep = find("step", "(state, TimeStep)", TimeStep, key, state, action)
    space = env.observation_space
    # JAX's default float of the mode is as good as the space's own.
    floats = [np.float64] if jnp.issubdtype(space.dtype, jnp.floating) else []
    dtypes = [jax.dtypes.canonicalize_dtype(dtype) for dtype in (space.dtype, *floats)]
    for name, found in (("env.reset", obs), ("env.step", timestep.obs)):
        require.that(
            found.shape == space.shape and found.dtype in dtypes,
            f"the observation of {name} is {describe_type(found)} {mode}, but observation_space "
            f"says {np.dtype(space.dtype).name}{list(space.shape)}: {_CORRECT}",
        )
    pairs = {"state": (state, next_state), "observation": (obs, timestep.obs)}
    for name, pair in pairs.items():
        require.same_types(
            *pair,
            f"the {name} has other types after env.step than after env.reset {mode}, so that scan "
            "cannot carry it",
            "give every array one dtype and shape: jnp.zeros((), jnp.int32), x.astype(y.dtype)",
        )
    require.float_scalar(timestep.reward, f"the reward {mode}")
    for name in ("terminated", "truncated"):
        flag = getattr(timestep, name)
        is_right = getattr(flag, "shape", None) == () and flag.dtype == bool
        require.that(is_right, f"{name} is {describe_type(flag)} {mode}: it must be a bool scalar")
    if env.render is not None:
        image: Any = find_types(f"env.render {mode}", _ONE_ENVIRONMENT, env.render, state)
        is_image = getattr(image, "shape", ())[2:] == (3,) and image.dtype == np.uint8
        rule = "it must be uint8[height, width, 3]"
        require.that(is_image, f"env.render draws {describe_type(image)} {mode}: {rule}")


def _lies_in_space(space: gymnasium.spaces.Box, obs: Any) -> Any:
    # Rounding may carry an observation that sits on a bound beyond it.
    slack = 1e-5 if np.issubdtype(space.dtype, np.floating) else 0
    with np.errstate(over="ignore"):  # of the largest number there is
        low = space.low - slack * np.maximum(1, np.abs(space.low))
        high = space.high + slack * np.maximum(1, np.abs(space.high))
    return ((obs >= low.astype(obs.dtype)) & (obs <= high.astype(obs.dtype))).all()


def _check_starts(env: Environment, key: Array, action: np.ndarray, random_reset: bool) -> Any:
    """Checks the first step of episodes side by side, and returns their first states."""

    def first_step(keys: Array, action: Array) -> Any:
        state, obs = env.reset(keys[0])
        return (state, obs), env.step(keys[1], state, action)

    def start(keys: Array, actions: Array) -> Any:
        alone = first_step(jax.random.clone(keys)[0], actions[0])
        return alone, jax.vmap(first_step)(keys, actions)

    program = pure_jit("env.reset and the first env.step", _ONE_ENVIRONMENT, start)
    alone, together = program(jax.random.split(key, (NUM_LANES, 2)), action)
    require.close(
        to_numpy(alone),
        jax.tree.map(lambda x: x[0], to_numpy(together)),
        "an environment alone and the same one in a batch answer differently",
        "write reset and step for ONE environment: no sum, mean or draw over a batch axis",
    )
    fresh, obs = together[0]
    require.that(
        not random_reset or any((leaf != leaf[:1]).any() for leaf in drop_keys((fresh, obs))),
        f"{NUM_LANES} different keys give {NUM_LANES} times the same reset: draw it from the "
        "key, or pass random_reset=False if episodes are meant to start alike",
    )
    require.that(
        _lies_in_space(env.observation_space, np.asarray(obs)),
        "an observation of env.reset lies outside of observation_space "
        f"({env.observation_space}): {_CORRECT}",
    )
    require.that(
        bool(jax.vmap(functools.partial(_has_legal, env))(obs).all()),
        f"no action is legal after env.reset: {_ONE_LEGAL}",
    )
    return fresh


def _check_episodes(env: Environment, key: Array, actions: np.ndarray, fresh: ArrayTree) -> None:
    """Plays `actions` `[T, lanes]` from fresh states, also after the end of an episode."""

    def play_one(state: ArrayTree, xs: tuple[Array, Array]) -> tuple[ArrayTree, Any]:
        (step_key, other_key), action = xs
        other_state, other = env.step(other_key, clone_keys(state), action)
        next_state, timestep = env.step(step_key, state, action)
        answers = (next_state, timestep.obs), (other_state, other.obs)
        pairs = zip(*map(drop_keys, answers), strict=True)
        same = [jnp.array_equal(x, y, equal_nan=True) for x, y in pairs]
        in_space = _lies_in_space(env.observation_space, timestep.obs)
        ends, is_finite = (timestep.terminated, timestep.truncated), jnp.isfinite(timestep.reward)
        has_legal = _has_legal(env, timestep.obs)
        return next_state, (*ends, in_space, is_finite, has_legal, ~jnp.stack(same).all())

    def set_clock(fresh: Array, then: Array, other: Array) -> Array:
        # A clock is the same in all lanes, whatever their keys and actions, but not at all times.
        if is_key(fresh):
            return fresh
        is_clock = (then == then[:1]).all(0) & (other == other[:1]).all(0) & (then[0] != other[0])
        return jnp.where(is_clock[jnp.newaxis], then, fresh)

    play = functools.partial(jax.lax.scan, jax.vmap(play_one))
    program = pure_jit("playing whole episodes", _ONE_ENVIRONMENT, play)
    keys = jax.random.split(key, (*actions.shape, 2))
    states, rows = [fresh], []
    # At once up to two steps before the limit, and then one by one.
    stops = range(max(len(actions) - 4, 0), len(actions) + 1)
    for first, end in itertools.pairwise([0, *stops]):
        state, row = program(states[-1], (keys[first:end], actions[first:end]))
        states.append(state)
        rows.append(row)
    _check_played(env, jax.tree.map(lambda *x: np.concatenate(x), *rows))
    if env.max_steps in (None, 1) or env.truncates_early:
        return  # no step comes before the last one, to compare it with
    # Fresh states with only the step counter set to the end.
    clocked = [jax.tree.map(set_clock, fresh, *pair) for pair in (states[1:3], states[2:0:-1])]
    before, after = (np.asarray(program(x, (keys[:1], actions[:1]))[1][0][0]) for x in clocked)
    require.that(
        bool(before.all()) or not after[~before].all(),
        f"terminated becomes True at step {env.max_steps} because the time limit (max_steps) is "
        "reached: report it as truncated alone, so that the value is bootstrapped. If the task's "
        "own rules end it there, raise max_steps",
    )


def _check_played(env: Environment, played: tuple[np.ndarray, ...]) -> None:
    """Judges what `play_one` says of each step, `[T, lanes]` each."""
    terminated, truncated, in_space, is_finite, has_legal, depends_on_key = played
    limit_at = np.inf if env.max_steps is None else env.max_steps
    is_late = np.arange(1, len(terminated) + 1)[:, np.newaxis] >= limit_at
    over = terminated | is_late | (truncated & env.truncates_early)
    in_episode = np.equal(np.cumsum(over, axis=0), over)
    hint = (
        "Return the state and the observation that the action led to, also at the end of an "
        "episode; step_and_reset is what starts the next one"
    )
    # Dynamics without noise, but noise in the last answer: a new start was drawn.
    noise = depends_on_key & in_episode
    require.that(
        bool((noise & ~over).any()) or not (noise & over).any(),
        "the last step of an episode depends on the step's key, and no other step does: env.step "
        f"starts a new episode by itself. {hint}",
    )
    count = "return truncated=num_steps >= max_steps"
    missed = is_late & ~truncated
    t, lane = np.argwhere(missed)[0] if missed.any() else (0, 0)
    remedy = f": count the steps in the state and {count}, apart from terminated"
    if over[:t, lane].any():
        remedy = (
            f". As the episode was over at step {over[:t, lane].argmax() + 1}, env.step seems to "
            f"start a new one by itself. {hint}, and truncated stays True from max_steps on"
        )
    outside = f"lies outside of observation_space ({env.observation_space})"
    limit = f", but max_steps is {env.max_steps}"
    rule = f"{limit}: it means the time limit and nothing else; {count}"
    if env.max_steps is None:
        rule = ", but max_steps is None, so that episodes are never cut: give the time limit"
    for wrong, what, how in (
        (~in_space & in_episode, "the observation after", f" {outside}: {_CORRECT}"),
        (~is_finite & in_episode, "the reward of", " is NaN or infinite: it must be finite"),
        (~has_legal & in_episode & ~terminated, "no action is legal after", f": {_ONE_LEGAL}"),
        (truncated & ~is_late & (not env.truncates_early), "truncated is True at", rule),
        (missed, "truncated is False at", f"{limit}{remedy}"),
    ):
        step = wrong.any(axis=1).argmax() + 1
        require.that(not wrong.any(), f"{what} step {step} of an episode{how}")


def _check_step_and_reset(env: Environment, key: Array, actions: np.ndarray) -> None:
    """Checks an environment's own `step_and_reset` beside its `step`, over `actions [T, lanes]`."""
    own: Any = env.step_and_reset

    def play_one(carry: tuple[ArrayTree, Array], xs: tuple[Array, Array]) -> tuple[Any, Any]:
        state, _ = carry
        step_key, action = xs
        plain_key = jax.random.split(clone_keys(step_key))[0]  # as base.step_and_reset steps
        _, plain = env.step(plain_key, clone_keys(state), action)
        state, obs, timestep = own(step_key, state, action)
        ended = timestep.terminated | timestep.truncated
        goes_on = ended | jnp.array_equal(obs, timestep.obs, equal_nan=True)
        in_space = _lies_in_space(env.observation_space, obs)
        flags = [jnp.array_equal(x, y) for x, y in zip(timestep[2:], plain[2:], strict=True)]
        return (state, obs), (goes_on, in_space, jnp.stack(flags).all())

    def play(keys: Array, actions: Any) -> Any:
        start = jax.vmap(env.reset)(keys[0])
        play_all = jax.vmap(play_one, axis_name=BATCH)  # as the training loop does
        return jax.lax.scan(play_all, start, (keys[1:], actions))[1]

    program = pure_jit("env.step_and_reset", _ONE_ENVIRONMENT, play)
    keys = jax.random.split(key, (len(actions) + 1, NUM_LANES))
    goes_on, in_space, same_flags = map(np.asarray, program(keys, actions))
    require.that(
        bool(goes_on.all()),
        "env.step_and_reset acts on another observation than the action led to, where no episode "
        "ended: give timestep.obs there",
    )
    require.that(
        bool(in_space.all()),
        "an observation that env.step_and_reset acts on lies outside of observation_space "
        f"({env.observation_space}): {_CORRECT}",
    )
    require.that(
        bool(same_flags.all()),
        "env.step_and_reset and env.step end episodes at different steps: make both of one step",
    )


def _check_on_host(env: Environment, key: Array, actions: np.ndarray, random_reset: bool) -> None:
    """Checks environments on the host, by plays `[T, lanes]` from the same keys."""

    def play(keys: Array, actions: Any, resets: bool) -> Any:
        def step(state: ArrayTree, action: Array) -> tuple[ArrayTree, Any]:
            if resets:
                state, obs, timestep = step_and_reset(env, keys[0], state, action)
                return state, (timestep, obs)
            state, timestep = env.step(keys[0], state, action)
            return state, (timestep, timestep.obs)

        state, obs = jax.vmap(env.reset)(keys)
        return obs, jax.lax.scan(jax.vmap(step), state, actions)[1]

    program = jax.jit(play, static_argnums=2)
    keys = jax.random.split(key, NUM_LANES)
    plays = [to_numpy(program(keys, actions, resets)) for resets in (False, False, True)]
    first_obs, (timestep, _) = plays[0]
    obs, reward, terminated, truncated = timestep
    ended = terminated | truncated
    is_over = np.cumsum(ended, axis=0) > ended  # behind an end, where `step` answers as there
    rule = "seed all of its random numbers in env.reset(seed=seed), and keep none elsewhere"
    require.close(plays[0], plays[1], "the same keys and actions give two plays", rule)
    require.that(
        not random_reset or bool((first_obs != first_obs[:1]).any()),
        f"{NUM_LANES} different keys give {NUM_LANES} times the same reset: {rule}, or pass "
        "random_reset=False if episodes are meant to start alike",
    )
    before, (later, acted_on) = plays[0][1][0], plays[2][1]
    inside = [np.where(_right_pad(is_over, x), 0, x) for x in before]
    inside_later = [np.where(_right_pad(is_over, x), 0, x) for x in later]
    require.close(inside, inside_later, "env.step and env.step_and_reset differ", "step once")
    goes_on = ~(later.terminated | later.truncated)
    same = (acted_on == later.obs).reshape(*goes_on.shape, -1).all(axis=-1)
    require.that(bool(same[goes_on].all()), "env.step_and_reset acts on what no step led to")
    spaces = jax.vmap(jax.vmap(functools.partial(_lies_in_space, env.observation_space)))(obs)
    finite, legal = np.isfinite(reward), np.ones_like(terminated)
    flags = (terminated, truncated | is_over)
    _check_played(env, (*flags, np.asarray(spaces), finite, legal, ~legal))


def _right_pad(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    return mask.reshape(*mask.shape, *(1,) * (like.ndim - mask.ndim))


def _check_evaluated(env: Environment, key: Array) -> None:
    """Checks what evaluations play, beside the environment that is trained in."""
    states, _ = jax.vmap(env.reset)(jax.random.split(key, NUM_LANES))
    evaluated = env.in_evaluation(states)
    _check_description(evaluated)
    _check_types(evaluated, key, "in evaluation")
    same = evaluated.num_actions == env.num_actions
    require.that(
        same and evaluated.observation_space == env.observation_space,
        f"env.for_evaluation makes an environment of {evaluated.num_actions} actions and "
        f"{evaluated.observation_space}, but the one that is trained in has {env.num_actions} and "
        f"{env.observation_space}: a network serves both, so make them the same",
    )
