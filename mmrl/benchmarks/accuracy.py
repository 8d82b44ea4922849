"""Greedy accuracy on held-out questions, and the model's visual attention."""

import collections
from collections.abc import Sequence
import dataclasses
import json
import math
from typing import Any

import jax
import numpy as np

from mmrl import data, models, storage
from mmrl.errors import UserError
from mmrl.machines.sharding import Layout
from mmrl.probes.policies import Scorer
from mmrl.probes.region import region_share
from mmrl.prompts.processor import Processor
from mmrl.rewards import answer as answer_rewards
from mmrl.rollouts import sampler
from mmrl.types import Prompt, PyTree


@dataclasses.dataclass(frozen=True)
class Shown:
  """One answered question, for the report.

  Attributes:
    index: of the question in the test source.
    text: what the model wrote.
    correct: whether the answer is right.
    heat: attention on each visual token of the first picture, rows by
      columns, mean over the answer's tokens.
    region: share of visual attention on the marked region; None where none is
      marked.
  """

  index: int
  text: str
  correct: bool
  heat: list[list[float]]
  region: float | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Results on a set of questions.

  Attributes:
    questions: how many.
    accuracy: share of exact answers.
    accuracy_by_kind: the same for each kind of question.
    format: share of well-formed answers.
    region: share of visual attention on the region; None if none is marked.
    region_uniform: that share if attention were uniform over the picture.
    shown: a few answers with their attention.
  """

  questions: int
  accuracy: float
  accuracy_by_kind: dict[str, float]
  format: float
  region: float | None
  region_uniform: float | None
  shown: list[Shown]

  def save(self, path: storage.Name) -> None:
    """Writes the results as JSON."""
    text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
    storage.write_text(path, text)

  @classmethod
  def load(cls, path: storage.Name) -> "Evaluation":
    """Reads results that `save` wrote.

    Raises:
      UserError: if it can't be read.
    """
    try:
      raw = json.loads(storage.read_text(path))
      return cls(**raw | {"shown": [Shown(**one) for one in raw["shown"]]})
    except (OSError, ValueError, TypeError, LookupError) as error:
      raise UserError(
        f"expected results of an evaluation at {path}, found: {error!s:.200};"
        " delete the file to have them evaluated again"
      ) from error


def spread(total: int, count: int) -> list[int]:
  """Returns `count` indices, at most `total`, spread evenly over `total`."""
  count = min(total, count)
  return [i * total // count for i in range(count)]


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
    shares = region_share(rows, prompt, rollout.mask)
    return rollout.tokens, rollout.mask, heat, shares

  return layout.jit(answer, out_shardings=layout.everywhere)


def evaluate(
  answer: Any,
  params: PyTree,
  processor: Processor,
  source: Any,
  layout: Layout,
  *,
  questions: int,
  batch: int,
  length: int,
  shown: int,
  form: str,
  lengths: Sequence[int],
  patches: Sequence[int],
) -> Evaluation:
  """Evaluates a model's greedy answers to questions of a source.

  Args:
    answer: from `make_answer`.
    params: model parameters.
    processor: the model's.
    source: the questions.
    layout: of the run; every process reads all questions.
    questions: number of questions, spread evenly over the source.
    batch: questions per batch, rounded up to a multiple of the shards.
    length: most tokens of an answer.
    shown: number of answers to keep with their attention.
    form: see `rewards.answer.is_formed`.
    lengths: buckets of S.
    patches: buckets of M per prompt.
  """
  indices = spread(len(source), questions)
  keep = set(spread(len(indices), shown))
  right: list[bool] = []
  formed, regions, uniforms = [], [], []
  by_kind = collections.defaultdict(list)
  kept = []
  for samples, count in data.in_order(
    source,
    processor,
    indices=indices,
    batch_size=-(-batch // layout.shards) * layout.shards,
    rows=layout.shards,
    answer_length=length,
    lengths=lengths,
    patches=patches,
  ):
    outputs = answer(params, layout.put_whole(samples.prompt))
    tokens, mask, heat, shares = map(np.asarray, outputs)
    texts = processor.decode(tokens, mask)
    # Rows from `count` on only fill up the last batch.
    for row in range(count):
      example, text = samples.examples[row], texts[row]
      correct = answer_rewards.is_right(text, example.answer)
      formed.append(answer_rewards.is_formed(text, form))
      share = float(shares[row])
      region = samples.prompt.region[row]
      if math.isfinite(share):
        regions.append(share)
        visual = samples.prompt.visual_index[row] >= 0
        uniforms.append(float(region.sum() / visual.sum()))
      if len(right) in keep:
        grid = samples.grids[row]
        cells = _cells(samples.prompt, row, heat[row], grid)
        kept.append(
          Shown(
            index=indices[len(right)],
            text=text,
            correct=correct,
            heat=cells,
            region=share if math.isfinite(share) else None,
          )
        )
      right.append(correct)
      by_kind[example.kind].append(correct)
  return Evaluation(
    questions=len(right),
    accuracy=float(np.mean(right)),
    accuracy_by_kind={k: float(np.mean(v)) for k, v in sorted(by_kind.items())},
    format=float(np.mean(formed)),
    region=float(np.mean(regions)) if regions else None,
    region_uniform=float(np.mean(uniforms)) if uniforms else None,
    shown=kept,
  )


def _cells(prompt: Prompt, row: int, heat: np.ndarray, grid) -> list:
  """Returns attention on the first picture's visual tokens, as nested rows."""
  if grid is None:
    return []
  (columns,) = np.nonzero(prompt.visual_index[row] >= 0)
  first = columns[: math.prod(grid)]
  return heat[first].reshape(grid).tolist()


def blind_baseline(train: Any, test: Any) -> float:
  """Computes the test accuracy of answering from the question text alone.

  The answer is the train source's most frequent answer to the same text. For a
  text not in the train source, it is the most frequent answer of all.
  """
  answers: dict[str, collections.Counter]
  answers = collections.defaultdict(collections.Counter)
  overall: collections.Counter = collections.Counter()
  for question, answer in train.pairs():
    answers[question][answer] += 1
    overall[answer] += 1
  guess = overall.most_common(1)[0][0]
  right = [
    answers[question].most_common(1)[0][0] == answer
    if question in answers
    else guess == answer
    for question, answer in test.pairs()
  ]
  return float(np.mean(right))
