"""Probability of improvement, and effects over pairs, with their intervals."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from purejaxdqn.report.statistics import paired_effect, probability_of_improvement
from tiny import limits, whole_scores


def generator(seed=0):
    return np.random.default_rng(seed)


def brute_force_probability(x, y):
    return np.mean([(a > b) + 0.5 * (a == b) for a in x for b in y])


class TestProbabilityOfImprovement:
    @pytest.mark.parametrize(
        ("x", "y", "expected"),
        [
            ([1.0, 2.0, 3.0], [0.0, 0.5], 1.0),
            ([0.0, 0.5], [1.0, 2.0, 3.0], 0.0),
            ([5.0, 5.0], [5.0, 5.0, 5.0], 0.5),
            ([1.0, 3.0], [2.0, 3.0], 0.375),  # 1 pair above, 1 tied, of 4
            ([4.0], [1.0, 2.0, 4.0, 9.0], 0.625),
        ],
    )
    def test_hand_computed(self, x, y, expected):
        assert probability_of_improvement(x, y, generator(), num_resamples=5).estimate == expected

    # A narrow range, so that ties are common.
    @settings(max_examples=50)
    @given(
        st.lists(st.integers(0, 5), min_size=1, max_size=8),
        st.lists(st.integers(0, 5), min_size=1, max_size=8),
    )
    def test_brute_force_and_swap(self, x, y):
        forth = probability_of_improvement(x, y, generator(), num_resamples=5).estimate
        back = probability_of_improvement(y, x, generator(), num_resamples=5).estimate
        assert forth == pytest.approx(brute_force_probability(x, y))
        assert forth + back == pytest.approx(1.0)

    def test_x_and_y_are_resampled_independently(self):
        x, y = generator(1).integers(0, 9, size=12) + 2, generator(2).integers(0, 9, size=10)
        interval = probability_of_improvement(x, y, generator(4), 0.8, num_resamples=300)
        rng = generator(4)
        drawn_x, drawn_y = rng.integers(0, 12, (300, 12)), rng.integers(0, 10, (300, 10))
        resampled = [
            brute_force_probability(x[i], y[j]) for i, j in zip(drawn_x, drawn_y, strict=True)
        ]
        assert interval.estimate == pytest.approx(brute_force_probability(x, y))
        assert interval.low == pytest.approx(np.quantile(resampled, 0.1))
        assert interval.high == pytest.approx(np.quantile(resampled, 0.9))
        assert interval.note == ""

    def test_interval_is_reproducible_and_shifts_with_the_scores(self):
        x = generator(1).normal(size=15)
        same = probability_of_improvement(x, x, generator(0), num_resamples=500)
        assert same == probability_of_improvement(x, x, generator(0), num_resamples=500)
        other = probability_of_improvement(x, x, generator(1), num_resamples=500)
        assert (same.low, same.high) != (other.low, other.high)
        low, high = limits(same)
        assert 0.0 < low < 0.5 < high < 1.0
        better = probability_of_improvement(x + 10.0, x, generator(), num_resamples=50)
        assert better[:3] == (1.0, 1.0, 1.0)

    @pytest.mark.parametrize(
        ("num_x", "num_y", "count"), [(1, 1, "1 and 1 seed:"), (2, 9, "2 and 9"), (9, 2, "9 and 2")]
    )
    def test_one_or_two_seeds_have_no_interval(self, num_x, num_y, count):
        interval = probability_of_improvement(np.ones(num_x), np.zeros(num_y), generator())
        assert interval[:4] == (1.0, None, None, 0.95)
        assert count in interval.note
        assert "no interval is honest" in interval.note

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"x": []}, "x has no entries"),
            ({"y": [1.0, np.nan]}, "y must be finite, got 1 NaN"),
            ({"y": [[1.0]]}, "y must be 1-dimensional"),
            ({"confidence": -0.1}, "confidence"),
            ({"num_resamples": 0}, "num_resamples"),
            ({"rng": None}, "rng"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises((TypeError, ValueError), match=message):
            probability_of_improvement(
                **{"x": [1.0, 2.0], "y": [1.0, 2.0], "rng": generator()} | arguments
            )


class TestPairedEffect:
    def test_hand_computed(self):
        treated = [[1.0, 2.0, 3.0, 100.0], [5.0, 5.0, 5.0, 5.0]]
        control = [[0.0, 0.0, 0.0, 0.0], [4.0, 3.0, 2.0, 1.0]]
        # Of the middle halves: (2.5 - 0) and (5 - 2.5); of the means: 26.5 and 2.5.
        assert paired_effect(treated, control, generator()).estimate == pytest.approx(2.5)
        mean = paired_effect(treated, control, generator(), np.mean)
        assert mean.estimate == pytest.approx(14.5)
        assert mean.estimate == pytest.approx((np.array(treated) - control).mean())

    @given(whole_scores, st.integers(-50, 50))
    def test_what_seeds_have_in_common_does_not_widen_the_interval(self, scores, effect):
        # The same seeds are drawn on both sides of a pair: a shift by a constant has no spread.
        control = np.array([scores, scores[::-1]])
        found = paired_effect(control + effect, control, generator(), num_resamples=50)
        assert found.estimate == pytest.approx(effect, abs=1e-9)
        if len(scores) >= 3:
            assert limits(found) == pytest.approx((effect, effect), abs=1e-9)

    def test_each_pair_draws_its_own_seeds(self):
        # Drawn together, opposite pairs would cancel in every resample.
        scores = np.arange(10.0)
        found = paired_effect([scores, -scores], np.zeros((2, 10)), generator(), np.mean)
        assert found.estimate == 0
        low, high = limits(found)
        assert high - low == pytest.approx(2 * 1.96 * scores.std() / np.sqrt(20), rel=0.1)

    def test_the_same_generator_gives_the_same_interval_and_few_seeds_are_said(self):
        treated, control = generator(1).normal(size=(2, 3, 5))
        one, other = (paired_effect(treated, control, generator(7)) for _ in range(2))
        assert one == other
        assert "only 5 seeds" in one.note
        two = paired_effect(treated[:, :2], control[:, :2], generator())
        assert two.low is two.high is None
        assert "no interval is honest" in two.note
        assert two.estimate == pytest.approx((treated - control)[:, :2].mean())

    @pytest.mark.parametrize(
        ("treated", "control", "words"),
        [
            ([[1.0, 2.0]], [[1.0]], "same shape"),
            ([[np.nan]], [[1.0]], "treated must be finite"),
            ([[1.0]], [[np.inf]], "control must be finite"),
            ([1.0], [1.0], "2-dimensional"),
        ],
    )
    def test_refused(self, treated, control, words):
        with pytest.raises(ValueError, match=words):
            paired_effect(treated, control, generator())

    @pytest.mark.parametrize(
        ("treated", "control", "words"),
        [
            ([1.0], [1.0], r"treated must be 2-dimensional, \[num_pairs, num_seeds\]"),
            ([[1.0]], [1.0], r"control must be 2-dimensional, \[num_pairs, num_seeds\]"),
            (np.zeros((0, 3)), np.zeros((0, 3)), "at least one pair"),
            (np.zeros((3, 0)), np.zeros((3, 0)), "at least one seed"),
        ],
    )
    def test_a_refusal_names_the_axis(self, treated, control, words):
        with pytest.raises(ValueError, match=words):
            paired_effect(treated, control, generator())

    @pytest.mark.parametrize(
        "statistic", [lambda x, axis: np.mean(x), lambda x, axis: np.mean(x, 0), np.sort]
    )
    def test_a_statistic_over_another_axis_is_refused(self, statistic):
        with pytest.raises(ValueError, match=r"scores of shape \(2, 4\).*reducing axis=-1 alone"):
            paired_effect(np.ones((2, 4)), np.ones((2, 4)), generator(), statistic)

    def labelled(self):
        values = generator(3).normal(size=(2, 5, 2, 3))
        coords = {"double": [False, True], "seed": [3, 1, 4, 9, 5], "noisy": [False, True]}
        dims = ("double", "seed", "noisy", "rate")
        score = xr.DataArray(values, {**coords, "rate": [0.1, 0.3, 0.2]}, dims)
        return score.sel(double=True, drop=True), score.sel(double=False, drop=True)

    def test_labels_say_what_belongs_together_and_not_positions(self):
        treated, control = self.labelled()
        found = paired_effect(treated, control, generator(), np.mean)
        assert found.estimate == pytest.approx(float((treated - control).mean()))
        moved = control.isel(seed=[2, 0, 1, 4, 3], noisy=[1, 0]).transpose("rate", "seed", "noisy")
        for one in (treated, treated.sortby("seed"), treated.transpose("noisy", "rate", "seed")):
            for other in (control, moved):
                assert paired_effect(one, other, generator(), np.mean) == found
        alone = paired_effect(treated[:, 0, 0], control[:, 0, 0], generator())
        assert "only 5 seeds" in alone.note

    def test_labels_that_do_not_match_are_refused(self):
        treated, control = self.labelled()
        for one, other, words in (
            (treated.rename(seed="run"), control, "treated has the dimensions .* dimension 'seed'"),
            (treated, control.isel(seed=slice(4)), "the same seeds, each once"),
            (treated, control.assign_coords(rate=[1, 2, 3]), "the same rates, each once"),
            (treated, control.isel(rate=0), "must have the same dimensions"),
            (treated.isel(seed=[0, 0]), control.isel(seed=[0, 0]), "seeds, each once"),
            (treated.where(treated.seed > 1), control, "treated must be finite, got 6 NaN"),
        ):
            with pytest.raises(ValueError, match=words) as caught:
                paired_effect(one, other, generator())
            assert "\n" not in str(caught.value)
