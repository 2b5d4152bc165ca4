"""Every recipe is a page of code outside the package, and goes through all that an agent does."""

import ast
import dataclasses
import functools
import importlib
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purejaxdqn import agents, load, rerun, run_sweep, testing
from purejaxdqn.cli.main import main
from purejaxdqn.engine.programs import make_run_functions
from purejaxdqn.sweep import batches
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.schedules import linear, part_of
from purejaxdqn.types import Step, Transition
from tiny import TINY, TINY_PQN, step_of

ROOT = Path(__file__).parents[2]
GALLERY = (ROOT / "docs" / "extending.md").read_text()
FOLDER = ROOT / "experiments" / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
SHORT = {"total_steps": 2_000, "eval_interval": 1_000, "eval_episodes": 2, "hidden_sizes": (8,)}
# What a recipe's own setting is swept over, where half of its default would not show in so few
# steps, or is no whole number.
SWEPT: dict[str, dict[str, list[Any]]] = {
    "averaged": {"num_targets": [1, 3]},
    "bootstrapped": {"mask_probability": [0.25, 1.0]},
    "epsilon_z": {"longest_action": [1, 50]},
    "last_layer_reset": {"reset_period": [20, 10_000]},
    "l2_init": {"l2_init": [0.0, 1.0]},
    "maxmin": {"num_networks": [2, 3]},
    "pqn_categorical": {"value_max": [20.0, 100.0]},
    "redo": {"redo_period": [20], "dormant_threshold": [0.0, 0.9]},
    "retrace": {"trace_decay": [0.0, 1.0]},
}
METRICS = {
    "advantage_learning": "action_gap",
    "bootstrapped": "spread",
    "decorrelation": "covariance",
    "maxmin": "spread",
    "qrc": "correction",
}
RUN: Any = functools.partial(run_sweep, progress=False, width=2)
every_recipe = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", autouse=True)
def recipes():
    """The modules by name; what they register is forgotten in the end."""
    registered, modules = dict(agents._AGENTS), {*sys.modules}
    sys.path.insert(0, str(FOLDER.parent))
    yield {name: importlib.import_module(f"recipes.{name}") for name in NAMES}
    sys.path.remove(str(FOLDER.parent))
    agents._AGENTS.clear()
    agents._AGENTS.update(registered)
    for name in {*sys.modules} - modules:
        if name.split(".")[0] == "recipes":
            del sys.modules[name]


def code_of(path):
    """The lines of code of a file, without docstrings, comments and blanks."""
    source = path.read_text()
    kept = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)
        and token.string.strip()
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            kept -= {*range(node.lineno, (node.end_lineno or 0) + 1)}
    lines = source.splitlines()
    return [lines[line - 1].strip() for line in sorted(kept) if lines[line - 1].strip()]


def agent_of(name):
    """The settings of a recipe's agent, and its experiment."""
    (agent,) = [agent for agent in agents._AGENTS.values() if agent.module == f"recipes.{name}"]
    return agent


def small(agent):
    """An agent's settings, of a run that takes no time; what it has chosen itself stays."""
    tiny = TINY if isinstance(agent.config, type(TINY)) else TINY_PQN
    sizes = {"num_envs", "num_steps", "num_epochs", "num_minibatches", "steps_per_update"}
    sizes |= {"prefill_steps", "replay_capacity", "batch_size", "target_period"}
    if agent.config.agent in ("qrc", "stream_q"):  # without a target network, which they say
        sizes -= {"target_period"}
    if agent.config.agent == "stream_q":  # nor batches of many environments
        sizes &= {"num_epochs"}
    changes = {size: getattr(tiny, size) for size in sizes & {*settings_of(type(tiny))}}
    return dataclasses.replace(agent.config, **changes, **SHORT)


def own_settings(config):
    """The settings that a recipe adds to those of the package."""
    parents = [kind for kind in (type(TINY), type(TINY_PQN)) if isinstance(config, kind)]
    return [x for x in settings_of(type(config)) if x not in settings_of(parents[0])]


# --------------------------------------------------------------------------------- as it is read


@every_recipe
def test_it_is_a_page_and_copies_nothing(name):
    path = FOLDER / f"{name}.py"
    lines = code_of(path)
    assert len(lines) <= 60
    row = re.search(rf"^\| [^|]+ \| (\d+) \| .*\[`{name}`\]", GALLERY, re.M)
    assert row is not None, "docs/extending.md lists every recipe"
    assert int(row[1]) == len(lines)
    tree = ast.parse(path.read_text())
    page = ast.get_docstring(tree) or ""
    assert f"--import recipes.{name} --agent " in page
    assert "--num-seeds 10" in page
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [getattr(node, "module", None) or ""]
            assert not [x for x in names if any(part.startswith("_") for part in x.split("."))]
    pieces = {"\n".join(lines[i : i + 6]) for i in range(len(lines) - 5)}
    for other in (ROOT / "purejaxdqn").rglob("*.py"):
        code = code_of(other)
        copied = pieces & {"\n".join(code[i : i + 6]) for i in range(len(code) - 5)}
        assert not copied, (other, copied)


# -------------------------------------------------------------------------------- as it is trained


@every_recipe
def test_it_trains_over_seeds_and_its_own_setting(name):
    agent = agent_of(name)
    config = small(agent)
    own = own_settings(config)
    grid = SWEPT.get(name) or {x: [getattr(config, x) / 2, getattr(config, x)] for x in own[:1]}
    dataset = RUN(agent.experiment, config, range(2), **grid).dataset
    assert np.isfinite(dataset.loss.isel(step=slice(1, None))).all()
    assert np.isfinite(dataset.evaluation_return).all()
    assert not dataset.diverged.any()
    if name in METRICS:
        assert np.isfinite(dataset[METRICS[name]].isel(step=-1)).all()
    last = dataset.loss.isel(step=-1).values.ravel()
    assert len({*last}) == len(last), "a seed or a value of the setting makes no difference"


@every_recipe
def test_schedules_of_its_own_settings_are_followed(name):
    """Or they are declared to be one value; and so with the discount, which a learner may read."""
    agent = agent_of(name)
    config, declared = small(agent), settings_of(type(agent.config))
    own = [x for x in own_settings(config) if declared[x].may_change]
    for x in [*own, *["discount"] * (name == "stream_q")]:
        value = getattr(config, x)
        changing = dataclasses.replace(config, **{x: linear(value / 2, value, 10)})
        changing.validate()
        assert x in make_run_functions(agent.experiment, changing).read


def test_a_few_resume_rerun_search_and_ablate(tmp_path, monkeypatch, capsys):
    flags = [f"--{x.replace('_', '-')}={y}" for x, y in SHORT.items() if x != "hidden_sizes"]
    flags += ["--hidden-sizes=8", "--prefill-steps=80", "--replay-capacity=120", "--batch-size=16"]
    flags += ["--num-envs=4", "--steps-per-update=4", "--target-period=5", "--num-seeds=2"]

    def call(command, name, *words):
        output = str(tmp_path / command)
        named = ["--import", f"recipes.{name}", "--agent", agent_of(name).config.agent]
        with pytest.raises(SystemExit) as caught:
            main([command, *named, *flags, "--width=2", *words, "--output", output])
        assert not caught.value.code, capsys.readouterr().err
        return load(output)

    sweep = ["--rank-exponent", "0.35", "0.7"]
    first = call("sweep", "rank_based", *sweep)
    monkeypatch.setattr(batches, "compile_programs", None)
    assert call("sweep", "rank_based", *sweep, "--resume").equals(first)
    monkeypatch.undo()
    again = rerun(first, rank_exponent=0.7, seed=1)
    assert again.evaluation_return.values.tobytes() == (
        first.evaluation_return.sel(rank_exponent=0.7, seed=1).values.tobytes()
    )
    assert call("search", "l2_init", "--l2-init", "uniform:0:1", "--num-trials=2").l2_init.size == 2
    components = ["--components", "gap_weight=0.25", "layer_norm"]
    ablation = call("ablate", "advantage_learning", *components, "--n-step=1")
    assert np.isfinite(ablation.action_gap.isel(step=-1)).all()


# --------------------------------------------------------------------------------- as it is judged


def parts_of(module, config):
    """The parts that a recipe passes to `dqn` or `pqn`."""
    given: dict[str, Any] = {}
    name = next(x for x in ("dqn", "pqn") if hasattr(module, x))
    patch = pytest.MonkeyPatch()
    patch.setattr(module, name, lambda config, **parts: given.update(parts))
    agent_of(module.__name__.split(".")[-1]).experiment(config)
    patch.undo()
    return {part: part_of(x, config) for part, x in given.items()}


def make_transitions(**extras):
    """A batch `[16]` of observations of four numbers."""
    rng = np.random.default_rng(0)
    obs_tm1, obs_t = jnp.float32(rng.normal(size=(2, 16, 4)))
    action = jnp.arange(16) % 2
    reward, discount = jnp.float32(rng.normal(size=(2, 16)))
    return Transition(obs_tm1, action, reward, jnp.abs(discount) % 1, obs_t, None, extras)


@every_recipe
def test_what_it_passes_is_judged(name, recipes):
    """Each part by its check; a loss of sequences or batches has none, and is tested below."""
    if name == "minto":  # a `functools.partial`
        testing.check_loss(recipes[name].minto)
        return
    parts = parts_of(recipes[name], small(agent_of(name)))
    network = parts.get("network")
    if network is not None:
        testing.check_network(network, jax.random.key(0), jnp.zeros(4), 2)
    if "loss_fn" in parts and name != "retrace":
        mask = {"mask": np.ones((16, 5), bool)} if name == "bootstrapped" else {}
        report = testing.loss_report(
            parts["loss_fn"], network=network, transitions=make_transitions(**mask)
        )
        failed = [check for check in report.checks if check.passed is False]
        assert not failed, failed
        if hasattr(recipes[name], "fixed_point") or name == "hl_gauss":
            judged = {check.name for check in report.checks if check.passed}
            assert {"the target is the declared one", "fixed point, stochastic"} <= judged
    if name == "rank_based":
        testing.check_replay(recipes[name].rank_based_replay)


# ---------------------------------------------------------------------------------- what is by hand


def test_a_reservoir_holds_every_step_with_the_same_probability(recipes):
    replay = recipes["reservoir"].reservoir_replay(capacity=4, batch_size=8)

    def play(key):
        def step_of(number):
            obs, flag = number + jnp.arange(2.0)[:, jnp.newaxis], jnp.zeros(2, bool)
            return Step(obs, jnp.zeros(2, jnp.int32), obs[:, 0], flag, flag, obs)

        def add(state, number):
            return replay.add(state, step_of(number), jax.random.fold_in(key, number)), None

        state = replay.init(step_of(0.0))
        state, _ = jax.lax.scan(add, state, 2.0 * jnp.arange(8))
        return state.steps.reward, replay.sample(state, key).window

    held, windows = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), 4000))
    counts = np.bincount(np.asarray(held, int).ravel(), minlength=16)
    assert len({*map(tuple, np.sort(held, 1))}) > 100
    assert all(len({*row}) == 4 for row in np.asarray(held))
    deviation = np.sqrt(4000 * 0.25 * 0.75)
    assert np.abs(counts - 1000).max() < 4.5 * deviation
    np.testing.assert_array_equal(windows.obs[..., 0], windows.reward[..., 0])
    assert windows.is_inside.all()


def test_ranks_give_probabilities_by_hand_and_a_nan_spoils_nothing(recipes):
    replay = recipes["rank_based"].rank_based_replay(4, 4000, exponent=1.0)
    step = step_of(1)
    state = replay.init(step)
    for _ in range(3):
        state = replay.add(state, step)
    state = replay.update(state, jnp.arange(3), jnp.array([0.5, -2.0, 1.0]))
    drawn = replay.sample(state, jax.random.key(0))
    wanted = np.array([1 / 3, 1.0, 1 / 2]) / (1 + 1 / 2 + 1 / 3)
    np.testing.assert_allclose(drawn.probabilities, wanted[drawn.indices], rtol=1e-5)
    counts = np.bincount(drawn.indices, minlength=4)
    assert counts[3] == 0, "nothing was written there"
    np.testing.assert_allclose(counts[:3] / 4000, wanted, atol=0.04)
    state = replay.add(replay.update(state, jnp.array([0]), jnp.array([jnp.nan])), step)
    drawn = replay.sample(state, jax.random.key(1))
    assert np.isfinite(drawn.probabilities).all()
    assert {*np.asarray(drawn.indices).tolist()} == {0, 1, 2, 3}


def test_the_target_networks_of_averaged_dqn_are_the_last_copies(recipes):
    config = dataclasses.replace(small(agent_of("averaged")), num_targets=3, target_period=10)
    update = parts_of(recipes["averaged"], config)["target_update"]
    target = {"w": jnp.array([[-1.0], [-2.0], [-3.0]])}
    for count in range(1, 31):
        target = update({"w": jnp.array([[float(count)], [99.0], [99.0]])}, target, count)
    assert target["w"].ravel().tolist() == [30, 20, 10]


def test_the_update_of_qrc_is_that_of_the_paper(recipes):
    """With one feature each, all weights 1 observation, by hand."""
    module = recipes["qrc"]
    network = module.networks.make_network(module.TwoOutputs((), 2), lambda output: output[0])
    params = network.init(jax.random.key(0), jnp.zeros(1))
    weights = {
        "Dense_0": {"kernel": jnp.array([[2.0, 3.0]]), "bias": jnp.zeros(2)},
        "correction": {"kernel": jnp.array([[0.5, 0.25]]), "bias": jnp.zeros(2)},
    }
    params = {"params": {**params["params"], **weights}}
    one = Transition(jnp.ones(1), jnp.int32(0), jnp.float32(1.0), jnp.float32(0.9), 2 * jnp.ones(1))

    def loss(params):
        return module.qrc_loss(network, params, params, one, jax.random.key(0), decay=0.1).loss

    error, h = 1 + 0.9 * 6 - 2, 0.5
    gradient = jax.grad(loss)(params)["params"]
    np.testing.assert_allclose(
        gradient["Dense_0"]["kernel"], [[-error * 1, 0.9 * h * 2]], rtol=1e-6
    )
    np.testing.assert_allclose(
        gradient["correction"]["kernel"], [[-(error - h) * 1 + 0.1 * 0.5, 0.1 * 0.25]], rtol=1e-5
    )


def test_a_reset_begins_the_last_layer_anew_and_nothing_else(recipes):
    config = dataclasses.replace(small(agent_of("last_layer_reset")), reset_period=10)
    train = agent_of("last_layer_reset").experiment(config)
    state = jax.jit(train.init)(jax.random.key(0))
    chunk = jax.jit(train.chunk, static_argnums=2)
    before = chunk(state, jnp.int32(9), 9)[0]
    reset = parts_of(recipes["last_layer_reset"], config)["after_update"]
    learner = dataclasses.replace(before.learner, num_updates=jnp.int32(10))
    after = reset(jax.random.key(5), dataclasses.replace(before, learner=learner)).learner
    for tree in ("params", "target_params"):
        old, new = (getattr(x, tree)["params"] for x in (before.learner, after))
        assert (old["Dense_0"]["kernel"] == new["Dense_0"]["kernel"]).all()
        assert (old["Dense_1"]["kernel"] != new["Dense_1"]["kernel"]).all()
    moments = [x for path, x in jax.tree.leaves_with_path(after.opt_state) if "mu" in str(path)]
    assert [bool((x == 0).all()) for x in moments] == [False, False, True, True]
