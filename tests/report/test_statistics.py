"""Interquartile mean and bootstrap intervals over seeds."""

import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn.report.statistics import (
    bootstrap_curve,
    bootstrap_interval,
    count_seeds,
    interquartile_mean,
    mean_return,
)
from tiny import limits, whole_scores


def generator(seed=0):
    return np.random.default_rng(seed)


def brute_force_interquartile_mean(scores):
    ordered = sorted(score for score in scores if not np.isnan(score))
    num_cut = int(0.25 * len(ordered))
    return np.mean(ordered[num_cut : len(ordered) - num_cut])


class TestInterquartileMean:
    @pytest.mark.parametrize(
        ("scores", "expected"),
        [
            ([7.0], 7.0),
            ([1.0, 2.0, 9.0], 4.0),  # three: nothing is cut
            ([-100.0, 1.0, 2.0, 1000.0], 1.5),  # four: one on each side
            ([5, 1, 2, 3, 4, 900, -900], 3.0),  # seven: one on each side
            ([8, 1, 7, 2, 6, 3, 5, 4], 4.5),  # eight: two on each side
        ],
    )
    def test_hand_computed(self, scores, expected):
        assert interquartile_mean(scores) == pytest.approx(expected, abs=1e-12)

    def test_axes(self):
        scores = np.array([[0.0, 1.0, 2.0, 90.0], [4.0, 5.0, 6.0, -90.0]])
        np.testing.assert_allclose(interquartile_mean(scores), [1.5, 4.5])
        np.testing.assert_allclose(interquartile_mean(scores, axis=0), [2.0, 3.0, 4.0, 0.0])
        np.testing.assert_allclose(interquartile_mean(scores, axis=None), 3.0)  # 1, 2, 4, 5
        assert interquartile_mean(np.zeros((2, 3, 5))).shape == (2, 3)

    def test_float32_is_averaged_in_double_precision(self):
        scores = np.array([2**24, 2**24, 1.0], dtype=np.float32)
        assert interquartile_mean(scores) == (2.0**25 + 1) / 3

    @given(whole_scores, st.randoms(use_true_random=False))
    def test_brute_force_and_order_of_seeds(self, scores, random):
        iqm = interquartile_mean(scores)
        assert iqm == pytest.approx(brute_force_interquartile_mean(scores), abs=1e-9)
        random.shuffle(scores)
        assert interquartile_mean(scores) == pytest.approx(iqm, abs=1e-9)

    @given(whole_scores, st.integers(-1000, 1000), st.integers(-8, 8))
    def test_shift_and_scale(self, scores, shift, scale):
        transformed = scale * np.array(scores) + shift
        expected = scale * interquartile_mean(scores) + shift
        assert interquartile_mean(transformed) == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize(
        ("scores", "message"),
        [
            ([], "no entries.*at least one seed"),
            (3.0, "axis of seeds.*3.0"),
            ([1.0, np.nan, 2.0, np.nan], "2 NaN and 0 infinite of 4.*leave out"),
            ([1.0, np.inf], "0 NaN and 1 infinite of 2"),
            ([1.0, None], "1 NaN"),
            (["good"], "real numbers.*good"),
            ([[1.0], [1.0, 2.0]], "rectangular"),
        ],
    )
    def test_bad_scores(self, scores, message):
        with pytest.raises(ValueError, match=message):
            interquartile_mean(scores)


class TestBootstrapInterval:
    def test_is_the_percentile_bootstrap(self):
        scores = generator(1).normal(size=12)
        interval = bootstrap_interval(scores, generator(), confidence=0.8, num_resamples=400)
        drawn = generator().integers(0, 12, size=(400, 12))
        resampled = [brute_force_interquartile_mean(scores[row]) for row in drawn]
        assert interval.estimate == pytest.approx(brute_force_interquartile_mean(scores))
        assert interval.low == pytest.approx(np.quantile(resampled, 0.1))
        assert interval.high == pytest.approx(np.quantile(resampled, 0.9))
        assert interval.confidence == 0.8
        assert interval.note == ""

    def test_exact_distribution_of_three_seeds(self):
        # Of the 27 draws one is all 0 and one all 3 (3.7 % each): the 95 % limits are the extremes.
        interval = bootstrap_interval([0.0, 1.5, 3.0], generator())
        assert (interval.low, interval.high) == (0.0, 3.0)
        # At 90 % each tail is 5 %: past the extreme, before the next draws (0, 0, 1.5), 3 of 27.
        interval = bootstrap_interval([0.0, 1.5, 3.0], generator(), confidence=0.9)
        assert (interval.low, interval.high) == pytest.approx((0.5, 2.5))

    def test_reproducible_and_driven_by_the_generator_alone(self):
        scores = generator(1).normal(size=10)
        first = bootstrap_interval(scores, generator(5), num_resamples=200)
        np.random.seed(1)  # noqa: NPY002  (a global state that must not matter)
        assert bootstrap_interval(scores, generator(5), num_resamples=200) == first
        other = bootstrap_interval(scores, generator(6), num_resamples=200)
        assert other.estimate == first.estimate
        assert (other.low, other.high) != (first.low, first.high)
        rng = generator(5)
        assert bootstrap_interval(scores, rng, num_resamples=200) == first
        assert bootstrap_interval(scores, rng, num_resamples=200) != first

    def test_coverage_on_normal_scores(self):
        rng, repeats = generator(2), 200
        covered = {0.95: 0, 0.5: 0}
        for _ in range(repeats):
            scores = rng.normal(loc=10.0, size=20)
            for confidence in covered:
                interval = bootstrap_interval(scores, rng, confidence=confidence, num_resamples=300)
                low, high = limits(interval)
                covered[confidence] += low <= 10.0 <= high
        assert 0.88 <= covered[0.95] / repeats <= 0.99
        assert 0.40 <= covered[0.5] / repeats <= 0.60

    @settings(max_examples=50)
    @given(st.floats(-1e6, 1e6), st.integers(3, 12))
    def test_equal_scores_have_no_width(self, score, num_seeds):
        interval = bootstrap_interval([score] * num_seeds, generator(), num_resamples=50)
        assert interval.low == interval.high == interval.estimate
        assert interval.estimate == pytest.approx(score)

    def test_other_statistic(self):
        scores = [0.0, 0.0, 0.0, 0.0, 10.0]
        assert bootstrap_interval(scores, generator(), np.mean).estimate == 2.0
        assert bootstrap_interval(scores, generator(), np.median).estimate == 0.0

    @pytest.mark.parametrize(("scores", "count"), [([500.0], "1 seed:"), ([1, 3], "2 seeds:")])
    def test_one_or_two_seeds_have_no_interval(self, scores, count):
        interval = bootstrap_interval(scores, generator())
        assert interval[:4] == (np.mean(scores), None, None, 0.95)
        assert count in interval.note
        assert "no interval is honest" in interval.note

    def test_note_on_few_seeds(self):
        few = bootstrap_interval(np.arange(9), generator(), num_resamples=10)
        assert "9 seeds" in few.note
        assert "too narrow" in few.note
        assert bootstrap_interval(np.arange(10), generator(), num_resamples=10).note == ""

    def test_serialises_as_plain_numbers(self):
        interval = bootstrap_interval(
            np.array([1, 2, 3, 4], dtype=np.float32), generator(), num_resamples=10
        )
        assert [type(value) for value in interval] == [float, float, float, float, str]
        json.dumps(interval._asdict())

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"scores": []}, ValueError, "no entries"),
            ({"scores": np.zeros((2, 3))}, ValueError, r"1-dimensional.*\(2, 3\)"),
            ({"scores": [1.0, np.nan, 2.0]}, ValueError, "1 NaN"),
            ({"confidence": 0.0}, ValueError, "above 0 and below 1, got 0.0"),
            ({"confidence": 95}, ValueError, "got 95.0; write 0.95"),
            ({"confidence": np.nan}, ValueError, "got nan"),
            ({"num_resamples": 0}, ValueError, "at least 1, got 0"),
            ({"num_resamples": 1e4}, TypeError, "10000.0; write 10_000"),
            ({"rng": 0}, TypeError, r"got 0; pass np.random.default_rng\(seed\)"),
            (
                {"statistic": np.sort},
                ValueError,
                r"statistic gave shape \(3,\) for scores.*must give \(\)",
            ),
            (
                {"statistic": lambda scores, axis: np.log(scores.max(axis) - scores.min(axis) - 1)},
                ValueError,
                "not finite for [0-9]+ of 100 samples",
            ),
        ],
    )
    def test_bad_arguments(self, arguments, error, message):
        arguments = {
            "scores": [1.0, 2.0, 3.0],
            "rng": generator(),
            "num_resamples": 100,
        } | arguments
        with np.errstate(all="ignore"), pytest.raises(error, match=message):
            bootstrap_interval(**arguments)


class TestBootstrapCurve:
    def test_each_point_is_the_interval_of_its_scores(self):
        scores = generator(1).normal(size=(11, 4))
        curve = bootstrap_curve(scores, generator(3), confidence=0.9, num_resamples=300)
        for point in range(4):
            interval = bootstrap_interval(
                scores[:, point], generator(3), confidence=0.9, num_resamples=300
            )
            drawn = (curve.estimate[point], curve.low[point], curve.high[point])
            assert drawn == pytest.approx(interval[:3], rel=1e-12)

    def test_seeds_are_drawn_once_for_all_points(self):
        scores = np.repeat(generator(1).normal(size=(8, 1)), 5, axis=1) + np.arange(5) * 64.0
        _, low, high = bootstrap_curve(scores, generator(), num_resamples=50)
        np.testing.assert_allclose(low - low[0], np.arange(5) * 64.0, atol=1e-9)
        np.testing.assert_allclose(high - high[0], np.arange(5) * 64.0, atol=1e-9)

    def test_reproducible(self):
        scores = generator(1).normal(size=(5, 3))
        curves = [
            np.array(bootstrap_curve(scores, generator(seed), num_resamples=100))
            for seed in (0, 0, 1)
        ]
        np.testing.assert_array_equal(curves[0], curves[1])
        np.testing.assert_array_equal(curves[0][0], curves[2][0])
        assert (curves[0][1:] != curves[2][1:]).any()

    def test_missing_points(self):
        nan = np.nan
        scores = np.array(
            [  # all missing, two, three, four and five seeds present
                [nan, 1.0, 0.0, nan, 1.0],
                [nan, 3.0, nan, 0.0, 2.0],
                [nan, nan, 6.0, 40.0, 3.0],
                [nan, nan, 3.0, 4.0, 4.0],
                [nan, nan, nan, 2.0, 90.0],
            ]
        )
        estimate, low, high = bootstrap_curve(scores, generator(), num_resamples=2000)
        np.testing.assert_allclose(estimate, [nan, 2.0, 3.0, 3.0, 3.0])
        np.testing.assert_array_equal(np.isnan(low), [True, True, False, False, False])
        np.testing.assert_array_equal(np.isnan(high), [True, True, False, False, False])
        # Brute force for the third point: missing seeds drop out of each resample.
        rows = generator().integers(0, 5, size=(2000, 5))
        resampled = [
            brute_force_interquartile_mean(row)
            for row in scores[rows, 2]
            if not np.isnan(row).all()
        ]
        np.testing.assert_allclose(
            (low[2], high[2]), np.quantile(resampled, [0.025, 0.975]), rtol=1e-12
        )

    def test_no_seed_drawn_at_a_point(self):
        scores = np.full((40, 1), np.nan)
        scores[:3] = 1.0
        with_nothing = next(
            seed for seed in range(1000) if (generator(seed).integers(40, size=(1, 40)) >= 3).all()
        )
        estimate, low, high = bootstrap_curve(scores, generator(with_nothing), num_resamples=1)
        assert estimate == 1.0
        assert np.isnan(low)
        assert np.isnan(high)

    @pytest.mark.parametrize("num_seeds", [1, 2])
    def test_one_or_two_seeds(self, num_seeds):
        scores = np.arange(num_seeds * 3.0).reshape(num_seeds, 3)
        estimate, low, high = bootstrap_curve(scores, generator(), num_resamples=10)
        np.testing.assert_allclose(estimate, scores.mean(axis=0))
        assert np.isnan(low).all()
        assert np.isnan(high).all()

    def test_equal_scores_have_no_width(self):
        curve = bootstrap_curve(np.full((7, 2), 0.1), generator(), num_resamples=50)
        np.testing.assert_array_equal(curve.low, curve.high)
        np.testing.assert_array_equal(curve.low, curve.estimate)

    @pytest.mark.parametrize(
        ("scores", "message"),
        [
            ([1.0, 2.0], r"2-dimensional, \[num_seeds, num_points\], got shape \(2,\)"),
            (np.zeros((3, 0)), "no entries"),
            ([[1.0, -np.inf]], "1 infinite of 2"),
        ],
    )
    def test_bad_scores(self, scores, message):
        with pytest.raises(ValueError, match=message):
            bootstrap_curve(scores, generator())

    @pytest.mark.parametrize(
        "arguments", [{"confidence": 1.0}, {"num_resamples": -1}, {"rng": np.random}]
    )
    def test_bad_arguments(self, arguments):
        with pytest.raises((TypeError, ValueError), match=next(iter(arguments))):
            bootstrap_curve(**{"scores": np.zeros((3, 2)), "rng": generator()} | arguments)

    def test_a_labelled_curve_may_have_its_axes_in_any_order(self):
        scores = xr.DataArray(generator(1).normal(size=(6, 3)), dims=("seed", "step"))
        for one, other in zip(
            bootstrap_curve(scores, generator()),
            bootstrap_curve(scores.T, generator()),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)


class TestMissingSeeds:
    @pytest.mark.parametrize(
        ("scores", "words"),
        [
            ([1.0, 2.0], "2 seeds"),
            ([1.0], "1 seed"),
            ([1.0, np.nan, np.inf], "1 of 3 seeds (2 not finished or NaN)"),
            ([np.nan] * 4, "0 of 4 seeds (4 not finished or NaN)"),
            ([[1.0, 2.0], [1.0, 2.0]], "2 seeds"),
            ([[1.0, 2.0], [1.0, np.nan]], "1 to 2 of 2 seeds (the others are NaN)"),
            ([[1.0, np.nan], [1.0, np.nan], [np.nan] * 2], "2 of 3 seeds (the others are NaN)"),
            ([[np.nan], [np.nan]], "0 of 2 seeds (all are NaN)"),
        ],
    )
    def test_are_counted(self, scores, words):
        assert count_seeds(scores) == words

    def test_a_mean_return_is_of_all_episodes_of_its_setting(self):
        returns = [
            [[1.0, 2.0, 6.0], [1.0, np.nan, 6.0]],
            [[4.0, 6.0, np.nan], [np.inf, 2.0, np.nan]],
        ]
        dataset = xr.Dataset({"final_return": (("rate", "seed", "episode"), returns)})
        # The second setting plays two episodes; with its own number of them all seeds count.
        asked = [json.dumps({"eval_episodes": n}) for n in (3, 2)]
        known = dataset.assign(settings=("rate", asked))
        mean = mean_return(known, "final_return")
        np.testing.assert_array_equal(mean.values, [[3.0, np.nan], [5.0, np.nan]])
        assert mean.name == "greedy return, mean over its episodes"
        one = mean_return(dataset.isel(rate=1), "final_return")
        assert one.isnull().all()
        assert one.name == "greedy return, mean of 3 episodes"
