"""Continuous batching: a stream of prompts is answered in a few lanes.

A lane holds one prompt and its answer. When an answer ends, the next prompt is
prefilled in a bucket of its own and takes the lane, while the others go on: no
lane waits for the longest answer (Orca, OSDI 2022). A prompt is read when there
is a lane for it, and no sooner.

An answer's random numbers come from a key of its own: it is that of
`sampler.rollout` with this key, whatever its lane and what is beside it. It is
for one device, and models that attend to all keys; see `pays`.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
import dataclasses
from typing import Any

import jax
from jaxtyping import Bool, Int
import numpy as np

from mmrl.errors import UserError
from mmrl.models import decoding
from mmrl.models.config import ModelConfig
from mmrl.rollouts import decode_loop
from mmrl.rollouts.continuous import lanes as lanes_lib
from mmrl.rollouts.continuous.lanes import Way
from mmrl.types import Prefix, Prompt, PyTree

# A longer prompt makes room for one that is longer still by this factor.
_GROWTH = 1.5


@dataclasses.dataclass(frozen=True)
class Decoded:
  """An answer, and the prompt it is to.

  Attributes:
    number: of the prompt in the stream.
    prompt: the prompt.
    prefixes: of each model.
    tokens, mask: [1, 1, R] of the answer, NumPy.
    records: what `Way.draw` returns with each token, likewise.
    steps: how many lanes were decoded so far, over all tokens.
  """

  number: int
  prompt: Prompt
  prefixes: tuple[Prefix, ...]
  tokens: Int[np.ndarray, "1 1 R"]
  mask: Bool[np.ndarray, "1 1 R"]
  records: Any
  steps: int


def pays(
  config: ModelConfig, devices: int, *, prompts: int, lanes: int, length: int
) -> bool:
  """Tells whether prompts are better answered in lanes than in batches.

  Not where there is nothing to take a lane's place, or answers are short; nor
  on several devices, and with sparse attention, which have no lanes.
  """
  possible = config.sparse is None and devices == 1
  return possible and prompts > lanes and decode_loop.narrows(length)


def answers(
  params: tuple[PyTree, ...],
  config: ModelConfig,
  way: Way,
  requests: Iterable[tuple[Prompt, Any]],
  *,
  lanes: int,
  length: int,
  attention_layers: tuple[int, ...] = (),
) -> Iterator[Decoded]:
  """Yields the answer to each prompt of a stream, as soon as it has ended.

  Programs are compiled for each number of lanes, bucket of prompts, longest
  bucket so far and room of the ring, when one is first needed.

  Args:
    params: of each model that `way` draws from.
    config: their architecture.
    way: how a token is drawn.
    requests: prompts of one conversation each (P = 1), and their PRNG keys, or
      what `way.numbers` takes. The next is read once there is a lane for it.
    lanes: answers that are decoded together; fewer once no prompt is left.
    length: R, the most tokens of an answer, its end included.
    attention_layers: see `vlm.prefill`.

  Raises:
    UserError: if there is no lane, attention is sparse, or a prompt is a batch.
  """
  if lanes < 1 or length < 1:
    raise UserError(
      f"expected lanes and length of at least 1, found {lanes} and {length}"
    )
  if config.sparse is not None:
    raise UserError(
      "expected a model that attends to all keys, found sparse attention; use"
      " sampler.rollout"
    )
  params = _on_its_device(params)
  stream = _Stream(params, config, way, lanes, length)
  waiting = enumerate(requests)
  busy: dict[int, tuple[int, Prompt, tuple[Prefix, ...]]] = {}
  while True:
    free = [lane for lane in range(stream.count) if lane not in busy]
    for lane, (number, (prompt, key)) in zip(free, waiting, strict=False):
      if len(prompt.mask) != 1:
        raise UserError(
          f"prompt {number}: expected one conversation, found"
          f" {len(prompt.mask)}; pass them one after the other"
        )
      prefixes = lanes_lib.prefill(params, config, prompt, attention_layers)
      stream.admit(lane, prefixes, key)
      busy[lane] = number, prompt, prefixes
    if not busy:
      return
    if len(busy) < stream.count:  # no prompt is left
      kept = stream.narrow([*busy])
      busy = dict(zip(kept, busy.values(), strict=True))
    for lane in stream.run(busy):
      yield Decoded(*busy.pop(lane), *stream.answer(lane), stream.steps)


def _on_its_device(params: PyTree) -> PyTree:
  """Takes parameters off a mesh of one device, on which they stay.

  All that is computed of them would otherwise be compiled for either.
  """
  first = jax.tree.leaves(params)[0]
  if not isinstance(first, jax.Array):
    return params
  (device,) = first.devices()
  return jax.device_put(params, device)


class _Stream:
  """The lanes of a stream, on the device.

  Attributes:
    count: number of lanes.
    steps: how many lanes were decoded so far, over all tokens.
  """

  def __init__(self, params, config, way, lanes: int, length: int):
    """Takes the arguments of `answers`."""
    self._params, self._config, self._way = params, config, way
    self._length, self._widths = length, decode_loop.widths(lanes, length)
    self.count, self.steps = lanes, 0
    self._lanes: Any = None

  def admit(self, lane: int, prefixes: tuple[Prefix, ...], key: Any) -> None:
    """Begins the answer to a prompt, in a lane that is free."""
    size = prefixes[0].mask.shape[1]
    if self._lanes is None:
      self._weights, self._lanes = lanes_lib.open_lanes(
        self._params,
        self._config,
        self._way,
        key,
        self.count,
        size,
        self._length,
      )
    old = self._lanes.decoders[0].prefix.mask.shape[1]
    if size > old:
      size = max(size, int(_GROWTH * old))
      decoders = lanes_lib.widen(self._lanes.decoders, size)
      self._lanes = dataclasses.replace(self._lanes, decoders=decoders)
    self._lanes = lanes_lib.admit(
      self._weights, self._lanes, self._config, self._way, prefixes, key, lane
    )

  def narrow(self, busy: Sequence[int]) -> Sequence[int]:
    """Leaves out free lanes, if that is worth it; returns the busy ones."""
    width = min(width for width in self._widths if width >= len(busy))
    if width == self.count:
      return busy
    kept = [*busy, *({*range(self.count)} - {*busy})][:width]
    self._lanes = lanes_lib.keep(self._lanes, np.array(kept))
    self.count = width
    return range(len(busy))

  def run(self, busy: Collection[int]) -> list[int]:
    """Decodes until a busy lane's answer has ended; returns all such lanes."""
    under_way = np.isin(np.arange(self.count), [*busy])
    while True:
      self._lanes, numbers = lanes_lib.run(
        self._weights, self._lanes, self._config, self._way, under_way
      )
      done, longest, steps = jax.device_get(numbers)
      self.steps += int(steps) * self.count
      self._fit(int(longest))
      ended = [lane for lane in busy if done[lane]]
      if ended:
        return ended

  def _fit(self, longest: int) -> None:
    """Gives the ring the next room that is larger or smaller, if need be."""
    rooms = decode_loop.rooms(self._length)
    at = rooms.index(decoding.capacity(self._lanes.state.caches[0]))
    if longest >= rooms[at] and at + 1 < len(rooms):
      at += 1
    elif at and 2 * longest < rooms[at - 1]:
      at -= 1
    else:
      return
    state = self._lanes.state
    caches = lanes_lib.resize(state.caches, rooms[at])
    state = dataclasses.replace(state, caches=caches)
    self._lanes = dataclasses.replace(self._lanes, state=state)

  def answer(self, lane: int) -> tuple[np.ndarray, np.ndarray, Any]:
    """Returns tokens, mask and records of an answer that has ended."""
    return jax.device_get(
      lanes_lib.taken(self._config, self._lanes.state, lane)
    )
