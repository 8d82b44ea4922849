"""Scorer of a run, and the probes of behaviour, reference and average policy.

A probe returns the NamedTuple that its return annotation names. Its fields are
added to the batch, so a run can check before it starts that its losses have the
fields they read.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from mmrl.models import policy, rows, tower, vlm
from mmrl.models.config import ModelConfig
from mmrl.models.passes import latent
from mmrl.types import Attention, Prefix, Prompt, PyTree, Scores


@dataclasses.dataclass(frozen=True)
class Scorer:
  """Scores answers in a run, in the same way for every set of parameters.

  Attributes:
    config: the architecture.
    temperature: the sampling temperature; 1 when sampling is greedy.
    layers: decoder layers whose attention is a policy.
    row, apart: see `mmrl.models.attention_policy`.
    hidden_layers: decoder layers whose output is wanted.
  """

  config: ModelConfig
  temperature: float
  layers: tuple[int, ...]
  row: str
  apart: bool = False
  hidden_layers: tuple[int, ...] = ()

  def over_all_layers(self) -> "Scorer":
    """Returns a scorer whose attention is that of all layers."""
    depth = self.config.text.num_hidden_layers
    return dataclasses.replace(self, layers=tuple(range(depth)))

  def prefill(
    self, params: PyTree, prompt: Prompt, visual: Float[Array, "B N E"] | None
  ) -> Prefix:
    """Prefills the prompts; runs the vision tower if `visual` is None."""
    if visual is None:
      visual = tower.vision(params, self.config, prompt.patches)
    return vlm.prefill(
      params, self.config, prompt, visual, attention_layers=self.layers
    )

  def states(
    self, params: PyTree, prompt: Prompt, visual: Float[Array, "B N E"]
  ) -> Float[Array, "P S L D"]:
    """Computes the outputs of all layers on prompts, before the final norm."""
    layers = tuple(range(self.config.text.num_hidden_layers))
    prefix = vlm.prefill(
      params, self.config, prompt, visual, hidden_layers=layers
    )
    assert prefix.hidden_at is not None
    return prefix.hidden_at

  def __call__(
    self, params: PyTree, prefix: Prefix, tokens: Int[Array, "P G R"]
  ) -> Scores:
    """Scores answers after a prefix; see `mmrl.models.score`."""
    return policy.score(
      params,
      self.config,
      prefix,
      tokens,
      temperature=self.temperature,
      attention_layers=self.layers,
      attention_row=self.row,
      heads_apart=self.apart,
      hidden_layers=self.hidden_layers,
    )

  def weighed_rows(
    self,
    params: PyTree,
    prompt: Prompt,
    visual: Float[Array, "B N E"] | None,
    tokens: Int[Array, "P G R"],
    weigh: Callable[[Float[Array, "P S"]], Float[Array, "P S n"]],
  ) -> Float[Array, "P G R layers values"]:
    """Sums attention rows of `layers`, layer by layer, in a pass of its own.

    The rows are those of the softmax, of each token with itself, mean over
    heads. They are summed as each layer is run: nothing is kept of them whose
    size grows with prompt times answer.

    Args:
      params: of the policy.
      prompt: the prompts.
      visual: their visual tokens; computed if None.
      tokens: of the answers.
      weigh: maps the row of each prompt's last token, mean over heads and
        layers, to n weights of the prompt's positions.

    Returns:
      n weighed sums over the prompt, and the sum over the answer.
    """
    prefix = self.prefill(params, prompt, visual)
    last = rows.last_rows(prefix, self.layers, self.config.sparse)
    weights = weigh(last)
    output = vlm.extend(
      params,
      self.config,
      prefix,
      latent.embed(params, self.config, prefix, tokens),
      attention_layers=self.layers,
      weights=weights,
      tokens=tokens,
    )
    assert isinstance(output.attention, Array)
    return output.attention


class Behaviour(NamedTuple):
  """Scores of the answers under the policy that sampled them."""

  logprobs_old: Float[Array, "P G R"]
  entropies_old: Float[Array, "P G R"]
  attention_old: Attention | Float[Array, "P G R keys"]


class Reference(NamedTuple):
  """Log-probabilities of the answers under the model `reference`."""

  logprobs_ref: Float[Array, "P G R"]


class Target(NamedTuple):
  """Attention that RAL's term may measure from, instead of the behaviour's."""

  attention_target: Attention | Float[Array, "P G R keys"]


class Averaged(NamedTuple):
  """Log-probabilities of the answers under the model `average`."""

  logprobs_average: Float[Array, "P G R"]


def behaviour(scores_old: Scores) -> Behaviour:
  """Returns log-probabilities, entropies and attention of the behaviour policy.

  They are computed by the scorer that training uses, not by the decoding loop,
  over the prefix that the rollout has already computed. Attention is stored as
  rows or as the tensors they are computed from, whichever is smaller.
  """
  assert scores_old.attention is not None
  kept = rows.smaller(scores_old.attention)
  return Behaviour(scores_old.logprobs, scores_old.entropies, kept)


def reference(
  scorer_reference: Scorer,
  params_reference: PyTree,
  prompt: Prompt,
  tokens: Int[Array, "P G R"],
) -> Reference:
  """Computes log-probabilities under the model `reference`."""
  scorer = dataclasses.replace(scorer_reference, layers=())
  prefix = scorer.prefill(params_reference, prompt, None)
  return Reference(scorer(params_reference, prefix, tokens).logprobs)


def attention_reference(
  scorer_reference: Scorer,
  params_reference: PyTree,
  prompt: Prompt,
  tokens: Int[Array, "P G R"],
) -> Target:
  """Computes the attention of the model `reference`, as a target."""
  prefix = scorer_reference.prefill(params_reference, prompt, None)
  scores = scorer_reference(params_reference, prefix, tokens)
  assert scores.attention is not None
  return Target(rows.smaller(scores.attention))


def attention_average(
  scorer_average: Scorer,
  params_average: PyTree,
  prompt: Prompt,
  tokens: Int[Array, "P G R"],
) -> Target:
  """Computes the attention of the model `average`, as a target.

  It is that of the average when the answers were sampled: updates on them move
  the average, and not the target.
  """
  return attention_reference(scorer_average, params_average, prompt, tokens)


def average(
  scorer_average: Scorer,
  params_average: PyTree,
  prompt: Prompt,
  tokens: Int[Array, "P G R"],
) -> Averaged:
  """Computes log-probabilities under the model `average`."""
  found = reference(scorer_average, params_average, prompt, tokens)
  return Averaged(found.logprobs_ref)
