"""Two models that decode every token of a reply together."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax

from mmrl import hub
from mmrl.errors import UserError
from mmrl.models.config import ModelConfig
from mmrl.strategies.extrapolation import (
  Selective,
  check_options,
  extrapolate,
)
from mmrl.strategies.responders.local import (
  Local,
  check_sampling,
  in_batches,
  in_lanes,
)


def local_pair(
  policy: hub.Model,
  base: hub.Model,
  *,
  length: int,
  temperature: float = 0.0,
  top_p: float = 1.0,
  **batching,
) -> Local:
  """Makes two models answer requests by selective extrapolation.

  A request may set these options of decoding for itself, and `threshold`, `g`,
  `top_k`, `gate` and `start` (see `selective_step`). The note "redrawn" of a
  reply is the number of its tokens that are second draws.

  Args:
    policy: trained by RL; its processor makes the prompts.
    base: the model before.
    length: most tokens of a reply, its end included.
    temperature: 0 is greedy.
    top_p: see `sampling.sample`.
    **batching: seed, batch, in_flight, lengths and patches; see `Local`.

  Raises:
    UserError: if the models differ in more than their parameters, or a number
      is out of range.
  """
  check_same(policy, base)
  options = {
    "length": length,
    "temperature": temperature,
    "top_p": top_p,
    "threshold": -0.3,
    "g": 0.05,
    "top_k": None,
    "gate": "logp",
    "start": "base",
  }
  params, config = (policy.params, base.params), policy.config
  run = functools.partial(_decode, *params, config)
  decode = in_lanes(params, config, Selective, ("redrawn",), in_batches(run))
  return Local(policy.processor, decode, options, _check, **batching)


def check_same(policy: hub.Model, base: hub.Model) -> None:
  """Checks that tokens and shapes mean the same to two models.

  Raises:
    UserError: naming the first thing that differs.
  """
  one, other = _fields(policy.config), _fields(base.config)
  for name in one:
    if one[name] != other[name]:
      raise UserError(
        f"expected two models of one architecture, found {name} {one[name]} in"
        f" the policy and {other[name]} in the base; take as base the model"
        " that the run began with"
      )
  one, other = (m.processor.tokenizer.get_vocab() for m in (policy, base))
  if one != other:
    token = min(one.items() ^ other.items())[0]
    raise UserError(
      f"expected two models with one tokenizer, found {token!r} as"
      f" {one.get(token)} in the policy and {other.get(token)} in the base;"
      " take as base the model that the run began with"
    )


def _fields(config: ModelConfig) -> dict[str, Any]:
  """Every field of the architecture by name, those of its parts included."""
  found: dict[str, Any] = {}
  for name, value in dataclasses.asdict(config).items():
    parts = value.items() if isinstance(value, dict) else [("", value)]
    found |= {f"{name}.{part}".rstrip("."): x for part, x in parts}
  return found


def _check(options: Mapping[str, Any]) -> None:
  check_sampling(options)
  names = ("threshold", "g", "top_k", "gate", "start")
  check_options(**{name: options[name] for name in names})


@functools.partial(
  jax.jit,
  static_argnames=(
    "config",
    "length",
    "temperature",
    "top_p",
    "top_k",
    "gate",
    "start",
  ),
)
def _decode(policy, base, config, prompt, keys, **options):
  # Threshold and g are arrays here: no program of their own for each.
  found = extrapolate(policy, base, config, prompt, keys, answers=1, **options)
  return found.tokens, found.mask, {"redrawn": found.redrawn}
