"""What no part can be made of: each is one line with value, rule and remedy, before any tracing."""

# mypy: disable-error-code="arg-type, call-arg, call-overload, return-value"

import functools

import numpy as np
import optax
import pytest
from scipy import stats

from purejaxdqn import (
    agents,
    behaviours,
    dqn,
    environments,
    losses,
    networks,
    pqn,
    replay,
    setting,
    tracking,
)
from purejaxdqn.agents.components import find_components
from purejaxdqn.search.search import search
from purejaxdqn.sweep.design import grid_design, random_design
from purejaxdqn.training import schedules
from purejaxdqn.types import Behaviour, ConfigError, Learner, Measure
from tiny import TINY, TINY_PQN

RNG = np.random.default_rng(0)
RATES = {"learning_rate": stats.loguniform(1e-5, 1e-2)}
NAN, INF = float("nan"), float("inf")
net = functools.partial(networks.value_network, 2, (8,))
ring = functools.partial(replay.uniform_replay, 8, 4)
trials = functools.partial(search, dqn, TINY, seeds=[0], num_trials=2, output="x")
munchausen = functools.partial(losses.munchausen, losses.bellman_loss())
find = functools.partial(trials, RATES)
chance = lambda num_steps: 0.1  # noqa: E731
zeta = functools.partial(behaviours.epsilon_z_behaviour, epsilon=chance)
heads = functools.partial(behaviours.head_behaviour, epsilon=chance, num_heads=2)
greedy = behaviours.epsilon_greedy_behaviour(chance)
written = functools.partial(behaviours.write_extras, behaviour=greedy, extras=lambda *args: {})
batches = functools.partial(replay.independent_batches, ring())
linear = functools.partial(schedules.linear_schedule, start=0.1, end=0.2, duration=10)
named = lambda components: find_components(components, TINY)  # noqa: E731


WHOLE, NUMBER, BOOL = "and a whole number", "a finite number", "must be True or False"


class TwoLines:
    def __repr__(self):
        return "two\nlines"


def of(make, name, rule, *values):
    """Rows of one argument with values that it cannot have."""
    return [(functools.partial(make, **{name: value}), f"{name} (", rule) for value in values]


def with_part(part):
    experiment, config = (pqn, TINY_PQN) if part == "measure" else (dqn, TINY)
    return functools.partial(experiment, config)


PARTS = [
    ("behaviour", "a Behaviour", 5, "greedy", lambda *args: args),
    ("replay", "a Replay", "uniform", replay.uniform_replay, {}),
    ("learner", "a Learner", 5, lambda *args: args, optax.adam(1e-3)),
    ("measure", "a Measure", 5, lambda *args: args, {"update": 1}),
    ("initial_params", "weights", 5 + 1j, "x", ["x"], object()),
    ("wrap_loss", "of 1 arg", 3, losses.bellman_loss(), losses.q_learning),
    ("batch_loss", "of 5 arg", 0, lambda batch: batch, "mean"),
    ("after_update", "of 2 arg", 5, lambda state: state, "reset"),
    ("target_update", "of 3 arg", 50, lambda params: params, False),
]
FIELDS = [
    ("Behaviour.act", "of 3 arg", Behaviour(losses.q_learning)),
    ("Behaviour.init", "of 1 arg", Behaviour(lambda *args: args, 3)),
    ("Replay.add", "of 3 arg", ring()._replace(add=lambda state, step: state)),
    ("Replay.sample", "of 2 arg", ring()._replace(sample=None)),
    ("Learner.update", "of 4 arg", Learner(lambda key, obs: obs, lambda state, batch: state)),
    ("Network.apply", "of 2 arg", net()._replace(apply=lambda obs: obs)),
    ("Measure.update", "of 5 arg", Measure(lambda state, batch: {})),
    ("Measure.every", WHOLE, Measure(lambda *args: args, every=0)),
    ("Measure.every", WHOLE, Measure(lambda *args: args, every=2.5)),
]
CASES = [
    *of(functools.partial(replay.uniform_replay, batch_size=1), "capacity", WHOLE, 2.5, NAN, True),
    *of(functools.partial(replay.uniform_replay, 8), "batch_size", WHOLE, "4", None, [4], 1e3),
    *of(ring, "time_limit", WHOLE, INF, {}, np.ones(2), TwoLines()),
    *of(ring, "with_replacement", BOOL, "no", 1, None, np.bool_(True)),
    *of(functools.partial(replay.prioritised_replay, 8, 4), "exponent", NUMBER, -1, INF, "x", True),
    *of(functools.partial(replay.prioritised_replay, 8, 4), "epsilon", NUMBER, NAN, -1e-6, None),
    *of(functools.partial(replay.n_step_replay, ring()), "n_step", WHOLE, 0, 1.5, None, "3"),
    *of(functools.partial(replay.n_step_replay, n_step=3), "replay", "a Replay", None, "x", ring),
    *of(losses.bellman_loss, "penalty", "a function of 1", None, 3, "huber", lambda: 0, float),
    *of(losses.trajectory_loss, "returns", "of 2 arg", None, "peng", 0.9, lambda q_t: q_t),
    *of(losses.peng_q_lambda, "lambda_", NUMBER, -1, 1.5, NAN, True, "1", None),
    *of(losses.watkins_q_lambda, "lambda_", NUMBER, 2, np.ones(2)),
    *of(losses.retrace, "lambda_", NUMBER, [1], INF),
    *of(behaviours.epsilon_greedy_behaviour, "epsilon", "of 1 arg", 0.1, None, NAN, np.ones(2)),
    *of(behaviours.boltzmann_behaviour, "temperature", "of 1 arg", 1, "warm", lambda: 1.0),
    *of(zeta, "epsilon", "of 1 arg", 0.1),
    *of(zeta, "exponent", "above 1", 1, 1.0),
    *of(zeta, "exponent", NUMBER, NAN, "2", True, 0.5),
    *of(zeta, "longest", WHOLE, 0, 1.5, True, "9"),
    *of(heads, "num_heads", WHOLE, 0, 2.0, None),
    *of(heads, "values_of", "of 1 arg", 3, lambda: 0),
    *of(written, "behaviour", "a Behaviour", None, "greedy", 5),
    *of(written, "extras", "of 3 arg", {}, lambda key: {}),
    *of(linear, "start", NUMBER, None, "0.1", NAN, 1j, {}),
    *of(linear, "duration", NUMBER, "10", INF, np.ones(2)),
    *of(networks.midpoints, "num", WHOLE, 0, -1, True, 2.5, None),
    *of(batches, "num_batches", WHOLE, 0, 2.0, True),
    *of(named, "components", "a list of names", 5, "double", [None], [b"double"], [["double"]]),
    *of(losses.munchausen, "loss_fn", "a function of 5", None, "x", lambda x: x),
    *of(munchausen, "temperature", NUMBER, 0, NAN),
    *of(munchausen, "coefficient", NUMBER, "x", INF),
    *of(munchausen, "log_policy_min", "most 0", 1.0),
    *of(losses.persistent_advantage_learning_loss, "coefficient", "at most 1", 1.5, NAN, None),
    *of(losses.masked_squared_error, "num_actions", WHOLE, 0, 2.0, None),
    *of(losses.categorical_loss, "double", BOOL, None, 1, "yes"),
    *of(losses.quantile_loss, "threshold", NUMBER, -1, NAN, None),
    *of(losses.quantile_loss, "temperature", NUMBER, 0.0, "x"),
    *of(
        functools.partial(networks.value_network, 2),
        "hidden_sizes",
        "sequence",
        None,
        8,
        "64",
        b"x",
    ),
    *of(functools.partial(networks.value_network, hidden_sizes=()), "num_actions", WHOLE, 2.0, "2"),
    *of(net, "dueling", BOOL, None, 1, "yes"),
    *of(net, "noisy_sigma", NUMBER, NAN, None, -0.5),
    *of(net, "v_min", NUMBER, NAN, "x"),
    *of(net, "torso", "a module", "mlp", networks.MLPTorso),
    *of(networks.make_network, "module", "a module", None, networks.MLP, "x"),
    *of(functools.partial(dqn, TINY), "env", "an Environment", "CartPole-v1", 0, "", []),
    *of(functools.partial(dqn, TINY), "network", "a Network", 0, "mlp", networks.MLP),
    *of(functools.partial(dqn, TINY), "loss_fn", "of 5", 0, "huber", lambda: 0),
    *of(functools.partial(dqn, TINY), "optimizer", "of 1", 3, "adam", lambda: 0),
    *of(functools.partial(pqn, TINY_PQN), "network", "a Network", [], "mlp"),
    *(row for part, rule, *values in PARTS for row in of(with_part(part), part, rule, *values)),
    *(
        (functools.partial(dqn, TINY, **{type(part).__name__.lower(): part}), f"{name} (", rule)
        for name, rule, part in FIELDS
    ),
    *of(agents.train, "config", "must be settings", None, "dqn", {}),
    *of(agents.configure, "agent", "must be one of", None, ["dqn"], {}, 3),
    *of(functools.partial(grid_design, TINY, [0]), "grid", "by name", None, [1], "x", 3),
    *of(
        functools.partial(grid_design, TINY, grid={}),
        "seeds",
        "sequence",
        b"01",
        iter([0]),
        TwoLines(),
    ),
    *of(functools.partial(grid_design, seeds=[0], grid={}), "config", "by name", lambda a: TINY),
    *of(trials, "space", "by name", None, [1], "x"),
    *of(find, "statistic", "a function of 1", None, "mean", lambda: 0),
    *of(find, "pruner", "one of Optuna's", "median", 3, object),
    *of(find, "sampler", "a function", "tpe", 3),
    *of(functools.partial(setting, 1.0), "help", "a text", None, 3),
    *of(functools.partial(setting, 1.0, ""), "group", "one of run", "mine", None),
    *of(functools.partial(setting, 1.0, ""), "at_least", "a number", "0", NAN, [0]),
    (lambda: random_design(TINY, [0], {}, 2, RNG), "space ({})", "by name"),
    (lambda: grid_design(TINY, [0], {"discount": [TwoLines()]}), "discount", "and not two lines"),
    (lambda: environments.make(["CartPole-v1"]), "environment (", "must be one of"),
    (lambda: environments.register("a\nb", lambda: None), "environment (", "must be a name"),
    (lambda: tracking.register("", print), "tracker ('')", "must be a name"),
    (lambda: tracking.register("mine", 3), "opener (3)", "a function"),
]


def ids(case):
    return f"{case[1]}{case[2]}"


@pytest.mark.parametrize(("call", "value", "rule"), CASES, ids=map(ids, CASES))
def test_a_bad_part_is_refused_in_one_line(call, value, rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        call()
    assert value in str(caught.value)
    assert rule in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert [*tmp_path.iterdir()] == []
