"""Stub until merged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Evaluated(NamedTuple):
    step: int
    runs: np.ndarray
    labels: list[dict[str, Any]]
    episode_return: np.ndarray
    training_return: np.ndarray
    metrics: dict[str, np.ndarray]


Tracker = Callable[[Evaluated], None]
