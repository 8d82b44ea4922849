"""A pass over answers that are shared out: see `mmrl.machines.groups`."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrl.machines import groups
from mmrl.models.config import ModelConfig
from mmrl.types import Attention, Output, Prefix, PyTree


def out(extend: Callable[..., Output]) -> Callable[..., Output]:
  """Makes `vlm.extend` run each device's own answers, prompts repeated."""

  @functools.wraps(extend)
  def shared(
    params: PyTree,
    config: ModelConfig,
    prefix: Prefix,
    inputs: Float[Array, "P G R D"],
    *,
    attention_layers: tuple[int, ...] = (),
    weights: Float[Array, "P S n"] | None = None,
    tokens: Any = None,
    **options,
  ) -> Output:
    batch = inputs.shape[:2]
    inputs, tokens = jax.tree.map(groups.apart, (inputs, tokens))
    found = extend(
      params,
      config,
      groups.repeat(prefix, batch[1]),
      inputs,
      attention_layers=attention_layers,
      weights=groups.repeat(weights, batch[1]),
      tokens=tokens,
      **options,
    )

    def join(x):
      return groups.together(x, *batch)

    attention = found.attention
    if isinstance(attention, Attention):
      chosen, last = config.text.indices(attention_layers), prefix.last_query
      assert last is not None
      # Of prompts as they were, not of their copies.
      attention = dataclasses.replace(
        attention,
        queries=join(attention.queries),
        keys=join(attention.keys),
        chosen=jax.tree.map(join, attention.chosen),
        prefix_keys=jnp.stack([prefix.keys[i] for i in chosen], axis=2),
        prefix_mask=prefix.mask,
        last_query=last,
        last_chosen=prefix.last_chosen,
      )
    else:
      attention = jax.tree.map(join, attention)
    hidden, states = jax.tree.map(join, (found.hidden, found.hidden_at))
    return Output(hidden=hidden, attention=attention, hidden_at=states)

  return shared
