"""TD errors of action values: functions of ONE transition, to be passed to `bellman_loss`.

Their arguments are those of `q_learning`; no gradient flows through their targets.
"""

import chex
import jax
import jax.numpy as jnp

from purejaxdqn.types import ILLEGAL, Array


def check_shapes(q_tm1: Array, a_tm1: Array, scalars: list[Array], *q_t: Array | None) -> None:
    """Refuses a batch where a TD error takes ONE transition; None stands for what was not given."""
    # A batch axis here would broadcast (B, 1) against (B,) into (B, B) without a word.
    chex.assert_rank([q_tm1, *(q_values for q_values in q_t if q_values is not None)], 1)
    chex.assert_rank([a_tm1, *scalars], 0)
    chex.assert_type(a_tm1, int)


def q_learning(
    q_tm1: Array,
    a_tm1: Array,
    r_t: Array,
    discount_t: Array,
    q_t: Array,
    q_t_selector: Array | None = None,
) -> Array:
    """Computes the TD error of Q-learning with a target network.

    Mnih et al., "Human-level control through deep reinforcement learning" (2015), equation 2:
    `r_t + discount_t * max_a q_t[a] - q_tm1[a_tm1]`.

    Args:
      q_tm1: `[A]` online action values at time t - 1.
      a_tm1: `[]` int, the action taken at time t - 1.
      r_t: `[]` reward.
      discount_t: `[]` gamma, or 0 where the episode terminated.
      q_t: `[A]` the target network's action values at time t.
      q_t_selector: `[A]` the online network's action values at time t, for TD errors that choose
        an action by them; unused here.

    Returns:
      `[]` the TD error.
    """
    check_shapes(q_tm1, a_tm1, [r_t, discount_t], q_t, q_t_selector)
    return jax.lax.stop_gradient(r_t + discount_t * jnp.max(q_t)) - q_tm1[a_tm1]


def double_q_learning(
    q_tm1: Array, a_tm1: Array, r_t: Array, discount_t: Array, q_t: Array, q_t_selector: Array
) -> Array:
    """Computes the TD error of double Q-learning.

    The online network picks the next action, and the target network says what it is worth. van
    Hasselt, Guez and Silver, "Deep reinforcement learning with double Q-learning" (2016),
    equation 4: `r_t + discount_t * q_t[argmax_a q_t_selector[a]] - q_tm1[a_tm1]`.
    """
    check_shapes(q_tm1, a_tm1, [r_t, discount_t], q_t, q_t_selector)
    return jax.lax.stop_gradient(r_t + discount_t * q_t[jnp.argmax(q_t_selector)]) - q_tm1[a_tm1]


def minto(
    q_tm1: Array, a_tm1: Array, r_t: Array, discount_t: Array, q_t: Array, q_t_selector: Array
) -> Array:
    """Computes the TD error of MINTO: the smaller of both networks' values counts.

    Hendawy et al., "Use the online network if you can: towards fast and stable reinforcement
    learning" (2025): `r_t + discount_t * max_a min(q_t[a], q_t_selector[a]) - q_tm1[a_tm1]`. The
    online network's newest values are used where they do not exceed the target network's.
    """
    check_shapes(q_tm1, a_tm1, [r_t, discount_t], q_t, q_t_selector)
    value_t = jnp.max(jnp.minimum(q_t, q_t_selector))
    return jax.lax.stop_gradient(r_t + discount_t * value_t) - q_tm1[a_tm1]


def expected_sarsa(
    q_tm1: Array,
    a_tm1: Array,
    r_t: Array,
    discount_t: Array,
    q_t: Array,
    q_t_selector: Array,
    epsilon: Array | float = 0.05,
) -> Array:
    """Computes the TD error of expected SARSA under an epsilon-greedy policy.

    Sutton and Barto, "Reinforcement Learning: An Introduction" (2018), equation 6.9; van Seijen,
    van Hasselt, Whiteson and Wiering, "A theoretical and empirical analysis of expected Sarsa"
    (2009), algorithm 1: `r_t + discount_t * sum_a pi(a) q_t[a] - q_tm1[a_tm1]`. The policy is
    `pi(a) = epsilon / A`, and `1 - epsilon` more for the greedy action of the online network, whose
    ties go to the lowest action. `epsilon` is `[]`, between 0 and 1, the probability of an action
    drawn uniformly from all. At 0 this is `double_q_learning`.
    """
    check_shapes(q_tm1, a_tm1, [r_t, discount_t], q_t, q_t_selector)
    mean_t = jnp.mean(q_t, where=q_t != ILLEGAL)  # the random actions are legal ones, too
    value_t = (1 - epsilon) * q_t[jnp.argmax(q_t_selector)] + epsilon * mean_t
    return jax.lax.stop_gradient(r_t + discount_t * value_t) - q_tm1[a_tm1]


def softmax_log_policy(q_values: Array, temperature: Array | float) -> Array:
    """Computes `log(exp(q / temperature) / sum_b exp(q_b / temperature))`, the softmax policy.

    Action values `[A]` become log-probabilities `[A]`, none above 0. `temperature` is `[]`, above
    0, in the unit of the action values. The log-probabilities times `temperature` are the
    advantages over the soft value that `soft_q_learning` bootstraps from.
    """
    # Shifted before the division: a large value over a small temperature has no digits to spare.
    return jax.nn.log_softmax((q_values - jnp.max(q_values)) / temperature)


def soft_q_learning(
    q_tm1: Array,
    a_tm1: Array,
    r_t: Array,
    discount_t: Array,
    q_t: Array,
    q_t_selector: Array | None = None,
    temperature: Array | float = 0.03,
) -> Array:
    """Computes the TD error of soft Q-learning with a target network.

    Haarnoja, Tang, Abbeel and Levine, "Reinforcement learning with deep energy-based policies"
    (2017), the soft value of theorem 1 and the soft Bellman equation of theorem 2, for finitely
    many actions: `r_t + discount_t * temperature * log sum_a exp(q_t[a] / temperature) -
    q_tm1[a_tm1]`. The soft value is also what the softmax policy is worth together with its
    entropy, `sum_a pi(a) (q_t[a] - temperature * log pi(a))`. `temperature` is `[]`, above 0, what
    a nat of entropy is worth, in the unit of the reward.
    """
    check_shapes(q_tm1, a_tm1, [r_t, discount_t], q_t, q_t_selector)
    highest = jnp.max(q_t)
    value_t = highest + temperature * jax.nn.logsumexp((q_t - highest) / temperature)
    return jax.lax.stop_gradient(r_t + discount_t * value_t) - q_tm1[a_tm1]


def return_error(
    q_tm1: Array,
    a_tm1: Array,
    r_t: Array,
    discount_t: Array,
    q_t: Array,
    q_t_selector: Array | None = None,
) -> Array:
    """Computes the TD error towards a whole return: `r_t - q_tm1[a_tm1]`, without a bootstrap.

    `r_t` `[]` is a return, such as one of `q_lambda_returns`. The last three arguments are unused.
    """
    del discount_t, q_t, q_t_selector
    check_shapes(q_tm1, a_tm1, [r_t])
    return jax.lax.stop_gradient(r_t) - q_tm1[a_tm1]


def q_lambda_returns(
    r_t: Array, discount_t: Array, truncated_t: Array, v_t: Array, lambda_: Array | float
) -> Array:
    """Computes the Q(lambda) return of every step of ONE trajectory of one or more episodes.

    Peng and Williams, "Incremental multi-step Q-learning" (1996). Returns of all lengths are
    averaged with weights that fall by lambda (Sutton and Barto 2018, equations 12.2 and 12.3). Each
    bootstraps from the highest action value, and exploratory actions do not cut them. They are
    worked out backwards, as Gallici et al., "Simplifying deep temporal difference learning" (2025)
    do: `G_{t-1} = r_t + discount_t * ((1 - lambda) v_t + lambda G_t)`.

    No return looks beyond its episode. At a termination `discount_t` is 0. At a truncation, and
    where the trajectory ends, `G_{t-1} = r_t + discount_t * v_t`, whatever lambda is.

    Args:
      r_t: `[T]` rewards.
      discount_t: `[T]` gamma, or 0 where the episode terminated.
      truncated_t: `[T]` bool, whether the time limit ended the episode here.
      v_t: `[T]` the highest action value of the observation that each step led to. At the end of an
        episode this is its last observation, and not the first one of the next episode.
      lambda_: `[]` between 0 and 1. At 0 the returns are the targets of one-step Q-learning, at 1
        the sums of all discounted rewards up to the episode's or trajectory's end.

    Returns:
      `[T]` the returns `G_{t-1}`, targets for `q_tm1[a_tm1]`. Gradients are not stopped.
    """
    chex.assert_rank([r_t, discount_t, truncated_t, v_t, lambda_], [1, 1, 1, 1, 0])
    chex.assert_equal_shape([r_t, discount_t, truncated_t, v_t])
    chex.assert_type(truncated_t, bool)

    def backwards(return_t: Array, step: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        r_t, discount_t, truncated_t, v_t = step
        mixed_t = (1 - lambda_) * v_t + lambda_ * return_t
        return_tm1 = r_t + discount_t * jnp.where(truncated_t, v_t, mixed_t)
        return return_tm1, return_tm1

    # Cut where the trajectory ends, as a truncation cuts.
    cut_t = truncated_t | (jnp.arange(len(r_t)) == len(r_t) - 1)
    steps = (r_t, discount_t, cut_t, v_t)
    return jax.lax.scan(backwards, jnp.zeros_like(v_t[-1]), steps, reverse=True)[1]
