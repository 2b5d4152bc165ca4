"""The records and contracts that all rooms of the package share.

Shapes, which stand beside the fields, are written with `E` environments, `B` transitions in a
batch, `A` actions, `*obs` the shape of one observation, and `[]` a scalar. Names end in `tm1` for
t - 1 and `t`: `a_tm1` was taken in `obs_tm1` and led to `r_t`, `discount_t` and `obs_t`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from purejaxdqn.checks import ConfigError as ConfigError
from purejaxdqn.checks import ensure as ensure
from purejaxdqn.checks import ensure_function as ensure_function
from purejaxdqn.checks import ensure_number as ensure_number
from purejaxdqn.checks import ensure_whole as ensure_whole
from purejaxdqn.checks import is_same_definition as is_same_definition
from purejaxdqn.checks import nearest_names as nearest_names
from purejaxdqn.checks import suggest_names as suggest_names

Array = jax.Array
Params = Any  # a pytree of arrays
ArrayTree = Any
Extras = dict[str, Array]  # what a behaviour wrote down, by name; costs nothing where it is empty
NOTHING: Extras = {}
Schedule = Callable[[Array], Array | float]  # count [] of environment or gradient steps -> value []
Output = TypeVar("Output")  # of a network
ILLEGAL = -1e9  # the value of an action that may not be taken: finite, as 0 times it must be 0
BATCH = "purejaxdqn.batch"  # the axis over which transitions, or environments, are mapped
TINY = float(np.finfo(np.float32).tiny)  # the least positive number that programs keep


class TimeStep(NamedTuple):
    """What an environment answers to one action."""

    obs: Array  # [*obs] what the action led to, always the one *before* any reset
    reward: Array  # [] float
    # [] bool, the episode ended by the task's own rules: nothing follows, and obs is worth 0
    terminated: Array
    truncated: Array  # [] bool, the time limit was reached: the value of obs is still bootstrapped


class Step(NamedTuple):
    """One time step of every environment, as a replay is given it."""

    obs: Array  # [E, *obs] that was acted on
    action: Array  # [E] int32
    reward: Array  # [E] float
    terminated: Array  # [E] bool
    truncated: Array  # [E] bool
    next_obs: Array  # [E, *obs] before any reset
    extras: Extras = NOTHING  # [E, ...] each


class Window(NamedTuple):
    """What a replay remembers of at most `n` steps of ONE environment, one after another.

    The first step is always inside the window. The window ends early with the step that ended the
    episode, or with the newest step that was added. The entries behind its end mean nothing.
    """

    obs: Array  # [*obs] that the first step acted on
    action: Array  # [n] int32
    reward: Array  # [n] float
    terminated: Array  # [n] bool
    truncated: Array  # [n] bool
    is_inside: Array  # [n] bool, whether the step belongs to the window
    next_obs: Array  # [*obs] that its last step led to, before any reset
    extras: Extras = NOTHING  # [n, ...] each
    observations: Array | None = None  # [n, *obs] that each step acted on, for trajectories


class Transition(NamedTuple):
    """What a loss learns from: ONE transition, without a batch axis."""

    obs_tm1: Array  # [*obs]
    a_tm1: Array  # [] int32
    r_t: Array  # [] the reward, or the discounted sum of the rewards of several steps
    discount_t: Array  # [] gamma to the number of steps, and 0 only where the episode *terminated*
    obs_t: Array  # [*obs]
    # [] bool, whether the time limit cut the episode off at obs_t; discount_t knows nothing of it
    truncated_t: Array | None = None
    extras: Extras = NOTHING  # [...] each, of the step that took a_tm1


class Trajectory(NamedTuple):
    """What a loss of trajectories learns from: `T` steps of ONE episode, one after another.

    Its fields are those of `Transition`, of each step. The first step is always valid; the entries
    behind the last valid one mean nothing.
    """

    obs_tm1: Array  # [T, *obs]
    a_tm1: Array  # [T] int32
    r_t: Array  # [T]
    discount_t: Array  # [T] gamma, and 0 only where the episode *terminated*
    obs_t: Array  # [T, *obs] before any reset
    truncated_t: Array  # [T] bool
    extras: Extras  # [T, ...] each
    is_valid: Array  # [T] bool


class Sample(NamedTuple):
    """A batch from a replay."""

    window: Window  # with a leading axis, [B, ...]
    indices: Array  # [B] int32, where the windows start; given back to `Replay.update`
    probabilities: Array  # [B] with which each one was drawn


class Categorical(NamedTuple):
    """A distribution over returns for each action, on a fixed support: what C51 puts out."""

    logits: Array  # [A, N] unnormalised log-probabilities
    support: Array  # [N] the atoms, evenly spaced and increasing

    def shifted(self) -> Array:
        """Computes the logits `[A, N]` less the largest of each action, of which none overflows."""
        highest = jax.lax.stop_gradient(self.logits)
        # Halves are compared, which CPUs do a vector of 16 at a time, and not number after number.
        while (size := highest.shape[-1]) > 1:
            half = -(-size // 2) if size <= 16 else -(-size // 32) * 16
            highest = jnp.maximum(highest[..., :half], highest[..., size - half :])
        return self.logits - highest


class Quantiles(NamedTuple):
    """Quantiles of the return for each action: what a QR-DQN or IQN network puts out."""

    values: Array  # [A, N] the return's quantiles
    fractions: Array  # [N] which quantiles these are, between 0 and 1
    weights: Array  # [N] what each counts in the mean; they sum to 1


class ProposedQuantiles(NamedTuple):
    """Quantiles at fractions that the network chose: what an FQF network puts out.

    The boundaries cut the interval from 0 to 1 into parts. Gradients through them reach the
    proposal alone.
    """

    values: Array  # [A, N] the return's quantiles
    fractions: Array  # [N] which quantiles these are: the midpoints of the parts
    weights: Array  # [N] how long each part is; they sum to 1
    boundaries: Array  # [N - 1] between the parts, increasing
    boundary_values: Array  # [A, N - 1] the quantiles at the boundaries


class LossOutput(NamedTuple):
    """What a loss says of one transition."""

    loss: Array  # [] what is minimised
    priority: Array  # [] how surprising it was, for the replay: usually |td_error|
    metrics: dict[str, Array]  # [] each, by name; averaged over the batch
    # Of a loss of the whole batch: new values of collections beside the weights, such as
    # {"batch_stats": ...}, which take the place of the old ones after the gradient step
    collections: dict[str, ArrayTree] = NOTHING


class Activations(NamedTuple):
    """What the units of a network say of ONE observation, behind their nonlinearity."""

    # [..., units] for each hidden layer: leading axes are other places at which the same units
    # stand, such as the pixels of a convolution or the fractions of a quantile.
    hidden: tuple[Array, ...]
    features: Array  # [F] what the network makes of the observation before it looks at actions


class Network(NamedTuple, Generic[Output]):
    """A value network as pure functions of ONE observation.

    Its `Output` is an `Array` of action values, `Categorical`, quantiles, or any pytree of which
    `action_values` makes them. Further inputs, such as a task or a goal, are parts of the
    observation, which a network takes apart.
    """

    # (key, obs) -> params: what the optimiser moves; or, in a dictionary with "params", that, and
    # beside it collections that no gradient moves, such as flax's "batch_stats"
    init: Callable[[Array, Array], Params]
    apply: Callable[..., Output]  # (params, obs, key=None) -> output; without noise if no key
    action_values: Callable[[Output], Array]  # output -> q [A]: acting and evaluation see no more
    # (params, obs) -> Activations, without noise, for diagnostics; None where it does not say
    activations: Callable[[Params, Array], Activations] | None = None
    # The two halves of `apply`, where the network has them: (params, obs, key=None) -> features,
    # and (params, features, key=None) -> output. With other params, or features, than `apply`'s, a
    # head looks at features that are not its own
    features: Callable[..., Any] | None = None
    head: Callable[..., Any] | None = None
    # (output, is_legal [A] bool) -> an output that values all other actions at `ILLEGAL`, where an
    # environment tells legal actions; None for the kinds above, whose values it knows
    mask: Callable[[Any, Array], Any] | None = None


# (network, params, target_params, transition, key) -> LossOutput: a loss of ONE transition, for
# networks with such an Output. The learner maps it over the batch and takes the weighted mean.
LossFn = Callable[[Network[Output], Params, Params, Transition, Array], LossOutput]
# The same of a whole batch: the transition is [B, ...], the key [], and the output's arrays [B].
BatchLossFn = Callable[[Network[Output], Params, Params, Transition, Array], LossOutput]


class Learner(NamedTuple):
    """Makes better weights of batches, as pure functions: `update` takes one gradient step.

    Without weights each transition counts 1.
    """

    init: Callable[[Array, Array], LearnerState]  # (key, obs [*obs]) -> LearnerState
    # (state, Transition [B, ...], key, weights [B]=None) -> (state, priorities [B], metrics)
    update: Callable[..., tuple[LearnerState, Array, dict[str, Array]]]
    # Of the same arguments: the loss's gradient as the optimiser gets it, for diagnostics alone.
    gradient: Callable[..., Params] | None = None


class Situation(NamedTuple):
    """What ONE environment's behaviour acts in."""

    obs: Array  # [*obs]
    output: Any  # of the network, with its noise, such as [K, A] of K heads
    q_values: Array  # [A] the output's action values
    is_first: Array  # [] bool, whether an episode begins here
    num_steps: Array  # [] int32, environment steps so far, over all environments and the prefill
    # bool, whether nothing is learned yet: actions are then uniformly random
    is_prefill: bool
    is_legal: Array | None = None  # [A] bool, where the environment says so


class Behaviour(NamedTuple):
    """How an agent acts while it trains, as pure functions of ONE environment.

    `act` also says what to write down: these arrays reach the `extras` of steps and transitions.
    """

    # (state, key, Situation) -> (state, action [] int32, extras [...] by name)
    act: Callable[[ArrayTree, Array, Situation], tuple[ArrayTree, Array, Extras]]
    init: Callable[[Array], ArrayTree] = lambda key: None  # key -> state


class Measure(NamedTuple):
    """Looks inside a run as it trains: diagnostics of one's own, as pure functions.

    It is asked every so many gradient steps, after the step and what follows it. Each metric goes
    into results and trackers as its mean since the evaluation before; NaN says nothing.
    """

    # (accumulator, TrainState before the gradient step, TrainState, Transition [B, ...], key)
    # -> (accumulator, metrics [] by name)
    update: Callable[..., tuple[ArrayTree, dict[str, Any]]]
    # TrainState -> accumulator, which is kept in the state; it may hold weights of before
    init: Callable[[Any], ArrayTree] = lambda state: None
    every: int = 1  # gradient steps


class Replay(NamedTuple):
    """A replay buffer as pure functions over a state of its own.

    It stores what happened, and knows no discount: `n_step_transition` makes transitions of its
    windows. `window_at` gives the window of at most `num_steps` (an `int` of at least 1) steps that
    starts at ONE of the indices that `sample` gives; `n_step_replay` alone asks for it.
    """

    # (step [E, ...], key) -> state: the step gives shapes and dtypes only
    init: Callable[..., ArrayTree]
    # (state, step [E, ...], key) -> state; the key serves replays that draw which step they drop
    add: Callable[..., ArrayTree]
    sample: Callable[[ArrayTree, Array], Sample]  # (state, key), of a state that holds a batch
    # (state, indices [B], priorities [B]) -> state
    update: Callable[[ArrayTree, Array, Array], ArrayTree]
    # (state, index [], num_steps) -> Window
    window_at: Callable[[ArrayTree, Array, int], Window] | None = None
    # (window, discount []) -> what a loss sees; None stands for `n_step_transition`
    to_transition: Callable[[Window, Any], Any] | None = None
    # state -> state: episodes that have not ended with the newest step are cut there. A run whose
    # environments step on the host cannot be resumed without
    cut: Callable[[ArrayTree], ArrayTree] | None = None


def is_mapped_over_batch() -> bool:
    """Tells whether this is traced for each transition, or environment, of a batch."""
    try:
        jax.lax.axis_size(BATCH)
    except NameError:  # no `vmap` around this has that axis
        return False
    return True


def compute_once(function: Callable[[], Array]) -> Array:
    """Computes an array in memory, where XLA may else compute it anew for each reader on a CPU.

    Call it under `jit`: elsewhere the function is compiled at each call.
    """
    if jax.default_backend() != "cpu":
        return function()
    shape = jax.eval_shape(function)
    always = jax.lax.optimization_barrier(jnp.bool(True))  # or else it would see through this
    return jax.lax.cond(always, function, lambda: jnp.zeros(shape.shape, shape.dtype))


def shared_counter() -> Any:
    """Declares a state field that is the same number in every run of a vmapped batch.

    It stays unbatched under `vmap`: with a batched index, every write into a ring buffer would
    become a scatter instead of an update in place.
    """
    return flax.struct.field(metadata={"shared": True})


def run_axes(state: ArrayTree) -> ArrayTree:
    """Makes the `in_axes` of a state for `vmap` over runs: None for a `shared_counter`, else 0."""
    if not dataclasses.is_dataclass(state):
        return 0 if jax.tree.leaves(state) else state  # of nothing, nothing
    axes = {
        field.name: None if field.metadata.get("shared") else run_axes(getattr(state, field.name))
        for field in dataclasses.fields(state)
    }
    return dataclasses.replace(state, **axes)  # type: ignore[type-var]


@flax.struct.dataclass
class LearnerState:
    """All that gradient steps change."""

    params: Params  # of the online network
    target_params: Params  # of the target network, same structure; None without one
    opt_state: ArrayTree  # of the optimiser
    num_updates: Array = shared_counter()  # [] int32, gradient steps taken so far


@flax.struct.dataclass
class TrainState:
    """The state of one run: the carry of the training loop and the content of a checkpoint."""

    learner: LearnerState
    replay: ArrayTree  # the replay's own state; None without one
    env_state: ArrayTree  # [E, ...]
    obs: Array  # [E, *obs] to act on next
    is_first: Array  # [E] bool, whether an episode begins there
    behaviour: ArrayTree  # [E, ...] the behaviour's own state; None without one
    episode_return: Array  # [E] float32, undiscounted, of the episodes under way
    key: Array  # [] the typed PRNG key from which all later keys are split
    # [] int32, environment steps taken so far, over all environments and with the prefill
    num_steps: Array = shared_counter()
    measured: ArrayTree = None  # the accumulator of a `Measure`; None without one


# (key, state) -> state, after a gradient step: of weights, optimiser, replay, or whatever it holds
AfterUpdate = Callable[[Array, TrainState], TrainState]
