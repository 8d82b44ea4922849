"""A model that a harness asks: conversations in, texts or likelihoods out."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mmrl import config as config_lib
from mmrl import hub, json_files, storage
from mmrl.errors import UserError, nearest
from mmrl.models import policy
from mmrl.probes.scores import Scorer
from mmrl.strategies.ask import Ask, Reply, Request
from mmrl.strategies.responders.local import local_model
from mmrl.train import models as models_lib
from mmrl.types import Prompt, PyTree

# Padded sizes, so that pictures and texts of many sizes are few programs.
_STEPS = sorted({int(2**k * x) for k in range(12) for x in (1, 1.5)})
_LENGTHS = tuple(32 * step for step in _STEPS)
_PATCHES = tuple(64 * step for step in _STEPS)
_CONTINUATION = 16  # tokens that continuations are padded to multiples of
# What models are set up with: as of `config.models.policy`.
_PICTURES = ("max_pixels", "side")
_VIDEO = ("fps", "frames", "max_frames")


class AskedModel:
  """A checkpoint, or the model of a run, with its settings of pictures."""

  def __init__(
    self,
    path: str,
    *,
    dtype: str = "float32",
    batch: int = 16,
    adapter: str = "",
    **settings: Any,
  ):
    """Loads a model.

    Args:
      path: directory in the Hugging Face layout, a hub id, or the working
        directory of a finished run, whose settings of pictures and videos are
        then used.
      dtype: float32 or bfloat16, of weights and products.
      batch: questions that are answered together.
      adapter: directory of a LoRA adapter; none if empty.
      **settings: max_pixels, side, fps, frames and max_frames, as of
        `config.models.policy`; 0 is the model's own.

    Raises:
      UserError: naming what is wrong.
    """
    known = (*_PICTURES, *_VIDEO)
    for name, value in settings.items():
      if name not in known:
        raise UserError(
          f"expected settings among {', '.join(known)}, found {name!r}"
          f"{nearest(name, known)}"
        )
      if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{name}: expected a number, found {value!r:.80}")
    if type(batch) is not int or batch < 1:
      raise UserError(
        f"expected a batch of at least 1 question, found {batch!r:.80}"
      )
    config, path = _config(str(path), dtype)
    for name, value in settings.items():
      table = config.models.policy
      if name in _VIDEO:
        table = table.video
      if value:
        table[name] = type(table[name])(value)
    models_lib.check_types(config.models.policy, "config.models.policy")
    model = hub.load(path, dtype=dtype, adapter=adapter or None)
    architecture = dataclasses.replace(model.config, dtype=dtype)
    processor = models_lib.with_budget(config, model.processor)
    processor = dataclasses.replace(processor, config=architecture)
    self._model = hub.Model(architecture, model.params, processor)
    self._batch = batch
    self._local = local_model(
      self._model,
      length=128,
      batch=batch,
      lengths=_LENGTHS,
      patches=_PATCHES,
    )

  def answers(
    self,
    conversations: Sequence[Sequence[dict]],
    names: Sequence[str],
    options: Sequence[Mapping[str, Any]],
  ) -> list[Reply]:
    """Answers conversations, in order.

    Args:
      conversations: see `Processor.__call__`.
      names: of each, for errors, and for the random numbers of sampling.
      options: of each: length, temperature, top_k and top_p.

    Raises:
      UserError: if a picture or video can't be read.
    """
    found: list[Reply] = []
    requests = [
      Request(name, Ask("policy", messages, chosen))
      for name, messages, chosen in zip(
        names, conversations, options, strict=True
      )
    ]
    for start in range(0, len(requests), self._local.in_flight):
      for reply in self._local(requests[start : start + self._local.in_flight]):
        if isinstance(reply, Exception):
          raise reply
        found.append(reply)
    return found

  def likelihoods(
    self,
    conversations: Sequence[Sequence[dict]],
    continuations: Sequence[str],
    names: Sequence[str],
  ) -> list[tuple[float, bool]]:
    """Scores given continuations of conversations, in order.

    Args:
      conversations: see `Processor.__call__`.
      continuations: beginnings of the model's answer; no end is added.
      names: of each, for errors.

    Returns:
      Of each the sum of its tokens' log-probabilities, nats, and whether greedy
      decoding writes it.

    Raises:
      UserError: if a continuation has no token, or a picture can't be read.
    """
    processor = self._model.processor
    found: list[tuple[float, bool] | None] = [None] * len(names)
    groups: dict[Any, list[tuple[int, Prompt, list[int]]]] = {}
    for place, (messages, text, name) in enumerate(
      zip(conversations, continuations, names, strict=True)
    ):
      ids = processor.tokenizer.encode(text, add_special_tokens=False)
      if not ids:
        raise UserError(f"{name}: expected a continuation, found an empty one")
      encoded = processor.encode(messages, name)
      prompt = processor.collate([encoded], lengths=_LENGTHS, patches=_PATCHES)
      room = -(-len(ids) // _CONTINUATION) * _CONTINUATION
      shapes = tuple(leaf.shape for leaf in jax.tree.leaves(prompt))
      groups.setdefault((room, shapes), []).append((place, prompt, ids))
    for (room, _), group in groups.items():
      for start in range(0, len(group), self._batch):
        rows = group[start : start + self._batch]
        rest = [rows[-1]] * (self._batch - len(rows))
        for (place, *_), one in zip(
          rows, self._scored([*rows, *rest], room), strict=False
        ):
          found[place] = one
    return [one for one in found if one is not None]

  def _scored(
    self, rows: Sequence[tuple[int, Prompt, list[int]]], room: int
  ) -> list[tuple[float, bool]]:
    """Scores continuations of prompts of one shape."""
    _, prompts, ids = zip(*rows, strict=True)
    tokens = np.zeros((len(rows), 1, room), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, own in enumerate(ids):
      tokens[row, 0, : len(own)] = own
      mask[row, 0, : len(own)] = True
    prompt = jax.tree.map(lambda *x: np.concatenate(x), *prompts)
    model = self._model
    logprobs, greedy = map(
      np.asarray, _likelihoods(model.params, model.config, prompt, tokens)
    )
    sums = np.where(mask, logprobs, 0.0).sum((1, 2), dtype=np.float64)
    same = np.all(greedy | ~mask, axis=(1, 2)).tolist()
    return [(float(x), bool(y)) for x, y in zip(sums, same, strict=True)]


@functools.partial(jax.jit, static_argnames="config")
def _likelihoods(params: PyTree, config: Any, prompt: Prompt, tokens: Any):
  """Returns log-probabilities, and which tokens are the most probable ones."""
  scorer = Scorer(config, temperature=1.0, layers=(), row="self")
  prefix = scorer.prefill(params, prompt, None)
  scores = scorer(params, prefix, tokens)
  assert scores.logits is not None
  logits = policy.token_logits(params, config, scores.logits.hidden, 1.0)
  return scores.logprobs, jnp.argmax(logits, -1) == tokens


def _config(path: str, dtype: str) -> tuple[ml_collections.ConfigDict, str]:
  """Returns a config with a model's settings, and where the model is."""
  config = config_lib.get_config()
  raw = {}
  if storage.is_place(path):
    raw = json_files.optional(storage.path(path) / "config.json")
  # That of a run, not of a model.
  if "rollout" in raw and "models" in raw:
    model = storage.path(path) / "model"
    if not (model / "config.json").exists():
      raise UserError(
        f"expected a trained model at {model}, found none; let python -m"
        " mmrl.train finish with this --workdir first"
      )
    path = str(model)
    own = raw["models"]["policy"]
    for name in _PICTURES:
      config.models.policy[name] = own.get(name, 0)
    for name, value in own.get("video", {}).items():
      config.models.policy.video[name] = value
  config.models.policy.path, config.models.policy.dtype = path, dtype
  config.models.policy.param_dtype = dtype
  return config, path


def conversation(
  text: str, shown: Sequence[dict], system: str = ""
) -> list[dict]:
  """Makes one turn of the user: what is shown, then the text.

  Where the text has as many marks `<image>` as pictures are shown, and nothing
  else is, they stand at the marks.

  Args:
    text: of the user.
    shown: message parts.
    system: message of the system; none if empty.
  """
  parts: list[dict] = [*shown, {"type": "text", "text": text}]
  pieces = text.split("<image>")
  pictures = all(part["type"] == "image" for part in shown)
  if shown and pictures and len(pieces) == len(shown) + 1:
    parts = []
    for piece, part in zip(pieces, [*shown, None], strict=True):
      parts += [{"type": "text", "text": piece}] if piece else []
      parts += [part] if part else []
  found = [{"role": "system", "content": system}] if system else []
  return [*found, {"role": "user", "content": parts}]


def decoding(options: Mapping[str, Any], name: str) -> dict[str, Any]:
  """Translates options of Transformers' `generate` to those of a request.

  Args:
    options: max_new_tokens, do_sample, temperature, top_p, top_k, num_beams.
    name: of the question, for errors.

  Raises:
    UserError: if there is another one, or beams.
  """
  known = (
    *("max_new_tokens", "do_sample", "temperature", "top_p", "top_k"),
    "num_beams",
  )
  for key in options:
    if key not in known:
      raise UserError(
        f"{name}: expected options of decoding among {', '.join(known)}, found"
        f" {key!r}{nearest(key, known)}; leave it out"
      )
  if options.get("num_beams") not in (None, 1):
    raise UserError(
      f"{name}: expected num_beams 1, found {options['num_beams']}: beams"
      " aren't searched here"
    )
  temperature = options.get("temperature")
  sampled = options.get("do_sample", bool(temperature))
  temperature = 1.0 if temperature is None else temperature
  found: dict[str, Any] = {"temperature": temperature if sampled else 0.0}
  for key, own in (
    ("max_new_tokens", "length"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
  ):
    # Without sampling the others say nothing.
    if options.get(key) is not None and (sampled or own == "length"):
      found[own] = options[key]
  return found


def cut(text: str, until: Sequence[str]) -> str:
  """Cuts a text before the first of some strings."""
  for end in until:
    text = text.split(end, 1)[0] if end else text
  return text
