"""Hyper-parameters of a model, which are read from config.json.

How a family writes them there is in `mmrl.models.families`.
"""

import dataclasses
import math
import re
from typing import Any

from mmrl.errors import UserError
from mmrl.models.kernels.blocks import Sparse


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Hyper-parameters of the vision tower.

  Names follow config.json where it has one.

  Attributes:
    depth, hidden_size, intermediate_size, num_heads: of its blocks.
    out_hidden_size: width of a visual token.
    patch_size: side of a patch, pixels.
    temporal_patch_size: frames of a patch.
    spatial_merge_size: patches along the side of a visual token.
    in_channels: colours.
    norm: "rms" or "layer".
    gated_mlp: `down(act(gate(x)) * up(x))` instead of `fc2(act(fc1(x)))`.
    hidden_act: "silu", "quick_gelu" or "gelu_pytorch_tanh".
    patch_bias: whether the patch embedding has a bias.
    position_grid: side of the learned grid of positions; 0 is none.
    window_size: side of an attention window, pixels; 0 means that every block
      attends to whole frames.
    fullatt_block_indexes: the blocks that attend to whole frames where there
      are windows.
    deepstack_visual_indexes: blocks whose output also goes, merged, to the
      first layers of the decoder (DeepStack, arXiv 2406.04334).
    tokens_per_second: time positions of a second of video; 0 counts frames.
  """

  depth: int
  hidden_size: int
  intermediate_size: int
  num_heads: int
  out_hidden_size: int
  patch_size: int = 14
  temporal_patch_size: int = 2
  spatial_merge_size: int = 2
  in_channels: int = 3
  norm: str = "rms"
  gated_mlp: bool = True
  hidden_act: str = "silu"
  patch_bias: bool = False
  position_grid: int = 0
  window_size: int = 112
  fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
  deepstack_visual_indexes: tuple[int, ...] = ()
  tokens_per_second: int = 4

  @property
  def head_dim(self) -> int:
    return self.hidden_size // self.num_heads

  @property
  def patch_values(self) -> int:
    return self.in_channels * self.temporal_patch_size * self.patch_size**2

  @property
  def cell_size(self) -> int:
    """Side of a visual token, pixels; pictures are scaled to multiples."""
    return self.patch_size * self.spatial_merge_size

  @property
  def window_cells(self) -> int:
    """Number of visual tokens along one side of an attention window."""
    return self.window_size // self.cell_size

  @property
  def window_patches(self) -> int:
    """Number of patches of a whole attention window; 0 without windows."""
    return (self.window_cells * self.spatial_merge_size) ** 2


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Hyper-parameters of the decoder.

  Names follow config.json where it has one.

  Attributes:
    mrope_section: rotary channels of time, height and width.
    mrope_interleaved: whether the channels alternate between the axes instead
      of being three runs.
    qkv_bias: whether queries, keys and values have biases.
    qk_norm: whether queries and keys are normalised per head.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  mrope_section: tuple[int, int, int]
  mrope_interleaved: bool = False
  qkv_bias: bool = True
  qk_norm: bool = False
  rope_theta: float = 1e6
  rms_norm_eps: float = 1e-6
  max_position_embeddings: int = 32768

  @property
  def rotary_axes(self) -> tuple[int, ...]:
    """Position axis (time, height, width) that each channel reads.

    In runs: `sections[0]` channels of time, then height, then width.
    Interleaved: channel c reads axis c % 3 as long as that axis has channels
    left, and time after that.
    """
    sections = self.mrope_section
    if not self.mrope_interleaved:
      return tuple(a for a, count in enumerate(sections) for _ in range(count))
    return tuple(
      c % 3 if c < 3 * sections[c % 3] else 0 for c in range(sum(sections))
    )

  def indices(self, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the indices of layers, negative ones being from the end."""
    return tuple(range(self.num_hidden_layers)[layer] for layer in layers)


@dataclasses.dataclass(frozen=True)
class Lora:
  """Low-rank adapters (LoRA, arXiv 2106.09685, equation 3) of dense layers.

      y = x W + scale (x A) B,    scale = alpha / rank

  Attributes:
    rank: columns of A and rows of B, at least 1.
    alpha: above 0.
    targets: regular expression of the paths of dense layers, which it matches
      as a whole: `text/layers/(q|k|v|o)`, `text/layers/.*`, `.*`.
    rs: scale = alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732).

  Raises:
    UserError: for a value out of its range, or of another type.
  """

  rank: int
  alpha: int | float
  targets: str
  rs: bool = False

  def __post_init__(self):
    self._check("rank", "a whole number of at least 1", _is_rank(self.rank))
    number = isinstance(self.alpha, int | float)
    number = number and not isinstance(self.alpha, bool)
    good = number and math.isfinite(self.alpha) and self.alpha > 0
    self._check("alpha", "a number above 0", good)
    self._check("rs", "true or false", isinstance(self.rs, bool))
    try:
      re.compile(self.targets)
    except (re.error, TypeError) as error:
      raise UserError(
        f"expected targets to be a regular expression, found {self.targets!r}"
        f" ({error})"
      ) from error

  def _check(self, name: str, what: str, good: bool) -> None:
    if not good:
      raise UserError(
        f"expected {name} to be {what}, found {getattr(self, name)!r}"
      )

  @property
  def scale(self) -> float:
    return self.alpha / (math.sqrt(self.rank) if self.rs else self.rank)


def _is_rank(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0


@dataclasses.dataclass(frozen=True)
class Latent:
  """Latent segments of answers (VaLR, arXiv 2602.04476).

  A segment is `length` positions: `<latent>`, positions whose input is the
  state before them instead of a token's embedding, and `</latent>`. The policy
  chooses `<latent>` alone; what follows is fixed.

  Attributes:
    token_id, end_token_id: ids of `<latent>` and `</latent>`.
    length: K, both tokens included: a square of at least 4, or 1, which is
      `<latent>` alone.
    segments: most segments of an answer; a later `<latent>` is plain text.
    pre_norm: feed the state back as it is before the final norm, not after.
    stop_feedback_grad: let no gradient through the states that are fed back.

  Raises:
    UserError: for a value out of its range, or of another type.

  Reconstructed: the paper doesn't say which state is fed back; the one that
  the output head reads is. K = 2 and 3 have room for both tokens but no grid.
  """

  token_id: int
  end_token_id: int
  length: int = 16
  segments: int = 2
  pre_norm: bool = False
  stop_feedback_grad: bool = False

  def __post_init__(self):
    whole = {n: getattr(self, n) for n in ("length", "segments")}
    for name, value in whole.items():
      if not _is_rank(value):
        raise UserError(
          f"expected {name} of a latent segment as a whole number of at least"
          f" 1, found {value!r}"
        )
    if math.isqrt(self.length) ** 2 != self.length:
      raise UserError(
        "expected length of a latent segment to be a square, such as 4, 9, 16"
        f" or 25, as its states are a grid, found {self.length}"
      )
    for name in ("pre_norm", "stop_feedback_grad"):
      if not isinstance(getattr(self, name), bool):
        raise UserError(
          f"expected {name} to be true or false, found {getattr(self, name)!r}"
        )
    if self.token_id == self.end_token_id:
      raise UserError(
        f"expected two latent tokens, found one id for both, {self.token_id}"
      )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Hyper-parameters of a model; hashable, so they can be a static argument.

  Attributes:
    text: the decoder.
    vision: the vision tower.
    tie_word_embeddings: whether the output head is the embedding table.
    image_token_id, video_token_id: placeholders for visual tokens.
    vision_start_token_id, vision_end_token_id: the marks around them.
    eos_token_id: the token that ends an answer, and closes those that weren't
      sampled.
    pad_token_id: the token that fills padding.
    other_end_token_ids: further tokens that end a sampled answer.
    family: name of its module in `mmrl.models.families`: how it is stored and
      how it is shown videos. What it computes is in the fields above.
    dtype: compute type of matrix products; softmax, norms, log-probabilities
      and rotary angles are float32 whatever it is.
    remat: whether each layer is recomputed in the backward pass.
    lora: the adapters of its dense layers, if it has any.
    sparse: which keys the decoder's queries attend to; all if None.
    latent: the latent segments of its answers, if they may have any.
    mixed_attention: whether visual tokens of one picture, or one frame, see
      each other both ways (LaVer, arXiv 2512.06281), not only those before.
  """

  text: TextConfig
  vision: VisionConfig
  tie_word_embeddings: bool
  image_token_id: int
  video_token_id: int
  vision_start_token_id: int
  vision_end_token_id: int
  eos_token_id: int
  pad_token_id: int
  other_end_token_ids: tuple[int, ...] = ()
  family: str = "qwen2_5_vl"
  dtype: str = "float32"
  remat: bool = True
  lora: Lora | None = None
  sparse: Sparse | None = None
  latent: Latent | None = None
  mixed_attention: bool = False

  def __post_init__(self):
    if self.sparse and (self.latent or self.mixed_attention):
      raise UserError(
        "expected a model with sparse attention to have neither latent segments"
        " nor mixed attention, found both; leave sparse attention out"
      )

  @property
  def banned_token_ids(self) -> tuple[int, ...]:
    """Ids that are never sampled: placeholders, and the end of a segment.

    Placeholders would have no picture; segments end by their length.
    """
    ends = (self.latent.end_token_id,) if self.latent else ()
    return (self.image_token_id, self.video_token_id, *ends)

  @property
  def end_token_ids(self) -> tuple[int, ...]:
    """All ids that end a sampled answer; the first closes other answers."""
    return (self.eos_token_id, *self.other_end_token_ids)

  def ends(self, tokens: Any) -> Any:
    """Tells which tokens, in an array of NumPy or JAX, end an answer."""
    found = tokens == self.eos_token_id
    for other in self.other_end_token_ids:
      found = found | (tokens == other)
    return found
