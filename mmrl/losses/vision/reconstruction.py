"""Reconstruction of masked visual tokens by the decoder.

Reference: Latent Visual Reconstruction (LaVer), arXiv 2512.06281.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrl.errors import UserError
from mmrl.losses.state import Measured, Stateful
from mmrl.losses.vision import masks
from mmrl.models.config import ModelConfig
from mmrl.models.passes import visual as visual_lib
from mmrl.types import Prompt, PyTree

_HIDDEN = 2048


def mim(
  student: Float[Array, "*batch C"],
  teacher: Float[Array, "*batch C"],
  centre: Float[Array, "C"],
  tau_s: float = 0.1,
  tau_t: float = 0.04,
) -> Float[Array, "*batch"]:
  """Computes the cross-entropy of the teacher's soft assignment.

      - sum softmax((teacher - centre) / tau_t) log softmax(student / tau_s)

  The teacher has no gradient.
  """
  centre = jnp.broadcast_to(centre, teacher.shape)
  target = jax.nn.softmax((teacher - centre) / tau_t)
  target = jax.lax.stop_gradient(target)
  return -(target * jax.nn.log_softmax(student / tau_s)).sum(-1)


def gram(z: Float[Array, "*batch N C"]) -> Float[Array, "*batch N N"]:
  """Computes cosines of all pairs; a zero row has only zeros."""
  z = z.astype(jnp.float32)
  z = z * jax.lax.rsqrt(jnp.maximum((z * z).sum(-1, keepdims=True), 1e-12))
  return jnp.einsum("...ic,...jc->...ij", z, z)


def gram_rows(
  student: Float[Array, "B N C"],
  teacher: Float[Array, "B N C"],
  runs: Int[Array, "B N 2"],
  *,
  clip: bool = True,
) -> Float[Array, "B N"]:
  """Computes each token's part of its frame's Gram term, which is their sum.

      sum_j max(0, G(student)_ij - G(teacher)_ij)^2 / n^2

  Args:
    student, teacher: logits; the teacher has no gradient.
    runs: first token of each one's frame, one past its last.
    clip: whether only pairs count that the student makes more alike.
  """
  off = gram(student) - jax.lax.stop_gradient(gram(teacher))
  off = jnp.maximum(off, 0.0) if clip else off
  count = runs[..., 1] - runs[..., 0]
  same = (runs[:, :, None, 0] == runs[:, None, :, 0]) & (count > 0)[:, None]
  rows = jnp.where(same, off**2, 0.0).sum(-1)
  return jnp.where(count > 0, rows / jnp.maximum(count, 1) ** 2, 0.0)


def head(key: Array, width: int, out: int) -> PyTree:
  """Initialises the visual head: Kaiming kernels, the last without a bias."""
  sizes = (width, _HIDDEN, _HIDDEN, out)
  params: dict = {}
  for i, own in enumerate(jax.random.split(key, 3)):
    scale = (2 / sizes[i]) ** 0.5
    kernel = scale * jax.random.normal(own, sizes[i : i + 2])
    params[f"fc{i + 1}"] = {"kernel": kernel}
    if i < 2:
      params[f"fc{i + 1}"]["bias"] = jnp.zeros(sizes[i + 1])
  return params


def logits(params: PyTree, x: Float[Array, "*batch D"]) -> Array:
  """Applies the visual head; float32."""
  x = x.astype(jnp.float32)
  for i in range(1, 4):
    own = params[f"fc{i}"]
    x = x @ own["kernel"].astype(jnp.float32)
    if "bias" in own:
      x = x + jnp.broadcast_to(own["bias"].astype(jnp.float32), x.shape)
      x = jax.nn.gelu(x, approximate=False)
  return x


def visual_reconstruction(
  *,
  steps: int,
  mask_ratio: float = 0.05,
  schedule: Literal["cosine", "constant"] = "cosine",
  mim_weight: float = 1.0,
  gram_weight: float = 1.0,
  clip: bool = True,
  centring: bool = True,
  centre_decay: float = 0.9,
  mim_reduce: Literal["mean", "sum"] = "mean",
  mask_embedding: Literal["new", "placeholder"] = "new",
  tau_s: float = 0.1,
  tau_t: float = 0.04,
) -> Stateful:
  """Reconstructs masked visual tokens as an average of the policy sees them.

      loss = mim_weight MIM + gram_weight Gram

  Student and teacher run over visual tokens alone, each picture by itself: the
  student over those of which some are masked, the teacher, the model `average`
  (`mmrl.train.models.Average`) with its own average of the head, over all. MIM
  is the mean over a prompt's masked tokens, Gram the mean over its pictures'
  n^2 pairs. Reduce it with `prompt_mean`. Logged are both (`mim`, `gram`), the
  share of masked tokens (`masked`) and the norm of the centre (`centre`).

  Args:
    steps: optimiser updates of the run, over which the mask grows.
    mask_ratio: largest share of a picture's visual tokens that is masked, in
      [0, 1); of n tokens floor(share n) are.
    schedule: see `masks.ratio_at`.
    mim_weight, gram_weight: of the two parts.
    clip: whether the Gram term spares pairs that the student separates (CGA);
      the released code doesn't (GA).
    centring: whether a running mean is taken off the teacher's logits.
    centre_decay: of that mean.
    mim_reduce: "sum" over masked tokens, as printed in the paper, or "mean".
    mask_embedding: a "new" parameter, or that of the picture's "placeholder"
      token, as in the released code.
    tau_s, tau_t: temperatures of student and teacher.

  Raises:
    UserError: if an option is out of its range.

  Reference: arXiv 2512.06281; its temperatures, weights and schedules.
  Differs from the paper: means over prompts, equal to the mean over all masked
  tokens where pictures are of one size; the Gram term is a mean, so that its
  weight doesn't depend on sizes. The released code masks in a second copy of
  the whole sequence; here the stream is visual only, as in the paper's figure.
  """
  _check(steps, mask_ratio, centre_decay, tau_s, tau_t)

  def init(key, config: ModelConfig):
    width = config.text.hidden_size
    one, other = jax.random.split(key)
    learned = {"visual_head": head(one, width, width)}
    if mask_embedding == "new":
      learned["mask_embedding"] = 0.02 * jax.random.normal(other, (width,))
    return learned, {
      "centre": jnp.zeros(width),
      "updates": jnp.zeros((), jnp.int32),
    }

  def term(
    learned, running, forward, params_average, prompt, visual, draw, mask
  ):
    config = forward.config
    merge = config.vision.spatial_merge_size
    runs = visual_lib.runs(prompt.patches, merge)
    ratio = masks.ratio_at(running["updates"], steps, mask_ratio, schedule)
    hidden = masks.of_batch(draw, prompt, merge, ratio)
    token = learned.get("mask_embedding")
    if token is None:
      token = forward.embed(jnp.array(config.image_token_id))
    student = visual_lib.run(
      forward.params,
      config,
      visual,
      prompt.patches,
      mask=hidden,
      embedding=token,
    )
    z_s = logits(learned["visual_head"], student.hidden)
    teacher = visual_lib.run(params_average, config, visual, prompt.patches)
    z_t = logits(_head_of(params_average), teacher.hidden)
    z_t = jax.lax.stop_gradient(z_t)
    centre = (
      running["centre"] if centring else jnp.zeros_like(running["centre"])
    )
    tokens = jnp.where(hidden, mim(z_s, z_t, centre, tau_s, tau_t), 0.0)
    pairs = gram_rows(z_s, z_t, runs, clip=clip)
    parts = _of_prompts(tokens, hidden, pairs, prompt, mim_reduce)
    there = visual_lib.at_prompts(runs[..., 1:] > runs[..., :1], prompt)
    seen = visual_lib.from_prompts(
      there[..., 0] & mask.any((1, 2))[:, None], prompt, runs.shape[1]
    )
    statistics = {
      "sum": jnp.where(seen[..., None], z_t, 0.0).sum((0, 1)),
      "count": seen.sum().astype(jnp.float32),
    }
    norm = jnp.linalg.norm(running["centre"])
    numbers = parts | {"centre": jnp.broadcast_to(norm, parts["mim"].shape)}
    values = mim_weight * parts["mim"] + gram_weight * parts["gram"]
    return Measured(values, numbers), statistics

  def update(running, statistics):
    count = statistics["count"]
    mean = statistics["sum"] / jnp.maximum(count, 1.0)
    moved = centre_decay * running["centre"] + (1 - centre_decay) * mean
    return {
      "centre": jnp.where(count > 0, moved, running["centre"]),
      "updates": running["updates"] + 1,
    }

  return Stateful(init, term, update)


def _check(steps, mask_ratio, centre_decay, tau_s, tau_t) -> None:
  if type(steps) is not int or steps < 1:
    raise UserError(
      f"steps: expected the number of updates, at least 1, found {steps!r}"
    )
  for name, value in (
    ("mask_ratio", mask_ratio),
    ("centre_decay", centre_decay),
  ):
    if not 0 <= value < 1:
      raise UserError(f"{name}: expected a number in [0, 1), found {value!r}")
  for name, value in (("tau_s", tau_s), ("tau_t", tau_t)):
    if not value > 0:
      raise UserError(f"{name}: expected a number above 0, found {value!r}")


def _head_of(params: PyTree) -> PyTree:
  """Returns the visual head among the parameters that terms have added.

  Raises:
    UserError: if there are several.
  """
  found = [x for x in params.get("terms", {}).values() if "visual_head" in x]
  if len(found) != 1:
    raise UserError(
      "config.losses: expected one term visual_reconstruction beside a model"
      f" 'average' that is an Average of the policy, found {len(found)}"
    )
  return found[0]["visual_head"]


def _of_prompts(
  tokens: Float[Array, "B N"],
  hidden: Bool[Array, "B N"],
  pairs: Float[Array, "B N"],
  prompt: Prompt,
  mim_reduce: str,
) -> dict[str, Float[Array, "P"]]:
  """Sums the terms of tokens over the prompts that they are of."""
  index = prompt.visual_index
  masked = visual_lib.at_prompts(hidden.astype(jnp.float32), prompt).sum(1)
  total = visual_lib.at_prompts(tokens, prompt).sum(1)
  count = jnp.maximum(masked, 1.0) if mim_reduce == "mean" else 1.0
  own = visual_lib.at_prompts(pairs, prompt).sum(1)
  rows = prompt.patches.frame.shape[0]
  where = jnp.arange(len(index)) // (len(index) // rows)
  scale = prompt.patches.frame.shape[1] // tokens.shape[1]
  first = prompt.patches.frame[where[:, None], jnp.maximum(index, 0) * scale, 0]
  first = jnp.where(index >= 0, first, -1)
  before = jnp.pad(first[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  pictures = ((first >= 0) & (first != before)).sum(1)
  return {
    "mim": total / count,
    "gram": own / jnp.maximum(pictures, 1),
    "masked": masked / jnp.maximum((index >= 0).sum(1), 1),
  }
