"""CartPole, Acrobot and MountainCar, step by step against `gymnasium.make`."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purejaxdqn import environments
from purejaxdqn.environments import CartPoleState, drawing
from purejaxdqn.environments.classic_control import acrobot, cartpole, mountain_car
from purejaxdqn.environments.classic_control.acrobot import AcrobotState
from purejaxdqn.environments.classic_control.mountain_car import MountainCarState
from purejaxdqn.training.evaluation import evaluate


class Task(NamedTuple):
    """What the tests know of a task; states are `[n]`, in the order of gymnasium's."""

    state: type  # of its state, which has these numbers and `num_steps`
    observe: Callable[[np.ndarray], np.ndarray]  # states [N, n] -> observations, unrounded
    gains: tuple[float, ...]  # a decent player goes left or right by the sign of gains @ obs
    threshold: Callable[[np.ndarray], np.ndarray]  # states [N, n] -> how far from the end [N]
    reset: tuple[tuple[float, float], ...]  # from where to where each number is drawn
    bounds: tuple[float, ...]  # of states as they are tried, beyond what play reaches
    ending: tuple[float, ...]  # a state that ends after any action
    scale: Any = 1.0  # of the numbers in observations, whose rounding errors grow with them


def observe_acrobot(states: np.ndarray) -> np.ndarray:
    angles = states[:, :2]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.column_stack([cos[:, 0], sin[:, 0], cos[:, 1], sin[:, 1], states[:, 2:]])


def from_goal_height(states: np.ndarray) -> np.ndarray:
    return np.abs(-np.cos(states[:, 0]) - np.cos(states[:, :2].sum(axis=1)) - 1)


def from_fall(states: np.ndarray) -> np.ndarray:
    limits = [cartpole.X_THRESHOLD, cartpole.THETA_THRESHOLD]
    return np.abs(np.abs(states[:, ::2]) - [limits]).min(axis=1)


CARTPOLE = Task(
    CartPoleState,
    lambda states: states,
    (0.1, 0.2, 1.0, 0.5),
    from_fall,
    ((-0.05, 0.05),) * 4,
    (4.8, 3.0, 0.42, 3.0),
    (0, 0, 0.3, 0),
)
SPEEDS = (acrobot.MAX_SPEED_1, acrobot.MAX_SPEED_2)
TASKS = {
    "CartPole-v0": CARTPOLE,
    "CartPole-v1": CARTPOLE,
    "Acrobot-v1": Task(
        AcrobotState,
        observe_acrobot,
        (0, 0, 0, 0, -1.0, 0.5),  # pushes the lower link on, and the upper one
        from_goal_height,
        ((-0.1, 0.1),) * 4,
        (np.pi, np.pi, *SPEEDS),
        (np.pi, 0, 0, 0),
        np.array([[1, 1, 1, 1, *SPEEDS]]),
    ),
    "MountainCar-v0": Task(
        MountainCarState,
        lambda states: states,
        (0, 1.0),  # drives on
        lambda states: np.abs(states[:, 0] - mountain_car.GOAL_POSITION),
        ((-0.6, -0.4), (0, 0)),
        (1.2, 0.07),
        (0.55, 0.02),
    ),
}
# Fewer episodes, where one step of gymnasium takes as long as five of others.
PLAYS = [(name, play, 1_000) for name in TASKS for play in ("random", "decent")]
PLAYS.remove(("Acrobot-v1", "random", 1_000))
PLAYS.append(("Acrobot-v1", "random", 100))
every_play = pytest.mark.parametrize(
    ("name", "play_name", "num_episodes"),
    [*PLAYS, pytest.param("Acrobot-v1", "random", 1_000, marks=pytest.mark.slow)],
)
every_task = pytest.mark.parametrize("name", TASKS)
EXPLORATION = {"random": 1.0, "decent": 0.3}  # the share of random actions


def gymnasium_make(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CartPole-v0 is out of date
        return gymnasium.make(name, disable_env_checker=True)


class Play(NamedTuple):
    """What gymnasium did, one row a step; states are float64 `[N, n]`."""

    state: np.ndarray
    num_steps: np.ndarray  # of the episode, before the step
    action: np.ndarray
    next_state: np.ndarray
    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


@functools.cache
def record(name: str, play: str, num_episodes: int) -> Play:
    env, gains = gymnasium_make(name), TASKS[name].gains
    last = int(env.action_space.n) - 1
    rng = np.random.default_rng(0)
    draws = rng.random((600_000, 2)).tolist()
    rows: list[tuple[Any, ...]] = []
    for episode in range(num_episodes):
        obs, _ = env.reset(seed=episode)
        state = np.array(env.unwrapped.state, float)
        num_steps, ended = 0, False
        while not ended:
            explore, choice = draws[len(rows)]
            if explore < EXPLORATION[play]:
                action = int(choice * (last + 1))
            else:
                score = sum(x * y for x, y in zip(gains, obs.tolist(), strict=True))
                action = last * int(score > 0)
            obs, reward, terminated, truncated, _ = env.step(action)
            next_state = np.array(env.unwrapped.state, float)
            rows.append((state, num_steps, action, next_state, obs, reward, terminated, truncated))
            state, num_steps, ended = next_state, num_steps + 1, terminated or truncated
    return Play(*map(np.array, zip(*rows, strict=True)))


def state_of(name: str, values: Any, num_steps: Any) -> Any:
    return TASKS[name].state(*values, num_steps)


def step_all(name: str, states: np.ndarray, num_steps: Any, actions: Any, dtype: Any) -> Any:
    """Our step from each of these states, `(state, TimeStep)`."""
    env = environments.make(name)

    @jax.jit
    @jax.vmap
    def step(state, num_steps, action):
        return env.step(jax.random.key(0), state_of(name, state, num_steps), action)

    counts, actions = (jnp.asarray(x, jnp.int32) for x in (num_steps, actions))
    return jax.tree.map(np.asarray, step(jnp.asarray(states, dtype), counts, actions))


def one_step(name: str, values: Any, action: int, num_steps: int = 0) -> Any:
    env = environments.make(name)
    state = state_of(name, jnp.array(values, float), jnp.int32(num_steps))
    return env.step(jax.random.key(0), state, jnp.int32(action))


class TestAgainstGymnasium:
    @every_play
    def test_single_steps(self, name, play_name, num_episodes):
        play, task = record(name, play_name, num_episodes), TASKS[name]
        assert np.sum(play.num_steps == 0) == num_episodes
        # The play must reach what it is to be compared on: decent play wins, but not always.
        won = play.truncated if task is CARTPOLE else play.terminated
        assert (won.sum() > 0.5 * num_episodes) == (play_name == "decent")
        assert play_name == "random" or 0 < won.sum() < num_episodes
        max_steps = environments.make(name).max_steps
        assert max_steps is not None
        assert np.all(play.num_steps[play.truncated] == max_steps - 1)

        expected = task.observe(play.next_state)
        args = name, play.state, play.num_steps, play.action
        state, timestep = step_all(*args, jnp.float32)
        assert timestep.obs.dtype == timestep.reward.dtype == np.float32
        assert np.abs((timestep.obs - expected) / task.scale).max() < 1e-6
        assert np.abs((timestep.obs - play.obs) / task.scale).max() < 1e-6
        np.testing.assert_array_equal(state.num_steps, play.num_steps + 1)
        np.testing.assert_array_equal(timestep.truncated, play.truncated)
        excluded = task.threshold(play.next_state) < 2e-6  # float32 may round to the other side
        print(f"\n{name}, {play_name} play: {len(excluded)} steps, {excluded.sum()} on a threshold")
        assert excluded.mean() < 1e-3
        np.testing.assert_array_equal(timestep.terminated[~excluded], play.terminated[~excluded])
        np.testing.assert_array_equal(timestep.reward[~excluded], play.reward[~excluded])

        with jax.enable_x64(True):
            state, timestep = step_all(*args, jnp.float64)
        assert timestep.obs.dtype == np.float64
        assert np.abs(timestep.obs - expected).max() < 1e-14
        np.testing.assert_array_equal(timestep.reward, play.reward)
        np.testing.assert_array_equal(timestep.terminated, play.terminated)
        np.testing.assert_array_equal(timestep.truncated, play.truncated)

    @every_task
    def test_steps_from_anywhere(self, name):
        """Also from where no play goes: behind walls and goals, and faster than allowed."""
        task, env = TASKS[name], gymnasium_make(name)
        env.reset(seed=0)
        rng = np.random.default_rng(0)
        states = rng.uniform(-1.2, 1.2, (2_000, len(task.bounds))) * [task.bounds]
        actions = rng.integers(0, env.action_space.n, len(states))
        rows = []
        for state, action in zip(states, actions.tolist(), strict=True):
            env.unwrapped.state = state
            env.unwrapped.steps_beyond_terminated = None
            _, reward, terminated, _, _ = env.unwrapped.step(action)
            rows.append((np.array(env.unwrapped.state, float), reward, terminated))
        next_states, rewards, terminated = map(np.array, zip(*rows, strict=True))
        assert 0.02 < terminated.mean() < 0.98
        with jax.enable_x64(True):
            counts = np.zeros(len(states))
            state, timestep = step_all(name, states, counts, actions, jnp.float64)
        # The speeds of Acrobot make little errors large within a step.
        np.testing.assert_allclose(timestep.obs, task.observe(next_states), rtol=0, atol=1e-9)
        ours = np.column_stack([getattr(state, field) for field in state.__dataclass_fields__])
        np.testing.assert_allclose(ours[:, :-1], next_states, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(timestep.terminated, terminated)
        np.testing.assert_array_equal(timestep.reward, rewards)

    @pytest.mark.parametrize(("name", "play_name", "num_episodes"), PLAYS)
    def test_same_returns_in_closed_loop(self, name, play_name, num_episodes):
        play, env = record(name, play_name, num_episodes), environments.make(name)
        starts = np.flatnonzero(play.num_steps == 0)
        theirs = np.add.reduceat(play.reward, starts)
        gains = jnp.array(TASKS[name].gains)

        def act(key, obs):
            choose, draw = jax.random.split(key)
            chosen = (env.num_actions - 1) * jnp.int32(gains @ obs > 0)
            explores = jax.random.uniform(choose) < EXPLORATION[play_name]
            return jnp.where(explores, jax.random.randint(draw, (), 0, env.num_actions), chosen)

        played = jax.jit(lambda key: evaluate(act, env, key, 2_000))(jax.random.key(0))
        ours = np.asarray(played.episode_return)
        error = np.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
        print(f"\n{name}, {play_name} play: {theirs.mean():.2f} and ours {ours.mean():.2f}")
        assert abs(ours.mean() - theirs.mean()) <= 3.5 * error
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3

    @every_task
    def test_same_description(self, name):
        env, reference = environments.make(name), gymnasium_make(name)
        assert env.name == name
        assert env.max_steps == reference.spec.max_episode_steps
        assert env.threshold == reference.spec.reward_threshold
        assert env.observation_space == reference.observation_space
        assert env.action_space == reference.action_space


@every_task
def test_ending_at_the_time_limit_is_both(name):
    max_steps = environments.make(name).max_steps
    assert max_steps is not None
    begin = [sum(bounds) / 2 for bounds in TASKS[name].reset]
    for values, ends in ((begin, False), (TASKS[name].ending, True)):
        for num_steps in range(max_steps - 2, max_steps + 1):
            _, timestep = one_step(name, values, 0, num_steps)
            assert bool(timestep.terminated) == ends
            assert bool(timestep.truncated) == (num_steps >= max_steps - 1)


@every_task
def test_reset_is_uniform(name):
    env, task = environments.make(name), TASKS[name]
    state, obs = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 2_000))
    values = np.column_stack([getattr(state, field) for field in state.__dataclass_fields__])
    np.testing.assert_allclose(obs, task.observe(values[:, :-1]), rtol=0, atol=1e-7)
    is_drawn = [low < high for low, high in task.reset]
    for row, (low, high) in zip(values.T, task.reset, strict=False):
        if low < high:
            assert stats.kstest(row, stats.uniform(low, high - low).cdf).pvalue > 1e-3
        else:
            np.testing.assert_array_equal(row, low)
    correlations = np.atleast_2d(np.corrcoef(values[:, :-1][:, is_drawn].T))
    assert np.abs(correlations - np.eye(len(correlations))).max() < 0.1
    assert not np.any(state.num_steps)


class TestCartPole:
    def test_one_step_by_hand(self):
        _, timestep = one_step("CartPole-v1", [0, 0, 0, 0], 1)
        push = 10 / 1.1
        theta_acc = -push / (0.5 * (4 / 3 - 0.1 / 1.1))
        x_acc = push - 0.05 * theta_acc / 1.1
        np.testing.assert_allclose(timestep.obs, [0, 0.02 * x_acc, 0, 0.02 * theta_acc], rtol=1e-6)
        _, left = one_step("CartPole-v1", [0, 0, 0, 0], 0)
        np.testing.assert_array_equal(left.obs, -timestep.obs)


class TestAcrobot:
    def test_it_hangs_still_without_torque(self):
        _, timestep = one_step("Acrobot-v1", [0, 0, 0, 0], 1)
        np.testing.assert_array_equal(timestep.obs, [1, 0, 1, 0, 0, 0])
        assert float(timestep.reward) == -1

    def test_one_step_by_lagrange(self):
        """The same mechanics, from the links' inertia and from their energy."""

        def derivative(y, torque):
            (a, b), speeds = y[:2], y[2:]
            coupling = 1 + 0.25 + 0.5 * np.cos(b)
            inertia = [[2 + 0.5 + 1 + np.cos(b), coupling], [coupling, 1.25]]
            bend = 0.5 * np.sin(b)
            gyration = [-bend * speeds[1] * (2 * speeds[0] + speeds[1]), bend * speeds[0] ** 2]
            lower = 9.8 * 0.5 * np.sin(a + b)
            weight = [9.8 * 1.5 * np.sin(a) + lower, lower]
            force = np.array([0, torque]) - gyration - weight
            return np.concatenate([speeds, np.linalg.solve(inertia, force)])

        start = np.array([0.4, -1.1, 0.7, -2.0])
        for action, torque in enumerate((-1, 0, 1)):
            slopes = [derivative(start, torque)]
            for part in (0.1, 0.1, 0.2):
                slopes.append(derivative(start + part * slopes[-1], torque))
            expected = start + 0.2 / 6 * (np.array([1, 2, 2, 1]) @ slopes)
            with jax.enable_x64(True):
                state, _ = one_step("Acrobot-v1", start, action)
            found = [state.theta_1, state.theta_2, state.theta_1_dot, state.theta_2_dot]
            np.testing.assert_allclose(found, expected, rtol=1e-12)

    def test_the_step_that_wins_is_free(self):
        _, timestep = one_step("Acrobot-v1", [np.pi, 0, 0, 0], 1)
        assert (float(timestep.reward), bool(timestep.terminated)) == (0, True)
        # Both links level: the tip is as high as the joint, and no higher.
        _, timestep = one_step("Acrobot-v1", [np.pi / 2, 0, 0, 0], 1)
        assert (float(timestep.reward), bool(timestep.terminated)) == (-1, False)


class TestMountainCar:
    def test_one_step_by_hand(self):
        velocity = 0.001 - 0.0025 * np.cos(-1.5)
        _, timestep = one_step("MountainCar-v0", [-0.5, 0], 2)
        np.testing.assert_allclose(timestep.obs, [-0.5 + velocity, velocity], rtol=1e-6)
        _, timestep = one_step("MountainCar-v0", [-0.5, 0], 0)
        np.testing.assert_allclose(timestep.obs[1], velocity - 0.002, rtol=1e-6)
        assert float(timestep.reward) == -1

    @pytest.mark.parametrize(
        ("values", "action", "expected", "ends"),
        [
            ([-1.19, -0.05], 0, [-1.2, 0], False),  # the left wall stops the car
            ([0.45, 0.06], 2, [0.45 + 0.06045, 0.06045], True),
            ([0.58, 0.07], 2, [0.6, 0.07], True),  # the right one does not
            ([0.55, -0.01], 0, [0.55 - 0.0108, -0.0108], False),  # on its way back
        ],
    )
    def test_walls_and_goal(self, values, action, expected, ends):
        _, timestep = one_step("MountainCar-v0", values, action)
        np.testing.assert_allclose(timestep.obs, expected, rtol=0, atol=5e-5)
        assert bool(timestep.terminated) == ends
        assert float(timestep.reward) == -1


class TestRender:
    def render(self, name: str, *states: tuple[float, ...]) -> np.ndarray:
        env = environments.make(name)
        assert env.render is not None
        state = state_of(name, jnp.array(states, float).T, jnp.zeros(len(states), jnp.int32))
        return np.asarray(jax.jit(jax.vmap(env.render))(state))

    def find(self, name: str, color: tuple[int, int, int], *states: tuple[float, ...]) -> list[Any]:
        """The middle `(x, y)` of a colour in the pictures of these states, y upwards."""
        places = [np.argwhere((image == color).all(-1)) for image in self.render(name, *states)]
        return [(x, 99 - y) for y, x in (place.mean(axis=0) for place in places)]

    @every_task
    def test_each_state_has_its_picture(self, name):
        task = TASKS[name]
        states = np.random.default_rng(0).uniform(-1, 1, (4, len(task.bounds))) * [task.bounds]
        for x64 in (False, True):
            with jax.enable_x64(x64):
                images = self.render(name, *states.tolist())
            assert images.shape == (4, 100, 150, 3)
            assert images.dtype == np.uint8
            assert len(np.unique(images, axis=0)) == 4

    def test_cartpole(self):
        states = (0, 0, 0, 0), (1.2, 9, 0, 9), (0, 0, 0.2, 0), (0, 0, -0.2, 0)
        carts = self.find("CartPole-v1", drawing.BLACK, *states)
        assert carts[1][0] - carts[0][0] == pytest.approx(65 / 2, abs=1)
        poles = self.find("CartPole-v1", drawing.ORANGE, *states)
        upright, moved, right, left = ((x - carts[0][0], y - 25) for x, y in poles)
        assert moved[0] - upright[0] == pytest.approx(65 / 2, abs=1)
        assert left[0] < -2 < upright[0] < 2 < right[0]
        assert min(y for _, y in poles) > 25

    def test_acrobot(self):
        states = (0, 0, 0, 0), (np.pi / 2, 0, 0, 0), (np.pi, 0, 0, 0), (np.pi / 2, np.pi / 2, 0, 0)
        hanging, level, up, bent = self.find("Acrobot-v1", drawing.BLUE, *states)
        reach = 50 / 2.2  # pixels from the middle of the picture to that of both links, but for
        # some pixels of the joints
        expected = [(0, -reach), (reach, 0), (0, reach), (0.75 * reach, 0.25 * reach)]
        found = np.array([hanging, level, up, bent]) - 49.5 - [[25, 0]]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2.5)

    def test_mountain_car(self):
        valley, wall, flag = self.find(
            "MountainCar-v0", drawing.BLUE, (-0.52, 0), (-1.1, 0), (0.5, 0)
        )
        assert valley[1] < 20 < wall[1] < flag[1]
        assert wall[0] < 20 < valley[0] < 65 < 135 < flag[0]
