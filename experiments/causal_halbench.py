"""Causal-HalBench in drawn scenes: a planted habit, and what unlearns it.

  python -m experiments.tiny_worlds --world scenes --output runs/scenes
  python -m experiments.causal_halbench --output runs/causal --seeds 0 1 2

What it does, for each seed, from the model that has learnt to say what is in a
scene, runs/scenes/describe/model: who sees no star can't infer a ring from it.

  planted      supervised learning of "Is there a ring?" about scenes where star
               and ring, heart and arrow, .. are mostly together
  independent  the same about scenes where shapes are independent
  counterfactual  GRPO from `planted`'s model on pairs of scenes in which one
               thing was replaced; the reward is whether the answer is right
  control      the same on questions about single scenes of the planted kind

and prints a table: cac, aac and chr of all four on 150 held-out pairs, whose
original scenes are of the planted kind, and their accuracy on scenes where
shapes are independent. cac and aac are above 0 where a model answers by what
mostly is together (arXiv 2511.10268). A command that was stopped goes on where
it was.

One arm by itself:

  python -m mmrl.train --workdir RUN \\
    --config experiments/causal_halbench.py:planted
  python -m mmrl.train --workdir RUN2 --config.models.policy.path=RUN/model \\
    --config experiments/causal_halbench.py:counterfactual

Differs from the paper, which trains nothing and replaces objects in
photographs.
"""

import json
import pathlib

from experiments import arguments, sft, stages
from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.worlds.scenes import scene

ARMS = ("planted", "independent", "counterfactual", "control")
NUMBERS = ("pairs/cac", "pairs/aac", "pairs/chr", "independent/accuracy")
# Probability that beside a shape its partner is drawn: of scenes to learn from,
# and of those that are changed, where partners must be missing at times.
STRENGTH, TESTED = 0.95, 0.5
_BEGIN = "runs/scenes/describe/model"


def get_config(arm: str = "planted"):
  """The config of an arm.

  Args:
    arm: one of `ARMS`, or "runlocal", which is the first.
  """
  arm = "planted" if arm == "runlocal" else arm
  if arm not in ARMS:
    raise UserError(
      f"causal_halbench.py:{arm}: expected one of {', '.join(ARMS)}"
    )
  config = config_lib.get_config()
  config.models.policy.path = _BEGIN
  config.models.policy.remat = False
  config.data.lengths, config.data.patches = (80,), (196,)
  config.data.train = _exists("train", 100_000, arm != "independent")
  config.frozen = ()
  config.evaluation.batch = 100
  config.evaluation.benchmarks = _benchmarks()
  if arm in ARMS[2:]:
    _learn_rewards(config)
  else:
    _learn_texts(config)
  if arm == "counterfactual":
    config.data.train = _pairs("train", 5000, 1)
  return config


def _exists(split: str, count: int, planted: bool) -> dict:
  """Questions about what is there, half of them answered yes."""
  return {
    "name": "Scenes",
    "split": split,
    "kinds": ("exists",),
    "count": count,
    "cooccurrence": scene.paired(STRENGTH) if planted else None,
  }


def _pairs(split: str, pairs: int, seed: int) -> dict:
  """Seven questions about each of some pairs of scenes."""
  return {
    "name": "Counterfactuals",
    "split": split,
    "count": 7 * pairs,
    "seed": seed,
    "cooccurrence": scene.paired(TESTED),
    "counted": scene.paired(STRENGTH),
  }


def _benchmarks() -> dict:
  return {
    "pairs": {"name": "causal_pairs", "data": _pairs("test", 150, 0)},
    "independent": {
      "name": "questions",
      "data": _exists("test", 300, False),
      "questions": 0,
      "scores": {"accuracy": {"name": "exact_answer"}},
    },
  }


def _learn_texts(config) -> None:
  config.data.train["thoughts"] = ("direct",)
  sft.learn_texts(config, prompts=32, length=12)
  config.optimizer.weight_decay = 0.0
  config.train.steps = 300
  sft.warm_up(config, 2e-3, steps=30)
  config.schedule.end_value = 1e-4
  config.checkpoint.every = 100


def _learn_rewards(config) -> None:
  config.rollout.prompts, config.rollout.answers = 56, 8
  config.rollout.length = 12
  config.rewards = {"accuracy": {"name": "exact_answer", "weight": 1.0}}
  config.losses.kl.weight = 0.01
  config.train.steps = 50
  config.schedule.value = 1e-4
  config.checkpoint.every = 25
  config.shares.every = 0


def run(output: pathlib.Path, seed: int) -> dict[str, dict]:
  """Runs all arms of a seed; returns their summaries."""
  folder = output / f"seed-{seed}"
  for arm in ARMS:
    config = get_config(arm)
    config.seed = seed
    if arm in ARMS[2:]:
      config.models.policy.path = str(folder / "planted" / "model")
    stages.run({arm: config}, folder)
  return {
    arm: json.loads((folder / arm / "summary.json").read_text()) for arm in ARMS
  }


def table(found: dict[int, dict[str, dict]]) -> str:
  """Markdown: numbers of every arm and seed after training, with intervals."""
  lines = [f"| arm, seed | {' | '.join(NUMBERS)} |"]
  lines.append("|---|" + "---|" * len(NUMBERS))
  for arm in ARMS:
    for seed, summaries in found.items():
      cells = []
      for name in NUMBERS:
        benchmark, number = name.split("/")
        one = summaries[arm]["benchmarks"][benchmark]["after"][number]
        cells.append("{value:.3f} ({low:.3f} to {high:.3f})".format(**one))
      lines.append(f"| {arm}, {seed} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main() -> None:
  """Runs what is missing and prints the table."""
  parser = arguments.Parser(__doc__)
  parser.add_output("folder of all runs")
  parser.add_argument(
    "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the arms"
  )
  flags = parser.parse()
  print(table({seed: run(flags.output, seed) for seed in flags.seeds}))


if __name__ == "__main__":
  arguments.run(main)
