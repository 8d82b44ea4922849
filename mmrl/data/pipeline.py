"""Deterministic batches of encoded questions, with a position to save."""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

import grain

from mmrl.data.sources import Example
from mmrl.errors import UserError
from mmrl.models.packing import Encoded
from mmrl.models.processor import Processor
from mmrl.types import Prompt


@dataclasses.dataclass(frozen=True)
class Samples:
  """A batch of questions on the host.

  Attributes:
    examples: the questions.
    prompt: their padded prompts, NumPy.
    shrunk: pictures that the pixel budget made smaller.
    grids: rows and columns of visual tokens of each question's first picture;
      None where it has none or begins with a video.
  """

  examples: Sequence[Example]
  prompt: Prompt
  shrunk: int
  grids: Sequence[tuple[int, int] | None]


def encode(
  example: Example, processor: Processor, answer_length: int
) -> tuple[Example, Encoded]:
  """One example with its tokens and patches.

  Raises:
    UserError: if its answer alone has more than `answer_length` tokens: no
      sampled answer could be right.
  """
  processor.encode_answer(example.answer, answer_length, example.name)
  return example, processor.encode(example.messages, example.name)


def collate(
  rows: Sequence[tuple[Example, Encoded]],
  processor: Processor,
  *,
  lengths: Sequence[int],
  patches: Sequence[int],
  group: int,
) -> Samples:
  """Pads encoded examples to one batch; see `Processor.__call__`.

  Args:
    rows: examples.
    processor: the model's.
    lengths: buckets of S.
    patches: buckets of M per prompt.
    group: prompts whose pictures are packed together.
  """
  examples, encoded = zip(*rows, strict=True)
  prompt = processor.collate(
    encoded, lengths=lengths, patches=patches, rows=len(rows) // group
  )
  merge = processor.config.vision.spatial_merge_size
  grids = [
    (e.cuts[0].grid[1] // merge, e.cuts[0].grid[2] // merge)
    if e.cuts and e.cuts[0].kind == "image"
    else None
    for e in encoded
  ]
  return Samples(examples, prompt, sum(e.shrunk for e in encoded), grids)


def batches(
  source: Any,
  processor: Processor,
  *,
  batch_size: int,
  answer_length: int,
  seed: int,
  lengths: Sequence[int] = (),
  patches: Sequence[int] = (),
  group: int = 1,
  threads: int = 2,
) -> grain.DatasetIterator:
  """Endless shuffled batches; each epoch has its own order.

  The iterator's `get_state` is the position of what it has handed out, not
  of what its threads have read ahead, and `set_state` goes back to it.

  Args:
    source: random-access examples.
    processor: the model's.
    batch_size: P.
    answer_length: R, which a right answer must fit.
    seed: of the order.
    lengths: buckets of S.
    patches: buckets of M per prompt.
    group: prompts whose pictures are packed together; divides `batch_size`.
    threads: that read, decode and cut pictures ahead.

  Raises:
    UserError: if the source has fewer examples than a batch.
  """
  if len(source) < batch_size:
    raise UserError(
      f"expected at least one batch of {batch_size} questions, found"
      f" {len(source)}; lower the batch size or add data"
    )
  dataset = (
    grain.MapDataset.source(source)
    .seed(seed)
    .shuffle()
    .repeat()
    .map(lambda example: encode(example, processor, answer_length))
    .batch(
      batch_size,
      drop_remainder=True,
      batch_fn=lambda rows: collate(
        rows, processor, lengths=lengths, patches=patches, group=group
      ),
    )
  )
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2)
  return iter(dataset.to_iter_dataset(options))


def in_order(
  source: Any,
  processor: Processor,
  *,
  indices: Sequence[int],
  batch_size: int,
  answer_length: int,
  lengths: Sequence[int] = (),
  patches: Sequence[int] = (),
) -> Iterator[tuple[Samples, int]]:
  """Batches of chosen examples, once, in order, for evaluation.

  The last batch is filled up with its last example. The pictures of a whole
  batch are packed together.

  Yields:
    (samples, how many of them count).
  """
  for start in range(0, len(indices), batch_size):
    chosen = list(indices[start : start + batch_size])
    count = len(chosen)
    chosen += chosen[-1:] * (batch_size - count)
    rows = [encode(source[int(i)], processor, answer_length) for i in chosen]
    yield (
      collate(
        rows, processor, lengths=lengths, patches=patches, group=batch_size
      ),
      count,
    )
