"""Does attention as a policy matter? The arms of a study on easy-VQA.

  python -m mmrl.train --workdir RUN \\
    --config experiments/attention_study.py:ral@10
  python -m experiments.evidence --output runs/study --seeds 0 1 2

The quick start without its KL: 28 steps of 192 x 16 answers in four updates
each. A picture has one thing, somewhere on a grid of 4 x 4 visual tokens, and
its box is known; a question is about its colour, its shape, or yes or no. Test
questions are of odd pictures; those of even ones are held back.

Fewer answers don't do: with 96 prompts the same GRPO unlearns shapes (seed 0:
all right answers 71.6 to 75.8 %, of shapes 21.3 to 0 %). Drawn scenes have more
things in a picture, but the model that was taught them
(experiments/tiny_worlds.py) doesn't learn from what a run of minutes can draw:
54.2 % before, 52.9 % after 10 steps of 64 x 8.

Every arm is GRPO without a KL, and one thing more. `NAME@SHARE` gives that term
SHARE percent of the norm of the gradient, measured before the last of a step's
four updates (a term of the drift is 0 at the first), over three steps:

  grpo               nothing; `grpo@S` has the larger step that S percent more
                     gradient would be: the learning rate times 100 / (100 - S)
  ral                RAL's term, arXiv 2602.04884
  ral-random         its advantages go to other answers of the group, by a hash
  ral-length         its advantages go by length
  ral-visual, ral-scaled, ral-text
                     over visual tokens only, those scaled to 1, or text only
  ral-good           good answers only
  ral-heads          each head a policy of its own
  ral-middle         in layer floor(2 L / 3)
  ral-reference, ral-average
                     away from the first model's attention, or from an average's
  ease, ease-rolled  KL to the region, and to a wrong place
  opad, kd           distillation of a teacher, with and without its attention:
                     the model that grpo has made with seed 0

and rewards, which have no share: `sayo` (attention on the region, weight 1),
`sayo-rolled` (on a wrong place), `sayo-random` (its values by a hash), `laser`
(evenness and suppression), `laser-random`.
"""

import pathlib

import ml_collections

from experiments import laser, opad, quickstart
from mmrl import config as config_lib
from mmrl.errors import UserError, nearest

# Of RAL's term: what is else than the paper's.
_RAL = {
  "ral": {},
  "ral-random": {"placebo": "random"},
  "ral-length": {"placebo": "length"},
  "ral-visual": {"over": "visual"},
  "ral-scaled": {"over": "visual_scaled"},
  "ral-text": {"over": "text"},
  "ral-good": {"good_only": True},
  "ral-heads": {},
  "ral-middle": {},
  "ral-reference": {},
  "ral-average": {},
}
_TERMS = ("grpo", *_RAL, "ease", "ease-rolled", "opad", "kd")
_REWARDS = ("sayo", "sayo-rolled", "sayo-random", "laser", "laser-random")
# All that are compared, in the order in which they are run.
ARMS = (
  *("grpo", "ral@10", "ral-random@10", "ease@10", "ease-rolled@10"),
  *("ral@30", "ral-random@30", "grpo@30", "ral@1", "ral-random@1"),
  *("sayo", "sayo-rolled", "sayo-random", "laser", "laser-random"),
  *("opad@10", "kd@10", "ral-length@10", "ral-reference@10"),
  *("ral-average@10", "ral-visual@10", "ral-scaled@10", "ral-text@10"),
  *("ral-good@10", "ral-heads@10", "ral-middle@10"),
  *("ral@0.1", "ral-random@0.1"),
)


def get_config(arm: str = "ral@10") -> ml_collections.ConfigDict:
  """The config of an arm: NAME or NAME@SHARE, percent."""
  name, at, percent = arm.partition("@")
  known = (*_TERMS, *_REWARDS)
  if name not in known:
    raise UserError(
      f"attention_study.py:{arm}: expected one of {', '.join(known)}, found"
      f" {name!r}{nearest(name, known)}"
    )
  if bool(at) != (name in _TERMS) and name != "grpo":
    raise UserError(
      f"attention_study.py:{arm}: expected a share of the gradient with terms,"
      f" as in ral@10, and none with {', '.join(_REWARDS)}"
    )
  share = _share(arm, percent) if at else 0.0
  config = _base()
  # What a term of the drift has of the gradient moves by a factor of ten from
  # step to step.
  weight = {"share": share, "over": 3}
  if name == "grpo":
    config.schedule.peak_value /= 1 - share
    config.schedule.end_value /= 1 - share
  elif name in _RAL:
    config_lib.add_ral(config, weight)
    config.losses.attention.update(_RAL[name])
    if name == "ral-heads":
      config.attention.heads = "apart"
    elif name == "ral-middle":
      config.attention.layers = (2,)  # of 4
    elif name == "ral-reference":
      config.probes.target = {"name": "attention_reference"}
    elif name == "ral-average":
      config.models.average = {"name": "Average", "decay": 0.9}
      config.probes.target = {"name": "attention_average"}
  elif name.startswith("ease"):
    config.losses.evidence = {
      "name": "evidence_kl",
      "weight": weight,
      "reduce": "sequence_mean",
      "rolled": name == "ease-rolled",
    }
  elif name in ("opad", "kd"):
    config.models.teacher = {
      "name": "Directory",
      "path": "runs/study/attention_study-grpo-0/model",
    }
    opad.add_distillation(config, weight, attention=name == "opad")
  else:
    _reward(config, name)
  if name != "ral-reference":
    del config.models["reference"]
  return config


def _share(arm: str, percent: str) -> float:
  try:
    share = float(percent) / 100
  except ValueError:
    share = -1.0
  if not 0 < share < 1:
    raise UserError(
      f"attention_study.py:{arm}: expected a share above 0 and below 100"
      f" percent, found {percent!r}"
    )
  return share


def held_back() -> dict:
  """The spec of the benchmark that is used once, at the end."""
  return _benchmark(odd=False)


def _benchmark(*, odd: bool) -> dict:
  return {
    "name": "questions",
    "data": {
      "name": f"{pathlib.Path(__file__).resolve().parent}/half.py:Half",
      "split": "test",
      "odd": odd,
    },
    "questions": 1000,
    "scores": {"accuracy": {"name": "exact_answer"}},
  }


def _base() -> ml_collections.ConfigDict:
  """The quick start's GRPO without a KL."""
  config = quickstart.get_config("grpo")
  del config.losses["kl"]
  config.evaluation.every = 7
  config.evaluation.benchmarks = {"test": _benchmark(odd=True)}
  return config


def _reward(config, name: str) -> None:
  placebo = {"placebo": "random"} if name.endswith("random") else {}
  if name.startswith("sayo"):
    config.rewards.looks = {
      "name": "region_attention",
      "weight": 1.0,
      **placebo,
    }
    config.probes.looks = {"name": "looks", "rolled": name == "sayo-rolled"}
    return
  laser.add_rewards(config, short=True, **placebo)
