"""Searches: what is trained and what is refused, in Python and as a command."""

import dataclasses
import json
import math

import numpy as np
import pytest
import xarray as xr
from rich.console import Console
from scipy import stats

pytest.importorskip("optuna", reason="Optuna is an extra: pip install 'purejaxdqn[search]'")

import jax

from purejaxdqn import rerun
from purejaxdqn.agents.dqn.dqn import dqn
from purejaxdqn.engine import programs
from purejaxdqn.engine.programs import Run
from purejaxdqn.engine.rounds import train_round
from purejaxdqn.search import search, trials
from purejaxdqn.storage import results
from purejaxdqn.types import ConfigError
from tiny import TINY

CONFIG = dataclasses.replace(TINY, eval_interval=160)
STEPS = [80, 160, 320, 480]


def test_all_batches_share_one_compiled_program(first):
    _, result, (plan,), _ = first
    assert len(result.dataset.trial) == 10
    assert (plan.width, plan.num_devices) == (4, 2)


def test_a_round_ends_where_all_of_its_trials_are_pruned(first):
    assert first[3] == [480, 480, 160]


def test_the_dataset_has_every_trial_up_to_its_end(whole):
    output, result = whole
    dataset = result.dataset
    assert dataset.evaluation_return.dims == ("trial", "seed", "step", "episode")
    assert dataset.evaluation_return.shape == (10, 2, 4, 3)
    assert dataset.step.values.tolist() == STEPS
    pruned = np.isin(np.arange(10), (1, 6, 7, 8, 9))
    assert (dataset.state.values == np.where(pruned, "pruned", "complete")).all()
    known = np.isfinite(dataset.evaluation_return).all(("seed", "episode")).values
    assert (known == (~pruned[:, None] | (dataset.step.values <= 160))).all()
    learned = known & (dataset.step.values > 80)
    assert (np.isfinite(dataset.score) == learned).all()
    means = dataset.evaluation_return.mean(("episode", "seed")).values
    np.testing.assert_allclose(dataset.score.values[learned], means[learned], rtol=1e-6)
    for name in ("learning_rate", "discount"):
        held = [json.loads(text)[name] for text in dataset.settings.values]
        assert dataset[name].values.tolist() == held
    assert len(np.unique(dataset.learning_rate)) == 10
    assert results.load(output).identical(dataset)
    assert dataset.attrs["status"] == "finished"


def test_the_best_trial_has_the_highest_score_of_those_that_were_not_pruned(whole):
    dataset, best = whole[1]
    complete = dataset.isel(trial=dataset.state.values == "complete")
    last = complete.score.isel(step=-1)
    assert best.score == float(last.max())
    assert best.trial == int(complete.trial[np.argmax(last.values)])
    row = dataset.sel(trial=best.trial)
    assert best.settings == {name: float(row[name]) for name in ("learning_rate", "discount")}
    assert best.config.learning_rate == best.settings["learning_rate"]
    assert best.config.hidden_sizes == CONFIG.hidden_sizes


@pytest.mark.parametrize(
    "trial", [0, 5, 6], ids=["beside pruned", "device beside pruned", "pruned"]
)
def test_pruning_changes_no_bit_of_what_is_trained(whole, trial):
    dataset = whole[1].dataset
    alone = rerun(dataset, trial=trial, seed=1, progress=False)
    there = dataset.sel(trial=trial, seed=1)
    known = np.isfinite(there.evaluation_return).all("episode").values
    assert known.sum() == (2 if trial == 6 else 4)
    for name in ("evaluation_return", "training_return", "loss", "q_value"):
        assert there[name].values[known].tobytes() == alone[name].values[known].tobytes(), name


def test_devices_without_wanted_runs_stand_still_and_the_round_ends_without_any(compiled, whole):
    plan = compiled[0]
    compiled_programs = programs.compile_programs(dqn, CONFIG, plan, jax.local_devices())
    runs = [Run(seed, CONFIG, {}) for seed in range(8)]
    wanted = np.ones(8, bool)
    full = [e for e in train_round(compiled_programs, CONFIG, runs) if e.episode_return is not None]
    seen = []
    for event in train_round(compiled_programs, CONFIG, runs, wanted=lambda: wanted):
        if event.episode_return is None:
            continue
        seen.append(event)
        if event.step == 80:
            # The fourth run shares its device with them, the others have one of their own.
            wanted[:] = np.arange(8) < 3
        if event.step == 320:
            wanted[:] = False
    assert [event.step for event in seen] == STEPS[:3]
    for event, other in zip(seen, full, strict=False):
        for mine, theirs in zip(*map(jax.tree.leaves, (event.params, other.params)), strict=True):
            assert mine[:3].tobytes() == theirs[:3].tobytes()
        mine, theirs = (np.asarray(x.episode_return) for x in (event, other))
        assert mine[:3].tobytes() == theirs[:3].tobytes()
        for name, values in event.metrics.items():
            assert values[:3].tobytes() == other.metrics[name][:3].tobytes(), name
    for before, after in zip(*(jax.tree.leaves(seen[i].params) for i in (0, 2)), strict=True):
        assert before[4:].tobytes() == after[4:].tobytes()
        assert before[:3].tobytes() != after[:3].tobytes()


def test_more_trials_than_there_is_room_for_train_one_round_after_another(run, whole, tmp_path):
    dataset = run(tmp_path, 8, trials_per_batch=8, width=4).dataset
    assert (dataset.attrs["width"], dataset.attrs["num_devices"]) == (4, 2)
    first = {"trial": slice(0, 4)}
    for name in ("learning_rate", "evaluation_return", "score"):
        assert (
            dataset[name].isel(first).values.tobytes()
            == whole[1].dataset[name].isel(first).values.tobytes()
        )
    assert np.isfinite(dataset.evaluation_return.isel(step=0)).all()


@pytest.mark.parametrize(
    ("num_trials", "num_seeds", "num_devices", "width"),
    [(4, 2, 2, 4), (3, 4, 2, 8), (1, 4, 2, 2), (1, 10, 4, 3), (2, 4, 8, 1), (4, 4, 1, 16)],
)
def test_the_seeds_of_a_trial_share_a_device_unless_some_would_stand_idle(
    num_trials, num_seeds, num_devices, width
):
    assert search._choose_width(num_trials, num_seeds, num_devices) == width


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": {}}, "space is empty"),
        ({"space": {"hidden_sizes": [(8,), (16,)]}}, "hidden_sizes cannot be searched"),
        ({"space": {"n_step": [1, 3]}}, "n_step cannot be searched"),
        ({"space": {"learning_rat": [1e-3]}}, "did you mean learning_rate"),
        ({"space": {"learning_rate": stats.norm(0, 1)}}, "a norm distribution of"),
        ({"space": {"learning_rate": ["big"]}}, r"learning_rate \(\['big'\]\) must be searched"),
        ({"space": {"learning_rate": []}}, r"learning_rate \(\[\]\) must be searched"),
        ({"space": {"learning_rate": 1e-3}}, r"learning_rate \(0.001\) must be searched"),
        ({"space": {"discount": [0.9, stats.uniform(0, 1)]}}, "a distribution among other values"),
        ({"space": {"discount": stats.uniform(0.5, 1)}}, r"discount \(1.5\) must lie between"),
        (
            {"space": {"value_min": stats.uniform(0, 90), "value_max": stats.uniform(50, 90)}},
            r"value_min \(90.0\) must be below value_max \(50.0\), also in single precision",
        ),
        ({"num_trials": 0}, r"num_trials \(0\) must be at least 1 and a whole number"),
        ({"trials_per_batch": 1.5}, r"trials_per_batch \(1.5\) must be"),
        ({"trials_per_batch": 10**6}, r"trials_per_batch \(1000000\) of 2 seeds are too many"),
        ({"seeds": 5}, r"seeds \(5\) must be a sequence"),
        ({"sampler_seed": -1}, r"sampler_seed \(-1\) must be at least 0 and a whole number"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": (0, 0)}, "must differ"),
        ({"width": 0}, r"width \(0\) must be"),
        ({"width": 1, "seeds": range(3)}, "the 3 seeds of a trial must train at the same time"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_compiles(
    run, options, message, tmp_path, compiled
):
    before = len(compiled)
    with pytest.raises(ConfigError, match=message) as caught:
        run(tmp_path / "new", **options)
    assert "\n" not in str(caught.value)
    assert len(compiled) == before
    assert not (tmp_path / "new" / "study.db").exists()


def test_a_summary_is_strict_json_also_of_infinite_settings():
    best = search.Best(0, {"max_grad_norm": math.inf}, 25.0, CONFIG)
    dataset = xr.Dataset({"state": ("trial", ["complete"])}, attrs={"status": "finished"})
    text = json.dumps(search.SearchResult(dataset, best).summary(), allow_nan=False)
    assert json.loads(text)["best"]["settings"] == {"max_grad_norm": "inf"}


def test_the_command_prints_the_best_setting_and_writes_everything(run_command, tmp_path):
    flags = "--total-steps 480 --prefill-steps 80 --replay-capacity 120 --batch-size 16"
    flags += " --hidden-sizes 8 --target-period 5 --eval-interval 160 --eval-episodes 3"
    flags += " --learning-rate loguniform:1e-4:1e-2 --discount 0.9 0.99 --num-trials 3"
    answer = run_command(
        "search", *flags.split(), "--num-seeds=2", "--json", "--output", tmp_path / "out"
    )
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout.splitlines()[-1])
    assert (facts["num_trials"], facts["complete"]) == (3, 3)
    best = facts["best"]["settings"]
    assert f"--learning-rate {best['learning_rate']}" in answer.stdout
    assert f"--discount {best['discount']}" in answer.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.nc", "study.db", "summary.json", "checkpoint"}
    assert results.load(tmp_path / "out").sizes["trial"] == 3


def test_the_command_refuses_what_cannot_be_searched(call_command, tmp_path):
    flags = ("--hidden-sizes", "8", "16", "--output", tmp_path / "out")
    code, _, err = call_command("search", *flags)
    assert code == 2
    assert err.startswith("error: hidden_sizes cannot be searched")
    assert len(err.splitlines()) == 1


def test_the_best_setting_is_the_first_row_of_the_table_to_its_last_digit(capsys):
    scores = [-300.0, -np.inf, -120.5, np.nan, -120.5, -90.0]  # the last one was pruned
    states = ["complete", "complete", "complete", "diverged", "complete", "pruned"]
    rates = np.array([1e-4, 1e-4, 0.00031415926535, 1e-3, 3e-4, 1e-2])
    dataset = xr.Dataset(
        {
            "score": (("trial", "step"), np.array(scores)[:, None]),
            "state": ("trial", states),
            "diverged": (("trial", "seed"), np.zeros((6, 3), bool)),
        },
        {"trial": [0, 1, 2, 3, 5, 6], "learning_rate": ("trial", rates)},
        {"status": "finished"},
    )
    for order in (range(6), [2, 4, 0, 1, 3, 5]):
        ranked = trials.rank_trials(dataset.isel(trial=[*order]))
        assert [number for number, *_ in ranked] == [2, 5, 0, 1]
        assert ranked[0] == (2, -120.5, {"learning_rate": 0.00031415926535})
    number, score, settings = ranked[0]
    best = search.Best(number, settings, score, CONFIG)
    search.SearchResult(dataset, best).print(Console())
    text = capsys.readouterr().out
    _, first, *_ = (line for line in text.splitlines() if line.startswith(("┃", "│")))
    assert first.split("│")[3].strip() == "0.00031415926535"
    assert "best: --learning-rate 0.00031415926535" in text
    assert "scores over 3 seeds; of the trials, 4 complete, 1 pruned, 1 diverged" in text
