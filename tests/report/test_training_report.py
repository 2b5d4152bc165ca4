"""Tests the report of one setting: its numbers against hand-computed ones, and its files."""

import io
import json

import numpy as np
import pytest
import xarray as xr
from PIL import Image, ImageSequence
from rich.console import Console

from purejaxdqn.agents.dqn.dqn import DQNConfig, dqn
from purejaxdqn.report import figures, files, training
from purejaxdqn.report.films import _steps_per_second, play_in_gymnasium, save_gif

RETURNS = np.array(  # (seed, step, episode)
    [[[10, 20], [480, 500], [400, 500]], [[9, 9], [100, 200], [500, 500]], [[9, 9], [9, 9], [9, 9]]]
)


@pytest.fixture
def dataset():
    times = dict.fromkeys(
        ("env_steps_per_second", "compile_seconds", "train_seconds", "evaluation_seconds"), 1.5
    )
    return xr.Dataset(
        {
            "evaluation_return": (("seed", "step", "episode"), RETURNS.astype(np.float32)),
            "final_return": (("seed", "episode"), RETURNS[:, -1].astype(np.float32)),
            "gymnasium_return": (("seed", "gymnasium_episode"), [[500.0], [480.0], [9.0]]),
        },
        coords={"seed": [4, 5, 6], "step": [10, 20, 30], "episode": [0, 1]},
        attrs={
            "config": '{"env": "CartPole-v1"}',
            "experiment": "purejaxdqn.agents.pqn.pqn.pqn",
            "status": "finished",
            "width": 2,
            "num_devices": 2,
            **times,
        },
    )


def test_the_threshold_is_reached_at_the_first_evaluation_whose_mean_reaches_it(dataset):
    assert training.steps_to_threshold(dataset, 475) == [20, 30, None]
    assert training.steps_to_threshold(dataset, 9) == [10, 10, 10]
    assert training.steps_to_threshold(dataset, 490) == [20, 30, None]
    assert training.steps_to_threshold(dataset, 490.5) == [None, 30, None]


def test_the_summary_in_numbers(dataset):
    facts = training.summarise(dataset, 475.0, np.random.default_rng(0))
    assert facts["final_return"] == [450, 500, 9]
    assert facts["gymnasium_return"] == [500, 480, 9]
    assert facts["steps_to_threshold"] == [20, 30, None]
    assert facts["num_solved"] == 1
    assert facts["iqm"] == pytest.approx((450 + 500 + 9) / 3)  # of 3, a quarter trims none
    assert facts["iqm_low"] <= facts["iqm"] <= facts["iqm_high"]
    json.dumps(facts, allow_nan=False)


def test_what_is_missing_is_null_and_not_nan(dataset):
    dataset.final_return[1] = np.nan
    facts = training.summarise(
        dataset.drop_vars("gymnasium_return"), None, np.random.default_rng(0)
    )
    assert facts["final_return"] == [450, None, 9]
    assert facts["gymnasium_return"] == [None] * 3
    assert facts["steps_to_threshold"] == [None] * 3
    assert facts["num_solved"] is None
    assert (facts["iqm_low"], facts["iqm_high"]) == (None, None)
    assert "no interval is honest" in facts["interval_note"]
    dataset.final_return[:] = np.nan
    facts = training.summarise(dataset, 475.0, np.random.default_rng(0))
    assert facts["iqm"] is None
    assert facts["num_solved"] == 0


def test_the_table_has_a_row_per_seed(dataset, tmp_path):
    facts = training.summarise(dataset, 475.0, np.random.default_rng(0))
    console = Console(width=120, record=True, file=io.StringIO())
    training.print_summary(facts, console)
    text = console.export_text()
    for words in (
        "PQN on CartPole-v1",
        "450.0",
        "500.0",
        "1 of 3 seeds",
        "interquartile mean",
        "1.5 s",
    ):
        assert words in text
    assert json.loads(files.save_summary(facts, tmp_path).read_text()) == facts


def test_the_learning_curve_shows_every_seed(dataset, tmp_path):
    figure = figures.plot_learning_curve(dataset, "title", 475.0)
    (axes,) = figure.axes
    curves = [np.asarray(line.get_ydata()) for line in axes.lines]
    for seed_curve in RETURNS.mean(axis=2):
        assert any(np.array_equal(seed_curve, curve) for curve in curves)
    middle = RETURNS.mean(axis=2).mean(axis=0)
    assert any(len(curve) == 3 and np.allclose(middle, curve) for curve in curves)
    assert len(axes.collections) == 1  # the shaded interval
    png, svg = files.save_figure(figure, tmp_path / "curve")
    with Image.open(png) as image:
        assert image.size[0] > 500
    assert "<svg" in svg.read_text()


def test_policies_are_played_and_filmed_in_gymnasium(tmp_path):
    import jax

    train = dqn(DQNConfig(env="CartPole-v0", hidden_sizes=(), prefill_steps=200))
    # Linear policies by hand: one that balances, one that always pushes to the left.
    good = np.zeros((4, 2), np.float32)
    good[:, 1] = (0.1, 0.5, 2.0, 1.0)
    kernels = np.stack([good, np.zeros((4, 2), np.float32)])
    biases = np.array([[0, 0], [1, 0]], np.float32)
    params = {"params": {"Dense_0": {"kernel": kernels, "bias": biases}}}
    returns = play_in_gymnasium(train, params, num_episodes=5)
    assert returns.shape == (2, 5)
    assert (returns[0] == 200).all()
    assert (returns[1] < 12).all()
    assert (play_in_gymnasium(train, params, num_episodes=5) == returns).all()
    left = jax.tree.map(lambda x: x[1], params)
    total = save_gif(train, left, tmp_path / "policy.gif")
    with Image.open(tmp_path / "policy.gif") as film:
        assert film.size == (300, 200)
        milliseconds = sum(frame.info["duration"] for frame in ImageSequence.Iterator(film))
    # Every second frame for 40 ms; equal ones in a row may be stored as one.
    assert milliseconds == 40 * -(-int(total) // 2)


def test_negative_thresholds_and_missing_episodes(dataset, capsys):
    dataset = dataset - 600  # means at the end: -150, -100, -591
    dataset.attrs = {**dataset.attrs, "config": '{"env": "CartPole-v1"}', "experiment": "a.dqn"}
    times = ("env_steps_per_second", "compile_seconds", "train_seconds", "evaluation_seconds")
    dataset.attrs |= {**dict.fromkeys(times, 1.5), "status": "x", "width": 2, "num_devices": 2}
    assert training.steps_to_threshold(dataset, -110) == [20, 30, None]
    dataset.evaluation_return[0, 1, 0] = np.nan
    dataset.final_return[2, 1] = -np.inf
    assert training.steps_to_threshold(dataset, -110) == [None, 30, None]
    facts = training.summarise(dataset, -99.5, np.random.default_rng(0))
    assert facts["num_solved"] == 0
    facts = training.summarise(dataset, -150.0, np.random.default_rng(0))
    assert (facts["num_solved"], facts["num_finished"], facts["num_missing"]) == (2, 2, 1)
    assert facts["iqm"] == -125
    training.print_summary(facts, Console(width=120))
    text = capsys.readouterr().out
    assert "interquartile mean of 2 of 3 seeds (1 not finished or NaN): -125.0" in text
    assert "solved (at least -150): 2 of 3 seeds" in text


def test_without_a_mean_return_a_line_says_so_and_nothing_is_written(dataset, tmp_path, capsys):
    dataset.evaluation_return[..., 1] = np.nan
    assert training.report_training(dataset, tmp_path) is None
    assert "0 of 3 seeds (all are NaN): nothing is written" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("name", "rate"),
    [("Acrobot-v1", 15), ("CartPole-v0", 50), ("gymnasium:LunarLander-v3?gravity=-5", 50)],
)
def test_films_know_how_many_steps_are_a_second(name, rate):
    assert _steps_per_second(name) == rate
