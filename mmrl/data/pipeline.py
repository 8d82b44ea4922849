"""Deterministic batches of encoded questions, with a position to save."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from typing import Any

from absl import flags
import grain
import jax
from jaxtyping import Int
import numpy as np

from mmrl.data.example import Example
from mmrl.errors import UserError
from mmrl.prompts.packing import Encoded
from mmrl.prompts.processor import Processor
from mmrl.types import Prompt

# Bytes of an array that crosses processes without being copied.
_SMALL = 2**16


@dataclasses.dataclass(frozen=True)
class Samples:
  """A batch of questions on the host.

  Attributes:
    examples: the questions.
    prompt: their padded prompts, NumPy.
    shrunk: pictures that the pixel budget made smaller.
    grids: frames, rows and columns of visual tokens of each question's first
      picture or video; None where it has none.
  """

  examples: Sequence[Example]
  prompt: Prompt
  shrunk: int
  grids: Sequence[tuple[int, int, int] | None]


def encode(
  example: Example, processor: Processor, answer_length: int
) -> tuple[Example, Encoded]:
  """Encodes one example to its tokens and patches.

  Returns:
    (example with the sizes of its pictures, tokens and patches).

  Raises:
    UserError: if none of its right answers has at most `answer_length` tokens:
      no sampled answer could be right.
  """
  long = []
  for right in example.right:
    try:
      processor.encode_answer(right, answer_length, example.name)
    except UserError as error:
      long.append(error)
  if example.right and len(long) == len(example.right):
    raise long[0]
  encoded = processor.encode(example.messages, example.name)
  side = processor.config.vision.patch_size
  shown = [
    (side * cut.grid[2], side * cut.grid[1])
    for cut in encoded.cuts
    if cut.kind == "image"
  ]
  return dataclasses.replace(example, shown=tuple(shown)), encoded


def collate(
  rows: Sequence[tuple[Example, Encoded]],
  processor: Processor,
  *,
  lengths: Sequence[int],
  patches: Sequence[int],
  pack: int,
) -> Samples:
  """Pads encoded examples to one batch; see `Processor.__call__`.

  Args:
    rows: examples.
    processor: the model's.
    lengths: buckets of S.
    patches: buckets of M per prompt.
    pack: prompts whose pictures are packed together.
  """
  examples, encoded = zip(*rows, strict=True)
  prompt = processor.collate(
    encoded, lengths=lengths, patches=patches, rows=len(rows) // pack
  )
  grids = [
    e.cuts[0].cells(processor.config.vision) if e.cuts else None
    for e in encoded
  ]
  return Samples(examples, prompt, sum(e.shrunk for e in encoded), grids)


def take(
  indices: Sequence[int] | Int[np.ndarray, "P"],
  source: Any,
  processor: Processor,
  *,
  answer_length: int,
  together: int = 1,
  lengths: Sequence[int] = (),
  patches: Sequence[int] = (),
  pack: int = 1,
) -> Samples:
  """Encodes chosen examples of a source and pads them to one batch.

  Args:
    indices: of the examples.
    source: random-access examples.
    processor: the model's.
    answer_length: R, which a right answer must fit.
    together: prompts of each example: 1, or 2, it and its twin after it.
    lengths: buckets of S.
    patches: buckets of M per prompt.
    pack: prompts whose pictures are packed together; divides their number.
  """
  asked: list[Example] = []
  for index in indices:
    # Batches count on through the passes over the data.
    epoch, own = divmod(int(index), len(source))
    example = dataclasses.replace(source[own], epoch=epoch + 1)
    asked += [example, example.twin()][:together]
  rows = [encode(example, processor, answer_length) for example in asked]
  return collate(rows, processor, lengths=lengths, patches=patches, pack=pack)


def batches(
  source: Any,
  processor: Processor,
  *,
  batch_size: int,
  seed: int,
  threads: int = 2,
  workers: int = 0,
  places: Sequence[int] | Int[np.ndarray, "local"] | None = None,
  together: int = 1,
  **sizes,
) -> grain.DatasetIterator:
  """Iterates over endless shuffled batches; each epoch has its own order.

  The iterator's `get_state` returns the position after the batches that it has
  returned, not after those read ahead; `set_state` resumes there. A position is
  only valid for its number of workers; the batches don't depend on it.
  `start_prefetch` reads before the first batch is asked for, `close` ends the
  workers.

  Args:
    source: random-access examples.
    processor: the model's.
    batch_size: P, prompts of all processes.
    seed: of the order.
    threads: that read, decode and cut pictures ahead, in each process.
    workers: processes that do, beside this one; with 0 this one does. Scripts
      that ask for some are guarded by `if __name__ == "__main__"`.
    places: which prompts of each batch are read here, in this order; other
      processes read the others. All if None. The position is that of the
      whole, the same on every process.
    together: prompts of each question, which are neighbours; see `take`.
    **sizes: see `take`.

  Raises:
    UserError: if the source has fewer examples than a batch, a number is
      negative, or places separate prompts of one question.
  """
  if min(threads, workers) < 0:
    raise UserError(
      f"expected at least 0 threads and workers, found {threads} and {workers}"
    )
  if places is None:
    places = range(batch_size)
  batch_size //= together
  if len(source) < batch_size:
    raise UserError(
      f"expected at least one batch of {batch_size} questions, found"
      f" {len(source)}; lower the batch size or add data"
    )
  function = functools.partial(
    take, source=source, processor=processor, together=together, **sizes
  )
  places = _places_of_questions(np.asarray(places), together)
  dataset = (
    grain.MapDataset.range(len(source))
    .seed(seed)
    .shuffle()
    .repeat()
    .map_with_index(functools.partial(_count_on, len(source)))
    .batch(batch_size, drop_remainder=True)
    .map(functools.partial(np.take, indices=places))
  )
  return _read_ahead(dataset, function, threads, workers, buffer=2)


def each(
  indices: Sequence[int],
  function: Callable[[int], Any],
  *,
  threads: int,
  workers: int,
) -> grain.DatasetIterator:
  """Iterates over what a function makes of each index, once, in order.

  Args:
    indices: at least one.
    function: pickled if there are workers.
    threads, workers: see `batches`.
  """
  dataset = grain.MapDataset.source(indices)
  return _read_ahead(dataset, function, threads, workers, buffer=4 * threads)


def _read_ahead(
  dataset: grain.MapDataset,
  function: Callable,
  threads: int,
  workers: int,
  *,
  buffer: int,
) -> grain.DatasetIterator:
  """Maps a function over a dataset, in threads, or in those of workers.

  Args:
    dataset: what the function takes.
    function: to map.
    threads, workers: see `batches`.
    buffer: results that each process holds ready.
  """
  dataset = dataset.map(
    functools.partial(_in_worker, function) if workers else function
  )
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
  dataset = dataset.to_iter_dataset(options)
  if workers:
    # Grain reads its flags, which nobody has parsed in a notebook.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers), _start_worker
    ).map(_unpack)
  iterator = iter(dataset)
  iterator.get_state()  # makes the workers that `start_prefetch` starts
  return iterator


def _count_on(size: int, position: int, index: int) -> int:
  """Returns the index of an example plus those of the passes before."""
  return position // size * size + int(index)


def _places_of_questions(
  places: Int[np.ndarray, "prompts"], together: int
) -> Int[np.ndarray, "questions"]:
  """Returns the places of questions whose prompts are neighbours.

  Raises:
    UserError: if some prompts of a question aren't among the places.
  """
  apart = places % together != np.arange(len(places)) % together
  if len(places) % together or apart.any():
    raise UserError(
      f"expected the {together} prompts of a question in one minibatch on one"
      " device, found them apart; make config.rollout.prompts /"
      " (train.minibatches x shards of the mesh) a multiple of"
      f" {together}"
    )
  return places[::together] // together


def _start_worker(index: int, count: int) -> None:
  """Keeps a worker off the accelerator, and from outliving a killed run."""
  del index, count
  jax.config.update("jax_platforms", "cpu")
  # Ctrl-C reaches workers, too; the run ends them when its step is done.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def end_with_parent() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _in_worker(function: Callable, *arguments) -> list[np.ndarray]:
  """Runs `function` in a worker and packs its result into arrays of bytes.

  Grain sends arrays in shared memory and all else through a pipe, and a worker
  can't end with more in it than a pipe holds: so everything becomes bytes in
  arrays. Grain waits for ever for an exception that can't be pickled: so what
  isn't a user's mistake becomes the text of its traceback.
  """
  try:
    result = function(*arguments)
  except UserError:
    raise
  except Exception as error:
    raise RuntimeError(traceback.format_exc()) from error
  large: list[memoryview] = []

  def keep(buffer: pickle.PickleBuffer) -> bool:
    raw = buffer.raw()
    if raw.nbytes < _SMALL:
      return True
    large.append(raw)
    return False

  body = memoryview(pickle.dumps(result, protocol=5, buffer_callback=keep))
  return [np.frombuffer(x, np.uint8) for x in (body, *large)]


def _unpack(arrays: Sequence[np.ndarray]) -> Any:
  """Unpacks what `_in_worker` has packed; large arrays aren't copied."""
  body, *large = arrays
  return pickle.loads(body.data, buffers=large)


def in_order(
  source: Any,
  processor: Processor,
  *,
  indices: Sequence[int],
  batch_size: int,
  rows: int = 1,
  **sizes,
) -> Iterator[tuple[Samples, int]]:
  """Yields batches of chosen examples, once, in order, for evaluation.

  The last batch is filled up with its last example. The pictures of a batch
  are packed in `rows` rows. For `sizes` see `take`.

  Yields:
    (samples, how many of them count).
  """
  for start in range(0, len(indices), batch_size):
    chosen = list(indices[start : start + batch_size])
    count = len(chosen)
    chosen += chosen[-1:] * (batch_size - count)
    yield (
      take(chosen, source, processor, pack=batch_size // rows, **sizes),
      count,
    )


def spread(total: int, count: int) -> list[int]:
  """Returns `count` indices, at most `total`, spread evenly over `total`."""
  count = min(total, count)
  return [i * total // count for i in range(count)]
