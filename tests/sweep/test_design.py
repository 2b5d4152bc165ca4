"""Which runs a sweep has: grids, random searches, the programs they share, and their labels."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from purejaxdqn import agents
from purejaxdqn.agents.dqn.settings import DQNConfig
from purejaxdqn.agents.pqn.settings import PQNConfig
from purejaxdqn.sweep.design import grid_design, group_by_program, random_design, to_label
from purejaxdqn.training.declaration import settings_of
from purejaxdqn.training.settings import config_from_json, config_to_json, parse
from purejaxdqn.types import ConfigError

CONFIG = DQNConfig()


def test_a_grid_has_every_seed_at_every_combination():
    design = grid_design(
        CONFIG, [3, 5], {"learning_rate": [1e-4, 1e-3], "hidden_sizes": [(8,), (8, 8)]}
    )
    seen = [(run.labels, run.config) for run in design.runs]
    expected = list(itertools.product([1e-4, 1e-3], [(8,), (8, 8)], [3, 5]))
    assert len(seen) == 8
    for (labels, config), (learning_rate, sizes, seed) in zip(seen, expected, strict=True):
        name = "x".join(map(str, sizes))
        assert labels == {"learning_rate": learning_rate, "hidden_sizes": name, "seed": seed}
        assert config == dataclasses.replace(
            CONFIG, learning_rate=learning_rate, hidden_sizes=sizes
        )
    assert design.axes == {"learning_rate": [1e-4, 1e-3], "hidden_sizes": ["8", "8x8"]}


def test_values_may_be_numpys_own():
    grid: dict[str, Any] = {"batch_size": np.arange(16, 64, 16), "dueling": np.array([False, True])}
    grid |= {"learning_rate": np.array([1e-3], np.float32), "n_step": 2 ** np.arange(2)}
    seeds: Any = np.arange(2)
    design = grid_design(CONFIG, seeds, grid)
    assert design.axes["batch_size"] == [16, 32, 48]
    for point in design.points:
        assert config_from_json(config_to_json(point.config)) == point.config
    drawn = {"batch_size": stats.randint(16, 64), "n_step": np.arange(1, 4)}
    sizes = random_design(CONFIG, [0], drawn, 9, np.random.default_rng(0)).axes["batch_size"]
    assert all(type(size) is int for size in sizes)


@pytest.mark.parametrize("seeds", [np.array(3), np.zeros((2, 2), int), [[0], [1]]])
def test_seeds_that_are_no_list_of_numbers_are_refused(seeds):
    with pytest.raises(ConfigError, match="seed"):
        grid_design(CONFIG, seeds, {})


def test_a_table_of_values_is_refused():
    grid: dict[str, Any] = {"hidden_sizes": np.array([[8, 8], [16, 16]])}
    with pytest.raises(ConfigError, match=r"hidden_sizes .* must be a tuple"):
        grid_design(CONFIG, [0], grid)


def test_runs_that_differ_in_floats_and_seeds_share_a_program():
    design = grid_design(
        CONFIG,
        range(3),
        {"dueling": [False, True], "discount": [0.9, 0.99], "batch_size": [32, 64]},
    )
    groups = group_by_program([run.config for run in design.runs])
    assert len(groups) == 4
    assert sorted(itertools.chain(*groups)) == list(range(24))
    for group in groups:
        labels = [design.runs[i].labels for i in group]
        assert len({(point["dueling"], point["batch_size"]) for point in labels}) == 1
        assert len(group) == 6


def test_agents_can_be_swept_and_bring_their_own_settings():
    design = grid_design(
        agents.configure, [0], {"agent": ["dqn", "rainbow", "pqn"], "discount": [0.9]}
    )
    configs = [point.config for point in design.points]
    assert configs[1] == dataclasses.replace(agents.get("rainbow").config, discount=0.9)
    assert configs[2] == PQNConfig(discount=0.9)
    assert len(group_by_program([run.config for run in design.runs])) == 3
    with pytest.raises(
        ConfigError, match="'batch_sise' is no setting of agent 'double_n_step': did you"
    ):
        agents.configure(batch_sise=3)


def test_a_random_search_is_the_same_for_the_same_seed_and_keeps_its_limits():
    space = {"learning_rate": stats.loguniform(1e-5, 1e-2), "dueling": [False, True]}
    one, same, other = (
        random_design(CONFIG, [0, 1], space, 40, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert one == same
    assert one.axes != other.axes
    rates = np.array(one.axes["learning_rate"], float)
    assert ((rates >= 1e-5) & (rates <= 1e-2)).all()
    assert 10 < (rates < 10**-3.5).sum() < 30  # as many in each decade
    assert {*one.axes["dueling"]} == {False, True}
    assert len(one.runs) == 80
    assert one.runs[3].config is one.runs[2].config


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", "1e-3", 1e-3),
        ("max_grad_norm", "inf", float("inf")),
        ("batch_size", "1_000", 1000),
        ("hidden_sizes", "64x32", (64, 32)),
        ("hidden_sizes", "64", (64,)),
        ("dueling", "True", True),
        ("dueling", "false", False),
        ("td_error", "q_learning", "q_learning"),
        ("env", "CartPole-v0", "CartPole-v0"),
    ],
)
def test_values_as_text(name, text, value):
    parsed = parse(settings_of(DQNConfig)[name], text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_distributions_as_text():
    discount, rate = (settings_of(DQNConfig)[name] for name in ("discount", "learning_rate"))
    assert parse(discount, "uniform:0.9:1", may_be_drawn=True).freeze().support() == (0.9, 1.0)
    assert parse(rate, "loguniform:1e-5:1e-2", may_be_drawn=True).freeze().support() == (1e-5, 1e-2)
    with pytest.raises(ConfigError, match=r"discount \('uniform:0.9:1'\) must be a number, or"):
        parse(discount, "uniform:0.9:1")


@given(
    st.builds(
        DQNConfig,
        learning_rate=st.floats(1e-30, 1e30),
        max_grad_norm=st.sampled_from([1.0, float("inf")]),
        hidden_sizes=st.lists(st.integers(1, 9), max_size=3).map(tuple),
        dueling=st.booleans(),
        total_steps=st.integers(1, 2**31),
    )
    | st.builds(PQNConfig, q_lambda=st.floats(0, 1))
)
def test_settings_are_the_same_after_json(config):
    assert config_from_json(config_to_json(config)) == config


def test_a_number_of_numpy_can_be_written():
    half: Any = np.float32(0.5)
    config = DQNConfig(learning_rate=half)
    assert config_from_json(config_to_json(config)) == config


@dataclasses.dataclass(frozen=True)
class Mine(DQNConfig):
    bonus: float = 0.0


def test_settings_of_a_class_of_ones_own_are_found_by_its_name_or_have_to_be_given():
    mine = Mine(bonus=float("inf"), hidden_sizes=(8,))
    assert config_from_json(config_to_json(mine)) == mine
    with pytest.raises(ConfigError, match=r"bonus \('x'\) must be a number"):
        dataclasses.replace(mine, bonus="x").validate()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^eval_interval \(0\) must be a whole number of at"):
        dataclasses.replace(mine, eval_interval=0).validate()
    with pytest.raises(ConfigError, match=r"^total_steps \('x'\) must be a whole number of at"):
        dataclasses.replace(mine, total_steps="x").validate()  # type: ignore[arg-type]

    @dataclasses.dataclass(frozen=True)
    class Hidden(Mine):
        pass

    text = config_to_json(Hidden())
    assert config_from_json(text) == config_from_json(text, Hidden) == Hidden()
    unused = text.replace("Hidden", "Unused")
    with pytest.raises(ConfigError, match=r"Unused is not known here: import the module"):
        config_from_json(unused)
    assert config_from_json(unused, Hidden) == Hidden()
    with pytest.raises(ConfigError, match="DQNConfig has no bonus"):
        config_from_json(text, DQNConfig)


def test_what_all_runs_share_leaves_out_what_any_of_them_changes():
    shared = grid_design(agents.configure, [0], {"agent": ["dqn", "rainbow"]}).shared
    one, other = agents.configure(agent="dqn"), agents.configure(agent="rainbow")
    assert "representation" not in shared
    assert shared["env"] == "CartPole-v1"
    assert all(getattr(one, name) == getattr(other, name) == x for name, x in shared.items())
    mixed = grid_design(agents.configure, [0], {"agent": ["dqn", "pqn"]}).shared
    assert "replay_capacity" not in mixed


def test_distributions_of_several_numbers_at_a_time_are_refused():
    with pytest.raises(ConfigError, match="learning_rate gives 2 numbers at a time"):
        random_design(
            DQNConfig(),
            [0],
            {"learning_rate": stats.norm([1e-3, 2e-3])},
            2,
            np.random.default_rng(0),
        )


def test_labels_are_what_a_coordinate_can_be():
    assert to_label((64, 32)) == "64x32"
    assert type(to_label(np.float64(0.5))) is float
    assert to_label("dqn") == "dqn"
