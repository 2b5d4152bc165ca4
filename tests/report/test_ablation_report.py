"""Tests the report of an ablation: effects by hand, and names of combinations."""

import json

import numpy as np
import pytest
import xarray as xr

from purejaxdqn.report import ablation


def made_up():
    """Makes `score (double, dueling, seed)`: 100 + seed, double +20, dueling -10, both +5."""
    coords = {"double": [False, True], "dueling": [False, True], "seed": [3, 4, 5, 6]}
    score = xr.DataArray(np.zeros((2, 2, 4)), coords, ("double", "dueling", "seed"))
    both = score.double & score.dueling
    return score + 100 + score.seed + 20 * score.double - 10 * score.dueling + 5 * both


def test_an_effect_is_the_mean_difference_over_pairs_that_differ_in_it_alone():
    for statistic in ablation.STATISTICS.values():
        for score in (made_up(), made_up().transpose("seed", "dueling", "double")):
            found = ablation.estimate_effects(["dueling", "double"], score, statistic)
            assert list(found) == ["dueling", "double"]
            # Beside each other 20 and 25, -10 and -5; equal in all seeds, so of no width.
            for name, effect in {"double": 22.5, "dueling": -7.5}.items():
                assert found[name].estimate == pytest.approx(effect)
                assert (found[name].low, found[name].high) == pytest.approx((effect, effect))
            assert "only 4 seeds" in found["double"].note


def test_seeds_are_put_together_by_the_statistic_that_was_asked_for():
    score = made_up()
    score[{"double": 1, "dueling": 0, "seed": 2}] += 1_000  # an outlier
    mean = ablation.estimate_effects(["double"], score, ablation.STATISTICS["mean"])["double"]
    iqm = ablation.estimate_effects(["double"], score, ablation.STATISTICS["iqm"])["double"]
    assert mean.estimate == pytest.approx(22.5 + 1_000 / 4 / 2)
    # Of 123 124 1125 126 the middle half is 124 and 126; of 103 to 106 it is 104 and 105.
    assert iqm.low is not None
    assert mean.high is not None
    assert iqm.estimate == pytest.approx(((125 - 104.5) + 25) / 2)
    assert iqm.low < iqm.estimate < mean.high


def test_the_area_is_the_mean_height_of_the_curve():
    curve = np.array([[[0.0, 2.0], [3.0, 5.0], [8.0, 8.0]]])  # means 1, 4, 8 at 100, 200, 400
    dataset = xr.Dataset(
        {"evaluation_return": (("seed", "step", "episode"), curve)},
        {"seed": [0], "step": [100, 200, 400]},
    )
    # (1 + 4) / 2 * 100 + (4 + 8) / 2 * 200 = 1450, over 300 steps
    assert ablation.measure_area(dataset).values == pytest.approx([1450 / 300])


def test_combinations_are_named_in_the_order_of_the_results_and_the_best_is_first():
    score = made_up()
    scores = {"final greedy return": score, "greedy return over the whole run": -score}
    rows = ablation.rank_combinations(["dueling", "double"], scores, np.mean)
    assert [row.name for row in rows] == ["double", "double+dueling", "none", "dueling"]
    assert rows[1].point == {"dueling": True, "double": True}
    assert rows[0].intervals["final greedy return"].estimate == pytest.approx(124.5)


def results():
    """Makes results of two seeds too few for an interval, and of one that one combination lacks."""
    dims, shape = ("double", "noisy", "seed", "step", "episode"), (2, 2, 4, 3, 2)
    values = -np.arange(np.prod(shape), dtype=float).reshape(shape)
    values[1, 0, 2, -1, 1] = np.nan
    coords = {"double": [False, True], "noisy": [False, True], "seed": [3, 4, 5, 6]}
    curves = xr.DataArray(values, {**coords, "step": [0, 100, 200]}, dims)
    attrs = {"config": '{"env": "CartPole-v1"}'}
    variables = {"evaluation_return": curves, "final_return": curves[..., -1, :].drop_vars("step")}
    return xr.Dataset(variables, attrs=attrs)


def test_a_seed_that_one_combination_lacks_counts_nowhere_and_is_said(tmp_path, capsys):
    facts = ablation.report_ablation(results(), tmp_path, ["double", "noisy"], "dqn", "mean")
    assert facts is not None
    assert facts["seeds_counted"] == [3, 4, 6]
    assert facts == json.loads((tmp_path / "summary.json").read_text())
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("mean of 3 of 4 seeds (1 not finished or NaN), 95 % interval") == 2
    # Means over the episodes of seeds 3, 4 and 6 at the last step: -4.5, -10.5 and -22.5.
    best = facts["combinations"][0]
    assert (best["name"], best["final_return"]["estimate"]) == ("none", pytest.approx(-12.5))
    assert facts["effects"]["double"]["final_return"]["estimate"] == pytest.approx(-48)


def test_without_any_seed_a_line_says_so_and_nothing_is_written(tmp_path, capsys):
    dataset = results() * np.nan
    dataset.attrs = results().attrs
    assert ablation.report_ablation(dataset, tmp_path, ["double", "noisy"], "dqn") is None
    assert "0 of 4 seeds (4 not finished or NaN): nothing is written" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []
