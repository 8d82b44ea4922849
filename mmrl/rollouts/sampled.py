"""Answers that the policy samples."""

import jax
from jaxtyping import Array

from mmrl.errors import UserError
from mmrl.rollouts import measures, sampler
from mmrl.rollouts.answers import Answers
from mmrl.rollouts.source import Call, Request, Setup, Source
from mmrl.types import Batch, Prompt


class Sampled(Source):
  """Samples G answers per prompt from the current policy."""

  fields = ("ended", "logprobs_sampler")
  measures = (
    measures.lengths,
    measures.sampler_scorer_gap,
    measures.attention_on_region,
  )

  def __init__(self, setup: Setup, temperature: float, **options):
    self._setup = setup
    self.group = setup.answers
    self.temperature = temperature or 1.0  # greedy answers are scored at 1
    self._program = _make_program(setup, temperature=temperature, **options)

  def calls(self, state, prompt, key, held=None):
    return (yield Call("rollout", self._program, (state, prompt, key), held))

  def collect(self, request: Request):
    layout = self._setup.layout
    prompt = layout.put(request.samples.prompt)
    batch = self._program(request.state, prompt, request.key)
    return Answers.of(request.samples.examples, batch, layout), {}


def sampled(
  setup: Setup,
  *,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> Source:
  """Samples answers from the current policy.

  Args:
    setup: of the run.
    temperature: divides the logits; 0 is greedy.
    top_k: number of most likely tokens that are drawn from; 0 for all.
    top_p: mass of the most likely tokens that are drawn from, in (0, 1].

  Raises:
    UserError: if an option is outside its range.
  """
  if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
    raise UserError(
      "expected temperature and top_k of at least 0 and top_p in (0, 1], found"
      f" {temperature}, {top_k} and {top_p}"
    )
  return Sampled(setup, temperature, top_k=top_k, top_p=top_p)


def _make_program(setup: Setup, **options):
  """Makes the program that samples under the training parameters.

  Each prompt has a random key of its own, by its index in the stream of
  questions, so its answers don't depend on its device.
  """
  layout = setup.layout

  def rollout(state, prompt: Prompt, key: Array) -> Batch:
    prompts = prompt.mask.shape[0]
    keys = jax.random.split(key, prompts)[layout.order(prompts)]
    found = sampler.rollout(
      state.params,
      setup.model,
      prompt,
      keys,
      attention_layers=setup.layers,
      answers=setup.answers,
      length=setup.length,
      **options,
    )
    # The prefix, led by layers, is sharded as it was computed.
    parts = {
      name: jax.lax.with_sharding_constraint(x, layout.prompts)
      for name, x in vars(found).items()
      if name not in ("prompt", "prefix")
    }
    return Batch(prompt=prompt, prefix=found.prefix, **parts)

  return layout.jit(rollout)
