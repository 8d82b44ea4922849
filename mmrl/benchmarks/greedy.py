"""Greedy answers to the questions of a benchmark, and where the model looks."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from mmrl import data, models
from mmrl.benchmarks.contract import Answer, Benchmark
from mmrl.machines.sharding import Layout
from mmrl.probes.evenness import visual_entropy
from mmrl.probes.region import region_share
from mmrl.probes.scores import Scorer
from mmrl.prompts.processor import Processor
from mmrl.rollouts import continuous, sampler
from mmrl.types import Prefix, Prompt, PyTree


@dataclasses.dataclass(frozen=True)
class Answered:
  """A question and the model's answer to it.

  Attributes:
    example: the question.
    answer: the answer.
    heat: attention on each visual token of the first picture or video, frames
      by rows by columns, mean over the answer's tokens; empty without either,
      or where it isn't asked for.
    looks: how it is shared out among visual tokens, NaN where that has no
      meaning: `region`, the share on the marked region; `region_uniform`, that
      share if it were the same on all; `border`, the share of the first
      picture's or video's on the outermost tokens of its frames; `entropy`, see
      `visual_entropy`.
  """

  example: data.Example
  answer: Answer
  heat: list[list[list[float]]]
  looks: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Answerer:
  """Programs that answer greedily, and tell where the model looks.

  Attributes:
    scorer: of the run.
    batch: of parameters and prompts, to tokens, mask, and what `look` returns.
    look: of parameters, prefix, prompts, tokens and mask, to attention on the
      prompt, [P, S], and numbers of it by name, [P].
  """

  scorer: Scorer
  batch: Callable
  look: Callable


def make_answer(scorer: Scorer, length: int, layout: Layout) -> Answerer:
  """Makes the jitted programs that answer with at most `length` tokens.

  Those of a batch are replicated on every process.
  """

  def look(params: PyTree, prefix: Prefix, prompt: Prompt, tokens, mask):
    scores = scorer(params, prefix, tokens)
    counts = mask[..., None]
    assert scores.attention is not None
    rows = models.attention_rows(scores.attention)
    heat = (rows * counts).sum((1, 2)) / counts.sum((1, 2))
    looks = {
      "region": region_share(rows, prompt, mask),
      "entropy": visual_entropy(rows, prompt, mask),
    }
    return heat, looks

  def answer(params: PyTree, prompt: Prompt):
    rollout = sampler.rollout(
      params,
      scorer.config,
      prompt,
      jax.random.key(0),
      attention_layers=scorer.layers,
      answers=1,
      length=length,
      temperature=0.0,
    )
    assert rollout.prefix is not None
    found = rollout.tokens, rollout.mask
    return *found, *look(params, rollout.prefix, prompt, *found)

  batch = layout.jit(answer, out_shardings=layout.everywhere)
  return Answerer(scorer, batch, jax.jit(look))


def ask(
  benchmark: Benchmark,
  answer: Answerer,
  params: PyTree,
  processor: Processor,
  layout: Layout,
  *,
  batch: int,
  length: int,
  drawn: Collection[int],
  lengths: Sequence[int],
  patches: Sequence[int],
) -> Iterator[Answered]:
  """Yields the greedy answer to every question of a benchmark, in order.

  Where answers are long, and more than a batch of them, a question takes the
  place of an answer that has ended: see `mmrl.rollouts.continuous`.

  Args:
    benchmark: the questions.
    answer: from `make_answer`.
    params: model parameters.
    processor: the model's.
    layout: of the run; every process reads all questions.
    batch: questions at a time, rounded up to a multiple of the shards.
    length: most tokens of an answer.
    drawn: indices of the questions whose heat is returned.
    lengths: buckets of S.
    patches: buckets of M per prompt.
  """
  total = len(benchmark)

  def read(size: int) -> Iterator[tuple[data.Samples, int]]:
    return data.in_order(
      benchmark,
      processor,
      indices=range(total),
      batch_size=size,
      rows=layout.most,
      answer_length=length,
      lengths=lengths,
      patches=patches,
    )

  devices = layout.mesh.size
  config = answer.scorer.config
  if continuous.pays(
    config, devices, prompts=total, lanes=batch, length=length
  ):
    found = _in_lanes(answer, params, read(1), lanes=batch, length=length)
  else:
    rounded = -(-batch // layout.most) * layout.most
    found = _in_batches(answer, params, read(rounded), layout)
  waiting: dict[int, Found] = {}
  asked = 0
  for one in found:
    waiting[one[0]] = one
    while asked in waiting:
      _, samples, row, outputs = waiting.pop(asked)
      yield _answered(processor, samples, row, outputs, asked in drawn)
      asked += 1


# The number of a question, its samples and row there; tokens, mask, attention
# and numbers of it, [1, ...], of that row.
Found = tuple[int, data.Samples, int, Sequence[Any]]


def _in_batches(
  answer: Answerer, params: PyTree, batches: Iterable, layout: Layout
) -> Iterator[Found]:
  """Answers questions in batches, in order."""
  asked = 0
  for samples, count in batches:
    outputs = answer.batch(params, layout.put_whole(samples.prompt))
    arrays = jax.tree.map(np.asarray, outputs)
    # Rows from `count` on only fill up the last batch.
    for row in range(count):
      own = jax.tree.map(lambda x: x[row : row + 1], arrays)  # noqa: B023
      yield asked, samples, row, own
      asked += 1


def _in_lanes(
  answer: Answerer, params: PyTree, questions: Iterable, **sizes
) -> Iterator[Found]:
  """Answers questions in lanes, in the order in which answers end."""
  under_way: dict[int, data.Samples] = {}

  def requests():
    for number, (samples, _) in enumerate(questions):
      under_way[number] = samples
      yield samples.prompt, jax.random.key(0)

  for one in continuous.answers(
    (params,),
    answer.scorer.config,
    sampler.Sampling(temperature=0.0),
    requests(),
    attention_layers=answer.scorer.layers,
    **sizes,
  ):
    (prefix,) = one.prefixes
    looks = answer.look(params, prefix, one.prompt, one.tokens, one.mask)
    outputs = one.tokens, one.mask, *jax.tree.map(np.asarray, looks)
    yield one.number, under_way.pop(one.number), 0, outputs


def _answered(
  processor: Processor,
  samples: data.Samples,
  row: int,
  outputs: Sequence[Any],
  drawn: bool,
) -> Answered:
  """Makes text and numbers of what the programs return for a question."""
  tokens, mask, (heat,), looks = outputs
  (text,) = processor.decode(tokens, mask)
  ended = (mask & processor.config.ends(tokens)).any()
  prompt = samples.prompt
  visual = np.asarray(prompt.visual_index[row]) >= 0
  own = {name: float(x) for name, (x,) in looks.items()}
  uniform = math.nan
  if math.isfinite(own["region"]):
    uniform = float(prompt.region[row].sum() / visual.sum())
  cells = _cells(visual, heat, samples.grids[row])
  return Answered(
    samples.examples[row],
    Answer(text, int(mask.sum()), bool(ended)),
    cells.tolist() if drawn else [],
    own | {"region_uniform": uniform, "border": border(cells)},
  )


def _cells(visual: np.ndarray, heat: np.ndarray, grid) -> np.ndarray:
  """Returns attention on the visual tokens of the first picture or video."""
  if grid is None:
    return np.zeros(0)
  (columns,) = np.nonzero(visual)
  return heat[columns[: math.prod(grid)]].reshape(grid)


def border(cells: np.ndarray) -> float:
  """Returns the share on the border; NaN where there is nothing inside it."""
  if cells.ndim < 3 or min(cells.shape[1:]) < 3 or not cells.sum():
    return math.nan
  return float(1 - cells[:, 1:-1, 1:-1].sum() / cells.sum())
