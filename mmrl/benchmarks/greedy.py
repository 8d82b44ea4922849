"""Greedy answers to the questions of a benchmark, and where the model looks."""

from collections.abc import Collection, Iterator, Sequence
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
from mmrl.rollouts import sampler
from mmrl.types import Prompt, PyTree


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


def make_answer(scorer: Scorer, length: int, layout: Layout):
  """Makes the jitted function that answers greedily and returns attention.

  Its outputs are replicated on every process.
  """

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
    scores = scorer(params, rollout.prefix, rollout.tokens)
    counts = rollout.mask[..., None]
    assert scores.attention is not None
    rows = models.attention_rows(scores.attention)
    heat = (rows * counts).sum((1, 2)) / counts.sum((1, 2))
    looks = {
      "region": region_share(rows, prompt, rollout.mask),
      "entropy": visual_entropy(rows, prompt, rollout.mask),
    }
    return rollout.tokens, rollout.mask, heat, looks

  return layout.jit(answer, out_shardings=layout.everywhere)


def ask(
  benchmark: Benchmark,
  answer: Any,
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

  Args:
    benchmark: the questions.
    answer: from `make_answer`.
    params: model parameters.
    processor: the model's.
    layout: of the run; every process reads all questions.
    batch: questions per batch, rounded up to a multiple of the shards.
    length: most tokens of an answer.
    drawn: indices of the questions whose heat is returned.
    lengths: buckets of S.
    patches: buckets of M per prompt.
  """
  asked = 0
  for samples, count in data.in_order(
    benchmark,
    processor,
    indices=range(len(benchmark)),
    batch_size=-(-batch // layout.shards) * layout.shards,
    rows=layout.shards,
    answer_length=length,
    lengths=lengths,
    patches=patches,
  ):
    outputs = answer(params, layout.put_whole(samples.prompt))
    tokens, mask, heat, looks = jax.tree.map(np.asarray, outputs)
    texts = processor.decode(tokens, mask)
    ended = (mask & processor.config.ends(tokens)).any((1, 2))
    prompt = samples.prompt
    visual = np.asarray(prompt.visual_index) >= 0
    # Rows from `count` on only fill up the last batch.
    for row in range(count):
      own = {name: float(each[row]) for name, each in looks.items()}
      uniform = math.nan
      if math.isfinite(own["region"]):
        uniform = float(prompt.region[row].sum() / visual[row].sum())
      cells = _cells(visual[row], heat[row], samples.grids[row])
      yield Answered(
        samples.examples[row],
        Answer(texts[row], int(mask[row].sum()), bool(ended[row])),
        cells.tolist() if asked in drawn else [],
        own | {"region_uniform": uniform, "border": border(cells)},
      )
      asked += 1


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
