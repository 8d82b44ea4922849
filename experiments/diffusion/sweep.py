"""Work that HGC's caches save, and what that costs: a table and a plot.

  python -m experiments.diffusion.sweep --models runs/shapes-*/model \\
    --plot docs/hgc.png

Every arm is sampled from the same noise, masks and prompts, by each model, and
compared with computing everything in 20 steps: MACs (counted), mask IoU, share
of right prompts, PSNR to the pictures of 20 steps, and the least seconds of a
batch here. Intervals are 95 %, by bootstrap over the pictures of all models, of
the differences picture by picture.

Arms: HGC with gates, densities and key steps; encoder propagation alone; gating
alone; a cache like DeepCache's; and the plain alternative, fewer steps.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import time

import jax
import matplotlib
import numpy as np

from experiments import arguments
from mmrl.benchmarks import intervals
from mmrl.diffusion import cache, ddim, macs, plan, shapes, training
from mmrl.diffusion.network.unet import Params, UNetConfig
from mmrl.errors import UserError

STEPS = 20
KEYS = plan.HGCConfig().key_encoder
EVERY = tuple(range(STEPS))
_BATCH = 64
_CALIBRATION = 16  # pictures by which key steps are chosen


@dataclasses.dataclass(frozen=True)
class Arm:
  """What is compared.

  Attributes:
    kind: for the plot.
    name: for the table.
    plan: of the caches; None of fewer steps.
    steps: number of them.
  """

  kind: str
  name: str
  plan: plan.StepPlan | None
  steps: int = STEPS


def arms(similar: dict[str, dict]) -> Iterator[Arm]:
  """Yields all arms for models of two levels.

  Args:
    similar: key steps by tau, as `HGCConfig` has them.
  """
  yield Arm("full", "20 steps", None)
  for steps in (16, 12, 10, 8, 7, 6, 5, 4):
    yield Arm("fewer steps", f"{steps} steps", None, steps)
  make = functools.partial(
    plan.plan, steps=STEPS, encoder_blocks=3, decoder_blocks=2
  )

  def hgc(name: str, kind: str = "HGC", **fields) -> Arm:
    return Arm(kind, name, make(plan.HGCConfig(**fields)))

  for gate in (15, 10, 5):
    yield hgc(
      f"gate {gate}",
      "gating alone",
      key_control=EVERY,
      key_encoder=EVERY,
      inter=1.0,
      intra=1.0,
      gate=gate,
    )
  even = tuple(range(0, STEPS, 4))
  for name, keys in (("9 keys", KEYS), ("every 4th", even)):
    yield hgc(
      name,
      "encoder propagation",
      key_control=keys,
      key_encoder=keys,
      inter=1.0,
      intra=1.0,
      gate=STEPS,
    )
  for every in (2, 3, 5):
    made = plan.shallow(STEPS, every, 3, 2)
    yield Arm("like DeepCache", f"every {every}", made)
  yield hgc("defaults")
  for gate in (5, 15):
    yield hgc(f"gate {gate}", gate=gate)
  yield hgc("no intra", intra=1.0)
  yield hgc("inter 1", inter=1.0)
  yield hgc("inter 0.5, 1", inter=(0.5, 1.0))
  yield hgc("inter 0.25, 1", inter=(0.25, 1.0))
  yield hgc("inter 0.5, 1, gate 5", inter=(0.5, 1.0), gate=5)
  yield hgc("inter 0.25, 1, gate 15", inter=(0.25, 1.0), gate=15)
  for name, keys in similar.items():
    yield hgc(f"keys by {name}, inter 0.5, 1", inter=(0.5, 1.0), **keys)


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def _plain(params, config, x, masks, words, *, steps, weight):
  return ddim.sample(
    params, config, x, masks, words, steps=steps, weight=weight
  )


def sampled(
  arm: Arm, config: UNetConfig, params: Params, given, noise, weight: float
) -> tuple[np.ndarray, float]:
  """Samples an arm's pictures, batch by batch.

  Returns:
    (pictures, least seconds of a batch).
  """
  found, least = [], math.inf
  for start in range(0, len(noise), _BATCH):
    part = slice(start, start + _BATCH)
    inputs = params, config, noise[part], given.masks[part], given.words[part]
    for _ in range(2 if start == 0 else 1):  # the first one compiles
      began = time.perf_counter()
      if arm.plan is None:
        pictures = _plain(*inputs, steps=arm.steps, weight=weight)
      else:
        pictures = cache.sample(*inputs, plan=arm.plan, weight=weight)
      pictures = jax.block_until_ready(pictures)
      least = min(least, time.perf_counter() - began)
    found.append(np.asarray(pictures))
  return np.concatenate(found), least


def by_similarity(config, params, noise, given, weight) -> dict[str, dict]:
  """Chooses key steps, by the features of a few pictures."""
  few = slice(_CALIBRATION)
  inputs = noise[few], given.masks[few], given.words[few]
  found = jax.device_get(
    cache.features(params, config, *inputs, steps=STEPS, weight=weight)
  )
  return {
    f"the {count} least alike": {
      f"key_{name}": plan.pick_key_steps(x, count=count)
      for name, x in found.items()
    }
    for count in (len(KEYS), 5)
  }


def measured(model: str, seed: int, count: int, weight: float) -> dict:
  """Samples all arms by one model.

  Returns:
    Of each (kind, name), values of every picture, with "macs" and "seconds".
  """
  config, params = training.load(model)
  keys = jax.random.split(jax.random.key(seed), 2)
  given = shapes.draw(keys[0], count, config.size)
  noise = jax.random.normal(keys[1], given.pictures.shape)
  cost = macs.costs(config)
  similar = by_similarity(config, params, noise, given, weight)
  for name, chosen in similar.items():
    print(f"{name}: {chosen}", flush=True)
  whole, found = None, {}
  for arm in arms(similar):
    pictures, seconds = sampled(arm, config, params, given, noise, weight)
    whole = pictures if whole is None else whole
    values = dict(shapes.measure(pictures, given.masks, given.words))
    values["psnr"] = shapes.psnr(pictures, whole)
    made = arm.plan or plan.full(arm.steps, 3, 2)
    found[arm.kind, arm.name] = {
      **{name: np.asarray(x) for name, x in values.items()},
      "macs": macs.macs(made, cost),
      "seconds": seconds,
    }
    means = {
      k: f"{np.mean(x):.3f}" for k, x in found[arm.kind, arm.name].items()
    }
    print(f"{model}, {arm.kind}, {arm.name}: {means}", flush=True)
  return found


def summarised(found: list[dict]) -> dict:
  """Joins models: of each arm, estimates of its numbers, less those of all."""
  whole = ("full", "20 steps")
  joined = {}
  for arm in found[0]:
    changes = {
      name: np.concatenate([one[arm][name] - one[whole][name] for one in found])
      for name in ("iou", "prompt")
    }
    values = {"psnr": np.concatenate([one[arm]["psnr"] for one in found])}
    joined[arm] = intervals.estimate(
      lambda x: {k: v.mean(-1) for k, v in x.items()}, changes | values
    )
    for name in ("macs", "seconds"):
      ratios = [one[arm][name] / one[whole][name] for one in found]
      joined[arm][name] = intervals.Estimate(
        float(np.mean(ratios)), min(ratios), max(ratios)
      )
  return joined


def table(joined: dict) -> str:
  """Markdown: of each arm what it saves and what it costs."""
  lines = [
    "| | | MACs | seconds | mask IoU, points | prompts, points | PSNR, dB |",
    "|---|---|---|---|---|---|---|",
  ]
  for (kind, name), values in joined.items():
    if kind == "full":
      continue
    cells = [f"{values[x].value - 1:+.1%}" for x in ("macs", "seconds")]
    for x in ("iou", "prompt"):
      low, high = 100 * values[x].low, 100 * values[x].high
      cells.append(f"{100 * values[x].value:+.1f} ({low:+.1f} to {high:+.1f})")
    cells.append(f"{values['psnr'].value:.1f}")
    lines.append(f"| {kind} | {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def draw(joined: dict, file: str) -> None:
  """Draws what is lost of mask IoU and prompts over what is saved of MACs."""
  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
  titles = {
    "iou": "mask IoU, change in points",
    "prompt": "right prompts, change in points",
    "psnr": "PSNR to 20 steps, dB",
  }
  marks = dict(
    zip(dict.fromkeys(kind for kind, _ in joined), "*osD^P", strict=True)
  )
  for axis, (number, title) in zip(axes, titles.items(), strict=True):
    scale = 1 if number == "psnr" else 100
    for kind, mark in marks.items():
      points = sorted(
        (100 * (1 - values["macs"].value), values[number])
        for (one, _), values in joined.items()
        if one == kind and kind != "full"
      )
      if not points:
        continue
      saved, found = zip(*points, strict=True)
      means = np.array([scale * x.value for x in found])
      ends = np.array([[scale * x.low, scale * x.high] for x in found]).T
      axis.errorbar(
        saved,
        means,
        np.abs(ends - means),
        fmt=mark + ("-" if kind == "fewer steps" else ""),
        label=kind,
        capsize=2,
        alpha=0.8,
      )
    axis.set_xlabel("MACs saved, %")
    axis.set_title(title)
    axis.grid(alpha=0.3)
  axes[0].axhline(-1.5, color="grey", linestyle=":")
  axes[0].axvline(63, color="grey", linestyle=":")
  axes[-1].legend()
  figure.savefig(file, dpi=80)


def main() -> None:
  """Measures, prints the table, and draws the plot if it is asked for."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--models", nargs="+", required=True, help="folders")
  parser.add_argument("--count", type=int, default=256, help="pictures a model")
  parser.add_argument("--seed", type=int, default=100, help="of the pictures")
  parser.add_argument("--weight", type=float, default=2.0, help="of guidance")
  parser.add_argument("--plot", type=arguments.output_file, help="file to draw")
  flags = parser.parse()
  if flags.count < _BATCH or flags.count % _BATCH:
    raise UserError(
      f"--count: expected a multiple of {_BATCH}, found {flags.count}"
    )
  joined = summarised(
    [
      measured(model, flags.seed + i, flags.count, flags.weight)
      for i, model in enumerate(flags.models)
    ]
  )
  print(table(joined))
  if flags.plot:
    flags.plot.parent.mkdir(parents=True, exist_ok=True)
    draw(joined, str(flags.plot))


if __name__ == "__main__":
  arguments.run(main)
