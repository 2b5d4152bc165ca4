"""Probes, `check_training`, the probes of `check_replay`, and the command line of `check_loss`."""

import dataclasses
import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.cli import flags as cli
from purejaxdqn.losses import bellman_loss, q_learning
from purejaxdqn.replay import n_step_replay, uniform_replay
from purejaxdqn.testing import (
    CheckError,
    check_environment,
    check_training,
    replay_report,
    training_report,
)
from purejaxdqn.testing.__main__ import Args, main
from purejaxdqn.testing.tabular.probe_environment import known_values, probe_environment
from purejaxdqn.testing.tabular.probe_values import (
    MISTAKES,
    check_probes,
    find_values,
    name_mistake,
)


def texts(report):
    return "\n".join(f"{check.name}: {check.message}" for check in report.failures)


class TestProbes:
    def test_the_environment_keeps_its_contract(self):
        check_environment(probe_environment(), jax.random.key(0))

    @pytest.mark.parametrize("n_step", [1, 3])
    def test_right_transitions_give_the_known_values(self, n_step):
        np.testing.assert_allclose(find_values("", 0.9, n_step), known_values(0.9), rtol=1e-9)

    def test_the_known_values_obey_bellman(self):
        values = known_values(0.9)
        assert values[5, 0] == pytest.approx(1 / (1 - 0.9))
        assert values[3, 0] == pytest.approx(0.9 * values[4].max())
        assert values[4, 0] == pytest.approx(1 + 0.9 * values[3].max())

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_each_mistake_has_a_name(self, mistake):
        learned = find_values(mistake, 0.9, 3)
        assert name_mistake(learned, 0.9, 3) == MISTAKES[mistake]
        assert not all(check.passed for check in check_probes(learned, 0.9, 3))


# ---------------------------------------------------------------------------------------- training


def changed_environment(**fields):
    """An experiment whose environments' answers are changed by `f(timestep)`."""

    def experiment(config, *, env, **parts):
        def step(key, state, action):
            state, timestep = env.step(key, state, action)
            return state, timestep._replace(**{n: f(timestep) for n, f in fields.items()})

        return dqn(config, env=env._replace(step=step), **parts)

    return experiment


def terminal_bootstraps(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    discount_t = jnp.where(discount_t > 0, discount_t, 0.9)
    return q_learning(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector)


def one_key_for_all(config, **parts):
    train = dqn(config, **parts)
    return train._replace(init=lambda key: train.init(jax.random.key(0)))


def one_key_for_weights(config, *, network, **parts):
    fixed = network._replace(init=lambda key, obs: network.init(jax.random.key(0), obs))
    return dqn(config, network=fixed, **parts)


def one_key_for_environments(config, *, env, **parts):
    def step(key, state, action):
        return env.step(jax.random.key(1), state, action)

    return dqn(config, env=env._replace(step=step), **parts)


def another_discount(config, **parts):
    return dqn(dataclasses.replace(config, discount=0.9**3), **parts)


def never_trains(config, **parts):
    train = dqn(config, **parts)
    return train._replace(chunk=lambda state, n, most: train.chunk(state, 0 * n, most))


def broken(config, **parts):
    raise ValueError("no such thing")


TRAININGS = {
    "death": (
        changed_environment(
            terminated=lambda t: t.terminated | t.truncated,
            truncated=lambda t: jnp.zeros((), bool),
        ),
        "time limit: .*is learned as a death",
    ),
    "no end": (
        functools.partial(dqn, loss_fn=bellman_loss(terminal_bootstraps)),
        "a terminal transition bootstraps",
    ),
    "windows across episodes": (
        changed_environment(
            truncated=lambda t: jnp.zeros((), bool), terminated=lambda t: jnp.zeros((), bool)
        ),
        "probe: ",
    ),
    "seeds": (one_key_for_all, r"seeds \d and \d share a stream"),
    "weights": (one_key_for_weights, "different keys give the same initial weights"),
    "environments": (one_key_for_environments, "same at each step|share a stream"),
    "another discount": (another_discount, "probe: time limit"),
    "nothing is learned": (never_trains, "probe: constant reward"),
    "an exception": (broken, "trains: raises ValueError: no such thing"),
}


@pytest.fixture(scope="module")
def small():
    return DQNConfig(n_step=3, num_envs=2)


def test_the_package_trains(small, capsys):
    assert check_training(config=small).passed
    assert "probe: time limit" in capsys.readouterr().out
    prioritised = dataclasses.replace(small, n_step=1, prioritised=True)
    assert training_report(config=prioritised).failures == ()


@pytest.mark.parametrize("name", TRAININGS)
def test_a_mistake_in_a_training_run_is_named(name, small):
    experiment, pattern = TRAININGS[name]
    with pytest.raises(CheckError, match=pattern):
        check_training(experiment, small)


# ------------------------------------------------------------------------------------------ replay


def changed_replay(change, n_step=3):
    """A `make_replay` whose windows are `change(window)`."""

    def make_replay(*sizes):
        replay = n_step_replay(uniform_replay(*sizes), n_step)

        def sample(state, key):
            sample = replay.sample(state, key)
            return sample._replace(window=change(sample.window))

        return replay._replace(sample=sample)

    return make_replay


def no_end(window):
    return window._replace(terminated=jnp.zeros_like(window.terminated))


def death(window):
    return window._replace(terminated=window.terminated | window.truncated)


REPLAYS = {
    "no end": (changed_replay(no_end), 3, "a terminal transition bootstraps"),
    "death": (changed_replay(death, 1), 1, "time limit: .*is learned as a death"),
}


@pytest.mark.parametrize("name", REPLAYS)
def test_a_mistake_in_a_replay_is_named(name):
    make_replay, n_step, pattern = REPLAYS[name]
    report = replay_report(make_replay, n_step=n_step)
    assert re.search(pattern, texts(report)), texts(report)


# ------------------------------------------------------------------------------------ command line

SOURCE = """
import jax

number = 3


def good(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return jax.lax.stop_gradient(r_t + discount_t * q_t.max()) - q_tm1[a_tm1]


def bad(q_tm1, a_tm1, r_t, discount_t, q_t, q_t_selector):
    return jax.lax.stop_gradient(r_t + q_t.max()) - q_tm1[a_tm1]


def factory():
    raise ValueError("not today")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("raise ValueError('two\\nlines')")
    return tmp_path


@pytest.fixture
def command(folder):
    def run(*args):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
        return subprocess.run(
            [sys.executable, "-m", "purejaxdqn.testing", *args],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
        )

    return run


def test_a_loss_that_passes_and_one_that_fails(command):
    good = command("mine:good")
    assert (good.returncode, good.stderr) == (0, "")
    assert "fixed point, stochastic" in good.stdout
    bad = command("mine.py:bad")
    assert (bad.returncode, bad.stderr) == (1, "")
    assert "the discount is lost" in " ".join(bad.stdout.split())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mine", "must be module:name"),
        ("nothing:x", "there is no module 'nothing'"),
        ("nothing.py:x", "there is no file nothing.py"),
        ("mine:nothing", "has no 'nothing'"),
        ("mine:number", "is a int and not a function"),
        ("mine:factory", "raises ValueError: not today"),
        ("broken:x", "importing broken raises ValueError: two lines"),
    ],
)
def test_what_is_no_loss_is_said_in_a_line(name, words, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for module in ("mine", "broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as exit_:
        cli.run(main, Args, [name])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
