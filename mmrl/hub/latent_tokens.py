"""Latent segments for a model that has none: tokens and their embeddings."""

import copy
import dataclasses
from typing import Any

import jax.numpy as jnp

from mmrl.errors import UserError
from mmrl.hub.directory import Model
from mmrl.models.config import Latent

TOKENS = ("<latent>", "</latent>")


def add(model: Model, *, new: bool = True, **options: Any) -> Model:
  """Returns a model with latent segments in its answers.

  Tokens that its tokenizer lacks are added. Each begins with the mean of all
  the tokenizer's embeddings, and in an output head of its own with the mean of
  all its columns. The vocabulary grows if it has no room for them.

  Args:
    model: without latent segments.
    new: whether tokens may be added.
    **options: see `mmrl.models.config.Latent`, but for the ids.

  Raises:
    UserError: if it has segments, or lacks tokens that may not be added.
  """
  if model.config.latent is not None:
    raise UserError(
      "expected a model without latent segments, found one with segments of"
      f" {model.config.latent.length}; begin with the model that it was made of"
    )
  tokenizer = copy.deepcopy(model.processor.tokenizer)
  vocabulary = tokenizer.get_vocab()
  lacking = [token for token in TOKENS if token not in vocabulary]
  if lacking and not new:
    raise UserError(
      f"expected a tokenizer with {' and '.join(TOKENS)}, found none of"
      f" {', '.join(lacking)}; let them be added, or add them yourself"
    )
  known = sorted(vocabulary.values())
  tokenizer.add_special_tokens({"additional_special_tokens": lacking})
  ids = tokenizer.convert_tokens_to_ids(list(TOKENS))
  latent = Latent(*ids, **options)
  params, size = dict(model.params), model.config.text.vocab_size
  more = max(size, max(ids) + 1) - size
  added = [one for one in ids if one not in known]
  if added:
    text = dict(params["text"])
    table = text["embed"]["embedding"]
    text["embed"] = {"embedding": _with_rows(table, known, added, more)}
    if not model.config.tie_word_embeddings:
      kernel = _with_rows(text["head"]["kernel"].T, known, added, more).T
      text["head"] = {"kernel": kernel}
    params["text"] = text
  config = dataclasses.replace(
    model.config,
    latent=latent,
    text=dataclasses.replace(model.config.text, vocab_size=size + more),
  )
  processor = dataclasses.replace(
    model.processor, tokenizer=tokenizer, config=config
  )
  return Model(config, params, processor)


def _with_rows(table, known, added, more: int):
  """Appends rows, and sets those of added tokens to the mean of known ones."""
  mean = table[jnp.array(known)].astype(jnp.float32).mean(0)
  table = jnp.pad(table, ((0, more), (0, 0)))
  return table.at[jnp.array(added)].set(mean.astype(table.dtype)[None])
