"""The records and contracts that all rooms of the package share.

Notation in the docstrings: ``E`` environments, ``B`` transitions in a batch, ``A`` actions,
``*obs`` the shape of one observation, ``[]`` a scalar. Time steps follow the usual ``tm1`` (t - 1)
and ``t`` suffixes: ``a_tm1`` was taken in ``obs_tm1`` and led to ``r_t``,
``discount_t`` and ``obs_t``.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import flax.struct
import jax

Array = jax.Array
Params = Any  # a pytree of arrays
ArrayTree = Any
Output = TypeVar("Output")  # of a network


class ConfigError(ValueError):
    """A setting is refused; the message names the value, what is allowed, and the remedy."""


def nearest_names(name: str, names: Iterable[str]) -> str:
    """Lists the names nearest to one, or all of them where none is near, as a message does."""
    names = list(names)
    return ", ".join(difflib.get_close_matches(str(name), names, n=3) or names)


def suggest_names(name: str, names: Iterable[str]) -> str:
    """Asks whether the names nearest to one were meant, or offers all where none is near."""
    names = list(names)
    is_near = difflib.get_close_matches(name, names, n=1)
    return f"{'did you mean' if is_near else 'choose one of'} {nearest_names(name, names)}"


def is_same_definition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Tells whether two functions are one definition, run twice if a notebook's cell ran again.

    Functions that `def` named are told by module and name, all others (`lambda`, `partial`) are the
    same only if they are one object.
    """
    names = [getattr(function, "__qualname__", "<lambda>") for function in (one, other)]
    is_named = names[0] == names[1] and not names[0].endswith("<lambda>")
    return one is other or (is_named and one.__module__ == other.__module__)


class TimeStep(NamedTuple):
    """What an environment answers to one action.

    Attributes:
      obs: `[*obs]` the observation that the action led to, always the one *before* any reset.
      reward: `[]` float.
      terminated: `[]` bool, the episode ended by the task's own rules: nothing follows, and the
        value of `obs` is zero.
      truncated: `[]` bool, the time limit was reached: the value of `obs` is still bootstrapped.
    """

    obs: Array
    reward: Array
    terminated: Array
    truncated: Array


class Step(NamedTuple):
    """One time step of every environment, as a replay is given it.

    Attributes:
      obs: `[E, *obs]` the observation acted on.
      action: `[E]` int32.
      reward: `[E]` float.
      terminated: `[E]` bool.
      truncated: `[E]` bool.
      next_obs: `[E, *obs]` the observation before any reset.
    """

    obs: Array
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    next_obs: Array


class Window(NamedTuple):
    """What a replay remembers of at most `n` steps of ONE environment, one after another.

    The first step is always inside the window. The window ends early with the step that ended the
    episode, or with the newest step that was added. The entries behind its end mean nothing.

    Attributes:
      obs: `[*obs]` the observation that the first step acted on.
      action: `[n]` int32.
      reward: `[n]` float.
      terminated: `[n]` bool.
      truncated: `[n]` bool.
      is_inside: `[n]` bool, whether the step belongs to the window.
      next_obs: `[*obs]` the observation that its last step led to, before any reset.
    """

    obs: Array
    action: Array
    reward: Array
    terminated: Array
    truncated: Array
    is_inside: Array
    next_obs: Array


class Transition(NamedTuple):
    """What a loss learns from: ONE transition, without a batch axis.

    Attributes:
      obs_tm1: `[*obs]`.
      a_tm1: `[]` int32.
      r_t: `[]` the reward, or the discounted sum of the rewards of several steps.
      discount_t: `[]` gamma to the number of steps, and 0 only where the episode *terminated*.
      obs_t: `[*obs]`.
    """

    obs_tm1: Array
    a_tm1: Array
    r_t: Array
    discount_t: Array
    obs_t: Array


class Sample(NamedTuple):
    """A batch from a replay.

    Attributes:
      window: `Window` with a leading axis `[B, ...]`.
      indices: `[B]` int32, where the windows start; given back to `Replay.update`.
      probabilities: `[B]` the probability with which each one was drawn.
    """

    window: Window
    indices: Array
    probabilities: Array


class Categorical(NamedTuple):
    """A distribution over returns for each action, on a fixed support: what a C51 network puts out.

    Attributes:
      logits: `[A, N]` unnormalised log-probabilities.
      support: `[N]` the atoms, evenly spaced and increasing.
    """

    logits: Array
    support: Array


class Quantiles(NamedTuple):
    """Quantiles of the return for each action: what a QR-DQN or IQN network puts out.

    Attributes:
      values: `[A, N]` the return's quantiles.
      fractions: `[N]` which quantiles these are, between 0 and 1.
      weights: `[N]` what each counts in the mean; they sum to 1.
    """

    values: Array
    fractions: Array
    weights: Array


class ProposedQuantiles(NamedTuple):
    """Quantiles at fractions that the network chose: what an FQF network puts out.

    Attributes:
      values: `[A, N]` the return's quantiles.
      fractions: `[N]` which quantiles these are: the midpoints of the parts into which the
        boundaries cut the interval from 0 to 1.
      weights: `[N]` how long each part is; they sum to 1.
      boundaries: `[N - 1]` between the parts, increasing; gradients through them reach the
        proposal alone.
      boundary_values: `[A, N - 1]` the quantiles at the boundaries.
    """

    values: Array
    fractions: Array
    weights: Array
    boundaries: Array
    boundary_values: Array


class LossOutput(NamedTuple):
    """What a loss says of one transition.

    Attributes:
      loss: `[]` what is minimised.
      priority: `[]` how surprising the transition was, handed back to the replay
        (usually `|td_error|`).
      metrics: scalars by name, averaged over the batch.
    """

    loss: Array
    priority: Array
    metrics: dict[str, Array]


class Activations(NamedTuple):
    """What the units of a network say of ONE observation, behind their nonlinearity.

    Attributes:
      hidden: an array `[..., units]` for each hidden layer; leading axes are other places at which
        the same units stand, such as the pixels of a convolution or the fractions of a quantile.
      features: `[F]` what the network makes of the observation before it looks at actions.
    """

    hidden: tuple[Array, ...]
    features: Array


class Network(NamedTuple, Generic[Output]):
    """A value network as pure functions of ONE observation.

    `Output` is the type of what the network puts out: an `Array` of action values, `Categorical`,
    or quantiles. `Network[Any]` is one of any kind. Diagnostics alone ask for the fourth function.

    Attributes:
      init: `(key, obs) -> params`.
      apply: `(params, obs, key=None) -> output`; noise comes from `key`, none without it.
      action_values: `output -> q [A]`, one number per action. Acting and evaluation see no more.
      activations: `(params, obs) -> Activations`, without noise; None where a network does not say.
    """

    init: Callable[[Array, Array], Params]
    apply: Callable[..., Output]
    action_values: Callable[[Output], Array]
    activations: Callable[[Params, Array], Activations] | None = None


class LossFn(Protocol[Output]):
    """A loss of ONE transition, for networks with such an `Output`.

    The learner maps it over the batch and takes the weighted mean.
    """

    def __call__(
        self,
        network: Network[Output],
        params: Params,
        target_params: Params,
        transition: Transition,
        key: Array,
        /,
    ) -> LossOutput:
        """Computes the loss, the priority and the metrics of one transition."""


class Learner(NamedTuple):
    """Makes better weights of batches, as pure functions.

    Diagnostics alone ask for the third function.

    Attributes:
      init: `(key, obs [*obs]) -> LearnerState`.
      update: `(LearnerState, Transition [B, ...], key, weights [B]=None) -> (LearnerState,
        priorities [B], metrics)`; one gradient step. Without weights each transition counts 1.
      gradient: of the same arguments, the loss's gradient as `update` hands it to the optimiser.
    """

    init: Callable[[Array, Array], LearnerState]
    update: Callable[..., tuple[LearnerState, Array, dict[str, Array]]]
    gradient: Callable[..., Params] | None = None


class Replay(NamedTuple):
    """A replay buffer as pure functions over a state of its own.

    It stores what happened, and knows no discount: `n_step_transition` makes transitions of its
    windows. The fifth function is for windows of several steps (`n_step_replay`) alone.

    Attributes:
      init: `step -> state`; `step` (`[E, ...]`) gives shapes and dtypes only.
      add: `(state, step [E, ...]) -> state`.
      sample: `(state, key) -> Sample`; the state must hold at least one batch.
      update: `(state, indices [B], priorities [B]) -> state`.
      window_at: `(state, index [], num_steps) -> Window`, the one that starts at ONE of the indices
        that `sample` gives, of at most `num_steps` (an `int` of at least 1) steps.
    """

    init: Callable[[Step], ArrayTree]
    add: Callable[[ArrayTree, Step], ArrayTree]
    sample: Callable[[ArrayTree, Array], Sample]
    update: Callable[[ArrayTree, Array, Array], ArrayTree]
    window_at: Callable[[ArrayTree, Array, int], Window] | None = None


def shared_counter() -> Any:
    """Declares a state field that is the same number in every run of a vmapped batch.

    Such a counter stays unbatched under `vmap` (see `run_axes`): with a batched index, every write
    into a ring buffer would become a scatter instead of an update in place.
    """
    return flax.struct.field(metadata={"shared": True})


def run_axes(state: ArrayTree) -> ArrayTree:
    """Makes the `in_axes` of a state for `vmap` over runs: None for shared counters, else 0.

    Args:
      state: a (possibly abstract) state whose counters are declared with `shared_counter`.

    Returns:
      A pytree prefix of `state`.
    """
    if not dataclasses.is_dataclass(state):
        return 0
    axes = {
        field.name: None if field.metadata.get("shared") else run_axes(getattr(state, field.name))
        for field in dataclasses.fields(state)
    }
    return dataclasses.replace(state, **axes)  # type: ignore[type-var]


@flax.struct.dataclass
class LearnerState:
    """All that gradient steps change.

    Attributes:
      params: the online network's weights.
      target_params: the target network's weights, same structure; None without one.
      opt_state: the optimiser's state.
      num_updates: `[]` int32, gradient steps taken so far.
    """

    params: Params
    target_params: Params
    opt_state: ArrayTree
    num_updates: Array = shared_counter()


@flax.struct.dataclass
class TrainState:
    """The state of one run: the carry of the training loop and the content of a checkpoint.

    Attributes:
      learner: `LearnerState`.
      replay: the replay's own state; None without one.
      env_state: `[E, ...]` the environments' states.
      obs: `[E, *obs]` the observations to act on next.
      episode_return: `[E]` float32, the undiscounted return of the episodes under way.
      key: `[]` the typed PRNG key from which all later keys are split.
      num_steps: `[]` int32, environment steps taken so far, over all environments and with the
        prefill.
    """

    learner: LearnerState
    replay: ArrayTree
    env_state: ArrayTree
    obs: Array
    episode_return: Array
    key: Array
    num_steps: Array = shared_counter()
