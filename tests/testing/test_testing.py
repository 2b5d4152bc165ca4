"""The contract checks: good components pass them, and each kind of broken one is found."""

import functools
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
from purejaxdqn.networks import MLP, make_network
from purejaxdqn.replay import n_step_replay, uniform_replay
from purejaxdqn.testing import (
    check_environment,
    check_network,
    check_replay,
)
from purejaxdqn.types import Array, Network, TimeStep

KEY = jax.random.key(0)
MAX_STEPS = 6


# -------------------------------------------------------------------------------- environments


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


GOOD_ENVIRONMENTS = {
    **{name: environments.make(name) for name in environments.names()},
    "walker": WALKER,
    "noisy walker": walker(step=functools.partial(step, noise=0.1)),
    "packed": packed(),
    "with its own key": with_own_key(),
    "frozen": changed_step(frozen),
    "bandit": changed_timestep(truncated=lambda t: jnp.bool(True))._replace(max_steps=1),
}


class Counter:
    """Something that is not a function of its arguments."""

    def __init__(self) -> None:
        self.value = 0.0

    def __call__(self) -> float:
        self.value += 0.01
        return self.value


HIDDEN = Counter()


def reset_with_hidden_randomness(key):
    state, _ = reset(key)
    state = state.replace(position=state.position + HIDDEN())
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
    @pytest.mark.parametrize("name", GOOD_ENVIRONMENTS)
    def test_good(self, name):
        check_environment(GOOD_ENVIRONMENTS[name], KEY)

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


# ------------------------------------------------------------------------------------ networks


OBS = jnp.array([0.5, -1.0, 2.0, 0.1])
NETWORK = Network(
    init=lambda key, obs: jax.random.uniform(key, (2, obs.size)),
    apply=lambda params, obs, key=None: params @ obs,
    action_values=lambda output: output,
)


def changed_network(
    values: Callable[..., Any] = lambda q, key: q,
    init: Callable[..., Any] = NETWORK.init,
    action_values: Callable[[Array], Array] = NETWORK.action_values,
) -> Network:
    """A network whose outputs go through `values(q, key)`."""

    def apply(params, obs, key=None):
        return values(NETWORK.apply(params, obs), key)

    return Network(init, apply, action_values)


def noisy(q, key):
    return q if key is None else q + jax.random.uniform(key, q.shape)


def normalised_over_the_batch(q, key):
    return q + jax.pure_callback(
        lambda q: np.asarray(q) - np.asarray(q).mean(),
        jax.ShapeDtypeStruct((2,), jnp.float32),
        jax.lax.stop_gradient(q),
        vmap_method="broadcast_all",
    )


def init_with_one_key_for_all(key, obs):
    params = NETWORK.init(key, obs)
    return params + jax.random.uniform(key, params.shape)


BROKEN_NETWORKS = {
    "another number of actions": (
        changed_network(action_values=lambda q: jnp.append(q, 0.0)),
        r"gives float32\[3\] for one observation without a key: it must give float32\[2\]",
    ),
    "batched values": (
        changed_network(action_values=lambda q: q[None]),
        r"action_values gives float32\[1, 2\]",
    ),
    "integer values": (
        changed_network(action_values=lambda q: q.astype(jnp.int32)),
        r"action_values gives int32\[2\]",
    ),
    "no key": (
        Network(NETWORK.init, lambda params, obs: NETWORK.apply(params, obs), lambda q: q),
        "network.apply without a key raises TypeError",
    ),
    "a key that must be there": (
        changed_network(lambda q, key: q + jax.random.normal(key, q.shape)),
        "network.apply without a key raises",
    ),
    "noise that is not the key's": (
        changed_network(lambda q, key: q + HIDDEN()),
        "the network gives different answers to the same arguments",
    ),
    "constant weights": (
        changed_network(init=lambda key, obs: NETWORK.init(jax.random.key(3), obs)),
        "two different keys give the same weights",
    ),
    "a key used twice": (changed_network(init=init_with_one_key_for_all), "a PRNG key twice"),
    "infinite weights": (
        changed_network(init=lambda key, obs: NETWORK.init(key, obs) / 0.0),
        "the network's weights after network.init.* must be finite",
    ),
    "values that are not numbers": (
        changed_network(lambda q, key: jnp.log(-jnp.square(q))),
        "action_values without a key holds .*nan",
    ),
    "noise that is infinite": (
        changed_network(lambda q, key: q if key is None else q / 0.0),
        "action_values with a key holds .*inf",
    ),
    "gradient that is not a number": (
        changed_network(lambda q, key: q + jnp.sqrt(0.0 * jnp.square(q))),
        "the gradient of the action values.* holds .*nan",
    ),
    "nothing is learned": (
        changed_network(lambda q, key: jax.lax.stop_gradient(q)),
        "no gradient reaches the weights",
    ),
    "normalised over the batch": (
        changed_network(normalised_over_the_batch, action_values=jax.lax.stop_gradient),
        "the values of an observation differ alone and among observations in a batch",
    ),
    "broadcasting between ranks": (
        changed_network(lambda q, key: (q + jnp.ones((3, 2))).mean(axis=0)),
        "network.apply without a key raises ValueError",
    ),
    "a branch on an array": (
        changed_network(lambda q, key: q if q[0] > 0 else -q),
        "network.apply without a key raises TracerBoolConversionError",
    ),
}


class TestCheckNetwork:
    def test_good(self):
        check_network(NETWORK, KEY, OBS, 2)
        check_network(changed_network(noisy), KEY, OBS, 2)
        check_network(make_network(MLP((8,), 3)), KEY, jnp.ones((2, 2), jnp.uint8), 3)

    @pytest.mark.parametrize("name", BROKEN_NETWORKS)
    def test_broken(self, name):
        network, message = BROKEN_NETWORKS[name]
        with pytest.raises(AssertionError, match=message):
            check_network(network, KEY, OBS, 2)


# -------------------------------------------------------------------------------------- replay


def changed_replay(**changes: Callable[..., Any]) -> Callable[..., Any]:
    """A `make_replay` with functions replaced by `change(replay, capacity, *arguments)`."""

    def make_replay(capacity, batch_size, time_limit):
        replay = uniform_replay(capacity, batch_size, time_limit)
        return replay._replace(
            **{name: functools.partial(f, replay, capacity) for name, f in changes.items()}
        )

    return make_replay


def changed_sample(change: Callable[..., Any]) -> Callable[..., Any]:
    """`change(state, sample)` of what is sampled."""
    return changed_replay(
        sample=lambda replay, capacity, state, key: change(state, replay.sample(state, key))
    )


def changed_window(**fields: Callable[..., Any]) -> Callable[..., Any]:
    """Fields of the windows replaced by `f(state, sample)`."""

    def change(state, sample):
        new = {name: f(state, sample) for name, f in fields.items()}
        return sample._replace(window=sample.window._replace(**new))

    return changed_sample(change)


def changed_window_at(change: Callable[..., Any]) -> Callable[..., Any]:
    """`change(window_at, state, index, num_steps)` in its place."""
    return changed_replay(window_at=lambda replay, capacity, *at: change(replay.window_at, *at))


def all_of_the_ring(replay, capacity, state, key):
    max_rows = jnp.full_like(state.num_rows, state.max_rows)
    return replay.sample(state.replace(num_rows=max_rows), key)


def next_row(state, sample):
    """The usual mistake: what lies in the next row, whatever the time limit did in between."""
    row, env = sample.indices // state.num_envs, sample.indices % state.num_envs
    is_newest = row == (state.insert_row - 1) % state.max_rows
    following = jnp.where(is_newest, state.max_rows, (row + 1) % state.max_rows)
    return state.obs[following, env]


def stuck(replay, capacity, state, key):
    sample = replay.sample(state, jax.random.key(1))
    return jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), sample)


def add_without_overwriting(replay, capacity, state, step):
    """Once it is full, it takes nothing more; but it counts on."""
    return jax.tree.map(
        lambda new, old: jnp.where(state.num_rows < state.max_rows, new, old),
        replay.add(state, step),
        state,
    )


def add_actions_late(replay, capacity, state, step):
    return replay.add(state, step._replace(action=jnp.roll(step.action, 1)))


def add_with_a_copy(replay, capacity, state, step):
    """The old ring is read after the new one was written."""
    new = replay.add(state, step)
    both = jnp.sum(jnp.flip(state.obs, 0) * new.obs)
    return new.replace(reward=jnp.where(both == 1e30, 0.0, new.reward))


def add_with_a_scatter(replay, capacity, state, step):
    """The row to be written depends on what is added, so that it differs from run to run."""
    rows = state.insert_row + jnp.zeros_like(step.action)
    new = replay.add(state, step)
    return new.replace(obs=new.obs.at[rows, jnp.arange(state.num_envs)].set(step.obs))


def add_with_a_counter_of_its_own(replay, capacity, state, step):
    is_always = step.action[0] > -1
    return replay.add(state, step).replace(
        num_rows=jnp.minimum(state.num_rows + is_always, state.max_rows)
    )


def update_to_float(replay, capacity, state, indices, priorities):
    return state.replace(action=state.action.astype(jnp.float32))


def sample_with_one_key_for_all(replay, capacity, state, key):
    sample = replay.sample(state, key)
    noise = jax.random.uniform(key, sample.probabilities.shape)
    return sample._replace(probabilities=sample.probabilities * noise)


BROKEN_REPLAYS = {
    "unwritten entries": (
        changed_replay(sample=all_of_the_ring),
        "a sampled window holds observations that were never added",
    ),
    "the next row's observation": (
        changed_window(next_obs=next_row),
        r"next_obs is observation \S+ and not \S+ \(terminated False, truncated True\)",
    ),
    "the same observation twice": (
        changed_window(next_obs=lambda state, sample: sample.window.obs),
        "next_obs is observation .* and not",
    ),
    "a time limit taken for an end": (
        changed_window(
            terminated=lambda state, sample: sample.window.terminated | sample.window.truncated
        ),
        r"terminated is \[True\] and not \[False\]",
    ),
    "an end that is none": (
        changed_window(terminated=lambda state, sample: jnp.zeros_like(sample.window.terminated)),
        r"terminated is \[False\] and not \[True\]",
    ),
    "a time limit that is none": (
        changed_window(truncated=lambda state, sample: jnp.zeros_like(sample.window.truncated)),
        r"truncated is \[False\] and not \[True\]",
    ),
    "a window of no steps": (
        changed_window(is_inside=lambda state, sample: jnp.zeros_like(sample.window.is_inside)),
        r"is_inside is \[False\] and not \[True\]",
    ),
    "nothing is overwritten": (
        changed_replay(add=add_without_overwriting),
        r"after 29 steps .* is not among the newest 8: write over the oldest",
    ),
    "actions of another environment": (
        changed_replay(add=add_actions_late),
        r"in the window from step \d+ of environment \d.* action is \[\d+\] and not \[\d+\]",
    ),
    "rewards of another entry": (
        changed_window(
            reward=lambda state, sample: state.reward.ravel()[sample.indices - 1][:, None]
        ),
        r"reward is \S+ and not \S+",
    ),
    "impossible probabilities": (
        changed_sample(lambda state, s: s._replace(probabilities=s.probabilities * 0)),
        "probabilities reach from 0 to 0: each must be above 0",
    ),
    "probabilities of another capacity": (
        changed_sample(lambda state, s: s._replace(probabilities=s.probabilities / 2)),
        "the probabilities of all .* entries that are held sum to 0.5 and not to 1",
    ),
    "always the same": (changed_replay(sample=stuck), "draws reached only .* steps held"),
    "observations made floats": (
        changed_window(obs=lambda state, sample: sample.window.obs / 255.0),
        r"the part .window.obs is uint8\[16, 2, 3, 5\] and then float32\[16, 2, 3, 5\]",
    ),
    "no batch": (
        changed_sample(lambda state, sample: jax.tree.map(lambda x: x[0], sample)),
        r"a batch of 16 windows of 1 steps .* has the wrong types",
    ),
    "window_at of as many steps as it likes": (
        changed_window_at(lambda read, state, index, num_steps: read(state, index, 1)),
        r"window_at of 3 steps gives the wrong types.* int32\[3\] and then int32\[1\]",
    ),
    "window_at that ends too soon": (
        changed_window_at(lambda read, *at: read(*at)._replace(is_inside=jnp.arange(3) < 1)),
        r"that window_at gave for 3 steps.* is_inside is \[True, False, False\] and not",
    ),
    "window_at that goes on into the next episode": (
        changed_window_at(lambda read, *at: read(*at)._replace(is_inside=jnp.ones(3, bool))),
        r"that window_at gave for 3 steps.* is_inside is \[True, True, True\] and not",
    ),
    "window_at of another entry": (
        changed_window_at(lambda read, state, index, num_steps: read(state, 0, num_steps)),
        "window_at gives other windows than Replay.sample at the same indices",
    ),
    "window_at of other dtypes": (
        changed_window_at(
            lambda read, *at: read(*at)._replace(next_obs=read(*at).next_obs / jnp.float32(255))
        ),
        r"the part .next_obs is uint8\[2, 3, 5\] and then float32\[2, 3, 5\]",
    ),
    "no Sample": (changed_sample(lambda state, s: s.window), "it must give a Sample"),
    "an update that changes a dtype": (
        changed_replay(update=update_to_float),
        r"Replay.update changes the types of the state.*\.action is int32.* and then float32",
    ),
    "a key used twice": (changed_replay(sample=sample_with_one_key_for_all), "PRNG key twice"),
    "hidden randomness": (
        changed_sample(
            lambda state, s: s._replace(probabilities=s.probabilities * (1 - HIDDEN() / 10))
        ),
        "different answers to the same arguments",
    ),
    "a copy": (changed_replay(add=add_with_a_copy), r"Replay.add copies: it needs \d+ bytes"),
    "a scatter": (changed_replay(add=add_with_a_scatter), "Replay.add writes with a scatter"),
    "a shared counter that is not shared": (
        changed_replay(add=add_with_a_counter_of_its_own),
        r"(?s)several runs under vmap raises ValueError.*shared_counter\(\) declares must not",
    ),
}


class TestCheckReplay:
    def test_good(self):
        check_replay(uniform_replay, KEY)
        check_replay(uniform_replay, KEY, num_envs=1)
        distinct = functools.partial(uniform_replay, with_replacement=False)
        check_replay(distinct, KEY)
        check_replay(distinct, KEY, num_envs=1)

    def test_without_window_at(self):
        check_replay(lambda *sizes: uniform_replay(*sizes)._replace(window_at=None), KEY)

    def test_several_steps(self):
        three = lambda *sizes: n_step_replay(uniform_replay(*sizes), 3)  # noqa: E731
        check_replay(three, KEY, n_step=3)
        with pytest.raises(AssertionError, match=r"windows of 1 steps .* int32\[16, 3\]"):
            check_replay(three, KEY)
        with pytest.raises(AssertionError, match=r"windows of 2 steps .* int32\[16, 1\]"):
            check_replay(uniform_replay, KEY, n_step=2)

    @pytest.mark.parametrize("name", BROKEN_REPLAYS)
    def test_broken(self, name):
        make_replay, message = BROKEN_REPLAYS[name]
        with pytest.raises(AssertionError, match=message):
            check_replay(make_replay, KEY)
