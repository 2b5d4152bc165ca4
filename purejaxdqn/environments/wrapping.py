"""What wrappers share: an environment around another one, and how their values are read."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.environments import naming
from purejaxdqn.environments.base import Environment, EnvState, step_and_reset
from purejaxdqn.types import Array, ConfigError, TimeStep, ensure

Wrapper = Callable[[Environment, Any], Environment]  # of `wrappers`, by whose name it is known
Begin = Callable[[Array], tuple[Any, Array]]  # obs -> (memory, what is shown of it)
# (memory, action taken, timestep) -> (memory, what is shown of it)
GoOn = Callable[[Any, Array, TimeStep], tuple[Any, TimeStep]]


@flax.struct.dataclass
class Wrapped:
    """The state of an environment within a wrapper."""

    inner: EnvState
    memory: Any  # the wrapper's own; a pytree


def around(
    env: Environment,
    wrapper: Wrapper,
    value: Any,  # of the wrapper
    begin: Begin,  # as an episode begins
    go_on: GoOn,  # after a step
    # (key, memory, action) -> action, before a step
    act: Callable[[Array, Any, Array], Array] | None = None,
    # memory -> [] bool before a step, whether it is the last one at any rate
    is_cut: Callable[[Any], Array] | None = None,
    **changes: Any,
) -> Environment:
    """Makes an environment that sees what happens in another one, with a memory of an episode.

    What evaluations play is wrapped anew. `changes` are of its facts; without one, `frames` is 1.
    """

    def reset(key: Array) -> tuple[Wrapped, Array]:
        inner, obs = env.reset(key)
        memory, obs = begin(obs)
        return Wrapped(inner, memory), obs

    def choose(key: Array, memory: Any, action: Array) -> Array:
        if act is None:
            return action
        return act(_own_key(key), memory, jnp.asarray(action, jnp.int32))

    def step(key: Array, state: Any, action: Array) -> tuple[Wrapped, TimeStep]:
        action = choose(key, state.memory, action)
        inner, timestep = env.step(key, state.inner, action)
        if is_cut is not None:
            timestep = timestep._replace(truncated=timestep.truncated | is_cut(state.memory))
        memory, timestep = go_on(state.memory, action, timestep)
        return Wrapped(inner, memory), timestep

    def own_step_and_reset(
        key: Array, state: Any, action: Array, cut: Array | None = None
    ) -> tuple[Wrapped, Array, TimeStep]:
        step_key = jax.random.split(jax.random.clone(key))[0]  # as `base.step_and_reset` steps
        action = choose(step_key, state.memory, action)
        if is_cut is not None:
            cut = is_cut(state.memory) if cut is None else cut | is_cut(state.memory)
        inner, obs, timestep = step_and_reset(env, key, state.inner, action, cut)
        ended, begun = timestep.terminated | timestep.truncated, begin(obs)
        memory, timestep = go_on(state.memory, action, timestep)
        pick = functools.partial(jnp.where, ended)
        memory, obs = jax.tree.map(pick, begun, (memory, timestep.obs))
        return Wrapped(inner, memory), obs, timestep

    def for_evaluation(state: Any) -> Environment:
        return wrapper(env.in_evaluation(state.inner), value)

    facts = {
        "name": name_of(env, wrapper, value),
        "step_and_reset": None if env.step_and_reset is None else own_step_and_reset,
        "for_evaluation": None if env.for_evaluation is None else for_evaluation,
        "render": None if env.render is None else _of_inner(env.render),
        "tabular": None,
    }
    return env._replace(reset=reset, step=step, **{"frames": 1, **facts, **changes})


def _own_key(key: Array) -> Array:
    """Makes a key beside that of a step, with which the environment within steps as ever."""
    return jax.random.fold_in(jax.random.clone(key), 0x57CA)


def _of_inner(render: Callable[[EnvState], Array]) -> Callable[[EnvState], Array]:
    return lambda state: render(state.inner)


def of_observations(
    env: Environment,
    wrapper: Wrapper,
    value: Any,
    show: Callable[[Array], Array],
    space: gymnasium.spaces.Box,
) -> Environment:
    """Makes an environment that shows each observation in another way."""

    def go_on(_: Any, __: Array, timestep: TimeStep) -> tuple[Any, TimeStep]:
        return (), timestep._replace(obs=show(timestep.obs))

    return around(env, wrapper, value, lambda obs: ((), show(obs)), go_on, observation_space=space)


def of_rewards(
    env: Environment,
    wrapper: Wrapper,
    value: Any,
    change: Callable[[Array], Array],
    tabular: Callable[[], Any] | None = None,
) -> Environment:
    """Makes an environment that gives other rewards in training, and in evaluations its own."""

    def go_on(_: Any, __: Array, timestep: TimeStep) -> tuple[Any, TimeStep]:
        return (), timestep._replace(reward=change(timestep.reward))

    def for_evaluation(state: Any) -> Environment:
        evaluated = env.in_evaluation(state.inner)
        before = evaluated.reward_in_training
        both = change if before is None else lambda reward: change(before(reward))
        name = name_of(env, wrapper, value)
        return evaluated._replace(name=name, reward_in_training=both, tabular=tabular)

    changes: dict[str, Any] = {"for_evaluation": for_evaluation, "tabular": tabular}
    changes["frames"] = env.frames
    return around(env, wrapper, value, lambda obs: ((), obs), go_on, **changes)


def read(env: Environment, wrapper: Wrapper, value: Any) -> Any:
    """Reads the value of a wrapper by the same rule in Python as behind a name."""
    ensure(isinstance(env, Environment), "env", env, "an Environment, such as make('CartPole-v1')")
    option = naming.WRAPPERS[wrapper.__name__]
    try:
        return option.read(_show(value))
    except ValueError:
        raise ConfigError(f"{wrapper.__name__} ({value!r:.60}) must be {option.wanted}") from None


def _show(value: Any) -> str:
    """Writes a value as it stands behind a name."""
    if np.ndim(value) == 1:
        return ",".join(map(str, value))
    return str(value)


def name_of(env: Environment, wrapper: Wrapper, value: Any) -> str:
    """Names an environment in a wrapper by what makes it."""
    text = _show(int(value) if isinstance(value, bool) else value)
    return f"{env.name}{'&' if '?' in env.name else '?'}{wrapper.__name__}={text}"


def refuse_legal_actions(env: Environment, wrapper: Wrapper) -> None:
    """Refuses a wrapper that hides from an environment what it reads legal actions in."""
    if env.legal_actions is not None:
        raise ConfigError(
            f"{wrapper.__name__} cannot go around {env.name!r}, which reads in observations which "
            "actions are legal: leave it out, or pass env._replace(legal_actions=None)"
        )
