"""The contracts as checks that a researcher can run on a component of their own, in a test or in a notebook.

    from purejaxdqn import testing
    testing.check_environment(my_env, jax.random.key(0))
    testing.check_td_error(my_td_error, jax.random.key(0))
    testing.check_loss(my_loss, jax.random.key(0))
    testing.check_network(my_network, jax.random.key(0), obs=jnp.zeros(4), num_actions=2)
    testing.check_replay(my_make_replay, jax.random.key(0))

A check that finds nothing returns None. One that finds something raises an AssertionError that says what is wrong, the
value that was found, and the remedy.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import Environment, step_and_reset
from purejaxdqn.losses.bellman import TDError
from purejaxdqn.networks import MLP, make_network
from purejaxdqn.types import (
    Array,
    ArrayTree,
    LossFn,
    LossOutput,
    Network,
    Params,
    Replay,
    Sample,
    Step,
    TimeStep,
    Transition,
    run_axes,
)

__all__ = [
    "check_environment",
    "check_loss",
    "check_network",
    "check_replay",
    "check_td_error",
    "check_terminal_ignores_next_obs",
]

MakeReplay = Callable[[int, int, float, int], Replay]

_NUM_LANES = 16  # environments, transitions or observations looked at side by side


# -------------------------------------------------------------------------------------------------- environments


def check_environment(env: Environment, key: Array, *, random_reset: bool = True) -> None:
    """Checks the environment contract: see `Environment`, `TimeStep` and `step_and_reset`.

    The environment works under `jit` and `vmap`, in 32 and in 64 bits; the same key, state and action give the same
    bits, and different keys different resets; shapes and dtypes are fixed, so that `scan` can carry the state, and
    those of an observation are the observation space's; observations lie in the space, rewards are finite float
    scalars; `terminated` and `truncated` are separate bool scalars, and `truncated` holds from the `max_steps`-th step
    on and not before; `step` never starts a new episode by itself.

    Args:
      env: the environment.
      key: `[]` PRNG key of the random play that the check observes.
      random_reset: False for an environment whose episodes all start alike.

    Raises:
      AssertionError: if something is wrong. Plays some `max_steps` steps.
    """
    _check_description(env)
    for x64 in (False, True):
        with jax.enable_x64(x64):
            _check_environment_types(env, key, "64" if x64 else "32")
    _check_environment_randomness(env, key, random_reset)
    _check_episodes(env, key)


def _check_description(env: Environment) -> None:
    _require(isinstance(env, Environment), f"{env!r} is no Environment: build one of its fields")
    _require(
        isinstance(env.name, str) and bool(env.name),
        f"Environment.name is {env.name!r}: it must be a string that is not empty",
    )
    for name in ("num_actions", "max_steps"):
        value = getattr(env, name)
        _require(
            isinstance(value, int) and not isinstance(value, bool) and value >= 1,
            f"Environment.{name} is {value!r}: it must be a whole number of at least 1",
        )
    _require(
        isinstance(env.observation_space, gymnasium.spaces.Box),
        f"Environment.observation_space is {env.observation_space!r}: it must be a gymnasium.spaces.Box",
    )
    _require(
        env.threshold is None or isinstance(env.threshold, (int, float)),
        f"Environment.threshold is {env.threshold!r}: it must be a number, or None where none is agreed on",
    )


def _check_environment_types(env: Environment, key: Array, bits: str) -> None:
    mode = f"in {bits}-bit mode"
    action = jnp.zeros((), jnp.int32)
    with _explained(f"env.reset {mode}", _COMPILABLE):
        state, obs = jax.eval_shape(env.reset, key)
    with _explained(f"env.step {mode}", _COMPILABLE):
        next_state, timestep = jax.eval_shape(env.step, key, state, action)
    _require(
        isinstance(timestep, TimeStep),
        f"env.step answers with a {type(timestep).__name__}: it must return (state, TimeStep)",
    )
    _require_same_types(
        state,
        next_state,
        f"the state changes its type between env.reset and env.step {mode}, so scan cannot carry it",
        "give every array one dtype and shape from the start, such as jnp.zeros((), jnp.int32) and x.astype(y.dtype)",
    )
    space = env.observation_space
    dtypes = {jax.dtypes.canonicalize_dtype(space.dtype)}
    if jnp.issubdtype(space.dtype, jnp.floating):
        dtypes.add(jax.dtypes.canonicalize_dtype(np.float64))  # JAX's default float of the mode
    for name, found in (("env.reset", obs), ("env.step", timestep.obs)):
        _require(
            found.shape == space.shape and found.dtype in dtypes,
            f"the observation of {name} is {_type_of(found)} {mode}: observation_space says "
            f"{np.dtype(space.dtype).name}{list(space.shape)}; cast the observation or correct the space",
        )
    _require_same_types(
        obs,
        timestep.obs,
        f"the observation changes its type between env.reset and env.step {mode}",
        "cast both to one dtype",
    )
    _require(
        timestep.reward.shape == () and jnp.issubdtype(timestep.reward.dtype, jnp.floating),
        f"the reward is {_type_of(timestep.reward)} {mode}: it must be a float scalar, such as jnp.float32(1)",
    )
    for name in ("terminated", "truncated"):
        flag = getattr(timestep, name)
        _require(
            flag.shape == () and flag.dtype == bool,
            f"{name} is {_type_of(flag)} {mode}: it must be a bool scalar",
        )
    with _explained(f"step_and_reset over a batch {mode}", _BATCHABLE):
        keys, states = jax.eval_shape(lambda key: jax.random.split(key, 3), key), _batched(state, 3)
        actions = jax.ShapeDtypeStruct((3,), jnp.int32)
        jax.eval_shape(jax.vmap(functools.partial(step_and_reset, env)), keys, states, actions)


def _check_environment_randomness(env: Environment, key: Array, random_reset: bool) -> None:
    def play(keys: Array) -> tuple[Any, ...]:
        def one(key: Array) -> tuple[Any, ...]:
            reset_key, act_key, step_key = jax.random.split(key, 3)
            state, obs = env.reset(reset_key)
            action = jax.random.randint(act_key, (), 0, env.num_actions, jnp.int32)
            return (state, obs), env.step(step_key, state, action)

        return jax.vmap(one)(keys)

    keys = jax.random.split(key, _NUM_LANES)
    with _explained("env.reset and env.step over a batch", _BATCHABLE):
        played = _compiled(play)(keys)
        alone = jax.tree.map(lambda x: x[0], _compiled(play)(keys[:1]))
    _require_key_hygiene(play, keys, "env.reset or env.step")
    _require_same_bits(
        played,
        _compiled(play)(keys),
        "the same key, state and action give different answers",
        "draw every random number with jax.random from the key, none from numpy, random or a counter",
    )
    _require_close(
        alone,
        jax.tree.map(lambda x: x[0], played),
        "an environment alone and the same one in a batch answer differently",
        "write reset and step for ONE environment: no sum, mean or random draw over a batch axis",
    )
    if random_reset:
        resets = jax.tree.leaves(_without_keys(played[0]))
        _require(
            any((np.asarray(leaf) != np.asarray(leaf)[:1]).any() for leaf in resets),
            f"{_NUM_LANES} different keys give {_NUM_LANES} times the same reset: use the key, or pass "
            "random_reset=False if all episodes do start alike",
        )


class _Played(NamedTuple):
    """What is kept of one step of every lane `[lanes]`."""

    terminated: Array
    truncated: Array
    in_space: Array
    finite_reward: Array
    needs_key: Array  # the answer depends on the step's key


def _check_episodes(env: Environment, key: Array) -> None:
    space = env.observation_space
    # Rounding may carry an observation that sits on a bound beyond it.
    slack = 1e-5 if np.issubdtype(space.dtype, np.floating) else 0
    low = space.low - slack * np.maximum(1, np.abs(space.low))
    high = space.high + slack * np.maximum(1, np.abs(space.high))

    def lies_in_space(obs: Array) -> Array:
        inside = (obs >= jnp.asarray(low, obs.dtype)) & (obs <= jnp.asarray(high, obs.dtype))
        return inside.all()

    def play(env_key: Array, act_key: Array, state: ArrayTree) -> tuple[ArrayTree, _Played]:
        """One random step of one environment."""
        key, other_key = jax.random.split(env_key)
        action = jax.random.randint(act_key, (), 0, env.num_actions, jnp.int32)
        next_state, timestep = env.step(key, state, action)
        other = env.step(other_key, state, action)
        return next_state, _Played(
            timestep.terminated,
            timestep.truncated,
            lies_in_space(timestep.obs),
            jnp.isfinite(timestep.reward),
            _differ((next_state, timestep.obs), (other[0], other[1].obs)),
        )

    def play_all(states: ArrayTree, key: Array) -> tuple[ArrayTree, _Played]:
        env_key, act_key = jax.random.split(key)
        env_keys, act_keys = (jax.random.split(key, _NUM_LANES) for key in (env_key, act_key))
        return jax.vmap(play)(env_keys, act_keys, states)

    num_early = max(env.max_steps - 2, 0)

    def record(key: Array) -> Any:
        """Plays on after the end of an episode, as `step` never starts a new one."""
        reset_key, early_key, late_key, end_key = jax.random.split(key, 4)
        fresh, obs = jax.vmap(env.reset)(jax.random.split(reset_key, _NUM_LANES))
        early_keys = jax.random.split(early_key, max(num_early, 1))[:num_early]
        states, early = jax.lax.scan(play_all, fresh, early_keys)

        def remember(states: ArrayTree, key: Array) -> Any:
            next_states, played = play_all(states, key)
            return next_states, (states, played)

        _, (late_states, late) = jax.lax.scan(remember, states, jax.random.split(late_key, 4))
        played = jax.tree.map(lambda *parts: jnp.concatenate(parts), early, late)
        # The last step of fresh episodes whose clocks, and nothing else, say that the time is almost up.
        aged = [_with_clock_of(fresh, late_states, at) for at in (0, 1)]
        endings = [play_all(states, end_key)[1] for states in aged]
        return fresh, jax.vmap(lies_in_space)(obs), played, late_states, endings

    with _explained("playing whole episodes", _BATCHABLE):
        outputs = _compiled(record)(key)
    _, reset_in_space, played, late_states, endings = outputs
    _require(
        bool(np.all(reset_in_space)),
        f"an observation of env.reset lies outside of observation_space ({space}): correct the one or the other",
    )
    played = jax.tree.map(np.asarray, played)
    steps = np.arange(1, len(played.terminated) + 1)[:, np.newaxis]
    over = played.terminated | (steps >= env.max_steps)
    is_last = over & (np.cumsum(over, axis=0) == 1)
    is_within = (np.cumsum(over, axis=0) == 0) | is_last
    for name, remedy in (
        ("in_space", f"an observation outside of observation_space ({space}): correct the one or the other"),
        ("finite_reward", "a reward that is NaN or infinite"),
    ):
        wrong = np.argwhere(is_within & ~getattr(played, name))
        _require(not len(wrong), f"step {wrong[0][0] + 1 if len(wrong) else 0} of an episode gives {remedy}")
    _check_truncation(env, played, is_last, is_within)
    _check_folding(env, endings)
    _check_reset_after_the_end(env, key, late_states)


def _check_truncation(
    env: Environment, played: _Played, is_last: np.ndarray, is_within: np.ndarray
) -> None:
    resets_itself = (
        "return the state and the observation that the action led to, also at the end of an episode; "
        "step_and_reset starts the new one"
    )
    # Dynamics without noise, but noise in the last answer: a reset was drawn.
    _require(
        bool((played.needs_key & is_within & ~is_last).any()) or not (played.needs_key & is_last).any(),
        "the last step of an episode, and no other, depends on the step's key: env.step seems to reset by itself; "
        + resets_itself,
    )
    steps = np.arange(1, len(played.truncated) + 1)[:, np.newaxis]
    early = np.argwhere(played.truncated & (steps < env.max_steps))
    if len(early):
        step, lane = early[0]
        also = " (and terminated with it)" if played.terminated[step, lane] else ""
        raise AssertionError(
            f"truncated is True at step {step + 1} of an episode{also}, but max_steps is {env.max_steps}: truncated means "
            "the time limit and nothing else, so compare the steps taken with max_steps"
        )
    late = np.argwhere(~played.truncated & (steps >= env.max_steps))
    if len(late):
        step, lane = late[0]
        ended = np.flatnonzero((played.terminated | played.truncated)[:step, lane])
        found = f"truncated is False at step {step + 1} of an episode, but max_steps is {env.max_steps}: "
        if len(ended):
            raise AssertionError(
                f"{found}the episode was over at step {ended[0] + 1} already, so either env.step started a new one by "
                f"itself or its time limit is not counted. {resets_itself.capitalize()}, and keep truncated True"
            )
        raise AssertionError(
            f"{found}count the steps in the state and return truncated=num_steps >= max_steps, apart from terminated"
        )


def _check_folding(env: Environment, endings: list[_Played]) -> None:
    before, after = (np.asarray(ending.terminated) for ending in endings)
    # Where the clock alone ends an episode "by the task's own rules", all that were alive end together.
    _require(
        env.max_steps == 1 or not (~before).any() or not after[~before].all(),
        f"terminated becomes True at step {env.max_steps} because the time limit (max_steps) is reached: leave the time limit to "
        "truncated alone, so that its value is bootstrapped. If the task's own rules end it there, raise max_steps",
    )


def _check_reset_after_the_end(env: Environment, key: Array, late_states: ArrayTree) -> None:
    if env.max_steps == 1:
        return  # the first step of a new episode is truncated as well
    # The state before the step that reaches the limit.
    states = jax.tree.map(lambda x: x[1], late_states)

    def end_and_go_on(keys: Array, states: ArrayTree) -> tuple[Array, Array]:
        def one(key: Array, state: ArrayTree) -> tuple[Array, Array]:
            end_key, next_key = jax.random.split(key)
            action = jnp.zeros((), jnp.int32)
            state, _, ended = step_and_reset(env, end_key, state, action)
            return ended.truncated, env.step(next_key, state, action)[1].truncated

        return jax.vmap(one)(keys, states)

    ended, ended_again = _compiled(end_and_go_on)(jax.random.split(key, _NUM_LANES), states)
    _require(
        bool(np.all(ended)) and not np.any(ended_again),
        f"after step {env.max_steps} and a reset, the first step of the new episode is truncated: env.reset must start the "
        "count of steps anew",
    )


def _with_clock_of(fresh: ArrayTree, states: ArrayTree, at: int) -> ArrayTree:
    """Fresh states `[lanes, ...]` with the clocks of `states[at]`, of states `[time, lanes, ...]`.

    A clock is a number that is the same in all lanes, whatever their keys and actions, and another at each time.
    """

    def leaf(fresh: Array, states: Array) -> Array:
        if jnp.issubdtype(fresh.dtype, jax.dtypes.prng_key):
            return fresh
        alike = (states == states[:, :1]).all(axis=(0, 1))
        is_clock = alike & (states[0, 0] != states[1, 0])
        return jnp.where(is_clock[jnp.newaxis], states[at], fresh)

    return jax.tree.map(leaf, fresh, states)


def _differ(a: ArrayTree, b: ArrayTree) -> Array:
    """`[]` whether two trees differ anywhere but in their PRNG keys."""
    pairs = zip(jax.tree.leaves(_without_keys(a)), jax.tree.leaves(_without_keys(b)), strict=True)
    # NaN equals nothing, itself included.
    unlike = [((x != y) & ~((x != x) & (y != y))).any() for x, y in pairs]  # noqa: PLR0124
    return functools.reduce(jnp.logical_or, unlike, jnp.zeros((), bool))


# --------------------------------------------------------------------------------------------------------- losses


def check_td_error(td_error: TDError, key: Array, *, num_actions: int = 3) -> None:
    """Checks a TD error for `bellman_loss`, such as `q_learning`.

    It works on ONE transition, under `jit`, `vmap` and `grad`, and gives one finite float; it is a semi-gradient: the
    gradient reaches `q_tm1[a_tm1]` and nothing else, the target included; with `discount_t` 0 the values at time t do not
    count.

    Args:
      td_error: `(q_tm1 [A], a_tm1 [], r_t [], discount_t [], q_t [A], q_t_online [A]) -> []`.
      key: `[]` PRNG key of the values that it is tried on.
      num_actions: `A`.

    Raises:
      AssertionError: if something is wrong.
    """
    names = ("q_tm1", "a_tm1", "r_t", "discount_t", "q_t", "q_t_online")
    keys = jax.random.split(key, 5)
    shape = (_NUM_LANES, num_actions)
    q_tm1, q_t, q_t_online = (jax.random.normal(k, shape) for k in keys[:3])
    a_tm1 = jnp.arange(_NUM_LANES, dtype=jnp.int32) % num_actions
    r_t = jax.random.normal(keys[3], (_NUM_LANES,))
    discount_t = jax.random.uniform(keys[4], (_NUM_LANES,), minval=0.5)
    arguments = (q_tm1, a_tm1, r_t, discount_t, q_t, q_t_online)
    one = jax.tree.map(lambda x: x[0], arguments)

    with _explained("the TD error of one transition", _ONE_TRANSITION):
        found = jax.eval_shape(td_error, *one)
    _require_float_scalar(found, "the TD error of one transition")
    with _explained("the TD error under jit and vmap", _ONE_TRANSITION):
        errors = _compiled(jax.vmap(td_error))(*arguments)
        error = _compiled(td_error)(*one)
    _require_finite(errors, "the TD error")
    _require_close(error, errors[0], "one transition alone and in a batch differ", _ONE_TRANSITION)
    _require_same_bits(
        errors, _compiled(jax.vmap(td_error))(*arguments), "the same arguments give different TD errors", _PURE
    )

    wrt = tuple(i for i, name in enumerate(names) if name != "a_tm1")
    with _explained("the gradient of the TD error", _ONE_TRANSITION):
        grads = _compiled(jax.vmap(jax.grad(td_error, argnums=wrt)))(*arguments)
    for i, grad in zip(wrt, grads, strict=True):
        _require_finite(grad, f"the gradient with respect to {names[i]}")
        if names[i] == "q_tm1":
            continue
        _require(
            not np.any(grad),
            f"a gradient of {_largest(grad)} flows through the target to {names[i]}: wrap the target in "
            "jax.lax.stop_gradient",
        )
    taken = np.asarray(jax.nn.one_hot(a_tm1, num_actions, dtype=bool))
    q_grad = np.asarray(grads[0])
    _require(
        bool(np.all(q_grad[taken] != 0)),
        "no gradient reaches q_tm1[a_tm1]: stop the gradient of the target alone, not of the prediction",
    )
    _require(
        not np.any(q_grad[~taken]),
        f"a gradient of {_largest(q_grad[~taken])} reaches q_tm1 of an action that was not taken: index q_tm1 with a_tm1, "
        "and wrap what belongs to the target in jax.lax.stop_gradient",
    )

    zero = jnp.zeros_like(discount_t)
    ended = _compiled(jax.vmap(td_error))(q_tm1, a_tm1, r_t, zero, q_t, q_t_online)
    elsewhere = _compiled(jax.vmap(td_error))(q_tm1, a_tm1, r_t, zero, q_t + 1.0, 1.0 - q_t_online)
    _require_close(
        ended,
        elsewhere,
        "with discount_t = 0 (a terminated episode) the TD error still depends on q_t or q_t_online",
        "multiply everything that comes from time t by discount_t",
    )


def check_loss(
    loss_fn: LossFn,
    key: Array,
    *,
    network: Network | None = None,
    transitions: Transition | None = None,
    terminal_ignores_next_obs: bool = True,
) -> None:
    """Checks a loss of ONE transition: see `LossFn` and `LossOutput`.

    It works under `jit`, `vmap` and `grad`; loss, priority and metrics are finite scalars; the gradient reaches the online
    weights and not the target network's; the same key gives the same bits; what follows a terminated episode does not
    count.

    Args:
      loss_fn: the loss.
      key: `[]` PRNG key of everything that is drawn.
      network: the network that the loss expects; by default an MLP of action values.
      transitions: `[B, ...]` such as `replay.sample(...).transition`; by default random ones with 4 numbers to an
        observation and 3 actions.
      terminal_ignores_next_obs: False for a loss that learns from `obs_t` whatever the discount.

    Raises:
      AssertionError: if something is wrong.
    """
    init_key, loss_key, terminal_key = jax.random.split(key, 3)
    network, transitions, params, target_params = _loss_inputs(init_key, network, transitions)
    num = transitions.r_t.shape[0]
    one = jax.tree.map(lambda x: x[0], transitions)
    keys = jax.random.split(loss_key, num)

    def loss(params: Params, target_params: Params, transition: Transition, key: Array) -> Any:
        return loss_fn(network, params, target_params, transition, key)

    with _explained("the loss of one transition", _ONE_TRANSITION):
        output = jax.eval_shape(loss, params, target_params, one, keys[0])
    _require(
        isinstance(output, LossOutput),
        f"the loss returns a {type(output).__name__}: it must return a LossOutput(loss, priority, metrics)",
    )
    _require_float_scalar(output.loss, "LossOutput.loss")
    _require_float_scalar(output.priority, "LossOutput.priority")
    _require(
        isinstance(output.metrics, dict),
        f"LossOutput.metrics is a {type(output.metrics).__name__}: it must be a dict of scalars, {{}} if there are none",
    )
    for name, metric in output.metrics.items():
        _require_float_scalar(metric, f"LossOutput.metrics[{name!r}]")

    batched = jax.vmap(loss, in_axes=(None, None, 0, 0))
    arguments = (params, target_params, transitions, keys)
    with _explained("the loss under jit and vmap", _ONE_TRANSITION):
        outputs = _compiled(batched)(*arguments)
        alone = _compiled(loss)(params, target_params, one, keys[0])
    _require_finite(outputs, "LossOutput")
    _require(
        bool(np.all(np.asarray(outputs.priority) >= 0)),
        f"a priority is {np.min(outputs.priority)}: it must not be negative, such as jnp.abs(td_error)",
    )
    _require_close(
        alone,
        jax.tree.map(lambda x: x[0], outputs),
        "one transition alone and in a batch have different losses",
        _ONE_TRANSITION,
    )
    _require_same_bits(
        outputs, _compiled(batched)(*arguments), "the same key gives different losses", _PURE
    )
    _require_key_hygiene(functools.partial(batched, params, target_params, transitions), keys, "the loss")

    def mean_loss(params: Params, target_params: Params) -> Array:
        return jnp.mean(batched(params, target_params, transitions, keys).loss)

    with _explained("the gradient of the loss", _ONE_TRANSITION):
        grads, target_grads = _compiled(jax.grad(mean_loss, argnums=(0, 1)))(params, target_params)
    _require_finite(grads, "the gradient")
    _require(
        _largest(grads) > 0,
        "no gradient reaches the online weights (params), so nothing would be learned: stop the gradient of the target alone, "
        "and take the prediction from params",
    )
    _require(
        _largest(target_grads) == 0,
        f"a gradient of {_largest(target_grads)} reaches target_params: wrap the target in jax.lax.stop_gradient",
    )
    if terminal_ignores_next_obs:
        check_terminal_ignores_next_obs(
            loss_fn, terminal_key, network=network, transitions=transitions
        )


def check_terminal_ignores_next_obs(
    loss_fn: LossFn,
    key: Array,
    *,
    network: Network | None = None,
    transitions: Transition | None = None,
) -> None:
    """Checks that a loss makes nothing of `obs_t` where `discount_t` is 0: the episode terminated and nothing follows.

    Args:
      loss_fn: the loss.
      key: `[]` PRNG key of everything that is drawn.
      network: as for `check_loss`.
      transitions: as for `check_loss`; at least 2, whose `obs_t` differ.

    Raises:
      AssertionError: if loss, priority or gradient depend on `obs_t`.
    """
    init_key, loss_key = jax.random.split(key)
    network, transitions, params, target_params = _loss_inputs(init_key, network, transitions)
    keys = jax.random.split(loss_key, transitions.r_t.shape[0])

    def grad_and_output(transitions: Transition) -> Any:
        def one(transition: Transition, key: Array) -> Any:
            def loss(params: Params) -> tuple[Array, Array]:
                output = loss_fn(network, params, target_params, transition, key)
                return output.loss, output.priority

            return jax.value_and_grad(loss, has_aux=True)(params)

        return jax.vmap(one)(transitions, keys)

    ended = transitions._replace(discount_t=jnp.zeros_like(transitions.discount_t))
    elsewhere = ended._replace(obs_t=jnp.roll(ended.obs_t, 1, axis=0))
    with _explained("the gradient of the loss", _ONE_TRANSITION):
        a, b = (_compiled(grad_and_output)(transitions) for transitions in (ended, elsewhere))
    _require_close(
        a,
        b,
        "with discount_t = 0 (a terminated episode) the loss, the priority or the gradient still depends on obs_t",
        "multiply everything that comes from obs_t by discount_t, or pass terminal_ignores_next_obs=False if the loss is meant "
        "to learn from it",
    )


def _loss_inputs(
    key: Array, network: Network | None, transitions: Transition | None
) -> tuple[Network, Transition, Params, Params]:
    """A network with online and target weights that differ, and transitions `[B, ...]`."""
    obs_key, online_key, target_key = jax.random.split(key, 3)
    if transitions is None:
        a, b, c = jax.random.split(obs_key, 3)
        obs = jax.random.normal(a, (2, _NUM_LANES, 4))
        transitions = Transition(
            obs_tm1=obs[0],
            a_tm1=jax.random.randint(b, (_NUM_LANES,), 0, 3, jnp.int32),
            r_t=jax.random.normal(c, (_NUM_LANES,)),
            discount_t=jnp.where(jnp.arange(_NUM_LANES) % 4 == 3, 0.0, 0.99),
            obs_t=obs[1],
        )
    if network is None:
        network = make_network(MLP((16,), 3))
    with _explained("network.init", "pass the network and the transitions that belong together"):
        params = network.init(online_key, transitions.obs_tm1[0])
        target_params = network.init(target_key, transitions.obs_tm1[0])
    return network, transitions, params, target_params


# ------------------------------------------------------------------------------------------------------- networks


def check_network(network: Network, key: Array, obs: Array, num_actions: int) -> None:
    """Checks a value network of ONE observation: see `Network`.

    It works under `jit`, `vmap` and `grad`, also over weights; `action_values` gives one finite float for each action;
    without a key there is no noise, with one the noise is the key's; an observation's output does not depend on the
    others in a batch; different keys give different weights.

    Args:
      network: the network.
      key: `[]` PRNG key of everything that is drawn.
      obs: `[*obs]` one observation.
      num_actions: `A`.

    Raises:
      AssertionError: if something is wrong.
    """
    obs = jnp.asarray(obs)
    init_key, noise_key = jax.random.split(key)
    init_keys = jax.random.split(init_key, 2)
    with _explained("network.init", _ONE_OBSERVATION):
        all_params = _compiled(jax.vmap(network.init, in_axes=(0, None)))(init_keys, obs)
    _require_key_hygiene(lambda key: network.init(key, obs), init_key, "network.init")
    _require_finite(all_params, "network.init")
    _require(
        any((np.asarray(leaf)[0] != np.asarray(leaf)[1]).any() for leaf in jax.tree.leaves(all_params)),
        "two different keys give the same weights: draw them from the key",
    )
    params = jax.tree.map(lambda x: x[0], all_params)
    _require_close(
        _compiled(network.init)(init_keys[0], obs),
        params,
        "network.init alone and under vmap give different weights",
        _PURE,
    )

    def values(params: Params, obs: Array, key: Array | None = None) -> Array:
        return network.action_values(network.apply(params, obs, key))

    for noise, name in ((None, "without a key"), (noise_key, "with a key")):
        with _explained(f"network.apply {name}", _ONE_OBSERVATION):
            found = jax.eval_shape(values, params, obs, noise)
        _require(
            found.shape == (num_actions,) and jnp.issubdtype(found.dtype, jnp.floating),
            f"action_values gives {_type_of(found)} for one observation {name}: it must give float32[{num_actions}], one "
            "number for each action",
        )
        with _explained(f"network.apply {name}", _ONE_OBSERVATION):
            q_values = _compiled(values)(params, obs, noise)
        _require_finite(q_values, f"action_values {name}")
        _require_same_bits(
            q_values,
            _compiled(values)(params, obs, noise),
            f"the same weights and observation give different values {name}",
            _PURE,
        )
    _require_key_hygiene(lambda key: values(params, obs, key), noise_key, "network.apply")

    batch = jnp.stack([obs, jnp.zeros_like(obs), jnp.ones_like(obs)])
    with _explained("network.apply over a batch", _ONE_OBSERVATION):
        together = _compiled(jax.vmap(values, in_axes=(None, 0)))(params, batch)
        by_weights = _compiled(jax.vmap(values, in_axes=(0, None)))(all_params, obs)
        grads = _compiled(jax.grad(lambda params: values(params, batch[2]).sum()))(params)
    for name, found in (("other observations", together[0]), ("other weights", by_weights[0])):
        _require_close(
            found,
            _compiled(values)(params, obs),
            f"the values of an observation depend on the {name} in the batch",
            "normalise within ONE observation, not over a batch",
        )
    _require_finite(grads, "the gradient")
    _require(_largest(grads) > 0, "no gradient reaches the weights: nothing would be learned")


# --------------------------------------------------------------------------------------------------------- replay


_OBS_SHAPE = (2, 3, 5)  # so peculiar that what ends in it holds observations


def check_replay(make_replay: MakeReplay, key: Array, *, num_envs: int = 3) -> None:
    """Checks a replay of single steps: see `Replay`, `Step` and `Sample`.

    Every transition sampled is one that was added and lies within the newest `capacity`; action, reward and both
    observations belong together; `obs_t` is the true one, also across a truncation; `discount_t` is 0 where the episode
    terminated and nowhere else; what was never written is never sampled; it works under `jit`, `scan` and `vmap`, writes in
    place, and keeps the observations' dtype.

    Args:
      make_replay: `(capacity, batch_size, discount, time_limit) -> Replay`, such as `uniform_replay`.
      key: `[]` PRNG key of everything that is drawn.
      num_envs: `E`.

    Raises:
      AssertionError: if something is wrong.
    """
    for max_rows, time_limit, num_steps in ((8, 5, 5), (8, 3, 8), (8, 3, 29), (4, 1, 9)):
        replay = make_replay(max_rows * num_envs, 16, 0.9, time_limit)
        stream_key, sample_key, key = jax.random.split(key, 3)
        steps = _stream(stream_key, num_steps, num_envs, time_limit)
        _check_replay_content(replay, steps, sample_key, max_rows)
    _check_replay_types(make_replay(8 * num_envs, 16, 0.9, 5), steps, key)
    _check_in_place(make_replay, steps)


def _stream(key: Array, num_steps: int, num_envs: int, time_limit: int) -> Step:
    """Random steps `[T, E, ...]` whose observations are all different whole numbers above 0; episodes follow each other."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    terminated = rng.random((num_steps, num_envs)) < 0.25
    truncated = np.zeros_like(terminated)
    since = np.full(num_envs, time_limit)  # steps since the last truncation
    for t in range(num_steps):
        truncated[t] = (rng.random(num_envs) < 0.5) & (since >= time_limit)
        since = np.where(truncated[t], 1, since + 1)
    ids = rng.permutation(2 * num_steps * num_envs).reshape(2, num_steps, num_envs) + 1
    obs, last_obs = ids
    # Where an episode goes on, what follows a step is what the next one acts on.
    following = np.concatenate([obs[1:], last_obs[-1:]])
    next_obs = np.where(terminated | truncated, last_obs, following)

    def image(ids: np.ndarray) -> np.ndarray:
        return np.broadcast_to(ids[..., None, None, None], (*ids.shape, *_OBS_SHAPE)).astype(np.float32)

    return Step(
        obs=jnp.asarray(image(obs)),
        action=jnp.asarray(rng.integers(0, 100, obs.shape), jnp.int32),
        reward=jnp.asarray(rng.normal(size=obs.shape), jnp.float32),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        next_obs=jnp.asarray(image(next_obs)),
    )


def _check_replay_content(replay: Replay, steps: Step, key: Array, max_rows: int) -> None:
    num_steps, num_envs = steps.action.shape
    num_draws = 64

    def fill_and_sample(key: Array) -> Sample:
        state = replay.init(_first(steps))
        # Observations that were never written show up as NaN.
        state = jax.tree.map(
            lambda x: jnp.full_like(x, jnp.nan) if x.shape[-len(_OBS_SHAPE) :] == _OBS_SHAPE else x, state
        )
        state = _add_all(replay, state, steps)
        samples = jax.vmap(replay.sample, in_axes=(None, 0))(state, jax.random.split(key, num_draws))
        updated = replay.update(state, samples.indices[0], jnp.ones_like(samples.probabilities[0]))
        _require_same_types(
            state, updated, "Replay.update changes the type of the state", "keep every dtype and shape"
        )
        return samples

    with _explained("init, add, sample and update under jit and scan", _COMPILABLE):
        samples = _compiled(fill_and_sample)(key)
    _require_same_bits(
        samples, _compiled(fill_and_sample)(key), "the same key gives different samples", _PURE
    )
    transition, _, probabilities = jax.tree.map(lambda x: np.concatenate(np.asarray(x)), samples)
    _require(
        bool(((probabilities > 0) & (probabilities <= 1)).all()),
        f"probabilities reach from {probabilities.min()} to {probabilities.max()}: each must lie in (0, 1]",
    )

    def numbers(obs: np.ndarray) -> np.ndarray:
        """The number in each observation, NaN if its pixels are not all the same."""
        obs = obs.reshape(len(obs), -1)
        return np.where((obs == obs[:, :1]).all(axis=1), obs[:, 0], np.nan)

    added = {
        int(np.asarray(steps.obs)[t, e, 0, 0, 0]): (t, e)
        for t in range(num_steps)
        for e in range(num_envs)
    }
    seen = set()
    flat = jax.tree.map(np.asarray, steps)
    for number, action, reward, discount, next_number in zip(
        numbers(transition.obs_tm1),
        transition.a_tm1,
        transition.r_t,
        transition.discount_t,
        numbers(transition.obs_t),
        strict=True,
    ):
        _require(
            not np.isnan(number) and not np.isnan(next_number),
            f"after {num_steps} of {max_rows} rows of {num_envs} environments, an observation is sampled that was never "
            "written, or a mixture of two: draw below the number of entries written",
        )
        _require(
            int(number) in added,
            f"obs_tm1 ({number}) was never added: draw below the number of entries written",
        )
        at = t, e = added[int(number)]
        seen.add(at)
        where = f"in the transition of step {t} of environment {e}, after {num_steps} steps with room for {max_rows}, "
        _require(
            t >= num_steps - max_rows,
            f"{where}only the newest {max_rows} steps should be left: write over the oldest",
        )
        for name, found, true in (
            ("a_tm1", action, flat.action[at]),
            ("r_t", reward, flat.reward[at]),
        ):
            _require(found == true, f"{where}{name} is {found} and not {true}")
        terminated, truncated = bool(flat.terminated[at]), bool(flat.truncated[at])
        expected = 0.0 if terminated else 0.9
        _require(
            bool(np.isclose(discount, expected)),
            f"{where}discount_t is {discount} and not {expected} (terminated {terminated}, truncated {truncated}): it is 0 only "
            "where the episode terminated, and gamma at a time limit",
        )
        true_number = flat.next_obs[at][0, 0, 0]
        _require(
            terminated or next_number == true_number,
            f"{where}obs_t is number {next_number} and not {true_number} (truncated {truncated}): at a time limit it is the "
            "episode's own last observation, not the first one of the next",
        )
    _require(
        2 * len(seen) >= min(num_steps, max_rows) * num_envs,
        f"{num_draws * 16} draws reached {len(seen)} of {min(num_steps, max_rows) * num_envs} transitions held",
    )


def _check_replay_types(replay: Replay, steps: Step, key: Array) -> None:
    first = _first(steps)
    first = first._replace(obs=first.obs.astype(jnp.uint8), next_obs=first.next_obs.astype(jnp.uint8))
    with _explained("init, add and sample of uint8 observations", _COMPILABLE):
        state = jax.eval_shape(replay.init, first)
        added = jax.eval_shape(replay.add, state, first)
        sample = jax.eval_shape(replay.sample, added, key)
    _require_same_types(state, added, "Replay.add changes the type of the state", "keep every dtype and shape")
    _require(isinstance(sample, Sample), f"Replay.sample gives a {type(sample).__name__}: it must give a Sample")
    batch_size = sample.indices.shape[0] if sample.indices.ndim else 0
    expected = Sample(
        Transition(
            obs_tm1=jax.ShapeDtypeStruct((batch_size, *_OBS_SHAPE), jnp.uint8),
            a_tm1=jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            r_t=jax.ShapeDtypeStruct((batch_size,), first.reward.dtype),
            discount_t=jax.ShapeDtypeStruct((batch_size,), sample.transition.discount_t.dtype),
            obs_t=jax.ShapeDtypeStruct((batch_size, *_OBS_SHAPE), jnp.uint8),
        ),
        indices=jax.ShapeDtypeStruct((16,), jnp.int32),
        probabilities=jax.ShapeDtypeStruct((batch_size,), sample.probabilities.dtype),
    )
    _require_same_types(
        expected,
        sample,
        "Replay.sample gives other shapes or dtypes than a batch of 16 should have",
        "keep observations, actions and rewards in the dtype in which they were added",
    )
    _require_key_hygiene(
        lambda key: replay.sample(replay.add(replay.init(first), first), key), key, "Replay.sample"
    )


def _check_in_place(make_replay: MakeReplay, steps: Step) -> None:
    """Several runs at once, as a sweep trains them."""
    num_envs, num_runs, max_rows = steps.action.shape[1], 2, 4096
    replay = make_replay(max_rows * num_envs, 16, 0.9, 5)
    state = jax.eval_shape(replay.init, _first(steps))
    axes = run_axes(state)
    states = _with_runs(axes, state, num_runs)
    runs = jax.tree.map(lambda x: jnp.stack([x] * num_runs), steps)
    add_all = jax.vmap(functools.partial(_add_all, replay), in_axes=(axes, 0), out_axes=axes)
    with _explained(
        "add of several runs under vmap, with the counters that run_axes says are shared", _COMPILABLE
    ):
        lowered = jax.jit(add_all, donate_argnums=0).lower(states, runs)
        memory = lowered.compile().memory_analysis()
    _require(
        "stablehlo.scatter" not in lowered.as_text(),
        "under vmap over runs, Replay.add writes with a scatter: declare the insert index with "
        "purejaxdqn.types.shared_counter() and write with jax.lax.dynamic_update_slice",
    )
    if memory is None:
        return  # this backend does not tell
    ring = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(states))
    _require(
        memory.temp_size_in_bytes < ring / 2,
        f"Replay.add makes a copy: {memory.temp_size_in_bytes} bytes beside a ring of {ring}; write with "
        "jax.lax.dynamic_update_slice, and read nothing of the old ring after the write",
    )


def _first(steps: Step) -> Step:
    return jax.tree.map(lambda x: x[0], steps)


def _add_all(replay: Replay, state: ArrayTree, steps: Step) -> ArrayTree:
    return jax.lax.scan(lambda state, step: (replay.add(state, step), None), state, steps)[0]


def _with_runs(axes: ArrayTree, state: ArrayTree, num_runs: int) -> ArrayTree:
    """Shapes of `state` over runs, where `axes` says that they differ."""

    def batch(axis: int | None, part: ArrayTree) -> ArrayTree:
        return part if axis is None else _batched(part, num_runs)

    return jax.tree.map(batch, axes, state, is_leaf=lambda axis: axis is None)


# ---------------------------------------------------------------------------------------------- what they all share


_COMPILABLE = (
    "It must compile: jnp in the place of numpy, jnp.where and jax.lax.cond in the place of `if`, fixed shapes, and no "
    "broadcasting of arrays of different rank"
)
_BATCHABLE = f"It is written for ONE environment and batched with vmap. {_COMPILABLE}"
_ONE_TRANSITION = (
    "It is a function of ONE transition: scalars without a batch axis, jnp in the place of numpy, jnp.where in the place of "
    "`if`, and no broadcasting of arrays of different rank"
)
_ONE_OBSERVATION = (
    "It is a function of ONE observation without a batch axis: apply(params, obs, key=None), with no broadcasting of arrays of "
    "different rank"
)
_PURE = "It must be a pure function: draw every random number with jax.random from the key"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


@contextlib.contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """Refuses silent rank promotion, and turns whatever a component raises into a finding."""
    try:
        with jax.numpy_rank_promotion("raise"):
            yield
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__}: {error}\n{remedy}.") from error


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jit` that traces anew, so that what is hidden outside of the arguments shows."""
    return jax.jit(lambda *args: function(*args))


def _type_of(x: Any) -> str:
    return f"{jnp.dtype(x.dtype).name if not _is_key(x) else x.dtype}{list(x.shape)}"


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_keys(tree: ArrayTree) -> ArrayTree:
    return [leaf for leaf in jax.tree.leaves(tree) if not _is_key(leaf)]


def _batched(tree: ArrayTree, num: int) -> ArrayTree:
    """Shapes with a leading axis."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape), x.dtype), tree)


def _pairs(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> list[tuple[str, Any, Any]]:
    """`(path, leaf of a, leaf of b)`; trees of different structure are a finding."""
    one, other = jax.tree.structure(a), jax.tree.structure(b)
    _require(one == other, f"{message}: {one} and then {other}. Remedy: {remedy}.")
    paths = jax.tree_util.tree_leaves_with_path(a)
    return [
        (jax.tree_util.keystr(path), x, y)
        for (path, x), y in zip(paths, jax.tree.leaves(b), strict=True)
    ]


def _require_same_types(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> None:
    for path, x, y in _pairs(a, b, message, remedy):
        _require(
            x.shape == y.shape and x.dtype == y.dtype,
            f"{message}: {path or 'it'} is {_type_of(x)} and then {_type_of(y)}. Remedy: {remedy}.",
        )


def _require_same_bits(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> None:
    for path, x, y in _pairs(a, b, message, remedy):
        one, other = (np.asarray(jax.random.key_data(z) if _is_key(z) else z) for z in (x, y))
        _require(
            one.tobytes() == other.tobytes(),
            f"{message}: {path or 'it'} is {_some(one)} and then {_some(other)}. Remedy: {remedy}.",
        )


def _require_close(a: ArrayTree, b: ArrayTree, message: str, remedy: str) -> None:
    """Equal up to the rounding of another order of sums."""
    for path, x, y in _pairs(a, b, message, remedy):
        one, other = (np.asarray(jax.random.key_data(z) if _is_key(z) else z) for z in (x, y))
        _require(
            np.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True),
            f"{message}: {path or 'it'} is {_some(one)} and then {_some(other)}. Remedy: {remedy}.",
        )


def _require_finite(tree: ArrayTree, name: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            values = np.asarray(leaf)
            _require(
                bool(np.isfinite(values).all()),
                f"{name}{jax.tree_util.keystr(path)} is {_some(values[~np.isfinite(values)])}: it must be finite; look for a "
                "division by zero, a logarithm of zero, or a square root at zero",
            )


def _require_float_scalar(x: Any, name: str) -> None:
    _require(
        getattr(x, "shape", None) == () and jnp.issubdtype(x.dtype, jnp.floating),
        f"{name} is {_type_of(x) if hasattr(x, 'dtype') else repr(x)}: it must be a float scalar, as it belongs to ONE transition",
    )


def _require_key_hygiene(function: Callable[[Array], Any], keys: Array, name: str) -> None:
    """No key is used twice: streams that share a key are not independent."""
    try:
        with jax.debug_key_reuse(True):
            jax.block_until_ready(_compiled(lambda keys: function(jax.random.clone(keys)))(keys))
    except jax.errors.KeyReuseError as error:
        raise AssertionError(
            f"{name} uses a key twice, so that two draws are the same or related: {error}\nSplit it: "
            "key, use_key = jax.random.split(key)."
        ) from error


def _largest(tree: ArrayTree) -> float:
    """The largest magnitude in a tree of gradients."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size and leaf.dtype != jax.dtypes.float0]
    return max((float(np.max(np.abs(leaf))) for leaf in leaves), default=0.0)


def _some(values: np.ndarray) -> str:
    """The first few values."""
    return np.array2string(np.asarray(values).ravel()[:5], threshold=5)
