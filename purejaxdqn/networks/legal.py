"""Keeps what a network says to the actions that may be taken."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from purejaxdqn.types import (
    ILLEGAL,
    Array,
    Categorical,
    ConfigError,
    Network,
    Output,
    Params,
    ProposedQuantiles,
    Quantiles,
)


def mask_illegal(
    network: Network[Output], legal_actions: Callable[[Array], Array] | None
) -> Network[Output]:
    """Makes the same network whose illegal actions are worth `ILLEGAL`, less than all others.

    So whoever reads it keeps to the legal ones: acting, evaluation, diagnostics, and the targets of
    losses. No gradient reaches the values of the others.

    Args:
      network: its outputs are `[..., A]`, `Categorical` or quantiles; or others, of which its own
        `mask` says how they are kept to the legal actions.
      legal_actions: `obs [*obs] -> [A]` bool, as of `Environment`; None leaves the network as it
        is.

    Raises:
      ConfigError: from `apply`, for outputs of other kinds without a `mask`.
    """
    if legal_actions is None:
        return network

    values_of: Any = network.action_values

    def apply(params: Params, obs: Array, key: Array | None = None) -> Any:
        output: Any = network.apply(params, obs, key)
        is_legal = legal_actions(obs)
        if network.mask is not None:
            return network.mask(output, is_legal)

        def mask(rows: Array) -> Array:
            return jnp.where(is_legal[:, jnp.newaxis], rows, ILLEGAL)

        match output:
            case Categorical():
                return output._replace(logits=mask(output.logits))
            case Quantiles():
                return output._replace(values=mask(output.values))
            case ProposedQuantiles():
                values, at_boundaries = map(mask, (output.values, output.boundary_values))
                return output._replace(values=values, boundary_values=at_boundaries)
        if getattr(output, "shape", ())[-1:] != is_legal.shape:
            raise ConfigError(
                f"the network's output ({output!r:.60}) cannot be kept to the legal actions: say "
                "how, with network._replace(mask=(output, is_legal [actions]) -> output), or make "
                "it an array [..., actions], Categorical or Quantiles"
            )
        return jnp.where(is_legal, output, ILLEGAL)

    def action_values(output: Any) -> Array:
        if not isinstance(output, Categorical):
            return values_of(output)
        is_masked = jnp.all(output.logits == ILLEGAL, axis=-1)  # whose softmax says nothing
        return jnp.where(is_masked, ILLEGAL, values_of(output))

    return network._replace(apply=apply, action_values=action_values)
