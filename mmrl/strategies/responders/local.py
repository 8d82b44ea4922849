"""Models on this machine that answer requests, with the library's sampler."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
from typing import Any
import zlib

import jax
import numpy as np

from mmrl import hub
from mmrl.errors import UserError
from mmrl.machines.sharding import Layout
from mmrl.models.config import ModelConfig
from mmrl.prompts.processor import Processor
from mmrl.rollouts import continuous, sampler
from mmrl.rollouts.continuous.lanes import Way
from mmrl.strategies.ask import Reply, Request
from mmrl.types import Prompt, PyTree

# Tokens and mask [P, 1, R], and arrays [P, 1, R] by name, whose sums over an
# answer become its notes.
Decoded = tuple[Any, Any, Mapping[str, Any]]
# (prompts of one conversation, their keys, most of them together, options) ->
# the number of each and what is decoded, in any order.
Decode = Callable[..., Iterator[tuple[int, Decoded]]]


class Local:
  """Answers requests by decoding; made by `local_model` or `local_pair`.

  A request is padded to buckets of its own, and draws its random numbers from
  the seed and its name: its reply doesn't depend on what is asked beside it.
  Requests of the same options are decoded together, `batch` at a time: see
  `in_lanes` and `in_batches`.

  Attributes:
    in_flight: most requests of a call.
  """

  def __init__(
    self,
    processor: Processor,
    decode: Decode,
    options: Mapping[str, Any],
    check: Callable[[Mapping[str, Any]], None],
    *,
    seed: int = 0,
    batch: int = 16,
    in_flight: int | None = None,
    lengths: Sequence[int] = (),
    patches: Sequence[int] = (),
  ):
    """Takes what decodes.

    Args:
      processor: of the model.
      decode: decodes prompts.
      options: all keywords of `decode`; a request's own replace them.
      check: refuses options that are out of range.
      seed: of sampling.
      batch: prompts that are decoded together.
      in_flight: most requests of a call; four batches if None. Of many, more
        take the place of answers that have ended.
      lengths: buckets of a prompt's tokens; see `Processor.__call__`.
      patches: buckets of a prompt's patches.

    Raises:
      UserError: if a number is out of range.
    """
    if batch < 1:
      raise UserError(f"expected batch of at least 1, found {batch}")
    self.in_flight = 4 * batch if in_flight is None else in_flight
    self._processor, self._decode = processor, decode
    self._seed, self._batch = seed, batch
    self._options, self._check = dict(options), check
    self._buckets = {"lengths": lengths, "patches": patches}
    check(self._options)

  def __call__(self, requests: Sequence[Request]) -> list[Reply | Exception]:
    """Answers requests; see `Responder`."""
    found: list[Reply | Exception | None] = [None] * len(requests)
    groups: dict[Any, list[tuple[int, Prompt]]] = {}
    known: dict[int, Prompt] = {}  # asked again, for another answer
    for place, request in enumerate(requests):
      try:
        options = self._merged(request.ask.options)
        messages = id(request.ask.messages)
        if messages not in known:
          known[messages] = self._encode(request)
        groups.setdefault(options, []).append((place, known[messages]))
      except Exception as error:  # of this request, whatever it is
        found[place] = error
    for options, group in groups.items():
      places, prompts = zip(*group, strict=True)
      keys = _keys(self._seed, [requests[place].name for place in places])
      for number, decoded in self._decode(
        prompts, keys, self._batch, **dict(options)
      ):
        found[places[number]] = self._reply(prompts[number], *decoded)
    return [one for one in found if one is not None]

  def _merged(self, options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    unknown = sorted(set(options) - set(self._options))
    if unknown:
      raise UserError(
        f"expected options among {', '.join(sorted(self._options))}, found"
        f" {', '.join(unknown)}; leave it out"
      )
    merged = self._options | dict(options)
    self._check(merged)
    return tuple(sorted(merged.items()))

  def _encode(self, request: Request) -> Prompt:
    encoded = self._processor.encode(request.ask.messages, request.name)
    return self._processor.collate([encoded], **self._buckets)

  def _reply(self, prompt: Prompt, tokens, mask, notes) -> Reply:
    """Makes a reply of the answer to one prompt."""
    (text,) = self._processor.decode(tokens, mask)
    ended = mask & self._processor.config.ends(tokens)
    return Reply(
      text=text,
      prompt_tokens=int(prompt.mask.sum()),
      completion_tokens=int(mask.sum()),
      ended=bool(ended.any()),
      notes={name: x.sum().item() for name, x in notes.items()},
    )


def in_lanes(
  params: tuple[PyTree, ...],
  config: ModelConfig,
  way: Callable[..., Way],
  names: Sequence[str],
  otherwise: Decode,
  devices: int = 1,
) -> Decode:
  """Decodes in lanes, where that pays; see `mmrl.rollouts.continuous`.

  Args:
    params: of each model.
    config: their architecture.
    way: of options but the length, to how tokens are drawn.
    names: of what it records of each token.
    otherwise: decodes where lanes don't pay, to the same answers.
    devices: that hold the parameters.
  """

  def decode(prompts, keys, batch, *, length, **options):
    size = {"lanes": batch, "length": length}
    if not continuous.pays(config, devices, prompts=len(prompts), **size):
      yield from otherwise(prompts, keys, batch, length=length, **options)
      return
    for one in continuous.answers(
      params,
      config,
      way(**options),
      zip(prompts, keys, strict=True),
      **size,
    ):
      records = dict(zip(names, jax.tree.leaves(one.records), strict=False))
      yield one.number, (one.tokens, one.mask, records)

  return decode


def in_batches(run: Callable[..., Decoded]) -> Decode:
  """Decodes prompts of one shape together, in calls of one compiled program.

  Args:
    run: of a batch of prompts, keys and options. Copies of the last prompt fill
      a batch up: fewer cost as much as a batch.
  """

  def decode(prompts, keys, batch, **options):
    groups: dict[Any, list[int]] = {}
    for number, prompt in enumerate(prompts):
      shapes = tuple(leaf.shape for leaf in jax.tree.leaves(prompt))
      groups.setdefault(shapes, []).append(number)
    for group in groups.values():
      for start in range(0, len(group), batch):
        numbers = group[start : start + batch]
        # They end when the last one does.
        filled = numbers + numbers[-1:] * (batch - len(numbers))
        together = [prompts[number] for number in filled]
        prompt = jax.tree.map(lambda *rows: np.concatenate(rows), *together)
        decoded = run(prompt, keys[np.array(filled)], **options)
        decoded = jax.device_get(decoded)
        for row, number in enumerate(numbers):
          yield number, jax.tree.map(lambda x: x[row : row + 1], decoded)  # noqa: B023

  return decode


def _keys(seed: int, names: Sequence[str]) -> jax.Array:
  """Makes a PRNG key for each request, from its name alone."""
  numbers = np.array([zlib.crc32(name.encode()) for name in names], np.uint32)
  return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)


def check_sampling(options: Mapping[str, Any]) -> None:
  """Checks the options that all decoding has.

  Raises:
    UserError: if one is out of range.
  """
  for name, least in {"length": 1, "temperature": 0}.items():
    if not options[name] >= least:
      raise UserError(
        f"expected {name} of at least {least}, found {options[name]}"
      )
  if not 0 < options["top_p"] <= 1:
    raise UserError(
      f"expected top_p above 0 and at most 1, found {options['top_p']}"
    )


def local_model(
  model: hub.Model,
  *,
  length: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  layout: Layout | None = None,
  **batching,
) -> Local:
  """Makes a model answer requests by sampling, as `sampler.rollout` does.

  The options of decoding are those that a request may set for itself.

  Args:
    model: the model.
    length: most tokens of a reply, its end included.
    temperature: 0 is greedy.
    top_k: see `sampling.sample`.
    top_p: see `sampling.sample`.
    layout: of the parameters, where they are sharded; prompts are then, too.
    **batching: seed, batch, in_flight, lengths and patches; see `Local`.

  Raises:
    UserError: if a number is out of range.
  """
  options = {
    "length": length,
    "temperature": temperature,
    "top_k": top_k,
    "top_p": top_p,
  }

  def run(prompt, keys, **options):
    prompt = layout.put(prompt) if layout else prompt
    return _sample(model.params, model.config, prompt, keys, **options)

  decode = in_lanes(
    (model.params,),
    model.config,
    sampler.Sampling,
    (),
    in_batches(run),
    layout.mesh.size if layout else 1,
  )
  return Local(model.processor, decode, options, check_sampling, **batching)


@functools.partial(
  jax.jit,
  static_argnames=("config", "length", "temperature", "top_k", "top_p"),
)
def _sample(params, config, prompt, keys, **options):
  found = sampler.rollout(params, config, prompt, keys, answers=1, **options)
  return found.tokens, found.mask, {}
