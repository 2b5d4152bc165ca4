"""Says how well seeds did together: interquartile mean, bootstrap intervals, improvement.

A score is one number a seed, such as the mean of its final greedy returns, in the unit of the
return. Sources: Agarwal, Schwarzer, Castro, Courville and Bellemare, "Deep Reinforcement Learning
at the Edge of the Statistical Precipice" (NeurIPS 2021); Efron, "Bootstrap methods: another look at
the jackknife" (Annals of Statistics, 1979).
"""

import json
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Samples = NDArray[Any]  # of scores, or of numbers of seeds

# Resampling two seeds yields at most three different values, too few to read a tail from.
_MIN_SEEDS = 3
# With fewer, a nominal 95 % interval covered 74 % (3 seeds) to 93 % (9) on normal scores.
_ADVISED_SEEDS = 10


class Interval(NamedTuple):
    """Holds an estimate and its confidence interval."""

    estimate: float  # the statistic of the scores as they are
    low: float | None  # the lower end; None where there are too few seeds for an interval
    high: float | None  # the upper end; None likewise
    confidence: float  # nominal coverage, between 0 and 1, such as 0.95
    note: str  # a sentence to print beside the numbers where seeds are few; empty otherwise

    def __str__(self) -> str:
        """Returns text such as "498.0, 95 % interval 492.5 to 500.0", and the note behind it."""
        text = f"{self.estimate:.1f}"
        if self.low is not None:
            text += f", {100 * self.confidence:.0f} % interval {self.low:.1f} to {self.high:.1f}"
        return f"{text} ({self.note})" if self.note else text


class Curve(NamedTuple):
    """Holds the interquartile mean at each point `[num_points]`, and the ends of its interval."""

    estimate: FloatArray
    low: FloatArray
    high: FloatArray


def mean_return(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Returns the mean over the episodes of returns, such as `final_return (..., seed, episode)`.

    It is NaN for a seed of which any episode is NaN or infinite: the mean of the others would be
    one of chosen episodes. Episodes beyond a setting's own `eval_episodes` do not count. The name
    of the array says what it is, for an axis.
    """
    is_dataset = isinstance(dataset, xr.Dataset)
    if not is_dataset or "episode" not in dataset.get(name, xr.DataArray()).dims:
        raise ValueError(
            f"dataset ({type(dataset).__name__}) must be a sweep's, which has {name!r} of "
            "episodes: give run_sweep(...).dataset, or what load reads"
        )
    returns, asked = dataset[name].astype(float), dataset.sizes["episode"]
    if "settings" in dataset:
        read = np.vectorize(lambda text: json.loads(text)["eval_episodes"], otypes=[int])
        asked = dataset.settings.copy(data=read(dataset.settings.values))
    index = xr.DataArray(np.arange(returns.sizes["episode"]), dims="episode")
    known = returns.where(np.isfinite(returns))
    is_wrong = known.isnull() & (index < asked)
    mean = known.mean("episode").where(~is_wrong.any("episode"))
    numbers = np.unique(asked)
    of = f"of {numbers[0]} episodes" if len(numbers) == 1 else "over its episodes"
    return mean.rename(f"greedy return, mean {of}")


def count_seeds(scores: ArrayLike) -> str:
    """Says how many seeds a mean is of: "10 seeds", "7 of 10 seeds (3 not finished or NaN)".

    `scores` are `[num_seeds]`, or curves `[num_seeds, num_points]`, of which each point has its own
    number of seeds: "7 to 9 of 10 seeds"; points without any do not count.
    """
    present = np.isfinite(np.atleast_2d(np.asarray(scores, dtype=np.float64).T))
    counts, total = present.sum(axis=-1), present.shape[-1]
    low, high = counts[counts > 0].min(initial=total), counts.max(initial=0)
    words = "1 seed" if total == 1 else f"{total} seeds"
    if low == high == total:
        return words
    why = f"{total - high} not finished or NaN"
    if np.ndim(scores) > 1:
        why = "the others are NaN" if high else "all are NaN"
    return f"{f'{low} to ' if low < high else ''}{high} of {words} ({why})"


def interquartile_mean(scores: ArrayLike, axis: int | None = -1) -> Any:
    """Returns the mean of the middle half of the scores, a 25 % trimmed mean.

    `floor(num_seeds / 4)` of the lowest and as many of the highest scores are dropped, so fewer
    than four seeds give the plain mean: Agarwal et al. (2021), Section 4.3.

    Args:
      scores: `[..., num_seeds]`, finite.
      axis: the axis of the seeds; None takes all scores as one sample.

    Returns:
      `[...]`, float64; a scalar for one-dimensional scores.

    Raises:
      ValueError: scores are empty, not numbers, NaN or infinite, or have no such axis.
    """
    from scipy import stats  # half a second, which not every report needs

    return stats.trim_mean(_check_scores("scores", scores), 0.25, axis=axis)


def bootstrap_interval(
    scores: ArrayLike,
    rng: Generator,
    statistic: Callable[..., Any] = interquartile_mean,
    confidence: float = 0.95,
    num_resamples: int = 10000,
) -> Interval:
    """Returns a statistic of the seeds' scores with its percentile bootstrap interval.

    Seeds are drawn with replacement, and the interval lies between the quantiles
    `(1 - confidence) / 2` and `(1 + confidence) / 2` of the resampled statistic: Agarwal et al.
    (2021), Section 4.1, for a single task. From few seeds the interval is too narrow: in 4,000
    simulations each, with normal scores and the interquartile mean, nominal 95 % intervals covered
    the truth in 74, 90, 93, 94 and 94 % of cases for 3, 5, 10, 20 and 30 seeds.

    Args:
      scores: `[num_seeds]`, finite, one independent number a seed.
      rng: the only source of randomness; the same state gives the same interval.
      statistic: maps `[..., num_seeds]` and `axis=-1` to `[...]`, such as `np.mean`.
      confidence: nominal coverage, above 0 and below 1.
      num_resamples: resamples drawn, at least 1.

    Returns:
      The interval, with a note below ten seeds. `low` and `high` are None below three.

    Raises:
      TypeError: `rng` is not a `numpy.random.Generator`, or `num_resamples` not an integer.
      ValueError: an argument is out of its range, scores are not one-dimensional, empty, NaN or
        infinite, or the statistic yields NaN or a wrong shape.
    """
    sample = _check_scores("scores", scores, ("num_seeds",))
    return _resample(statistic, rng, confidence, num_resamples, sample)


def bootstrap_curve(
    scores: ArrayLike, rng: Generator, confidence: float = 0.95, num_resamples: int = 10000
) -> Curve:
    """Returns the interquartile mean over seeds at each point of a curve, with its interval.

    A resample is a set of whole learning curves, because a seed is one run, and so the shading does
    not flicker. Each interval holds for its own point, not for all points at once. A point uses the
    seeds present there, and leaves out a resample in which none of them was drawn. `low` and `high`
    are NaN where fewer than three seeds are present, and the estimate is NaN where none is.

    `scores` are `[num_seeds, num_points]`, finite or NaN, which means missing, such as a training
    return before the first finished episode. All else is as in `bootstrap_interval`.
    """
    if isinstance(scores, xr.DataArray) and "seed" in scores.dims:
        scores = scores.transpose("seed", ...)
    values = _check_scores("scores", scores, ("num_seeds", "num_points"), missing_allowed=True)
    confidence = _check_settings(rng, confidence, num_resamples)
    num_seeds, num_points = values.shape
    drawn = rng.integers(num_seeds, size=(num_resamples, num_seeds))
    ends = np.full((2, num_points), np.nan)
    # Point by point, because the resamples of a whole curve may not fit into memory.
    for point in np.flatnonzero(np.isfinite(values).sum(axis=0) >= _MIN_SEEDS):
        resampled = _interquartile_mean_of_present(values[drawn, point])
        if (is_known := np.isfinite(resampled)).any():
            ends[:, point] = _percentiles(resampled[is_known], confidence)
    return Curve(_interquartile_mean_of_present(values.T), *ends)


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, rng: Generator, confidence: float = 0.95, num_resamples: int = 10000
) -> Interval:
    """Returns the probability that a seed of X scores above a seed of Y, with its interval.

    The estimate is P(X > Y) + P(X = Y) / 2 over all pairs, the Mann-Whitney statistic U divided by
    `n * m`: Agarwal et al. (2021), Section 4.3, for a single task. One half means no difference,
    and swapping x and y gives one minus the estimate. Where every seed of one beats every seed of
    the other, the interval has no width, which is not certainty.

    `x` `[n]` and `y` `[m]` are finite, one independent number a seed; higher is better. They are
    resampled independently. All else is as in `bootstrap_interval`.
    """
    from scipy import stats

    def compare(x: FloatArray, y: FloatArray, axis: int) -> FloatArray:
        u = stats.mannwhitneyu(x, y, axis=axis, method="asymptotic").statistic
        return u / (x.shape[axis] * y.shape[axis])

    samples = _check_scores("x", x, ("num_seeds",)), _check_scores("y", y, ("num_seeds",))
    return _resample(compare, rng, confidence, num_resamples, *samples)


def paired_effect(
    treated: ArrayLike,
    control: ArrayLike,
    rng: Generator,
    statistic: Callable[..., Any] = interquartile_mean,
    confidence: float = 0.95,
    num_resamples: int = 10000,
) -> Interval:
    """Returns what one change does to the scores, over pairs of settings that differ in it alone.

    The estimate is the mean over the pairs of `statistic(treated) - statistic(control)`, each over
    the seeds. With `np.mean` it is the main effect of a factorial experiment. Each pair draws its
    own seeds, and the same ones on both sides, because a seed is one start that both sides had.

    `treated` (with the change) and `control` (without it) are `[num_pairs, num_seeds]`, finite, of
    the same pairs and seeds in the same order. Two `xarray.DataArray` with a dimension `seed` have
    any other dimensions, in any order, and are matched by their labels. All else is as in
    `bootstrap_interval`.
    """
    if isinstance(treated, xr.DataArray) and isinstance(control, xr.DataArray):
        treated, control = _match_labels(treated, control)
    with_it = _check_scores("treated", treated, ("num_pairs", "num_seeds"))
    without = _check_scores("control", control, ("num_pairs", "num_seeds"))
    if with_it.shape != without.shape:
        raise ValueError(
            f"treated {with_it.shape} and control {without.shape} must have the same shape "
            "[num_pairs, num_seeds]: every pair trains the same seeds on both sides"
        )
    num_pairs, num_seeds = with_it.shape
    pairs = np.arange(num_pairs)[:, np.newaxis]

    def effect(seeds: NDArray[np.int64], axis: int) -> FloatArray:
        sides = (side[pairs, seeds] for side in (with_it, without))
        one, other = (_apply(statistic, (side,), side.shape[:-1]) for side in sides)
        return (one - other).mean(axis=-1)

    seeds = np.broadcast_to(np.arange(num_seeds), with_it.shape)
    return _resample(effect, rng, confidence, num_resamples, seeds)


def _match_labels(treated: xr.DataArray, control: xr.DataArray) -> list[ArrayLike]:
    """Returns both sides as `[num_pairs, num_seeds]`, in the order of the labels of all axes."""
    for name, side in {"treated": treated, "control": control}.items():
        if "seed" not in side.dims:
            raise ValueError(
                f"{name} has the dimensions {side.dims} and must have the dimension 'seed': rename "
                "the one over the seeds"
            )
    if {*treated.dims} != {*control.dims}:
        raise ValueError(
            f"treated {treated.dims} and control {control.dims} must have the same dimensions: "
            "select the setting that differs, such as scores.sel(double=True)"
        )
    dims = sorted(map(str, treated.dims), key=lambda dim: (dim == "seed", dim))
    for dim in dims:
        mine, theirs = (sorted(side[dim].values.tolist()) for side in (treated, control))
        if mine != theirs or len({*mine}) < len(mine):
            raise ValueError(
                f"treated and control must have the same {dim}s, each once, got {mine!r:.200} and "
                f"{theirs!r:.200}: select those that both have"
            )
    ordered = (side.sortby(dims).transpose(*dims).values for side in (treated, control))
    return [side.reshape(-1, treated.sizes["seed"]) for side in ordered]


def _interquartile_mean_of_present(values: FloatArray) -> FloatArray:
    """Returns the interquartile mean `[...]` of the numbers in `[..., n]`, NaN if all are NaN."""
    ordered = np.sort(values, axis=-1)  # NaN goes last
    num_present = np.isfinite(values).sum(axis=-1, keepdims=True)
    num_cut = num_present // 4
    rank = np.arange(values.shape[-1])
    kept = (rank >= num_cut) & (rank < num_present - num_cut)
    total, num_kept = ordered.sum(axis=-1, where=kept), kept.sum(axis=-1)
    return np.divide(total, num_kept, out=np.full(total.shape, np.nan), where=num_kept > 0)


def _resample(
    statistic: Callable[..., Any], rng: Generator, confidence: float, num: int, *samples: Samples
) -> Interval:
    """Returns a statistic of samples `[..., n], [..., m], ...`, each resampled on its own."""
    confidence = _check_settings(rng, confidence, num)

    def checked_statistic(*resampled: Samples) -> FloatArray:
        values = _apply(statistic, resampled, resampled[0].shape[: -samples[0].ndim])
        if num_bad := np.count_nonzero(~np.isfinite(values)):
            raise ValueError(
                f"statistic is not finite for {num_bad} of {values.size} samples of the scores; "
                "use one that is defined when scores repeat, such as np.mean"
            )
        return values

    def resample(sample: Samples) -> Samples:
        drawn = rng.integers(sample.shape[-1], size=(num, *sample.shape))
        return np.take_along_axis(np.broadcast_to(sample, drawn.shape), drawn, axis=-1)

    estimate = float(checked_statistic(*samples))
    sizes = [sample.shape[-1] for sample in samples]
    only = f"only {' and '.join(map(str, sizes))} {'seed' if sizes[-1] == 1 else 'seeds'}"
    if min(sizes) < _MIN_SEEDS:
        note = f"{only}: no interval is honest with fewer than {_MIN_SEEDS}"
        note += f"; train {_ADVISED_SEEDS} or more"
        return Interval(estimate, None, None, confidence, note)
    few = f"{only}: with fewer than {_ADVISED_SEEDS} a bootstrap interval tends to be too narrow"
    low, high = _percentiles(checked_statistic(*map(resample, samples)), confidence)
    return Interval(estimate, low, high, confidence, few if min(sizes) < _ADVISED_SEEDS else "")


def _apply(
    statistic: Callable[..., Any], samples: tuple[Samples, ...], expected: tuple[int, ...]
) -> FloatArray:
    """Returns a statistic over the last axis of samples, or raises that it has another shape."""
    values = np.asarray(statistic(*samples, axis=-1), dtype=np.float64)
    if values.shape != expected:
        raise ValueError(
            f"statistic gave shape {values.shape} for scores of shape {samples[0].shape}; "
            f"it must give {expected}, reducing axis=-1 alone, as np.mean does"
        )
    return values


def _percentiles(resampled: FloatArray, confidence: float) -> list[float]:
    return np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()


def _check_scores(
    name: str, values: ArrayLike, axes: tuple[str, ...] = (), missing_allowed: bool = False
) -> FloatArray:
    """Returns scores of these axes (none: any) as float64, or raises what is wrong with them."""
    try:
        if np.iscomplexobj(values):
            raise TypeError("it is complex")
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        shown = " ".join(reprlib.repr(values).split())
        raise ValueError(
            f"{name} must be a rectangular array of real numbers, got {shown} ({error}): give "
            "each seed as many numbers as the others"
        ) from error
    if not axes and array.ndim == 0:
        raise ValueError(
            f"{name} must have an axis of seeds, got the single number {array}: give a list"
        )
    shape = f"[{', '.join(axes)}]"
    if axes and array.ndim != len(axes):
        raise ValueError(
            f"{name} must be {len(axes)}-dimensional, {shape}, got shape {array.shape}; "
            "reduce it to that shape first, such as a mean over the episodes"
        )
    if array.size == 0:
        empty = axes[array.shape.index(0)] if axes else "num_seeds"
        raise ValueError(
            f"{name} has no entries (shape {array.shape}{f' of {shape}' if axes else ''}); give at "
            f"least one {empty.removeprefix('num_').removesuffix('s')}"
        )
    num_nan, num_infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    if num_infinite or (num_nan and not missing_allowed):
        allowed = "finite or NaN (missing)" if missing_allowed else "finite"
        raise ValueError(
            f"{name} must be {allowed}, got {num_nan} NaN and {num_infinite} infinite of "
            f"{array.size}; find out why those runs failed, and leave out a seed only if you "
            "report it (bootstrap_curve takes NaN for points a seed has not reached)"
        )
    return array


def _check_settings(rng: Generator, confidence: float, num_resamples: int) -> float:
    """Returns the confidence as a plain number, or raises what is wrong with these arguments."""
    if not isinstance(rng, Generator):
        raise TypeError(
            f"rng must be a numpy.random.Generator, got {rng!r}; pass np.random.default_rng(seed)"
        )
    if not isinstance(confidence, int | float | np.number):
        raise TypeError(f"confidence must be a number, got {confidence!r}; write 0.95 for 95 %")
    confidence = float(confidence)
    if not 0 < confidence < 1:
        raise ValueError(
            f"confidence must be above 0 and below 1, got {confidence}; write 0.95 for 95 %"
        )
    is_integer = isinstance(num_resamples, int | np.integer)
    if not is_integer or num_resamples < 1:
        wrong = f"num_resamples must be an integer of at least 1, got {num_resamples!r}"
        raise (ValueError if is_integer else TypeError)(f"{wrong}; write 10_000 and not 1e4")
    return confidence
