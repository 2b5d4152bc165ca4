"""Keeps the host's environments, and steps them: each by a number, its handle, and a count.

Environments that were reset in one call are a group. A count says how often its environment has
changed. A step comes with the count that its caller has seen, so that a step that was left out,
taken twice or taken too early is refused, and not hidden in what is learned.
"""

import itertools
import os
import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

UNSEEN = -1  # the count of an environment of which nobody has seen anything
Stepped = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

# Handles begin elsewhere in each process: those of another process, in a checkpoint, are unknown.
_HANDLES = itertools.count(int.from_bytes(os.urandom(3)) << 6)


class HostEnvs(Protocol):
    """`N` environments of a group on the host; `lanes [n]` are numbers of some of them."""

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        """Begins all of them anew from seeds `[N]` uint32; gives observations `[N, *obs]`."""

    def step(self, lanes: np.ndarray, actions: np.ndarray) -> Stepped:
        """Steps some, none of which has ended: `(obs, reward, terminated, truncated)`."""

    def next_episodes(self, lanes: np.ndarray) -> np.ndarray:
        """Begins further episodes in some that have just ended; gives observations `[n, *obs]`."""

    def draw(self, lane: int) -> np.ndarray:
        """Draws one of them, `[H, W, 3]` uint8."""

    def close(self) -> None:
        """Gives back what they hold."""


class _Group:
    """Environments that were reset together, and what each answered last."""

    def __init__(self, envs: HostEnvs, seeds: np.ndarray) -> None:
        self.envs: HostEnvs | None = envs  # None once others have them
        self.obs = envs.reset(seeds)
        self.lanes = np.arange(len(seeds))
        self.handles = np.array([next(_HANDLES) for _ in seeds], np.int32)
        self.count = np.zeros(len(seeds), np.int32)
        self.ended = np.zeros((2, len(seeds)), bool)  # terminated, truncated
        self.outlives = False  # whether it goes on after its first episodes, as those of training


class Answer(NamedTuple):
    """What `n` environments answer to a step."""

    counts: np.ndarray  # [n] int32
    obs: np.ndarray  # [n, *obs] before any reset
    reward: np.ndarray  # [n] float32
    terminated: np.ndarray  # [n] bool
    truncated: np.ndarray  # [n] bool
    obs_to_act_on: np.ndarray  # [n, *obs] after it, where there was one


class Pool:
    """Makes groups of environments, steps them, and uses those again that nobody steps any more.

    An evaluation's group is free once all of its episodes have ended. One that was left before is
    found by its age, as is a training run's: of either kind, the groups that were
    stepped last are kept: `num_kept()` of them, more than can be in use.
    """

    def __init__(self, make: Callable[[int], HostEnvs], num_kept: Callable[[], int]) -> None:
        self._make, self._num_kept = make, num_kept
        self._groups: dict[int, _Group] = {}  # by each first handle, in the order of their use
        self._group_of: dict[int, _Group] = {}  # by every handle
        self._free: list[tuple[int, HostEnvs]] = []  # with how many these are
        self._lock = threading.Lock()  # devices call from threads of their own

    def begin(self, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Begins a group of environments from seeds `[n]` uint32: handles `[n]`, observations."""
        with self._lock:
            self._take_back()
            known = [i for i, (size, _) in enumerate(self._free) if size == len(seeds)]
            envs = self._free.pop(known[-1])[1] if known else None
        group = _Group(self._make(len(seeds)) if envs is None else envs, seeds)
        with self._lock:
            self._groups[int(group.handles[0])] = group
            self._group_of |= dict.fromkeys(group.handles.tolist(), group)
        return group.handles, group.obs.copy()

    def step(
        self, handles: np.ndarray, counts: np.ndarray, actions: np.ndarray, resets: bool
    ) -> Answer:
        """Steps environments by actions `[n]`; with `resets`, those that end begin a new episode.

        An environment whose episode has ended is not stepped again: it answers what it did then,
        without a reward. Nor is one whose count is `UNSEEN`: with `resets`, its first episode is
        the one that begins then.

        Raises:
          RuntimeError: for a handle that is unknown, or there twice, or a count that is not the
            environment's own.
        """
        group = self._find(handles[0])
        if np.array_equal(handles, group.handles):
            return self._step_group(group, group.lanes, counts, actions, resets)
        if len(np.unique(handles)) < len(handles):
            raise RuntimeError(
                "host environments are stepped twice in one call: reset each with a key of its own"
            )
        groups = [self._find(handle) for handle in handles]
        answers, order = [], []
        for group in {id(group): group for group in groups}.values():
            at = np.flatnonzero([one is group for one in groups])
            lanes = handles[at] - group.handles[0]
            answers.append(self._step_group(group, lanes, counts[at], actions[at], resets))
            order.append(at)
        back = np.argsort(np.concatenate(order))
        return Answer(*(np.concatenate(parts)[back] for parts in zip(*answers, strict=True)))

    def draw(self, handle: int, count: int) -> np.ndarray:
        """Draws an environment as it is now, `[H, W, 3]` uint8; refuses an older state of it."""
        group = self._find(handle)
        lane = int(handle - group.handles[0])
        _check_counts(group, np.array([lane]), np.array([count]))
        assert group.envs is not None, "it is drawn before another one begins"
        return group.envs.draw(lane)

    def _find(self, handle: int) -> _Group:
        group = self._group_of.get(int(handle))
        if group is None:
            raise RuntimeError(
                f"there is no host environment {handle} in this process, or not any more: begin a "
                "new one with reset"
            )
        return group

    def _step_group(
        self,
        group: _Group,
        lanes: np.ndarray,
        counts: np.ndarray,
        actions: np.ndarray,
        resets: bool,
    ) -> Answer:
        """Steps environments of one group."""
        is_unseen = (counts == UNSEEN) & (group.count[lanes] == 0) & resets
        _check_counts(group, lanes, np.where(is_unseen, 0, counts))
        if group.envs is None and resets:
            raise RuntimeError("these host environments were given back when their episodes ended")
        with self._lock:
            first = int(group.handles[0])
            self._groups[first] = self._groups.pop(first)
            group.outlives |= resets
        reward = np.zeros(len(lanes), np.float32)
        is_running = ~(group.ended[:, lanes].any(axis=0) | is_unseen)
        if is_running.any():
            assert group.envs is not None, "they are given back once all have ended"
            stepped = lanes[is_running]
            answer = group.envs.step(stepped, actions[is_running])
            group.obs[stepped], reward[is_running] = answer[:2]
            group.ended[:, stepped] = answer[2:]
        obs, (terminated, truncated) = group.obs[lanes], group.ended[:, lanes]
        obs_to_act_on, ended = obs, terminated | truncated
        if group.envs is not None and resets and ended.any():
            again = lanes[ended]
            group.obs[again], group.ended[:, again] = group.envs.next_episodes(again), False
            obs_to_act_on = group.obs[lanes]
        group.count[lanes] += is_running | resets
        flags = (terminated, truncated | is_unseen)
        return Answer(group.count[lanes], obs, reward, *flags, obs_to_act_on)

    def _take_back(self) -> None:
        """Takes environments back from groups that nobody steps any more."""
        groups, num_kept = [*self._groups.values()], self._num_kept()
        forgotten = [
            group
            for outlives in (False, True)
            for group in [one for one in groups if one.outlives == outlives][:-num_kept]
        ]
        for group in forgotten:
            del self._groups[int(group.handles[0])]
            for handle in group.handles.tolist():
                del self._group_of[handle]
        over = [one for one in groups if not one.outlives and one.ended.any(axis=0).all()]
        for group in {id(one): one for one in (*forgotten, *over)}.values():
            if group.envs is not None:
                self._free.append((len(group.lanes), group.envs))
                group.envs = None
        while len(self._free) > num_kept:
            self._free.pop(0)[1].close()


def _check_counts(group: _Group, lanes: np.ndarray, counts: np.ndarray) -> None:
    if not np.array_equal(counts, group.count[lanes]):
        wrong = np.flatnonzero(counts != group.count[lanes])[0]
        raise RuntimeError(
            f"host environment {group.handles[lanes[wrong]]} is at step "
            f"{group.count[lanes[wrong]]}, and is to be stepped from {counts[wrong]}: its calls "
            "were repeated, left out or put in another order. Step each state once"
        )
