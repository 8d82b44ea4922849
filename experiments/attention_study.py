"""Does attention as a policy matter? The arms of a study on drawn scenes.

  python -m experiments.tiny_worlds --world scenes --output runs/scenes
  python -m mmrl.train --workdir RUN \\
    --config experiments/attention_study.py:ral@10
  python -m experiments.evidence --output runs/study --seeds 0 1 2

Questions about a picture of three to six things, of which one or two are asked
about: what colour or shape it is, whether it is there, what is beside it. So
looking at the right one matters, and where it is, is known.

Every arm is GRPO without a KL, and one thing more. `NAME@SHARE` gives that term
SHARE percent of the norm of the gradient, at every update:

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

import ml_collections

from experiments import laser, opad, tiny_worlds
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
# All that are compared.
ARMS = (
  "grpo",
  "grpo@30",
  *(f"ral@{share}" for share in ("0.1", "1", "10", "30")),
  *(f"ral-random@{share}" for share in ("0.1", "1", "10", "30")),
  *(f"{name}@10" for name in _RAL if name not in ("ral", "ral-random")),
  *("ease@10", "ease-rolled@10", *_REWARDS, "opad@10", "kd@10"),
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
  weight = {"share": share}
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


def _base() -> ml_collections.ConfigDict:
  """GRPO on scenes, from the model that has learnt to answer there."""
  stage = tiny_worlds.STAGES["scenes"]["questions"]
  config = config_lib.get_config()
  config.models.policy.path = "runs/scenes/questions/model"
  config.models.policy.remat = False
  data = {"name": "Scenes", "kinds": tiny_worlds.KINDS}
  config.data.train = data | {"split": "train", "count": 100_000}
  config.data.lengths, config.data.patches = stage.lengths, stage.patches
  config.rollout.prompts, config.rollout.answers = 64, 8
  config.rollout.length = 40
  config.losses.policy.clip_high = 0.28
  del config.losses["kl"]
  config.train.steps, config.train.minibatches = 40, 4
  config.schedule = {
    "name": "warmup_cosine_decay_schedule",
    "init_value": 0.0,
    "peak_value": 3e-4,
    "warmup_steps": 16,
    "decay_steps": 160,
    "end_value": 6e-6,
  }
  config.checkpoint.every = 20
  # Every third: a measurement is a gradient of each term.
  config.shares.every = 3
  config.evaluation.every = 10
  benchmark = config.evaluation.benchmarks.test
  benchmark.data = data | {"split": "test", "count": 999}
  benchmark.questions = 0
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
