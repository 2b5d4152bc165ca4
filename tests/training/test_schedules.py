"""Settings that are schedules: each gradient step reads them at the count of those before it."""

import dataclasses
import functools
import itertools
import json
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purejaxdqn import RunConfig, agents, dqn, load, losses, networks, pqn, rerun, run_sweep
from purejaxdqn.agents.components import find_components
from purejaxdqn.behaviours import epsilon_greedy_behaviour, write_extras
from purejaxdqn.engine.programs import make_run_functions
from purejaxdqn.replay import first_steps, prioritised_replay
from purejaxdqn.sweep.design import grid_design, group_by_program
from purejaxdqn.sweep.rerun import select_run
from purejaxdqn.training.declaration import setting, settings_of
from purejaxdqn.training.learner import make_learner, over_batch, periodic_target_update
from purejaxdqn.training.schedules import exponential, following, linear
from purejaxdqn.training.settings import config_from_json, config_to_json, parse
from purejaxdqn.types import ConfigError, Window
from tiny import TINY, TINY_PQN, assert_same_dataset

RISING = linear(0.5, 0.9, 8)
TEXT = "linear:0.5:0.9:8"
NUMBERS = {"discount": 0.9, "learning_rate": 1e-2, "adam_epsilon": 1e-2, "max_grad_norm": 0.1}
RAISED = {"priority_exponent": 0.9, "munchausen_coefficient": 0.5, "temperature": 0.3}
ALL_AT_ONCE: list[tuple[Any, Any, dict[str, float]]] = [
    (
        dqn,
        dataclasses.replace(TINY, prioritised=True, munchausen=True, target_period=1),
        {**NUMBERS, **RAISED, "target_step_size": 0.3},
    ),
    (pqn, TINY_PQN, {**NUMBERS, "q_lambda": 0.5}),
]


def show_discount(network, params, target_params, batch, key):
    """Q-learning, with the largest and the smallest discount of the batch as metrics."""
    output = over_batch(losses.bellman_loss())(network, params, target_params, batch, key)
    smallest = jnp.min(batch.discount_t, where=batch.discount_t > 0, initial=1.0)
    each = jnp.ones_like(batch.discount_t)
    metrics = {"high": each * batch.discount_t.max(), "low": each * smallest}
    return output._replace(metrics=metrics)


def learn(experiment, config, num_iterations=10):
    train = experiment(config)
    state = jax.jit(train.init)(jax.random.key(0))
    return jax.jit(train.chunk, static_argnums=2)(state, num_iterations, num_iterations)


def test_values_are_as_computed_by_hand():
    counts = jnp.array([0, 1, 4, 8, 100])
    found = linear(1.0, 3.0, 8)(counts)
    np.testing.assert_allclose(found, [1.0, 1.25, 2.0, 3.0, 3.0])
    found = exponential(16.0, 1.0, 4)(counts)
    np.testing.assert_allclose(found, [16.0, 8.0, 1.0, 1.0, 1.0], rtol=1e-6)
    assert exponential(0.97, 0.997, 10)(jnp.int32(10)) == np.float32(0.997)


def test_each_gradient_step_reads_the_discount_at_its_own_count():
    experiment = functools.partial(dqn, batch_loss=show_discount)
    config = dataclasses.replace(TINY, n_step=1, discount=RISING, updates_per_iteration=2)
    state, outputs = learn(experiment, config, 3)
    expected = 0.5 + 0.05 * np.array([0.5, 2.5, 4.5])  # the mean over both steps of an iteration
    np.testing.assert_allclose(outputs.metrics["high"], expected, rtol=1e-6)
    assert int(state.learner.num_updates) == 6


def test_a_schedule_begins_anew_where_the_count_is_set_back():
    def begin_anew(key, state):
        count = state.learner.num_updates
        learner = dataclasses.replace(state.learner, num_updates=jnp.where(count == 4, 0, count))
        return dataclasses.replace(state, learner=learner)

    experiment = functools.partial(dqn, batch_loss=show_discount, after_update=begin_anew)
    _, outputs = learn(experiment, dataclasses.replace(TINY, n_step=1, discount=RISING), 9)
    expected = 0.5 + 0.05 * (np.arange(9) % 4)
    np.testing.assert_allclose(outputs.metrics["high"], expected, rtol=1e-6)


def show(now):
    """Q-learning, with the discount that it was made of as a metric."""

    def loss(*args):
        return losses.bellman_loss()(*args)._replace(metrics={"seen": jnp.float32(now.discount)})

    return loss


def write(now):
    """Random actions, which write down the discount that they were made of."""
    act = epsilon_greedy_behaviour(lambda num_steps: 1.0)
    return write_extras(act, lambda *_: {"seen": jnp.float32(now.discount)})


def test_a_part_of_ones_own_is_made_anew_for_each_gradient_step():
    experiment = functools.partial(dqn, loss_fn=following(show))
    _, outputs = learn(experiment, dataclasses.replace(TINY, discount=RISING))
    np.testing.assert_allclose(outputs.metrics["seen"], RISING(np.arange(10)), rtol=1e-6)

    def written(loss_fn):
        return lambda network, params, target_params, transition, key: loss_fn(
            network, params, target_params, transition, key
        )._replace(metrics=transition.extras)

    experiment = functools.partial(pqn, behaviour=following(write), wrap_loss=written)
    _, outputs = learn(experiment, dataclasses.replace(TINY_PQN, discount=RISING), 3)
    counts = TINY_PQN.num_epochs * TINY_PQN.num_minibatches * np.arange(3)
    np.testing.assert_allclose(outputs.metrics["seen"], RISING(counts), rtol=1e-6)


NETWORK: Any = networks.value_network(2, (8,))


@pytest.mark.parametrize("experiment", [dqn, pqn])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("behaviour", write),
        ("loss_fn", show),
        ("wrap_loss", lambda now: lambda _: show(now)),
        ("batch_loss", lambda now: over_batch(show(now))),
        ("optimizer", lambda now: lambda rate: optax.sgd(rate, now.discount * 0.9)),
        ("learner", lambda now: make_learner(NETWORK, show(now), optax.sgd(0.1))),
        ("replay", lambda now: prioritised_replay(120, 16, 500, now.discount * 0.9)),
        ("target_update", lambda now: periodic_target_update(1, now.discount * 0.9)),
    ],
)
def test_each_part_may_follow_schedules_or_is_refused_where_it_reads_one(experiment, name, make):
    if experiment is pqn and name in ("replay", "target_update"):
        return
    config = dataclasses.replace(TINY_PQN if experiment is pqn else TINY, discount=RISING)
    more = {"network": NETWORK} if name == "learner" else {}
    part = functools.partial(experiment, **{name: following(make)}, **more)
    assert "discount" in make_run_functions(part, config).read
    with pytest.raises(ConfigError, match=r"config\.at.*schedules\.following"):
        make_run_functions(
            lambda config: experiment(config, **{name: make(config)}, **more), config
        )


def test_what_is_no_part_or_is_given_the_state_follows_nothing():
    for name in ("network", "after_update", "measure"):
        with pytest.raises(ConfigError, match=f"{name} .*must be a"):
            dqn(TINY, **{name: following(lambda now: None)})
    with pytest.raises(ConfigError, match=r"loss_fn \(5\) must be a function"):
        dqn(TINY, loss_fn=following(lambda now: 5))
    with pytest.raises(ConfigError, match=r"make .*must be a function"):
        following(losses.bellman_loss())  # type: ignore[arg-type]


def test_a_transition_spans_as_many_steps_as_the_schedule_says():
    experiment = functools.partial(dqn, batch_loss=show_discount)
    config = dataclasses.replace(TINY, n_step=linear(4, 1, 6), discount=0.5)
    _, outputs = learn(experiment, config)
    expected = [4, 4, 3, 2, 2, 2, 1, 1, 1, 1]  # halves are rounded to even numbers
    np.testing.assert_allclose(outputs.metrics["low"], np.power(0.5, expected))


def window(is_inside, terminated):
    flags = [jnp.array(x, bool) for x in (terminated, [0] * 3, is_inside)]
    first, *following = jnp.array([[0.0], [1.0], [2.0], [9.0]])
    rewards = jnp.arange(3.0)
    steps = Window(first, rewards, rewards, flags[0], flags[1], flags[2], following[-1])
    return steps._replace(observations=jnp.stack([first, *following[:2]]))


@pytest.mark.parametrize(
    ("num_steps", "is_inside", "next_obs"),
    [(1, [1, 1, 1], 1), (2, [1, 1, 1], 2), (3, [1, 1, 1], 9), (2, [1, 1, 0], 9), (1, [1, 0, 0], 9)],
)
def test_the_first_steps_lead_to_what_the_next_one_acted_on(num_steps, is_inside, next_obs):
    cut = first_steps(window(is_inside, [0] * 3), jnp.float32(num_steps))
    assert cut.is_inside.sum() == num_steps
    assert cut.next_obs.tolist() == [next_obs]


@pytest.mark.parametrize(("experiment", "config", "numbers"), ALL_AT_ONCE)
def test_schedules_that_have_ended_learn_as_the_numbers_do(experiment, config, numbers):
    config = dataclasses.replace(config, learning_rate_end_fraction=1.0)
    ended = {name: linear(x, x, 5) for name, x in numbers.items()}
    after = []
    for values in (numbers, ended):
        state, _ = learn(experiment, dataclasses.replace(config, **values), 4)
        after.append(jax.flatten_util.ravel_pytree(state.learner.params)[0])
    np.testing.assert_allclose(after[0], after[1], rtol=1e-3, atol=1e-5)
    # What a sweep refuses as unread is the same.
    read = make_run_functions(experiment, dataclasses.replace(config, **ended)).read
    assert read >= {*numbers}


def test_a_learning_rate_reaches_an_optimiser_of_ones_own():
    def experiment(config):
        return dqn(config, optimizer=optax.sgd)

    falling = {"learning_rate": linear(1.0, 0.001, 1), "learning_rate_end_fraction": 1.0}
    train = experiment(dataclasses.replace(TINY, **falling))
    chunk = jax.jit(train.chunk, static_argnums=2)
    states = [jax.jit(train.init)(jax.random.key(0))]
    for _ in range(2):
        states.append(chunk(states[-1], 1, 1)[0])
    flat = [jax.flatten_util.ravel_pytree(state.learner.params)[0] for state in states]
    first, second = (float(jnp.linalg.norm(b - a)) for a, b in itertools.pairwise(flat))
    assert first > 100 * second > 0


@pytest.mark.parametrize("text", [TEXT, "exponential:1e-05:0.1:3", "linear:0.3:1:10000000"])
def test_texts_and_json_round_trip(text):
    value = parse(settings_of(type(TINY))["discount"], text)
    assert str(value) == text
    config = dataclasses.replace(TINY, discount=value, n_step=linear(10, 3, 100))
    assert config_from_json(config_to_json(config)) == config
    assert json.loads(config_to_json(config))["n_step"] == "linear:10:3:100"
    component = find_components([f"discount={text}"], agents.get("dqn").config)
    assert component == {f"discount={text}": {"discount": value}}


def test_schedules_of_one_shape_share_a_program():
    values = [RISING, linear(0.1, 0.2, 3), exponential(0.1, 0.2, 3), 0.9]
    design = grid_design(TINY, range(2), {"discount": values})
    assert group_by_program(run.config for run in design.runs) == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert design.axes["discount"] == [TEXT, "linear:0.1:0.2:3", "exponential:0.1:0.2:3", "0.9"]


def test_a_sweep_over_schedules_is_resumed_and_its_runs_taken_up_again(tmp_path):
    how: dict[str, Any] = {"output": tmp_path, "progress": False, "diagnostics": True}
    found = run_sweep(dqn, TINY, [0, 1], discount=[RISING, linear(0.9, 0.99, 50)], **how).dataset
    again = run_sweep(
        dqn, TINY, [0, 1], discount=[RISING, linear(0.9, 0.99, 50)], resume=True, **how
    )
    assert_same_dataset(found, again.dataset)
    with pytest.raises(ConfigError, match=r"linear:0.9:0.99:51"):
        run_sweep(dqn, TINY, [0, 1], discount=[RISING, linear(0.9, 0.99, 51)], resume=True, **how)
    one = rerun(load(tmp_path), discount=RISING, seed=1, progress=False)
    np.testing.assert_array_equal(one.loss, found.loss.sel(discount=TEXT, seed=1))
    assert np.isfinite(one.value_bias).any()
    assert select_run(found, {"discount": TEXT, "seed": 0}).seed == 0


def test_a_schedule_of_a_part_that_is_replaced_is_refused():
    still = functools.partial(dqn, target_update=lambda params, target, num_updates: target)
    config = dataclasses.replace(TINY, target_period=50)
    cases: Any = (("target_step_size", {}), ("temperature", {"temperature": [RISING]}))
    for name, sweep in cases:
        with pytest.raises(ConfigError, match=f"{name} .*(target_update=|read only where)"):
            run_sweep(still, dataclasses.replace(config, **{name: RISING}), [0], **sweep)


@dataclasses.dataclass(frozen=True)
class ScaleConfig(RunConfig):
    """Settings of an experiment that reads its own, and one that is compiled in."""

    scale: float = 0.5
    fixed: float = setting(0.5, "Compiled in.", static=True)


@pytest.mark.parametrize(
    "use", [lambda x: x * 2.0, lambda x: jnp.ones(2) * x, jnp.exp, float, bool, np.asarray]
)
def test_a_schedule_is_no_number(use):
    """An experiment that does not follow schedules refuses them, instead of a trace's end."""
    config = ScaleConfig(scale=linear(0.0, 1.0, 10))
    config.validate()
    with pytest.raises(ConfigError, match=r"a linear schedule is no number: .*config.at"):
        use(config.scale)
    assert float(config.at(5).scale) == 0.5
    assert config.at(0).at(5) is not None
    assert ScaleConfig().at(5) == ScaleConfig()


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("fixed", RISING, r"fixed \(linear:0.5:0.9:8\) must be one value, and no schedule"),
        ("epsilon_end", RISING, "must be one value"),
        ("total_steps", linear(5, 10, 10), "must be one value"),
        ("scale", linear(0.0, float("inf"), 10), "start and end at finite numbers"),
        ("scale", linear(0.0, "x", 10), "start and end at finite numbers"),  # type: ignore[arg-type]
        ("scale", exponential(0.0, 1.0, 10), "of one sign, and not at 0"),
        ("scale", linear(0.0, 1.0, 0), "last at least 1 gradient step"),
        ("scale", linear(0.0, 1.0, 1.5), "last at least 1 gradient step"),  # type: ignore[arg-type]
        ("scale", lambda count: 0.5, "must be a number"),
        ("discount", linear(0.5, 1.5, 10), r"discount \(1.5\) must lie between 0 and 1"),
        ("learning_rate", RISING, r"beside learning_rate_end_fraction \(0.05\).*set that to 1"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused_by_name(name, value, problem):
    with pytest.raises(ConfigError, match=problem):
        dataclasses.replace(ScaleConfig(), **{name: value}).validate()
