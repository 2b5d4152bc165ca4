"""Shows the progress of a sweep on standard error: a bar, and a line for each evaluation."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from purejaxdqn.engine.rounds import Event
from purejaxdqn.runtime.console import make_console, show_waiting

_COMPLAINT_SECONDS = 60.0  # between two lines about a disk that cannot be written


class SweepProgress(Progress):
    """Shows a bar within its block, with steps, speed and return, and messages at any time.

    `total_steps` are those of all runs together; 0 shows messages alone.
    """

    def __init__(self, total_steps: int, enabled: bool = True) -> None:
        self._last_complaint = -math.inf
        # Together below 80 columns: the rest of a longer line would be cut off.
        super().__init__(
            BarColumn(bar_width=8),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("return {task.fields[mean_return]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=make_console(stderr=True, quiet=not enabled, highlight=False),
            disable=not (enabled and total_steps),
            refresh_per_second=4,  # drawing takes time from a core that trains
        )
        # On a terminal the bar moves to and fro until something is trained.
        shown: dict[str, Any] = {"total": total_steps, "speed": "", "mean_return": "-"}
        self._bar = self.add_task("train", start=not self.console.file.isatty(), **shown)

    def message(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text)

    def waiting(self, text: str) -> contextlib.AbstractContextManager[None]:
        """Shows a line that moves in place of the bar, on a terminal, while the block runs."""
        return show_waiting(text, self.console)

    def show_progress(self, env_steps: int, training_return: np.ndarray, speed: float) -> None:
        """Moves the bar to `env_steps`; `training_return [n]` is NaN where no episode has ended."""
        known = training_return[np.isfinite(training_return)]
        shown = f"{known.mean():.1f}" if len(known) else "-"
        if 0 < len(known) < len(training_return):
            shown += f" ({len(known)} of {len(training_return)})"
        text = f"{speed:,.0f} steps/s"
        self.start_task(self._bar)
        self.update(self._bar, completed=env_steps, speed=text, mean_return=shown)

    def add_event(self, event: Event, facts: dict[str, Any], trained: int, env_steps: int) -> None:
        """Adds an event's seconds to the facts; shows `env_steps`, and the speed of training."""
        facts["train_seconds"] += event.train_seconds
        facts["evaluation_seconds"] += event.evaluation_seconds
        facts["env_steps_per_second"] = trained / max(facts["train_seconds"], 1e-9)
        self.show_progress(env_steps, event.training_return, facts["env_steps_per_second"])

    def show_evaluation(self, step: int, episode_return: np.ndarray) -> None:
        """Prints a line about one evaluation, `episode_return [n, N]`."""
        means = episode_return.mean(axis=1)
        known = means[np.isfinite(means)]
        shown = " ".join(f"{mean:5.0f}" for mean in means)
        if len(means) > 16 and len(known):
            low, mid, high = np.percentile(known, [0, 50, 100])
            missing = f" ({len(means) - len(known)} NaN)" if len(known) < len(means) else ""
            shown = f"lowest {low:.0f}, median {mid:.0f}, highest {high:.0f} "
            shown += f"of {len(means)} runs{missing}"
        self.console.print(f"step {step:>9,}  greedy return per run: {shown}", soft_wrap=True)

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Runs the block, which writes to disk; an `OSError` is told once a minute at most."""
        try:
            yield
        except OSError as error:
            if time.monotonic() - self._last_complaint >= _COMPLAINT_SECONDS:
                self._last_complaint = time.monotonic()
                self.message(f"could not save for now, going on: {error}")


def format_duration(seconds: float) -> str:
    """Formats a time, such as "about 4 min"."""
    if seconds < 0.7:
        return "under 1 s"
    if seconds < 10:
        return f"about {seconds:.1f} s"
    if seconds < 180:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
