"""Environments that step on the host: every call in its order, none twice, and none left out."""

import dataclasses
import functools
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from PIL import Image

from purejaxdqn import environments
from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.environments.base import step_and_reset
from purejaxdqn.environments.host import bridge, pool, singles
from purejaxdqn.replay import prioritised_replay, uniform_replay
from purejaxdqn.report import films
from purejaxdqn.storage.fingerprint import fingerprint
from purejaxdqn.sweep import rerun
from purejaxdqn.sweep.run import SweepInterrupted, run_sweep
from purejaxdqn.testing import check_environment
from purejaxdqn.training.evaluation import evaluate
from purejaxdqn.types import ConfigError
from tiny import TINY

BITS = 2**16  # of a seed, that a float32 holds


class Telling(gymnasium.Env):
    """Tells in its observations what was done to it; how long an episode is, it draws itself."""

    observation_space = gymnasium.spaces.Box(-1, np.inf, (5,), np.float64)
    made = 0
    _seed = _episode = 0

    def __init__(self, start=0, most=6):
        type(self).made += 1
        self.action_space = gymnasium.spaces.Discrete(3, start=start)
        self._most = most

    def _observe(self, action):
        obs = [self._seed % BITS, self._seed // BITS, self._episode, self._step, action]
        return np.array(obs, np.float64)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self._seed, self._episode = (self._seed, self._episode + 1) if seed is None else (seed, 0)
        self._step, self._length = 0, self.np_random.integers(1, self._most)
        return self._observe(-1), {}

    def step(self, action):
        assert action in self.action_space
        self._step += 1
        ended, cut = self._step == self._length, self._length % 2 == 0
        reward = 100.0 * self._episode + self._step
        return self._observe(action), reward, bool(ended and not cut), bool(ended and cut), {}


register: Any = gymnasium.register
register("Telling-v0", Telling)


def make(**settings):
    return bridge.make_from_gymnasium("gymnasium:Telling-v0", "Telling-v0", settings)


def seeds_of(obs):
    """The seeds that observations `[..., 5]` tell."""
    return np.asarray(obs, np.int64) @ [1, BITS, 0, 0, 0]


def replay_on_host(seed, actions):
    """What one environment answers to actions `[T]`: (obs_to_act_on, obs, reward, ends) each."""
    env = Telling()
    env.reset(seed=int(seed))
    rows = []
    for action in actions:
        obs, reward, *ends, _ = env.step(int(action))
        rows.append((env.reset()[0] if any(ends) else obs, obs, reward, *ends))
    return [np.array(column, np.float32) for column in zip(*rows, strict=True)]


def play(env, key, num_envs, num_steps):
    """Plays at random: the first observations, what followed, and the actions, `[T, E]`."""

    def step(carry, key):
        state, _ = carry
        action_key, step_key = jax.random.split(key)
        actions = jax.random.randint(action_key, (num_envs,), 0, env.num_actions)
        keys = jax.random.split(step_key, num_envs)
        step_all = jax.vmap(functools.partial(step_and_reset, env))
        state, obs, timestep = step_all(keys, state, actions)
        return (state, obs), (obs, *timestep, actions)

    reset_key, play_key = jax.random.split(key)
    first = jax.vmap(env.reset)(jax.random.split(reset_key, num_envs))
    rows = jax.lax.scan(step, first, jax.random.split(play_key, num_steps))[1]
    return first[1], rows


def assert_as_on_host(first_obs, rows):
    """Compares `[..., T, E]` played steps with the same environments stepped by hand."""
    seeds = seeds_of(first_obs)
    time = seeds.ndim - 1
    *answers, actions = [np.moveaxis(np.asarray(x), time, 0) for x in jax.tree.leaves(rows)]
    assert len(np.unique(seeds)) == seeds.size, "each has a stream of its own"
    for at in np.ndindex(seeds.shape):
        by_hand = replay_on_host(seeds[at], actions[(slice(None), *at)])
        for wanted, found in zip(by_hand, answers, strict=True):
            np.testing.assert_array_equal(found[(slice(None), *at)], wanted)


@pytest.fixture
def calls(monkeypatch):
    """The number of environments in each call of the host."""
    counted = []

    def count(self, handles, *args, step=pool.Pool.step):
        counted.append(len(handles))
        return step(self, handles, *args)

    monkeypatch.setattr(pool.Pool, "step", count)
    return counted


def test_runs_of_environments_take_one_call_a_step_and_each_is_as_stepped_by_hand(calls):
    keys = jax.random.split(jax.random.key(0), 3)
    program = jax.jit(jax.vmap(lambda key: play(make(), key, 2, 40)))
    played = program(keys)
    assert_as_on_host(*played)
    assert calls == [6] * 40
    # As a function of the key: other environments of the host, and the same bits.
    for one, other in zip(*map(jax.tree.leaves, (played, program(keys))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_devices_call_for_their_own_runs(calls):
    assert jax.device_count() == 2
    mesh = jax.make_mesh((2,), ("runs",), axis_types=(jax.sharding.AxisType.Auto,))
    specs: Any = {"in_specs": PartitionSpec("runs"), "out_specs": PartitionSpec("runs")}
    over_runs = jax.vmap(lambda key: play(make(), key, 2, 40))
    program = jax.jit(jax.shard_map(over_runs, mesh=mesh, check_vma=False, **specs))
    assert_as_on_host(*program(jax.random.split(jax.random.key(1), 4)))
    assert calls == [4] * 80


def test_evaluation_plays_whole_episodes_beside_longer_ones(calls):
    def run(key):
        env = make()
        return evaluate(lambda key, obs: jnp.int32(2), env, key, 5), jax.vmap(env.reset)(
            jax.random.split(jax.random.split(key)[0], 5)
        )

    stats, (_, first_obs) = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(2), 4))
    seeds = seeds_of(first_obs)
    for at in np.ndindex(seeds.shape):
        ends = np.any(replay_on_host(seeds[at], [2] * 6)[3:], axis=0)
        length = ends.argmax() + 1
        assert stats.length[at] == length
        assert stats.episode_return[at] == sum(range(length + 1))
    assert len(calls) == stats.length.max()


def test_a_prefill_in_a_loop_is_stepped_as_often_as_it_says(calls):
    env = make()

    def prefill(key, num_steps):
        state = env.reset(key)[0]
        body = lambda _, state: step_and_reset(env, key, state, jnp.int32(1))[0]  # noqa: E731
        return jax.lax.fori_loop(0, num_steps, body, state).count

    counts = jax.jit(jax.vmap(prefill, (0, None)))(jax.random.split(jax.random.key(3), 4), 17)
    assert (counts.tolist(), calls) == ([17] * 4, [4] * 17)


def test_tracing_calls_nobody(calls):
    env, made = make(), Telling.made
    key, action = jax.random.key(0), jnp.int32(0)
    state, obs = jax.eval_shape(env.reset, key)
    _, timestep = jax.eval_shape(env.step, key, state, action)
    jax.jit(env.step_and_reset).lower(key, state, action)
    assert (timestep.obs.shape, obs.dtype) == ((5,), np.float32)
    assert not calls
    assert Telling.made == made


def test_behind_its_end_an_episode_stays_as_it_is():
    env, key = make(), jax.random.key(4)
    step = jax.jit(env.step)
    state, _ = env.reset(key)
    while not (last := step(key, state, 1))[1].terminated | last[1].truncated:
        state = last[0]
    for _ in range(2):
        again = step(key, last[0], 0)
        assert again[1]._replace(reward=0) == again[1], "no reward"
        for name in ("obs", "terminated", "truncated"):
            assert (getattr(again[1], name) == getattr(last[1], name)).all()
        assert again[0] == last[0], "nothing was stepped"
    state, obs, _ = env.step_and_reset(key, last[0], jnp.int32(0))
    assert obs[2] == 1, "the next episode"


def test_a_step_that_is_repeated_or_left_out_or_unknown_is_refused():
    env, key = make(), jax.random.key(5)
    step = jax.jit(lambda state: env.step_and_reset(key, state, jnp.int32(0))[0])
    first = env.reset(key)[0]
    second = jax.block_until_ready(step(first))
    wrong = {
        "repeated, left out": first,
        "is to be stepped from 2": second.replace(count=second.count + 1),
        "no host environment": second.replace(handle=jnp.int32(-7)),
    }
    for message, state in wrong.items():
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            jax.block_until_ready(step(state))
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), second)
    with pytest.raises(jax.errors.JaxRuntimeError, match="twice in one call"):
        jax.block_until_ready(jax.vmap(step)(twice))
    assert step(second).count == 2, "a call that was refused has changed nothing"


def test_environments_of_several_resets_are_stepped_in_one_call(calls):
    env, keys = make(), jax.random.split(jax.random.key(6), 5)
    groups = [jax.vmap(env.reset)(keys[:2])[0], jax.vmap(env.reset)(keys[2:])[0]]
    joined = jax.tree.map(lambda *x: jnp.concatenate(x)[jnp.array([3, 0, 4, 1])], *groups)
    step = jax.vmap(env.step, (0, 0, 0))
    seeds = seeds_of(jax.vmap(env.reset)(keys)[1])
    alone = [replay_on_host(seed, [2])[1][0] for seed in seeds]
    _, timestep = step(keys[:4], joined, jnp.full(4, 2))
    np.testing.assert_array_equal(timestep.obs, np.array(alone)[[3, 0, 4, 1]])
    assert calls == [4]


def test_evaluations_and_trainings_leave_no_environments_behind():
    env = make(most=30)  # of a pool of its own
    whole = jax.jit(lambda key: evaluate(lambda key, obs: jnp.int32(0), env, key, 4))

    @jax.jit
    def capped(key):
        state, _ = jax.vmap(env.reset)(jax.random.split(key, 4))
        body = lambda _, state: jax.vmap(env.step, (None, 0, None))(key, state, 0)[0]  # noqa: E731
        return jax.lax.fori_loop(0, 2, body, state).count

    train = jax.jit(lambda key: play(env, key, 4, 3))
    training = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 4))[0]
    go_on = jax.jit(jax.vmap(env.step_and_reset, (None, 0, None)))
    training = go_on(jax.random.key(0), training, jnp.int32(0))[0]
    begin = Telling.made
    for i in range(100):
        whole(jax.random.key(i))
    assert Telling.made - begin == 4, "those of each evaluation serve the next one"
    made = []
    for i in range(100):
        jax.block_until_ready((capped(jax.random.key(i)), train(jax.random.key(i))))
        training = go_on(jax.random.key(0), training, jnp.int32(0))[0]
        made.append(Telling.made)
    assert made[-1] == made[50] <= begin + 4 * 60
    assert (training.count == 101).all(), "what is stepped on is never taken away"


@pytest.mark.parametrize("start", [0, -1])
def test_actions_begin_where_the_space_does(start):
    env = make(start=start)
    state, _ = env.reset(jax.random.key(0))
    assert env.step(jax.random.key(0), state, jnp.int32(2))[1].obs[-1] == start + 2


def test_cartpole_is_gymnasiums():
    env = bridge.make_from_gymnasium("gymnasium:CartPole-v1", "CartPole-v1", {})
    key = jax.random.key(0)
    obs, (act_on, last_obs, reward, terminated, truncated, actions) = jax.jit(
        lambda: play(env, key, 1, 200)
    )()
    theirs = gymnasium.make("CartPole-v1")
    seed = jax.random.bits(jax.random.split(jax.random.split(key)[0], 1)[0], (), np.uint32)
    np.testing.assert_array_equal(theirs.reset(seed=int(seed))[0], obs[0])
    for t in range(200):
        wanted = theirs.step(int(actions[t, 0]))
        found = [x[t, 0] for x in (last_obs, reward, terminated, truncated)]
        for one, other in zip(wanted, found, strict=False):
            np.testing.assert_array_equal(one, other)
        follows = theirs.reset()[0] if terminated[t, 0] | truncated[t, 0] else wanted[0]
        np.testing.assert_array_equal(follows, act_on[t, 0])
    assert terminated.sum() > 3


box: Any = gymnasium.spaces.Box
SPACES: dict[str, Any] = {
    "discrete": (gymnasium.spaces.Discrete(3, start=1), np.int64(2), [0, 1, 0], np.float32),
    "several": (gymnasium.spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0], "f4"),
    "bits": (gymnasium.spaces.MultiBinary(2), np.array([1, 0], np.int8), [1, 0], "f4"),
    "image": (box(0, 255, (1, 2), np.uint8), np.array([[7, 9]], np.uint8), [[7, 9]], "u1"),
    "flags": (box(0, 1, (2,), np.bool_), np.array([True, False]), [1, 0], "?"),
    "double": (box(-1, 1, (), np.float64), np.float64(0.5), 0.5, "f4"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
def test_observations_are_read(name):
    space, value, wanted, dtype = SPACES[name]
    reader: Any = singles.read_observations(space)
    row = np.empty(reader.space.shape, reader.space.dtype)
    row[...] = reader.read(value)
    assert row.dtype == dtype
    np.testing.assert_array_equal(row, np.array(wanted))
    assert reader.space.contains(row)


class Broken(gymnasium.Env):
    def __init__(self):
        raise ValueError("no\nscreen")


register("Broken-v0", Broken)


@pytest.mark.parametrize(
    ("id", "settings", "message"),
    [
        ("Pendulum-v1", {}, r"actions Box.*must have Discrete"),
        ("Blackjack-v1", {}, r"observations Tuple.*must have a Box"),
        ("CartPole-v9", {}, r"'CartPole-v9' must be one of .*CartPole-v1"),
        ("no_such_package:My-v0", {}, r"importing no_such_package.*install the package"),
        ("ALE/Breakout-v9", {}, r"purejaxdqn\[atari\]|must be one of"),
        ("Humanoid-v5", {}, r"MuJoCo is not installed.*install what it needs"),
        ("Broken-v0", {}, r"cannot be made.*ValueError: no screen"),
        ("FrozenLake-v1", {"is_slipery": "0"}, r"'is_slipery' must be one of is_slippery"),
        ("FrozenLake-v1", {"map_name": "9x9"}, r"cannot be made.*'9x9'"),
        ("CartPole-v1", {"render_mode": "human"}, "render_mode .'human'. must be 'rgb_array'"),
    ],
)
def test_what_cannot_be_played_is_refused_in_a_line(id, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        bridge.make_from_gymnasium(f"gymnasium:{id}", id, settings)
    assert "\n" not in str(caught.value)


def test_settings_reach_gymnasium():
    settings = {"is_slippery": "false", "max_episode_steps": "7", "map_name": "8x8"}
    env = bridge.make_from_gymnasium("gymnasium:FrozenLake-v1", "FrozenLake-v1", settings)
    assert (env.max_steps, env.observation_space.shape, env.threshold) == (7, (64,), 0.7)


@pytest.mark.parametrize("prioritised", [False, True])
def test_new_episodes_do_not_continue_those_before_them(prioritised):
    """After a run begins anew, each step in the replay still leads to what followed it."""
    config = dataclasses.replace(TINY, num_envs=2, replay_capacity=64, prioritised=prioritised)
    train: Any = dqn(config, env=make(most=60))
    state, anew = jax.jit(train.init)(jax.random.key(7)), jax.jit(train.begin_anew)
    for _ in range(2):
        state = jax.jit(train.chunk, static_argnums=2)(anew(state), jnp.int32(5), 5)[0]
        assert (state.env_state.count == 11).all()
    ring = state.replay
    replay: Any = prioritised_replay(64, 8) if prioritised else uniform_replay(64, 8)
    read = jax.vmap(lambda i: replay.window_at(ring, i, 3))
    windows = jax.tree.map(np.asarray, read(jnp.arange(64)))
    num_steps = windows.is_inside.sum(axis=1)
    (seed, _, episode, step, _), after = windows.obs.T, windows.next_obs.T
    for one, other in zip((seed, episode, step + num_steps), after[[0, 2, 3]], strict=True):
        np.testing.assert_array_equal(one, other)
    ends = (windows.terminated | windows.truncated)[np.arange(64), num_steps - 1]
    age = (int((ring.replay if prioritised else ring).insert_row) * 2 - 1 - np.arange(64)) % 64
    assert (ends | (num_steps == 3) | (age < 4)).all()
    assert len(np.unique(seed)) == 6, "both environments began three times"


def test_a_sweep_trains_seeds_side_by_side_is_resumed_and_says_what_that_costs(tmp_path, capsys):
    def experiment(config):
        return dqn(config, env=make(most=40))

    def interrupt(event):
        if event.step > 200:
            raise KeyboardInterrupt

    config = dataclasses.replace(TINY, num_envs=2)
    options = {"output": tmp_path, "resume": True, "width": 2}
    begun = Telling.made
    with pytest.raises(SweepInterrupted):
        run_sweep(
            experiment, config, range(3), on_evaluation=interrupt, checkpoint_seconds=0, **options
        )
    result = run_sweep(experiment, config, range(3), **options)
    told = " ".join(capsys.readouterr().err.split())
    assert "going on at step 4" in told
    assert "gymnasium:Telling-v0 steps on the host: a run that is resumed begins new" in told
    assert result.dataset.attrs["on_host"].startswith("steps on the host")
    assert result.dataset.evaluation_return.notnull().all()
    assert Telling.made - begun < 100


class Unseeded(Telling):
    def reset(self, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self._length = UNSEEDED.integers(1, 6)
        return obs, info


UNSEEDED = np.random.default_rng(0)
register("Unseeded-v0", Unseeded, max_episode_steps=10)


def test_the_contract_is_checked_on_the_host():
    check_environment(make(max_episode_steps=4), jax.random.key(0))
    env = bridge.make_from_gymnasium("gymnasium:Unseeded-v0", "Unseeded-v0", {})
    with pytest.raises(AssertionError, match="the same keys and actions give two plays"):
        check_environment(env, jax.random.key(0))


def test_policies_are_played_and_filmed_where_they_step(monkeypatch, tmp_path):
    place = "host.bridge:make_from_gymnasium"
    monkeypatch.setitem(environments._PREFIXES, "gymnasium", place)
    env = environments.make("gymnasium:CartPole-v1?max_episode_steps=12")
    train: Any = dqn(TINY, env=env)
    assert films.find_problem(env) is None
    init = jax.vmap(lambda key: train.probe.network.init(key, jnp.zeros(4)))
    params = init(jnp.stack([jax.random.key(0)] * 2))
    returns = films.play_in_gymnasium(train, params, 3)
    assert returns.shape == (2, 3)
    np.testing.assert_array_equal(returns[0], returns[1])  # equal weights, and equal beginnings
    total = films.save_gif(train, jax.tree.map(lambda x: x[0], params), tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as film:
        num_frames = getattr(film, "n_frames", 1)
        assert 2 <= num_frames <= total // 2 + 1  # equal pictures are one


def test_a_fingerprint_tells_what_is_stepped_and_nothing_that_happened(monkeypatch):
    def describe(**settings):
        env = make(**settings)
        env.reset(jax.random.key(0))
        monkeypatch.setattr(Telling, "made", 0)  # its own, which counts
        return fingerprint(env._asdict())

    before = describe()
    assert "Telling.reset" in str(before)
    assert describe() == before
    assert describe(most=7) != before


def test_no_results_file_imports_a_package():
    config = dataclasses.replace(TINY, env="gymnasium:some_package:My-v0?size=a:b")
    with pytest.raises(ConfigError, match="no file may import one: trust some_package"):
        rerun._refuse_import(config)
    for name in ("gymnasium:gymnasium:CartPole-v1", "gymnasium:ALE/Pong-v5", "CartPole-v1?a=b:c:d"):
        rerun._refuse_import(dataclasses.replace(TINY, env=name))
