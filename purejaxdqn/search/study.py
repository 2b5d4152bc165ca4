"""Talks to Optuna: makes distributions, opens the study in its SQLite file, asks for proposals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from purejaxdqn.search.space import Source
from purejaxdqn.storage.files import replace_file
from purejaxdqn.training.loop import Experiment
from purejaxdqn.training.settings import RunConfig
from purejaxdqn.types import ConfigError

try:
    import optuna
    from optuna.exceptions import StorageInternalError
    from optuna.trial import TrialState
    from sqlalchemy import URL
    from sqlalchemy.exc import SQLAlchemyError
except ModuleNotFoundError:  # an extra of the package, see `make_distributions`
    optuna = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    Distribution = FloatDistribution | CategoricalDistribution

STUDY_FILE = "study.db"
Statistic = Callable[[np.ndarray], float]  # scores [num_seeds] -> score


class SearchRequest(NamedTuple):
    """The arguments of `search` that its numbers depend on."""

    experiment: Experiment
    config: RunConfig
    space: Mapping[str, Any]
    distributions: Mapping[str, Distribution]  # the space as Optuna has it
    seeds: Sequence[int]
    statistic: Statistic
    sampler_seed: int
    sampler: Callable[[int], BaseSampler]
    pruner: BasePruner


def make_distributions(sources: Mapping[str, Source]) -> dict[str, Distribution]:
    """Makes Optuna's distributions of a space; a `ConfigError` says that there is no Optuna."""
    if optuna is None:
        raise ConfigError("a search needs Optuna: pip install 'purejaxdqn[search]'")

    def make(kind: str, numbers: Sequence[float]) -> Distribution:
        if kind == "choice":
            return optuna.distributions.CategoricalDistribution(numbers)
        low, high = numbers
        return optuna.distributions.FloatDistribution(low, high, log=kind == "loguniform")

    return {name: make(*source) for name, source in sources.items()}


def to_json(one: BaseDistribution) -> dict[str, Any]:
    """Converts a distribution to what JSON holds."""
    return json.loads(optuna.distributions.distribution_to_json(one))


def ensure_pruner(pruner: BasePruner | None) -> None:
    """Refuses what is no pruner."""
    if not isinstance(pruner, optuna.pruners.BasePruner | None):
        raise ConfigError(
            f"pruner ({pruner!r:.60}) must be one of Optuna's, such as MedianPruner(): leave it out"
        )


def default_pruner(total_steps: int) -> BasePruner:
    """Makes a pruner of trials below the median so far; it spares the first quarter of a run."""
    return optuna.pruners.MedianPruner(n_warmup_steps=total_steps // 4)


def default_sampler(seed: int) -> BaseSampler:
    """Makes Optuna's tree-structured Parzen estimator; its first ten proposals are random."""
    return optuna.samplers.TPESampler(seed=seed)


@contextlib.contextmanager
def open_study(
    path: Path, pruner: BasePruner, digests: Mapping[str, str], last_step: int
) -> Iterator[optuna.Study]:
    """Opens the study in an SQLite file within the block, or makes it; refuses other files.

    Its trials must have the `digests` that `digest_trials` gave; without any they are not compared.
    A trial that is trained to its end has a score at `last_step`.
    """
    remedy = (
        f"{path.parent} still has the numbers so far; to go on, put a copy of the study back, "
        "choose another folder with --output, or start again with --overwrite"
    )
    with contextlib.ExitStack() as stack:
        stack.callback(optuna.logging.set_verbosity, optuna.logging.get_verbosity())
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # else it logs that it made a study
        try:
            if path.exists():  # Optuna leaves a connection open to what it cannot read
                _check_file(path)
            else:
                _make_study(path)
            storage = stack.enter_context(_open_storage(path))
            kept: Any = {"storage": storage, "study_name": "search", "load_if_exists": True}
            study = optuna.create_study(pruner=pruner, direction="maximize", **kept)
            damaged = _find_damage(study, digests, last_step)
        except Exception as error:  # of any kind, for damaged bytes
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if "is locked" in reason:
                remedy = "end what has it open, such as Optuna's dashboard, and try again"
            raise ConfigError(
                f"{path} cannot be read as a study of Optuna ({reason}): {remedy}"
            ) from error
        if damaged:
            raise ConfigError(f"{path} is damaged ({', '.join(damaged[:8])}): {remedy}")
        try:
            yield study
        except (SQLAlchemyError, StorageInternalError) as error:  # such as of a full disk
            raise OSError(f"{path} cannot be written: {_find_reason(error)}") from error


def _make_study(path: Path) -> None:
    """Makes a file of an empty study, which no reader and no kill finds half made."""
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)  # of another, before it
    try:
        with replace_file(path) as temporary, _open_storage(temporary) as storage:
            optuna.create_study(storage=storage, study_name="search", direction="maximize")
    except (SQLAlchemyError, StorageInternalError) as error:
        raise OSError(f"{path} cannot be written: {_find_reason(error)}") from error


def _find_reason(error: Exception) -> str:
    """Finds what SQLite says, such as of a full disk, beneath what Optuna makes of it."""
    cause = error.__cause__ or error
    return str(getattr(cause, "orig", cause)).splitlines()[0]


@contextlib.contextmanager
def _open_storage(path: Path) -> Iterator[optuna.storages.RDBStorage]:
    url = URL.create("sqlite", database=str(path.absolute())).render_as_string()
    storage = optuna.storages.RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _check_file(path: Path) -> None:
    """Raises an error for what SQLite finds to be damaged or no database of its own."""
    if not path.is_file():
        raise ValueError("no file")
    with contextlib.closing(sqlite3.connect(path)) as database:
        ((found, *_), *_) = database.execute("pragma integrity_check(1)").fetchall()
    if found != "ok":
        raise ValueError(found.strip().replace("\n", ", "))


def _find_damage(study: optuna.Study, digests: Mapping[str, str], last_step: int) -> list[str]:
    """Finds what is not as it was, such as "trial 3"."""
    now, wrong = digest_trials(study), []
    for trial in study.get_trials(deepcopy=False):
        scores = trial.intermediate_values
        last = scores[max(scores)] if scores else math.nan
        is_whole = math.isfinite(scores.get(last_step, math.nan))
        is_right = trial.value is None  # of a trial that failed, or is under way
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            is_right = trial.value == (last if math.isfinite(last) else None)
            is_right &= is_whole == (trial.state == TrialState.COMPLETE)
            is_right &= not digests or str(trial.number) in digests
        if not is_right:
            wrong.append(str(trial.number))
    wrong += [number for number, digest in digests.items() if digest != now.get(number)]
    is_maximised = study.direction == optuna.study.StudyDirection.MAXIMIZE
    found = [f"trial {number}" for number in dict.fromkeys(wrong)]
    return found if is_maximised else ["its direction", *found]


def digest_trials(study: optuna.Study) -> dict[str, str]:
    """Digests what proposals learn from, by the number of each trial; its end is left out."""
    digests = {}
    for trial in study.get_trials(deepcopy=False):
        space = {name: to_json(one) for name, one in trial.distributions.items()}
        facts = [trial.params, space, sorted(trial.intermediate_values.items())]
        content = json.dumps(facts, sort_keys=True).encode()
        digests[str(trial.number)] = hashlib.sha256(content).hexdigest()
    return digests


def read_done(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Reads the trials that count, in order: those trained to their end, and pruned ones."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def ask(study: optuna.Study, request: SearchRequest, num_trials: int) -> list[optuna.Trial]:
    """Proposes trials, which depend on the seed and the trials that are done alone."""
    sequence = np.random.SeedSequence([request.sampler_seed, len(read_done(study))])
    study.sampler = request.sampler(int(sequence.generate_state(1)[0]))
    return [study.ask({**request.distributions}) for _ in range(num_trials)]


def tell_batch(study: optuna.Study, is_kept: Callable[[int], bool], last_step: int) -> int:
    """Records how the trials under way ended, and returns how many have failed.

    All fail unless all of their numbers are kept; no proposal learns from failed trials.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    is_whole = all(is_kept(trial.number) for trial in running)
    for trial in running:
        score = trial.intermediate_values.get(last_step, math.nan)
        if is_whole and math.isfinite(score):
            study.tell(trial.number, score)
        else:
            study.tell(trial.number, state=TrialState.PRUNED if is_whole else TrialState.FAIL)
    return 0 if is_whole else len(running)
