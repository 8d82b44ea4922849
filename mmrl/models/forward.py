"""A model bound to its parameters, for passes of a function's own."""

import dataclasses

from jaxtyping import Array, Float, Int

from mmrl.models import policy, tower, vlm
from mmrl.models.config import ModelConfig
from mmrl.types import Output, Patches, Prefix, Prompt, PyTree, Scores


@dataclasses.dataclass(frozen=True)
class Forward:
  """The functions of a model with its parameters and architecture filled in.

  A loss term that names `forward` differentiates through what it calls.

  Attributes:
    params: the parameters.
    config: the architecture.
  """

  params: PyTree
  config: ModelConfig

  def vision(self, patches: Patches) -> Float[Array, "B N E"]:
    """Encodes pictures; see `models.vision`."""
    return tower.vision(self.params, self.config, patches)

  def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Embeds tokens; see `models.embed`."""
    return vlm.embed(self.params, self.config, tokens)

  def prefill(
    self, prompt: Prompt, visual: Float[Array, "B N E"], **options
  ) -> Prefix:
    """Prefills prompts; see `models.prefill`."""
    return vlm.prefill(self.params, self.config, prompt, visual, **options)

  def extend(
    self, prefix: Prefix, inputs: Float[Array, "P G R D"], **options
  ) -> Output:
    """Runs answers after a prefix; see `models.extend`."""
    return vlm.extend(self.params, self.config, prefix, inputs, **options)

  def score(
    self, prefix: Prefix, tokens: Int[Array, "P G R"], **options
  ) -> Scores:
    """Scores answers after a prefix; see `models.score`."""
    return policy.score(self.params, self.config, prefix, tokens, **options)
