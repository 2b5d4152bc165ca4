"""One run of an experiment: a seed at one setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from purejaxdqn.training.settings import RunConfig

Label = float | int | bool | str  # what a coordinate of the results can be


class Run(NamedTuple):
    """One run: a seed at one setting.

    Attributes:
      seed: from 0 to 2**32 - 1.
      config: all settings.
      labels: the swept settings, and the seed, by name, as the results call their values.
    """

    seed: int
    config: RunConfig
    labels: Mapping[str, Label]
