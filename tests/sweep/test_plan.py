"""Plans: batches that fill the devices, within the memory, and what is refused."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.filesize import decimal

from purejaxdqn import agents, behaviours, dqn, environments, losses, networks, replay
from purejaxdqn.agents import configure, train
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.agents.pqn.pqn import pqn
from purejaxdqn.agents.pqn.settings import PQNConfig
from purejaxdqn.engine import memory
from purejaxdqn.engine.memory import trace_run, tree_bytes
from purejaxdqn.engine.programs import make_run_functions
from purejaxdqn.storage import results
from purejaxdqn.sweep.design import grid_design
from purejaxdqn.sweep.options import SweepOptions
from purejaxdqn.sweep.plan import describe_layout, plan_sweep
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.learner import make_learner, no_target, over_batch
from purejaxdqn.types import ConfigError

CONFIG = DQNConfig(hidden_sizes=(16,), total_steps=8_000)
DEVICES = jax.devices()


def plan(seeds=range(10), grid=None, config=CONFIG, **options):
    return plan_sweep(train, grid_design(config, seeds, grid or {}), DEVICES, **options)


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ({}, 8),
        ({"hidden_sizes": (256, 256)}, 4),
        ({"hidden_sizes": (512, 512)}, 1),
        ({"env": "MinAtar/Breakout-v1", "hidden_sizes": (128,), "batch_size": 32}, 2),
        # One call on the host steps the environments of all.
        ({"env": "gymnasium:CartPole-v1", "hidden_sizes": (512, 512)}, 8),
    ],
)
def test_runs_whose_updates_would_leave_the_cache_are_trained_fewer_at_a_time(changes, width):
    sizes = {"hidden_sizes": (128, 128), "batch_size": 128}
    config = dataclasses.replace(CONFIG, **sizes | changes)
    assert plan(range(64), config=config).width == width


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3))
def test_every_run_is_in_one_batch_and_batches_have_one_program(num_seeds, width, num_sizes):
    sizes = [(8 * i,) for i in range(1, num_sizes + 1)]
    planned = plan(range(num_seeds), {"hidden_sizes": sizes}, width=width)
    runs = planned.design.runs
    assert sorted(i for batch in planned.batches for i in batch) == list(range(len(runs)))
    assert all(len(batch) <= width for batch in planned.batches)
    numbers = [number for group in planned.groups for number in group.batches]
    assert numbers == list(range(len(planned.batches)))
    for group in planned.groups:
        for number in group.batches:
            for i in planned.batches[number]:
                assert runs[i].config.hidden_sizes == group.config.hidden_sizes
        # Only the last batch of a program may have room left.
        assert all(len(planned.batches[number]) == width for number in group.batches[:-1])


@pytest.mark.parametrize("config", [CONFIG, PQNConfig(hidden_sizes=(16,))])
def test_bytes_of_a_run_are_those_of_its_arrays(config):
    run = trace_run(train, config)
    real = train(config).init(jax.random.key(0))
    held = sum(
        (jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x).nbytes
        for x in jax.tree.leaves(real)
    )
    assert tree_bytes(run.state) == run.state_bytes == held
    assert run.running_bytes >= held
    assert run.running_bytes - held < 3e6


def test_less_memory_makes_batches_narrower_and_then_fewer():
    free = plan(range(64))
    per_run = free.groups[0].run.running_bytes
    assert (free.width, free.groups[0].plan.num_devices) == (8, 2)
    tight = plan(range(64), memory_budget=9 * per_run)
    assert (tight.width, tight.groups[0].plan.num_devices) == (4, 2)
    assert tight.groups[0].round_bytes <= 9 * per_run
    many = plan_sweep(
        train,
        grid_design(CONFIG, range(64), {}),
        DEVICES * 4,  # as if there were eight
        width=2,
        memory_budget=11 * per_run,
    )
    assert many.groups[0].plan.num_devices == 5


def test_what_cannot_fit_is_refused_with_its_size_and_what_makes_it_big():
    large = dataclasses.replace(CONFIG, replay_capacity=1_000_000)
    with pytest.raises(ConfigError, match=r"a batch of 8 run\(s\) takes .* MB, and 2 must") as one:
        plan(config=large, width=8, memory_budget=50_000_000)
    assert re.search(r"replay_capacity \(1000000\) makes up (99|100)% of it", str(one.value))
    assert "--width (8), or raise --memory-budget" in str(one.value)
    with pytest.raises(ConfigError, match="a run takes"):
        plan(config=large, memory_budget=10_000_000)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (PQNConfig(num_envs=2000, total_steps=100_000, eval_interval=100_000), "num_envs"),
        (
            configure(agent="iqn", batch_size=2048, prefill_steps=2048, total_steps=4048),
            "batch_size",
        ),
    ],
)
def test_what_is_computed_on_the_way_is_planned_for(config, field):
    with pytest.raises(
        ConfigError, match=rf"a run takes [\d.]+ MB.*: {field} \(2\d+\) makes up (9|100)"
    ):
        plan(range(2), config=config, memory_budget=10_000_000)


@pytest.mark.parametrize("budget", [0, 0.5, True, "4GB", float("nan"), float("inf")])
def test_a_budget_that_is_no_amount_of_memory_is_refused(budget):
    with pytest.raises(ConfigError, match=r"memory_budget .* must be (at least 1 .*4e9|a number)"):
        SweepOptions(memory_budget=budget)


def test_a_budget_may_be_written_as_a_float():
    per_run = plan().groups[0].run.running_bytes
    assert plan(range(64), memory_budget=9.0 * per_run).width == 4


@pytest.mark.parametrize("name", ["step", "seed", "loss", "settings", "gradient_norm"])
def test_names_that_the_results_have_already_are_refused(name):
    def settings_of(**swept):
        return dataclasses.replace(CONFIG, learning_rate=swept[name])

    with pytest.raises(ConfigError, match=f"'{name}' cannot be swept"):
        plan(grid={name: [1e-3, 1e-2]}, config=settings_of)


def test_free_memory_is_what_a_container_may_use(monkeypatch):
    monkeypatch.setattr(memory, "_container_limit", lambda: None)
    machine = memory.free_bytes(DEVICES)
    monkeypatch.setattr(memory, "_container_limit", lambda: 2**31)
    assert memory.free_bytes(DEVICES) < min(machine, 2**31)
    monkeypatch.setattr(memory, "_container_limit", lambda: 1)
    with pytest.raises(ConfigError, match="may be used"):
        plan()


def test_a_plan_says_what_it_is():
    text = plan(range(10), {"dueling": [False, True], "discount": [0.9, 0.99]}).describe()
    assert "40 runs (4 settings, 10 seeds) in 2 programs" in text
    assert "programs, one after another\n" in text
    assert text.count("20 runs of 8,000 steps in 4 batches of 5 runs, ") == 2
    assert re.search(
        r"room for 10 runs of [\d.]+ [kM]B at a time, [\d.]+ MB of the [\d.]+ .B", text
    )
    assert np.all(["program 1" in text, "program 2" in text, "finished" not in text])
    one = plan(range(1)).describe(num_finished=1)
    assert "1 run (1 setting, 1 seed) in 1 program\n" in one
    assert "1 run of 8,000 steps in 1 batch of 1 run, on 1 device;" in one
    assert one.endswith("1 of 1 batch finished already")


@pytest.mark.parametrize(
    ("sizes", "devices", "processes", "cores", "words"),
    [
        ([1], 2, 1, 2, "in 1 batch of 1 run, on 1 device"),
        ([1], 2, 3, 2, "in 1 batch of 1 run, on 1 device"),
        ([4, 4], 2, 1, 2, "in 2 batches of 4 runs, side by side on 2 devices"),
        ([2, 1], 2, 1, None, "in 2 batches of up to 2 runs, side by side on 2 devices"),
        (
            [4, 4],
            2,
            1,
            1,
            "in 2 batches of 4 runs, side by side on 2 devices that take turns on 1 core",
        ),
        ([8, 8], 1, 1, None, "in 2 batches of 8 runs, one after another on 1 device"),
        (
            [8, 8, 8, 8],
            2,
            1,
            2,
            "in 4 batches of 8 runs, 2 side by side on 2 devices, in 2 rounds one after another",
        ),
        (
            [8, 8, 3],
            2,
            1,
            2,
            "in 3 batches of up to 8 runs, up to 2 side by side on 2 devices, in 2 rounds one "
            "after another",
        ),
        (
            [1, 1],
            4,
            2,
            2,
            "in 2 batches of 1 run, dealt out to 2 processes, in each on 1 device",
        ),
        (
            [8] * 8,
            2,
            2,
            2,
            "in 8 batches of 8 runs, dealt out to 2 processes, in each 2 side by side on 2 "
            "devices, in 2 rounds one after another",
        ),
    ],
)
def test_a_plan_says_what_trains_beside_what(sizes, devices, processes, cores, words):
    assert describe_layout(sizes, devices, processes, cores) == words


def test_the_most_memory_is_that_of_training_or_of_the_results():
    planned = plan(range(10), width=4)  # batches of 4, 4 and 2 runs
    run = planned.groups[0].run
    assert (run.number_bytes, run.weight_bytes) == (
        # Evaluations at 1,000, 5,000 and 8,000 steps; beside the metrics there is one curve.
        3 * (4 * CONFIG.eval_episodes + 8 * (1 + len(run.outputs.metrics))),
        4 * (4 * 16 + 16 + 16 * 2 + 2),
    )
    a, b = run.number_bytes, run.weight_bytes
    assert planned.added_bytes(10**9, set(), keeps=False) == 10 * (a + b) + 10**9
    assert planned.added_bytes(0, set(), keeps=False) == 10 * (a + b) + 10 * (a + b)
    assert planned.added_bytes(10**9, {0}, keeps=True) == 6 * (a + b) + 10**9 + 3 * 10 * a
    assert planned.added_bytes(0, {0, 1, 2}, keeps=True) == 10 * b + 3 * 10 * a
    assert planned.result_bytes == 20 * (a + b)


def test_batches_that_come_back_are_in_two_places_an_array_at_a_time():
    planned = plan(range(10), width=5)
    state = planned.groups[0].run.state
    largest = max(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert planned.groups[0].restoring_bytes == 10 * tree_bytes(state) + 5 * largest


def test_a_sweep_ten_times_larger_than_its_budget_has_the_planned_peak(run_command, tmp_path):
    flags = "--replay-capacity 2000000 --num-seeds 44 --memory-budget 220MB --total-steps 1200"
    flags += " --prefill-steps 1000 --eval-interval 200 --target-period 10 --eval-episodes 2"
    answer = run_command("sweep", *flags.split(), "--output", tmp_path / "out", as_user=True)
    assert answer.returncode == 0, answer.stderr
    dataset = results.load(tmp_path / "out")
    planned = int(dataset.attrs["planned_peak_bytes"])
    assert f"memory up to {decimal(planned, precision=2)}" in " ".join(answer.stderr.split())
    assert 0.9 * planned < int(dataset.attrs["peak_bytes"]) < 1.1 * planned
    assert not dataset.diverged.any()
    assert 10 * int(dataset.attrs["memory_budget"]) < 44 * 2_000_000 * 26  # the replays alone


# ------------------------------------------------------------------- settings that nothing reads

LOSS = losses.bellman_loss(losses.q_learning)
NETWORK = networks.value_network(2, (8,))
MINE = environments.make("CartPole-v1")._replace(name="Mine-v0", threshold=20.0)
PARTS = {
    "loss_fn": functools.partial(dqn, loss_fn=LOSS),
    "network": functools.partial(dqn, network=NETWORK),
    "optimizer": functools.partial(dqn, optimizer=optax.sgd),
    "env": functools.partial(dqn, env=MINE),
    "replay": functools.partial(dqn, replay=replay.uniform_replay(100, 16, 500)),
    "behaviour": functools.partial(
        dqn, behaviour=behaviours.boltzmann_behaviour(lambda num_steps: 1.0)
    ),
    "learner": functools.partial(
        dqn, network=NETWORK, learner=make_learner(NETWORK, LOSS, optax.sgd(0.1))
    ),
    "target_update": functools.partial(dqn, target_update=no_target),
    "batch_loss": functools.partial(dqn, batch_loss=over_batch(LOSS)),
    "wrap_loss": functools.partial(dqn, wrap_loss=lambda loss_fn: loss_fn),
}


def wrapped(config):
    return dqn(dataclasses.replace(config, n_step=3), loss_fn=LOSS)


def ignoring(config):
    return dqn(config, optimizer=lambda _: optax.sgd(0.1))


def exploring_in_evaluation(config):
    made = dqn(dataclasses.replace(config, epsilon_end=0.1))

    def policy(params):
        greedy = made.policy(params)
        return lambda key, obs: jnp.where(
            jax.random.uniform(key) < config.epsilon_end, 0, greedy(key, obs)
        ).astype(jnp.int32)

    return made._replace(policy=policy)


def plan_of(experiment, grid=None, config=None, **settings):
    config = dataclasses.replace(config or DQNConfig(), **settings)
    return plan_sweep(experiment, grid_design(config, [0], grid or {}), DEVICES)


INSTEAD = "stands in place of the part that reads it: leave {} out, or pass no {}"
UNREAD = [
    ("loss_fn", {"td_error": "q_learning"}, {}),
    ("loss_fn", {"munchausen": True}, {}),
    ("loss_fn", {"huber_threshold": 2.0}, {}),
    ("loss_fn", {}, {"td_error": ["double_q_learning", "q_learning"]}),
    ("loss_fn", {}, {"temperature": [0.1, 0.2]}),
    ("network", {"hidden_sizes": (16,)}, {}),
    ("network", {}, {"hidden_sizes": [(8,), (16,)]}),
    ("network", {"dueling": True}, {}),
    ("network", {"num_atoms": 11}, {}),
    ("optimizer", {"optimizer": "rmsprop"}, {}),
    ("optimizer", {}, {"adam_epsilon": [1e-3, 1e-2]}),
    ("env", {"env": "CartPole-v0"}, {}),
    ("replay", {"replay_capacity": 2_000}, {}),
    ("replay", {"batch_size": 64}, {}),
    ("replay", {"prioritised": True}, {}),
    ("behaviour", {"epsilon_start": 0.5}, {}),
    ("behaviour", {}, {"epsilon_fraction": [0.1, 0.2]}),
    ("learner", {}, {"learning_rate": [1e-3, 1e-2]}),
    ("learner", {"td_error": "q_learning"}, {}),
    ("learner", {"target_step_size": 0.5}, {}),
    ("target_update", {"target_period": 20}, {}),
    ("batch_loss", {"td_error": "q_learning"}, {}),
]


@pytest.mark.parametrize(("part", "given", "grid"), UNREAD)
def test_a_setting_of_a_part_that_is_replaced_is_refused_by_name(part, given, grid):
    (name,) = {**given, **grid}
    how = f"{name} is swept" if grid else f"{name} ({given[name]!r}) is set"
    message = f"{how}, but {part}= {INSTEAD.format(name, part)}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_of(PARTS[part], grid, **given)


@pytest.mark.parametrize(
    ("experiment", "given", "grid"),
    [
        (wrapped, {"penalty": "huber"}, {}),
        (wrapped, {}, {"munchausen_coefficient": [0.1, 0.2]}),
        (ignoring, {}, {"learning_rate": [1e-3, 1e-2]}),
    ],
)
def test_it_is_refused_within_a_function_of_ones_own_too(experiment, given, grid):
    with pytest.raises(ConfigError, match=f"nothing in .*{experiment.__name__} depends on it"):
        plan_of(experiment, grid, **given)


def test_a_replaced_part_of_a_registered_agent_is_named(monkeypatch):
    monkeypatch.setattr(agents, "_AGENTS", dict(agents._AGENTS))
    # What the agent was registered with is not set.
    config = agents.register("mine", DQNConfig(td_error="q_learning"), PARTS["loss_fn"]).config
    plan_of(train, config=config, discount=0.9)
    with pytest.raises(ConfigError, match=r"td_error \('expected_sarsa'\) is set, but loss_fn="):
        plan_of(train, config=config, td_error="expected_sarsa")


def test_a_replaced_part_of_pqn_is_named():
    mine = functools.partial(pqn, optimizer=optax.adam)
    with pytest.raises(ConfigError, match="adam_epsilon is swept, but optimizer= stands"):
        plan_of(mine, {"adam_epsilon": [1e-5, 1e-4]}, PQNConfig())


@pytest.mark.parametrize(
    ("experiment", "given", "grid"),
    [
        (PARTS["loss_fn"], {"n_step": 1, "hidden_sizes": (8,)}, {}),
        (PARTS["wrap_loss"], {"td_error": "q_learning"}, {}),
        (PARTS["behaviour"], {"td_error": "expected_sarsa", "epsilon_end": 0.1}, {}),
        (PARTS["network"], {"hidden_sizes": (8,)}, {}),  # which is true of it
        (PARTS["network"], {"noisy": True, "huber_threshold": 2.0}, {}),  # epsilon; the loss
        (dqn, {"num_atoms": 11, "priority_exponent": 0.7}, {}),  # others leave them unread
        (dqn, {}, {"penalty": ["squared", "huber"], "huber_threshold": [1.0, 2.0]}),
        (exploring_in_evaluation, {}, {"epsilon_end": [0.1, 0.2]}),
        (functools.partial(dqn, env=environments.make("CartPole-v0")), {"env": "CartPole-v0"}, {}),
    ],
)
def test_what_is_read_anywhere_is_not_refused(experiment, given, grid):
    plan_of(experiment, grid, **given)


def test_a_setting_that_others_leave_unread_cannot_be_swept():
    with pytest.raises(ConfigError, match="swept, but it is read only where prioritised"):
        plan_of(dqn, {"priority_exponent": [0.1, 0.2]})


@pytest.mark.parametrize("agent", ["dqn", "fqf", "c51", "pqn"])
def test_programs_depend_on_the_settings_that_are_declared_to_be_read(agent):
    config = configure(agent=agent)
    declared = settings_of(type(config)).values()
    wanted = {one.name for one in declared if one.is_read(config)}
    read = make_run_functions(train, config).read
    by_sweep = {"agent", "eval_interval", "eval_episodes", "eval_max_steps"}
    of_images = {"channels", "kernel_sizes", "strides"}
    assert wanted - read == (by_sweep | of_images) - read
