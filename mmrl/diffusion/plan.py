"""Which parts of the model are computed at which step, decided beforehand.

Of HGC (arXiv 2511.11031) the abstract and an opening figure could be read.
Reconstructed: everything here, from the two published techniques that it
combines, encoder propagation (Faster Diffusion, 2312.09608) and gating of
cross-attention (T-GATE, 2404.02747), and from its two densities.
"""

from collections.abc import Sequence
import dataclasses
import math

from jaxtyping import Bool, Float, Int
import numpy as np

from mmrl.errors import UserError
from mmrl.worlds.palette import check_number

# Added before a floor, as 10 * 0.3 is a little less than 3.
_TRACE = 1e-9


@dataclasses.dataclass(frozen=True)
class HGCConfig:
  """Steps and densities of HGC's caches. The defaults are for 20 steps.

  Attributes:
    key_control: steps at which the branch is computed; 0 is one of them.
    key_encoder: those at which the encoder is.
    gate: step from which on there is one branch of guidance and no prompt: the
      outputs of cross-attention are the last ones, the mean of both branches.
      The number of steps is never.
    inter: share of the steps at which the decoder's blocks are computed, of
      all or of each.
    intra: share of these at which their self-attention is.
  """

  key_control: tuple[int, ...] = (0, 1, 2, 3, 5, 7, 10, 14)
  key_encoder: tuple[int, ...] = (0, 1, 2, 3, 5, 7, 10, 14)
  gate: int = 10
  inter: float | tuple[float, ...] = 0.5
  intra: float = 0.5


@dataclasses.dataclass(frozen=True)
class StepPlan:
  """Tables of what is computed, True, or read from the cache, False.

  Attributes:
    control: the branch.
    encoder: the encoder's blocks, the middle last.
    decoder: the decoder's blocks.
    self_attention: in these.
    cross_attention: in these.
    branches: of guidance, 2 or 1.
  """

  control: Bool[np.ndarray, "T"]
  encoder: Bool[np.ndarray, "T e"]
  decoder: Bool[np.ndarray, "T d"]
  self_attention: Bool[np.ndarray, "T d"]
  cross_attention: Bool[np.ndarray, "T d"]
  branches: Int[np.ndarray, "T"]

  @property
  def steps(self) -> int:
    """Number of steps."""
    return len(self.branches)

  @property
  def gate(self) -> int:
    """Number of steps before the gate."""
    return int((self.branches == 2).sum())

  def check(self) -> None:
    """Checks that nothing is read before it is written.

    Raises:
      UserError: naming the table.
    """
    for name in ("control", "encoder", "decoder", "self_attention"):
      if not getattr(self, name)[0].all():
        raise UserError(
          f"plan.{name}: expected everything to be computed at step 0, found a"
          " cache that is read before it is written"
        )
    before = np.arange(self.steps) < self.gate
    if self.gate < 1 or (self.branches != np.where(before, 2, 1)).any():
      raise UserError(
        "plan.branches: expected 2 up to a gate and 1 from there on, found"
        f" {self.branches.tolist()}"
      )
    if (self.cross_attention != self.decoder & before[:, None]).any():
      raise UserError(
        "plan.cross_attention: expected it in each block that is computed"
        " before the gate, found another table"
      )
    if (self.self_attention & ~self.decoder).any():
      raise UserError(
        "plan.self_attention: expected it in blocks that are computed, found"
        " it in others"
      )


def refresh(count: int, density: int | float) -> bool:
  """Tells whether the use of number `count` computes anew.

  `floor(j d) > floor((j - 1) d)`: of the first n uses about n d do, equally far
  apart, and 0 always does.
  """
  now, before = (math.floor(x * density + _TRACE) for x in (count, count - 1))
  return now > before


def plan(
  config: HGCConfig, *, steps: int, encoder_blocks: int, decoder_blocks: int
) -> StepPlan:
  """Makes the tables of a config.

  Args:
    config: what is cached.
    steps: number of them, T.
    encoder_blocks: of the model, with the middle.
    decoder_blocks: of the model.

  Raises:
    UserError: naming the field that is wrong.
  """
  check_number("steps", steps, 1, 1000)
  control = _keys("key_control", config.key_control, steps)
  encoder = _keys("key_encoder", config.key_encoder, steps)
  check_number("gate", config.gate, 1, steps)
  inter = config.inter
  each = inter if isinstance(inter, tuple) else (inter,) * decoder_blocks
  if len(each) != decoder_blocks:
    raise UserError(
      f"inter: expected one density, or one for each of {decoder_blocks}"
      f" blocks of the decoder, found {len(each)}"
    )
  for density in each:
    _check_density("inter", density)
  _check_density("intra", config.intra)
  decoder = np.array([[refresh(i, d) for d in each] for i in range(steps)])
  # Counted in a block's own computations: with steps as the count, equal
  # densities would fall on the same steps and save nothing.
  uses = decoder.cumsum(0) - 1
  inside = np.vectorize(lambda j: refresh(int(j), config.intra))(uses)
  return _made(
    control, encoder[:, None], decoder, inside, config.gate, encoder_blocks
  )


def full(steps: int, encoder_blocks: int, decoder_blocks: int) -> StepPlan:
  """Makes the plan that computes everything."""
  every = tuple(range(steps))
  return plan(
    HGCConfig(every, every, gate=steps, inter=1.0, intra=1.0),
    steps=steps,
    encoder_blocks=encoder_blocks,
    decoder_blocks=decoder_blocks,
  )


def shallow(
  steps: int, every: int, encoder_blocks: int, decoder_blocks: int
) -> StepPlan:
  """Makes a plan like DeepCache's (arXiv 2312.00858), the plain alternative.

  The first block of the encoder and the last of the decoder are computed at
  each step, all others at every so many.
  """
  check_number("every", every, 1, steps)
  keys = np.arange(steps) % every == 0
  encoder = np.repeat(keys[:, None], encoder_blocks, axis=1)
  decoder = np.repeat(keys[:, None], decoder_blocks, axis=1)
  encoder[:, 0] = decoder[:, -1] = True
  return _made(keys, encoder, decoder, decoder, steps, encoder_blocks)


def _made(control, encoder, decoder, inside, gate, encoder_blocks) -> StepPlan:
  before = np.arange(len(decoder)) < gate
  wide = (len(decoder), encoder_blocks)
  made = StepPlan(
    control=control,
    encoder=np.broadcast_to(encoder, wide).copy(),
    decoder=decoder,
    self_attention=decoder & inside,
    cross_attention=decoder & before[:, None],
    branches=np.where(before, 2, 1),
  )
  made.check()
  return made


def pick_key_steps(
  features: Float[np.ndarray, "T D"],
  *,
  tau: float | None = None,
  count: int | None = None,
) -> tuple[int, ...]:
  """Chooses key steps by how alike the features of steps are.

  Args:
    features: of each step, from runs that compute everything.
    tau: a step whose cosine to the last key step is below it is the next one:
      what is read is never less alike. One pass.
    count: of key steps instead: 0 and those with the smallest cosines to the
      step before, of equal ones the earlier.

  Raises:
    UserError: if not exactly one of both is given, or a count is none that
      there can be.
  """
  if (tau is None) == (count is None):
    raise UserError(
      "expected one of tau and count, found"
      f" {'both' if tau is not None else 'none'}; give one"
    )
  steps = range(1, len(features))
  if count is not None:
    check_number("count", count, 1, len(features))
    alike = {i: _cosine(features[i], features[i - 1]) for i in steps}
    return (0, *sorted(sorted(steps, key=lambda i: alike[i])[: count - 1]))
  assert tau is not None
  keys = [0]
  for i in steps:
    if _cosine(features[i], features[keys[-1]]) < tau:
      keys.append(i)
  return tuple(keys)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the cosine of two vectors; 0 where one is 0."""
  size = float(np.linalg.norm(a) * np.linalg.norm(b))
  return float(a @ b) / size if size else 0.0


def _keys(name: str, keys: Sequence[int], steps: int) -> np.ndarray:
  """Makes a table of key steps."""
  for key in keys:
    check_number(name, key, 0, steps - 1)
  if 0 not in keys or sorted({*keys}) != [*keys]:
    raise UserError(
      f"{name}: expected steps in order, each once, of which the first is 0,"
      f" found {', '.join(map(str, keys)) or 'none'}"
    )
  return np.isin(np.arange(steps), keys)


def _check_density(name: str, value: object) -> None:
  if type(value) not in (int, float) or not 0 < value <= 1:  # type: ignore[operator]
    raise UserError(
      f"{name}: expected a density above 0 and up to 1, found {value!r:.80}"
    )
