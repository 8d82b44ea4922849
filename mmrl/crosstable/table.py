"""Texts of two models, and what each model's weights make of them."""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import ml_collections
import numpy as np
import tqdm

from mmrl import data, inspection
from mmrl.benchmarks import runner
from mmrl.crosstable import effects, sides, texts
from mmrl.crosstable.effects import Metric
from mmrl.crosstable.sides import Side
from mmrl.errors import UserError
from mmrl.hub import weights as weights_lib
from mmrl.inspection import buckets
from mmrl.machines import compilation, sharding
from mmrl.machines.sharding import Layout
from mmrl.models.config import ModelConfig
from mmrl.probes.region import looks, masses
from mmrl.probes.scores import Scorer
from mmrl.prompts.processor import Processor
from mmrl.rewards.looks.region import target_attention
from mmrl.rollouts import sampler
from mmrl.train import models as models_lib
from mmrl.types import Prompt, PyTree

# Titles of the metrics, by their names.
TITLES = {
  "right": "ln p of the right answer",
  "region": "attention on the region",
  "region_share": "region's share of attention on visual tokens",
  "visual": "attention on visual tokens",
  "target": "target attention score of uncertain tokens",
}
Values = Mapping[str, Float[Array, "P G"]]


@dataclasses.dataclass(frozen=True)
class Settings:
  """Questions of a table, and the texts that answer them.

  Attributes:
    questions: how many of the benchmark, spread evenly over it; 0 for all.
    answers: texts of each model to each question, at least 1.
    seed: of the texts.
    temperature: that texts are sampled and scored at; 0 samples greedily, and
      scores at 1.
    benchmark: name of one of the config; "" for its first.
  """

  questions: int = 200
  answers: int = 1
  seed: int = 0
  temperature: float = 1.0
  benchmark: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
  """The finished table.

  Attributes:
    a, b: the models, as they were named.
    settings: with the benchmark that was asked.
    asked: number of questions.
    metrics: by their names, those that some question has.
  """

  a: str
  b: str
  settings: Settings
  asked: int
  metrics: Mapping[str, Metric]


def make(
  first: Side,
  second: Side,
  given: ml_collections.ConfigDict | None,
  settings: Settings,
) -> Table:
  """Makes the table of two models; shows a bar. Both are held in memory.

  Args:
    first, second: models A and B.
    given: config that says what is asked, instead of a run's.
    settings: what is asked, and how often.

  Raises:
    UserError: if they can't be crossed, or a question can't be used.
  """
  config, name = sides.choose_config(first, second, given, settings.benchmark)
  settings = dataclasses.replace(settings, benchmark=name)
  compilation.keep_programs(config.compilation_cache)
  layout = Layout(sharding.make_mesh(config.mesh.to_dict()))
  processors = [_processor(config, side) for side in (first, second)]
  sides.check_alike((first, processors[0]), (second, processors[1]))
  spec = config.evaluation.benchmarks[name].to_dict()
  benchmark = runner.build_benchmarks({"benchmarks": {name: spec}})[name]
  count = settings.questions or len(benchmark)
  chosen = data.spread(len(benchmark), count)
  fraction = sides.target_fraction(first, second, given)
  asked = _Asked(
    *(config, processors[0], layout, settings, benchmark, chosen, fraction)
  )
  params = [
    weights_lib.load_params(
      side.model,
      processors[0].config,
      dtype=config.models.policy.param_dtype,
      placement=layout.parameter,
    )
    for side in (first, second)
  ]
  values = asked.values(params)
  metrics = {
    key: found
    for key, title in TITLES.items()
    if key in values
    and (found := effects.metric(title, values[key])) is not None
  }
  return Table(first.name, second.name, settings, len(chosen), metrics)


def _processor(config: ml_collections.ConfigDict, side: Side) -> Processor:
  """Loads a model's processor, with the pixel budget of the config."""
  own = config.copy_and_resolve_references()
  with own.unlocked():
    own.models.policy.path = str(side.model)
    # They are merged into it.
    own.models.policy.lora = {}
    own.models.policy.adapter = ""
  return models_lib.load_processor(own)


@dataclasses.dataclass(frozen=True)
class _Asked:
  """Chosen questions of a benchmark, and what they are asked with.

  `fraction` is that of `make_measure`.
  """

  config: ml_collections.ConfigDict
  processor: Processor
  layout: Layout
  settings: Settings
  benchmark: Any
  chosen: Sequence[int]
  fraction: float | None

  @property
  def model(self) -> ModelConfig:
    return dataclasses.replace(self.processor.config, remat=False)

  def values(
    self, params: Sequence[PyTree]
  ) -> dict[str, dict[str, Float[np.ndarray, "N"]]]:
    """Computes every metric of each question, in every cell.

    Args:
      params: of A and of B.
    """
    given, attention = self.settings, self.config.attention
    length = self.config.rollout.length
    sample = make_sample(self.model, self.layout, given, length)
    scorer = Scorer(
      self.model,
      given.temperature or 1.0,
      tuple(attention.layers),
      attention.row,
      attention.heads == "apart",
    )
    measure = make_measure(scorer, self.layout, self.fraction)
    # As many rows as an evaluation has: texts of both models to each question.
    size = max(self.config.evaluation.batch // (2 * given.answers), 1)
    size = min(size, len(self.chosen))
    found: dict[str, dict[str, list[np.ndarray]]] = collections.defaultdict(
      lambda: {cell: [] for cell in effects.CELLS}
    )
    with tqdm.tqdm(
      total=len(self.chosen), unit="question", disable=None
    ) as bar:
      for number, (samples, count) in enumerate(self._batches(size)):
        prompt = self.layout.put_whole(samples.prompt)
        key = jax.random.fold_in(jax.random.key(given.seed), number)
        sampled = [sample(one, prompt, key) for one in params]
        tokens, mask = (
          np.concatenate([np.asarray(x[i]) for x in sampled], axis=1)
          for i in (0, 1)
        )
        right, counts = self._right(samples.examples, tokens, mask)
        texts_of = self.layout.put_whole((tokens, mask, right, counts))
        for w, one in zip("ab", params, strict=True):
          for metric, values in measure(one, prompt, *texts_of).items():
            halves = np.split(np.asarray(values)[:count], 2, axis=1)
            for t, half in zip("ab", halves, strict=True):
              found[metric][t + w].append(_mean(half))
        bar.update(count)
    return {
      metric: {cell: np.concatenate(x) for cell, x in cells.items()}
      for metric, cells in found.items()
    }

  def _batches(self, size: int):
    """Yields batches of questions, padded to the sizes of the config."""
    shards = self.layout.shards
    sizes = self._sizes()
    return data.in_order(
      self.benchmark,
      self.processor,
      indices=self.chosen,
      batch_size=-(-size // shards) * shards,
      rows=shards,
      answer_length=self.config.rollout.length,
      lengths=sizes.lengths,
      patches=sizes.patches,
    )

  def _sizes(self) -> buckets.Buckets:
    """Returns the sizes to pad to: those of the config, or of the questions."""
    given = self.config.data
    if given.lengths and given.patches:
      return buckets.Buckets(tuple(given.lengths), tuple(given.patches))
    found = inspection.inspect(
      self.benchmark,
      self.processor,
      inspection.Limits(0, 0, self.config.rollout.length, learns=False),
      indices=self.chosen,
      outlines=True,
    )
    for one in found:
      if one.fault:
        raise UserError(one.message)
    return buckets.choose(
      found,
      self.model.vision.spatial_merge_size**2,
      lengths=given.lengths,
      patches=given.patches,
      one=True,
    )

  def _right(self, examples, tokens, mask):
    group = tokens.shape[1]
    written = self.processor.decode(tokens, mask)
    return texts.with_right(
      [written[p * group : (p + 1) * group] for p in range(len(examples))],
      [example.answer for example in examples],
      self.processor,
    )


def _mean(values: Float[np.ndarray, "P G"]) -> Float[np.ndarray, "P"]:
  """Averages over the texts of a question that have a value; NaN of none."""
  known = ~np.isnan(values)
  total = np.where(known, values, 0.0).sum(1, dtype=np.float64)
  return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)


def make_sample(
  model: ModelConfig, layout: Layout, settings: Settings, length: int
):
  """Makes the jitted function that samples texts: (params, prompt, key)."""

  def sample(params: PyTree, prompt: Prompt, key: Array):
    found = sampler.rollout(
      params,
      model,
      prompt,
      key,
      answers=settings.answers,
      length=length,
      temperature=settings.temperature,
    )
    return found.tokens, found.mask

  return layout.jit(sample, out_shardings=layout.everywhere)


def make_measure(scorer: Scorer, layout: Layout, fraction: float | None = None):
  """Makes the jitted function of a model's weights on given texts.

      right         sum of ln p over the right answer's tokens, its end included
      region        mean over the text's tokens of their attention on the region
      visual        the same, on all visual tokens
      region_share  mean of region / visual
      target        `mmrl.rewards.target_attention` of that fraction of the
                    tokens, with a fraction only

  Rows are the scorer's policies; of `target` they are softmaxes, and the tokens
  those of which the weights that read them are least certain. A number is NaN
  where it doesn't apply: no right answer, no marked region, no visual tokens.
  """

  def mean(values, counts):
    total = jnp.where(counts, values, 0.0).sum(-1)
    count = counts.sum(-1)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)

  def measure(
    params: PyTree,
    prompt: Prompt,
    tokens: Int[Array, "P G R"],
    mask: Bool[Array, "P G R"],
    right: Int[Array, "P G R2"],
    counts: Bool[Array, "P G R2"],
  ) -> Values:
    prefix = scorer.prefill(params, prompt, None)
    scores = scorer(params, prefix, tokens)
    assert scores.attention is not None
    on_region, on_visual = masses(scores.attention, prompt)
    pictured = (prompt.visual_index >= 0).any(-1)[:, None, None]
    marked = mask & (prompt.region.sum(-1) > 0)[:, None, None]
    looked = marked & (on_visual > 0)
    share = on_region / jnp.where(looked, on_visual, 1.0)
    plain = dataclasses.replace(scorer, layers=())
    found = plain(params, prefix, right).logprobs
    total = jnp.where(counts, found, 0.0).sum(-1)
    values = {
      "right": jnp.where(counts.any(-1), total, jnp.nan),
      "region": mean(on_region, marked),
      "region_share": mean(share, looked),
      "visual": mean(on_visual, mask & pictured),
    }
    if fraction is not None:
      seen = looks(scores, prompt)
      values["target"] = target_attention(
        *seen, scores.entropies, prompt, mask, fraction=fraction
      )
    return values

  return layout.jit(measure, out_shardings=layout.everywhere)
