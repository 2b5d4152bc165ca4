"""How long a sweep takes: worked out from a short run of it, and told."""

import dataclasses

import pytest

from purejaxdqn.engine.progress import format_duration
from purejaxdqn.engine.rounds import Forecast, evaluation_steps
from tiny import TINY


def test_a_round_takes_its_beginning_its_steps_and_its_evaluations():
    assert evaluation_steps(TINY) == [80, 200, 400, 480]
    forecast = Forecast(begin=1000.0, evaluation=10.0, step=0.5)
    assert forecast.seconds_left(TINY) == 1000 + 3 * 10 + 400 * 0.5
    # A checkpoint lies before the evaluation at its own step.
    assert forecast.seconds_left(TINY, step=200) == 3 * 10 + 280 * 0.5
    assert forecast.seconds_left(TINY, step=204) == 2 * 10 + 276 * 0.5
    longer = dataclasses.replace(TINY, total_steps=880)
    assert forecast.seconds_left(longer) - forecast.seconds_left(TINY) == 2 * 10 + 400 * 0.5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "under 1 s"),
        (0.74, "about 0.7 s"),
        (1.44, "about 1.4 s"),
        (9.94, "about 9.9 s"),
        (10.4, "about 10 s"),
        (179, "about 179 s"),
        (200, "about 3 min"),
        (5000, "about 83 min"),
        (9000, "about 2.5 h"),
    ],
)
def test_times_are_told_within_a_fifth(seconds, text):
    assert format_duration(seconds) == text
