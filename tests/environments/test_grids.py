"""Small worlds, against gymnasium's own tables and plays, by hand, and against their own tables."""

import collections
import functools
import operator
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purejaxdqn import testing
from purejaxdqn.environments import Environment, tabular
from purejaxdqn.environments.grids import common
from purejaxdqn.environments.grids.catch import CatchState, catch
from purejaxdqn.environments.grids.cliff_walking import cliff_walking
from purejaxdqn.environments.grids.deep_sea import DeepSeaState, deep_sea
from purejaxdqn.environments.grids.frozen_lake import frozen_lake
from purejaxdqn.environments.grids.rooms import LAYOUTS, rooms
from purejaxdqn.environments.tabular import TabularMDP, optimal_values
from purejaxdqn.training.evaluation import evaluate
from purejaxdqn.types import ConfigError

GYMNASIUM: dict[str, Environment] = {
    "FrozenLake-v1": frozen_lake("FrozenLake-v1", 100, 0.7),
    "FrozenLake8x8-v1": frozen_lake("FrozenLake8x8-v1", 200, 0.85, map_name="8x8"),
    "CliffWalking-v1": cliff_walking("CliffWalking-v1", None, None),
    "CliffWalkingSlippery-v1": cliff_walking(
        "CliffWalkingSlippery-v1", None, None, is_slippery=True
    ),
}
FIRM = frozen_lake("FrozenLake-v1", 100, 0.7, is_slippery=False)
OURS = {
    "Catch": catch("Catch"),
    "small Catch": catch("small Catch", rows=4, columns=2),
    "DeepSea": deep_sea("DeepSea"),
    "windy DeepSea": deep_sea("windy DeepSea", size=6, deterministic=False),
    "four rooms": rooms("four rooms", 200, None),
    "two rooms": rooms("two rooms", 100, None, num_rooms=2),
    "two firm rooms": rooms("two firm rooms", None, None, num_rooms=2, failure=0.0),
}
ALL = GYMNASIUM | OURS
NUM_EPISODES = 1_000
NUM_KEYS = 40


def make_in_gymnasium(name: str) -> tuple[Any, dict[int, dict[int, list[tuple[Any, ...]]]]]:
    """The environment, and its table: `P[cell][action]` lists (probability, cell, reward, end)."""
    env = gymnasium.make(name, disable_env_checker=True)
    return env, env.unwrapped.P  # type: ignore[attr-defined]


def table_of(env: Environment) -> TabularMDP:
    assert env.tabular is not None
    table: TabularMDP = env.tabular()
    return table


def state_at(env: Environment, cells: Any, num_steps: Any = 0) -> Any:
    """States [N] of FrozenLake or CliffWalking, by the numbers of their cells."""
    is_cliff = env.name.startswith("Cliff")
    columns = 12 if is_cliff else round(env.observation_space.sample().size ** 0.5)
    cells = np.asarray(cells)
    position = np.stack([cells // columns, cells % columns], axis=-1).astype(np.int32)
    num_steps = np.broadcast_to(np.int32(num_steps), cells.shape)
    return common.Walker(jnp.asarray(position), jnp.asarray(num_steps))


@functools.cache
def outcome_keys() -> jax.Array:
    """Three keys, with which each of three outcomes of probability 1/3 is drawn."""
    keys = jax.random.split(jax.random.key(0), 100)
    drawn = jax.vmap(functools.partial(common.draw, probabilities=(1 / 3,) * 3))(keys)
    return keys[np.array([np.argmax(np.asarray(drawn) == i) for i in range(3)])]


# ------------------------------------------------------------------------------------- gymnasium


@pytest.mark.parametrize("name", GYMNASIUM)
def test_the_same_description(name):
    env, (reference, _) = GYMNASIUM[name], make_in_gymnasium(name)
    assert env.name == name
    assert env.max_steps == reference.spec.max_episode_steps
    assert env.threshold == reference.spec.reward_threshold
    assert env.action_space == reference.action_space
    assert env.observation_space.shape == (reference.observation_space.n,)
    assert env.observation_space.dtype == bool


def test_the_same_firm_lake():
    _, table = make_in_gymnasium("FrozenLake-v1")
    firm = gymnasium.make("FrozenLake-v1", is_slippery=False).unwrapped.P  # type: ignore[attr-defined]
    assert_same_table(FIRM, firm)
    with pytest.raises(AssertionError):
        assert_same_table(FIRM, table)


@pytest.mark.parametrize("name", GYMNASIUM)
def test_the_same_table(name):
    _, table = make_in_gymnasium(name)
    assert_same_table(GYMNASIUM[name], table)


def assert_same_table(env, table):
    """To the bit, on all cells that are reached and do not end the episode."""
    mdp = table_of(env)
    cells = mdp.observations.argmax(axis=1)
    assert (mdp.observations.sum(axis=1) == 1).all()
    (start,) = np.flatnonzero(mdp.start)
    reached, to_do = set(), [int(cells[start])]
    assert to_do == [36 if len(table) == 48 else 0]
    while to_do:
        reached.add(here := to_do.pop())
        outcomes = [x for action in range(4) for x in table[here][action]]
        to_do += {int(t) for p, t, _, ends in outcomes if p > 0 and not ends} - reached
    assert sorted(reached) == cells.tolist()
    transition, reward = np.zeros_like(mdp.transition), np.zeros_like(mdp.reward)
    for i, cell in enumerate(cells.tolist()):
        for action in range(4):
            for p, to, r, ends in table[cell][action]:
                reward[i, action] += p * r
                if not ends:
                    transition[i, action, np.flatnonzero(cells == to)] += p
    np.testing.assert_array_equal(mdp.transition, transition)
    np.testing.assert_array_equal(mdp.reward, reward)


@pytest.mark.parametrize("name", GYMNASIUM)
def test_every_step_from_every_cell_has_the_same_outcomes(name):
    """Also from cells that no episode goes on from, such as holes."""
    env, (_, table) = GYMNASIUM[name], make_in_gymnasium(name)
    cells, actions, outcomes = np.indices((len(table), 4, 3)).reshape(3, -1)
    state, step = jax.jit(jax.vmap(env.step))(
        outcome_keys()[outcomes], state_at(env, cells), actions.astype(np.int32)
    )
    np.testing.assert_array_equal(state.num_steps, 1)
    obs = np.asarray(step.obs)
    assert (obs.sum(axis=1) == 1).all()
    ours = [obs.argmax(axis=1), *map(np.asarray, (step.reward, step.terminated))]
    expected = []
    for cell, action, outcome in zip(cells, actions, outcomes, strict=True):
        listed = table[cell][action]
        expected.append(listed[outcome if len(listed) == 3 else 0][1:])
    for got, wanted in zip(ours, map(np.array, zip(*expected, strict=True)), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert not np.asarray(step.truncated).any()


def policy_of(name: str, skill: float) -> np.ndarray:
    """Probabilities of actions `[cells, A]`: an optimal one with probability `skill`, else any."""
    mdp = table_of(GYMNASIUM[name])
    best = optimal_values(mdp, 0.99).argmax(axis=1)
    policy = np.full((mdp.observations.shape[1], 4), (1 - skill) / 4)
    policy[mdp.observations.argmax(axis=1), best] += skill
    return policy


@functools.cache
def record(name: str, skill: float) -> tuple[np.ndarray, ...]:
    """Plays 1,000 episodes in gymnasium: a row a step."""
    env, _ = make_in_gymnasium(name)
    policy, rng = policy_of(name, skill).cumsum(axis=1), np.random.default_rng(0)
    rows = []
    for episode in range(NUM_EPISODES):
        cell, _ = env.reset(seed=episode)
        num_steps, ended = 0, False
        while not ended:
            action = min(int((rng.random() >= policy[cell]).sum()), 3)
            to, reward, terminated, truncated, _ = env.step(action)
            rows.append((cell, num_steps, action, to, reward, terminated, truncated))
            cell, num_steps, ended = to, num_steps + 1, terminated or truncated
    return tuple(map(np.array, zip(*rows, strict=True)))


PLAYS = [
    *(("FrozenLake-v1", 0.0), ("FrozenLake-v1", 1.0), ("FrozenLake8x8-v1", 0.9)),
    *(("CliffWalking-v1", 0.7), ("CliffWalkingSlippery-v1", 0.9)),
]


@pytest.mark.parametrize(("name", "skill"), PLAYS)
def test_the_same_steps_and_flags_over_a_thousand_episodes(name, skill):
    env, (_, table) = GYMNASIUM[name], make_in_gymnasium(name)
    cells, num_steps, actions, to, reward, terminated, truncated = record(name, skill)
    assert (num_steps == 0).sum() == NUM_EPISODES
    assert (terminated | truncated).sum() == NUM_EPISODES
    # The play must reach what it is to be compared on.
    if name.startswith("Cliff"):
        assert not truncated.any()
        assert (reward == -100).sum() > 200
    else:
        assert min((terminated & (reward == r)).sum() for r in (0, 1)) > 5
        assert (truncated.sum() > 10) == (skill > 0)
    outcome = [
        next(i for i, x in enumerate(table[cell][action]) if x[1:3] == (target, earned))
        for cell, action, target, earned in zip(cells, actions, to, reward, strict=True)
    ]
    state, step = jax.jit(jax.vmap(env.step))(
        outcome_keys()[np.array(outcome)],
        state_at(env, cells, num_steps),
        actions.astype(np.int32),
    )
    np.testing.assert_array_equal(np.asarray(step.obs).argmax(axis=1), to)
    np.testing.assert_array_equal(step.reward, reward)
    np.testing.assert_array_equal(step.terminated, terminated)
    np.testing.assert_array_equal(step.truncated, truncated)
    np.testing.assert_array_equal(state.num_steps, num_steps + 1)


@pytest.mark.parametrize(("name", "skill"), PLAYS)
def test_the_same_returns_and_lengths_in_closed_loop(name, skill):
    env, num_episodes = GYMNASIUM[name], 2 * NUM_EPISODES
    _, num_steps, _, _, reward, _, _ = record(name, skill)
    starts = np.flatnonzero(num_steps == 0)
    theirs = np.add.reduceat(reward, starts), np.diff([*starts, len(reward)])
    logits = jnp.log(policy_of(name, skill))

    def policy(key, obs):
        return jax.random.categorical(key, logits[obs.argmax()]).astype(jnp.int32)

    ours = jax.jit(lambda key: evaluate(policy, env, key, num_episodes))(jax.random.key(1))
    for what, a, b in zip(("returns", "lengths"), map(np.asarray, ours), theirs, strict=True):
        print(f"\n{name} {skill}: {what} {a.mean():.3f}, gymnasium {b.mean():.3f}")
        assert stats.ks_2samp(a, b).pvalue > 1e-3
        assert stats.ttest_ind(a, b, equal_var=False).pvalue > 1e-3


# ---------------------------------------------------------------------------------- optimal values


@pytest.mark.parametrize("name", GYMNASIUM)
@pytest.mark.parametrize("discount", [0.9, 0.99])
def test_optimal_values_are_those_of_plain_value_iteration_on_gymnasium_s_table(name, discount):
    _, table = make_in_gymnasium(name)
    q_values = np.zeros((len(table), 4))
    for _ in range(3_000):
        best = q_values.max(axis=1).tolist()
        for cell, of_actions in table.items():
            for action, outcomes in of_actions.items():
                q_values[cell, action] = sum(
                    p * (r + (0 if ends else discount * best[to])) for p, to, r, ends in outcomes
                )
        if np.abs(q_values.max(axis=1) - best).max() < 1e-13:
            break
    mdp = table_of(GYMNASIUM[name])
    found = optimal_values(mdp, discount)
    np.testing.assert_allclose(found, q_values[mdp.observations.argmax(axis=1)], atol=1e-10)


def test_optimal_values_that_are_published_or_counted_by_hand():
    mdp = table_of(GYMNASIUM["CliffWalking-v1"])
    cells, q_values = mdp.observations.argmax(axis=1).tolist(), optimal_values(mdp, 1.0)
    steps = [14 - cell % 12 - cell // 12 if cell != 36 else 13 for cell in cells]
    np.testing.assert_array_equal(q_values.max(axis=1), -np.array(steps))
    np.testing.assert_array_equal(q_values[cells.index(36)], [-13, -113, -14, -14])
    # The best chance of the goal, 14 in 17.
    lake = table_of(GYMNASIUM["FrozenLake-v1"])
    assert lake.start @ optimal_values(lake, 1.0).max(axis=1) == pytest.approx(14 / 17, abs=1e-12)
    firm = table_of(FIRM)
    assert firm.start @ optimal_values(firm, 0.9).max(axis=1) == pytest.approx(0.9**5, abs=1e-15)


def loop(*rewards, ends=0.0):
    """One state; each action earns a reward, and the episode ends so with a probability."""
    shape = (1, len(rewards), 1)
    return TabularMDP(np.full(shape, 1 - ends), np.array([rewards]), np.ones((1, 1)), np.ones(1))


def test_optimal_values_by_hand():
    np.testing.assert_allclose(optimal_values(loop(1.0, -2.0), 0.5), [[2, -1]], rtol=1e-14)
    np.testing.assert_allclose(optimal_values(loop(1.0, 0.0), 0.999), [[1000, 999]], rtol=1e-12)
    np.testing.assert_allclose(optimal_values(loop(1.0, ends=0.25), 1.0), [[4]], rtol=1e-13)
    np.testing.assert_array_equal(optimal_values(loop(1.0, 3.0), 0.0), [[1, 3]])
    np.testing.assert_array_equal(optimal_values(loop(0.0, -1.0), 1.0), [[0, -1]])
    # An action that may not be taken counts nowhere.
    np.testing.assert_allclose(optimal_values(loop(1.0, -np.inf), 0.5), [[2, -np.inf]])


def test_values_that_never_settle_are_refused(monkeypatch):
    monkeypatch.setattr(tabular, "_MAX_SWEEPS", 1_000)
    turns = np.array([[[0.0, 1.0]], [[1.0, 0.0]]])  # 1, -1, 1, ... for ever
    to_and_fro = TabularMDP(turns, np.array([[1.0], [-1.0]]), np.eye(2), np.ones(2) / 2)
    for mdp in (loop(1.0, 0.0), to_and_fro):
        with pytest.raises(ConfigError, match=r"discount \(1\) must be below 1 for this task"):
            optimal_values(mdp, 1.0)
        assert np.isfinite(optimal_values(mdp, 0.999)).all()


@pytest.mark.parametrize("discount", [-0.1, 1.1, np.nan, "0.9", None])
def test_a_discount_that_is_none_is_refused(discount):
    with pytest.raises(ConfigError, match="discount"):
        optimal_values(loop(1.0), discount)


def test_a_table_that_is_none_is_refused():
    right = loop(1.0, 2.0)
    for wrong in (1.5 * right.transition, -right.transition, right.transition[:, :1]):
        with pytest.raises(ConfigError, match=r"transition .* must be probabilities \[S, A, S\]"):
            optimal_values(right._replace(transition=wrong), 0.9)
    for earned in (np.nan, np.inf, -np.inf):
        with pytest.raises(ConfigError, match=r"reward .* must be numbers \[S, A\], or -inf"):
            optimal_values(loop(earned, -np.inf), 0.9)


@pytest.mark.parametrize("discount", [0.0, 0.3, 0.9, 0.9999])
def test_no_policy_is_better_than_the_optimal_values(discount):
    rng = np.random.default_rng(0)
    for _ in range(20):
        transition = rng.dirichlet(np.full(5, 0.3), (4, 3))[..., :4]  # the rest ends the episode
        reward = rng.normal(size=(4, 3))
        best = np.full(4, -np.inf)
        for policy in np.ndindex(3, 3, 3, 3):
            chosen = transition[np.arange(4), policy]
            values = np.linalg.solve(np.eye(4) - discount * chosen, reward[np.arange(4), policy])
            best = np.maximum(best, values)
        found = optimal_values(TabularMDP(transition, reward, np.eye(4), np.ones(4) / 4), discount)
        np.testing.assert_allclose(found, reward + discount * transition @ best, atol=1e-9)


# ------------------------------------------------------------------- each world, and its own table


def explore(env: Environment, num_states: int) -> tuple[dict[bytes, int], Any, Any]:
    """Finds states from the starts by stepping alone.

    Returns the numbers of their observations, the states, and a function of a key that steps from
    each with each action: successors (-1 after an end) and rewards, `[NUM_KEYS, S, A]`.
    """
    steps = jax.vmap(env.step, (None, None, 0))  # actions
    steps = jax.vmap(steps, (0, 0, None))  # states, a key each
    steps = jax.jit(jax.vmap(steps, (0, None, None)))  # keys
    actions = jnp.arange(env.num_actions, dtype=jnp.int32)
    starts, obs = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(5), 2_000))
    numbers: dict[bytes, int] = {}
    rows: list[Any] = []

    def add(states: Any, observations: Any) -> None:
        states = jax.tree.map(np.asarray, states)
        for i, one in enumerate(np.asarray(observations)):
            if one.tobytes() not in numbers:
                numbers[one.tobytes()] = len(rows)
                rows.append(jax.tree.map(lambda x, i=i: x[i], states))

    def try_all(key: jax.Array) -> Any:
        padded = rows + [rows[0]] * (num_states - len(rows))
        states = jax.tree.map(lambda *x: np.stack(x), *padded)
        keys = jax.random.split(key, (NUM_KEYS, num_states))
        return jax.tree.map(np.asarray, steps(keys, states, actions))

    def sample(key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        _, step = try_all(key)
        following = np.full(step.reward.shape, -1)
        goes_on = ~step.terminated
        following[goes_on] = [numbers[one.tobytes()] for one in step.obs[goes_on]]
        return following, step.reward

    add(starts, obs)
    before = 0
    while before < len(rows) <= num_states:
        before = len(rows)
        states, step = try_all(jax.random.key(before))
        add(*jax.tree.map(operator.itemgetter(~step.terminated), (states, step.obs)))
    return numbers, rows, sample


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1", *OURS])
def test_steps_and_table_agree_on_every_state_and_action(name):
    env = ALL[name]
    mdp = table_of(env)
    assert table_of(env) is mdp  # whoever asks again does not compute again
    num_states, num_actions = mdp.reward.shape
    assert mdp.transition.shape == (num_states, num_actions, num_states)
    assert {x.dtype for x in (mdp.transition, mdp.reward, mdp.start)} == {np.dtype(np.float64)}
    assert mdp.observations.dtype == env.observation_space.dtype
    assert mdp.start.sum() == pytest.approx(1, abs=1e-12)
    assert (mdp.transition.sum(axis=-1) < 1 + 1e-12).all()

    numbers, rows, sample = explore(env, num_states)
    assert len(rows) == num_states
    order = np.array([numbers[one.tobytes()] for one in mdp.observations])  # KeyError: never met
    assert len(set(order)) == num_states
    draws = [sample(jax.random.key(1_000 + i)) for i in range(10)]
    following, reward = (np.concatenate(x)[:, order] for x in zip(*draws, strict=True))
    back = np.full(num_states + 1, num_states)  # the last one counts ends
    back[order] = np.arange(num_states)
    share = np.zeros((num_states, num_actions, num_states + 1))
    state, action = np.indices(following.shape)[1:]
    np.add.at(share, (state, action, back[following]), 1 / len(following))
    ends = 1 - mdp.transition.sum(axis=-1, keepdims=True)
    expected = np.concatenate([mdp.transition, np.where(ends < 1e-12, 0, ends)], axis=-1)
    np.testing.assert_array_equal(share > 0, expected > 0)
    noise = np.sqrt(np.maximum(expected * (1 - expected), 0) / len(following))
    assert (np.abs(share - expected) <= 5 * noise + 1e-9).all()
    noise = reward.std(axis=0) / np.sqrt(len(reward))
    assert (np.abs(reward.mean(axis=0) - mdp.reward) <= 5 * noise + 1e-5).all()

    starts = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(6), 4_000))[1]
    count = np.zeros(num_states)
    np.add.at(count, back[[numbers[one.tobytes()] for one in np.asarray(starts)]], 1)
    np.testing.assert_array_equal(count > 0, mdp.start > 0)
    begins = mdp.start > 0
    assert begins.sum() == 1 or stats.chisquare(count[begins]).pvalue > 1e-3
    assert len(set(mdp.start[begins])) == 1


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1", "Catch", "two rooms"])
def test_the_contract(name):
    testing.check_environment(ALL[name], jax.random.key(0), random_reset=name in OURS)


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1", "Catch", "two rooms"])
def test_each_state_has_a_picture_of_its_own(name):
    env = ALL[name]
    assert env.render is not None
    _, rows, _ = explore(env, len(table_of(env).reward))
    states = jax.tree.map(lambda *x: np.stack(x), *rows[:40])
    pictures = np.asarray(jax.jit(jax.vmap(env.render))(states))
    assert pictures.dtype == np.uint8
    assert pictures.ndim == 4
    assert pictures.shape[-1] == 3
    assert max(pictures.shape[1:3]) <= 256
    assert len({one.tobytes() for one in pictures}) == len(pictures)


# ------------------------------------------------------------------------------------------- Catch


def play_by_hand(env, state, actions):
    rewards, ended, obs = [], [], []
    for action in actions:
        state, step = env.step(jax.random.key(0), state, jnp.int32(action))
        rewards.append(float(step.reward))
        ended.append(bool(step.terminated))
        obs.append(np.asarray(step.obs))
        assert not step.truncated
    return rewards, ended, obs


def test_a_ball_is_caught_and_one_is_missed():
    env, none = OURS["Catch"], jnp.int32(0)
    start = CatchState(none, jnp.int32(4), jnp.int32(2))
    rewards, ended, obs = play_by_hand(env, start, [2, 2, *[1] * 7])
    assert rewards == [0] * 8 + [1]
    assert ended == [False] * 8 + [True]
    assert np.argwhere(obs[0]).tolist() == [[1, 4], [9, 3]]
    assert np.argwhere(obs[7]).tolist() == [[8, 4], [9, 4]]
    assert np.argwhere(obs[8]).tolist() == [[9, 4]]
    rewards, ended, obs = play_by_hand(env, start, [0] * 9)  # it stops at the wall
    assert rewards == [0] * 8 + [-1]
    assert np.argwhere(obs[8]).tolist() == [[9, 0], [9, 4]]
    mdp = table_of(env)
    assert len(mdp.reward) == 5 * (1 + 3 + 7 * 5)
    values = optimal_values(mdp, 1.0).max(axis=1)
    assert (values[mdp.start > 0] == 1).all()


# ----------------------------------------------------------------------------------------- DeepSea


def test_the_one_way_to_the_treasure():
    env = deep_sea("DeepSea", size=4, mapping_seed=3)
    right = np.random.RandomState(3).binomial(1, 0.5, (4, 4))
    assert {*right.ravel()} == {0, 1}
    start, obs = env.reset(jax.random.key(0))
    assert np.argwhere(obs).tolist() == [[0, 0]]
    rewards, ended, seen = play_by_hand(env, start, right.diagonal())
    np.testing.assert_allclose(rewards, [-0.0025] * 3 + [0.9975], rtol=1e-6)
    assert ended == [False] * 3 + [True]
    assert [np.argwhere(one).tolist() for one in seen] == [[[1, 1]], [[2, 2]], [[3, 3]], []]
    # Once to the left is too often, however right the others are.
    actions = [right[0, 0], 1 - right[1, 1], right[2, 0], right[3, 1]]
    rewards, _, seen = play_by_hand(env, start, actions)
    np.testing.assert_allclose(rewards, [-0.0025, 0, -0.0025, -0.0025], rtol=1e-6)
    assert np.argwhere(seen[1]).tolist() == [[2, 0]]
    rewards, _, seen = play_by_hand(env, start, 1 - right[:, 0])  # along the left edge, for nothing
    assert rewards == [0] * 4
    assert np.argwhere(seen[2]).tolist() == [[3, 0]]


@pytest.mark.parametrize("size", [2, 10, 20])
def test_the_best_return_of_a_deep_sea_is_the_published_one(size):
    plain = deep_sea("plain", size=size, randomize_actions=False)
    for env in (deep_sea("mixed", size=size), plain):
        assert env.observation_space.shape == (size, size)
        mdp = table_of(env)
        assert len(mdp.reward) == size * (size + 1) // 2
        q_values = optimal_values(mdp, 1.0)
        assert mdp.start @ q_values.max(axis=1) == pytest.approx(0.99, abs=1e-12)
        right = np.argwhere(mdp.observations)[:, 1:]
        on_the_way = right[:, 0] == right[:, 1]
        gap = np.abs(np.diff(q_values, axis=1)[:, 0])
        assert (gap[on_the_way] > 0.9).all()
        assert (gap[~on_the_way] < 0.02).all()
        if env is plain:
            assert (q_values[on_the_way].argmax(axis=1) == 1).all()


def test_actions_are_mixed_as_bsuite_does_and_stay_so():
    ways = []
    for env in (deep_sea("a"), deep_sea("a"), deep_sea("b", mapping_seed=1)):
        mdp = table_of(env)
        costs = mdp.reward.argmin(axis=1)  # whoever goes right pays, but for the treasure
        cells = np.argwhere(mdp.observations)[:-1, 1:]
        way = np.full((10, 10), -1)
        way[tuple(cells.T)] = costs[:-1]
        ways.append(way)
    right = np.random.RandomState(42).binomial(1, 0.5, (10, 10))
    below = np.tri(10, dtype=bool)
    below[9, 9] = False
    np.testing.assert_array_equal(ways[0][below], right[below])
    np.testing.assert_array_equal(ways[0], ways[1])
    assert (ways[0] != ways[2]).any()


def test_wind_and_noise():
    size, num = 5, 4_000
    env = deep_sea("windy", size=size, deterministic=False, randomize_actions=False)
    keys = jax.random.split(jax.random.key(0), num)

    def step(row, column, action):
        state = DeepSeaState(jnp.int32(row), jnp.int32(column))
        state, answer = jax.vmap(env.step, (0, None, None))(keys, state, jnp.int32(action))
        return np.asarray(state.column), np.asarray(answer.reward)

    column, reward = step(1, 1, 1)
    assert {*column} == {1, 2}
    assert (column == 1).mean() == pytest.approx(1 / size, abs=0.03)
    np.testing.assert_allclose(reward, -0.002, rtol=1e-6)
    for column, action, mean in ((0, 0, 0.0), (0, 1, -0.002), (4, 1, 0.998)):
        _, reward = step(4, column, action)
        assert stats.kstest(reward - mean, "norm").pvalue > 1e-3
    column, reward = step(4, 2, 0)
    assert {*column} == {1}
    assert not reward.any()
    mdp = table_of(env)
    # A little is saved on the way after the wind has blown.
    best = mdp.start @ optimal_values(mdp, 1.0).max(axis=1)
    assert 0 < best - ((1 - 1 / size) ** (size - 1) - 0.01) < 0.01


# ------------------------------------------------------------------------------------------- rooms


@pytest.mark.parametrize("num_rooms", LAYOUTS)
def test_rooms_are_walked_by_the_shortest_way(num_rooms):
    cells = np.array([[*row] for row in LAYOUTS[num_rooms]])
    env = rooms("rooms", 50, None, num_rooms=num_rooms, failure=0.0)
    ((row, column),) = np.argwhere(cells == "G")
    distance, to_do = {(row, column): 0}, collections.deque([(row, column)])
    while to_do:
        r, c = to_do.popleft()
        for near in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
            if cells[near] != "#" and near not in distance:
                distance[near] = distance[r, c] + 1
                to_do.append(near)
    assert len(distance) == {2: 41, 4: 104}[num_rooms]
    mdp = table_of(env)
    values = optimal_values(mdp, 0.9).max(axis=1)
    assert len(values) == len(distance) - 1
    for obs, value in zip(mdp.observations, values, strict=True):
        ((r, c),) = np.argwhere(obs[..., 0])
        assert value == pytest.approx(0.9 ** (distance[r, c] - 1), abs=1e-14)
        np.testing.assert_array_equal(obs[..., 1], cells == "G")
        np.testing.assert_array_equal(obs[..., 2], cells == "#")


def test_a_wall_the_goal_and_a_step_that_fails():
    env = OURS["four rooms"]
    keys = jax.random.split(jax.random.key(0), 9_000)

    def step(position, action):
        state = common.Walker(jnp.array(position, jnp.int32), jnp.int32(3))
        state, answer = jax.vmap(env.step, (0, None, None))(keys, state, jnp.int32(action))
        return np.asarray(state.position), jax.tree.map(np.asarray, answer)

    position, answer = step((1, 1), 0)  # up, in a corner
    ways, counts = np.unique(position, axis=0, return_counts=True)
    assert ways.tolist() == [[1, 1], [1, 2], [2, 1]]
    np.testing.assert_allclose(counts / len(keys), [2 / 3 + 1 / 9, 1 / 9, 1 / 9], atol=0.02)
    assert not answer.reward.any()
    assert not answer.terminated.any()
    _, answer = step((6, 9), 2)  # down, into the eastern doorway
    assert answer.reward.mean() == pytest.approx(2 / 3, abs=0.02)
    np.testing.assert_array_equal(answer.terminated, answer.reward == 1)


# --------------------------------------------------------------------------------------- refusals


def test_a_world_too_large_for_a_table_has_none():
    assert deep_sea("x", size=50).tabular is not None
    assert deep_sea("x", size=51).tabular is None
    assert catch("x", rows=100, columns=5).tabular is not None
    assert catch("x", rows=101, columns=5).tabular is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: frozen_lake("x", 100, None, map_name="5x5"),
            "map_name ('5x5') must be one of 4x4",
        ),
        (lambda: rooms("x", 100, None, num_rooms=3), "num_rooms (3) must be one of 2, 4"),
        (lambda: rooms("x", 100, None, failure=1.5), "failure (1.5) must be at least 0 and at"),
        (lambda: rooms("x", 100, None, failure=float("nan")), "failure (nan) must be"),
        (lambda: catch("x", rows=1), "rows (1) must be at least 2"),
        (lambda: catch("x", columns=0), "columns (0) must be at least 2"),
        (lambda: deep_sea("x", size=1), "size (1) must be at least 2"),
        (lambda: deep_sea("x", size=10**6), "size (1000000) must be at most 1000"),
        (lambda: catch("x", columns=10**6), "columns (1000000) must be at most 1000"),
        (lambda: deep_sea("x", mapping_seed=-1), "mapping_seed (-1) must be at least 0"),
        (lambda: deep_sea("x", mapping_seed=2**32), "mapping_seed (4294967296) must be at most"),
    ],
)
def test_settings_that_make_no_world_are_refused(make, words):
    with pytest.raises(ConfigError) as refused:
        make()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
