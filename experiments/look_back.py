"""Look-Back: the answer looks at the picture once more. arXiv 2507.03019.

  python -m experiments.second_looks --output runs/look_back
  python -m mmrl.train --config experiments/look_back.py:runlocal,cold \\
    --workdir runs/look_back/taught
  python -m mmrl.train --config experiments/look_back.py:runlocal --workdir RUN
  python -m experiments.stages --config experiments/look_back.py:DIR --workdir w

The last is the same as

  python -m mmrl.train --config experiments/look_back.py:DIR,cold \\
    --workdir w/cold && \\
  python -m mmrl.train --config experiments/look_back.py:DIR --workdir w/rl \\
    --config.models.policy.path=w/cold/model

First the policy is taught to write `<back>...</back>` between two thoughts,
from texts that have it (`,cold`); then GRPO, with 0.9 accuracy + 0.1 format,
which wants exactly one segment. Logged are the share of answers that have one
(`reward/segment`), attention on the picture over all layers (`reward/image`)
and how much more of it there is inside (`reward/gain`).

`,control` is the same length without the segment: the words of the check stand
in one thought, and the format reward is for that. `,solution` asks for a check
of the whole solution instead of one in the middle; the grammar is the same.

`:runlocal` is the quick start with this method; its `,solution` and `,control`
begin with texts of `second_looks --variant`, in runs/look_back_solution and
runs/look_back_control. `:DIR` is Qwen2.5-VL-7B on your questions
(experiments/jsonl.py) with GRPO as EasyR1 has it: 5 answers, learning rate
1e-6, KL 0.01. For `:DIR,cold`, rows of DIR/train.jsonl have
`answers` of the grammar; `mmrl.rewards.looks.back.compose` makes them of parts.
Its answers are compared as texts; for mathematics set `compare` of the accuracy
to "math", which needs `pip install -e '.[math]'`. It has not been run.

Reconstructed: the paper's text couldn't be read; weights, sizes and the words
of the prompts are chosen here.

Plan of `:DIR` (libtpu 0.0.52): fits v5p:2x4x4, 32 chips of 95 GiB. Evaluation
takes 27.70 GiB a chip, the rollout 68.29, the probe 73.00, the update 22.40. On
16 of them it doesn't fit.
"""

import os

from experiments import jsonl, recipes, sft
from mmrl import config as config_lib

_PROMPT = "{question}\n%s Write the final answer in \\boxed{}."
_PROMPTS = {
  "": (
    "Think between <think> and </think>. In the middle of it, stop and look at"
    " the picture again: write the details that your reasoning relies on"
    " between <back> and </back>, then go on between <think> and </think>."
  ),
  "solution": (
    "Solve it between <think> and </think>. Then check the whole solution"
    " against the picture between <back> and </back>, and think it over once"
    " more between <think> and </think>."
  ),
  "control": (
    "Think between <think> and </think>, and check the details that your"
    " reasoning relies on before you go on."
  ),
}
# Where experiments/second_looks.py writes, and what is taught there.
_LOCAL = "runs/look_back"


def get_stages(arg: str = "data"):
  """The configs of the stages, in order.

  Args:
    arg: DIR, or "runlocal"; with ",solution" or ",control".
  """
  return {"cold": get_config(f"{arg},cold"), "rl": get_config(arg)}


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal" or DIR; with ",solution" or ",control", and ",cold" at the
      end for the first stage.
  """
  folder, *arms = arg.split(",")
  cold = arms[-1:] == ["cold"]
  variant = "".join(arms[: len(arms) - cold])
  if variant not in _PROMPTS:
    raise ValueError(
      f"look_back.py:{arg}: expected one argument, or one and ,solution or"
      " ,control, and ,cold at the end"
    )
  local = recipes.is_local(folder)
  where = f"{_LOCAL}_{variant}" if variant else _LOCAL
  if cold:
    return _cold(where if local else folder, variant, local)
  config = recipes.local() if local else recipes.images(folder)
  if local:
    config.models.policy.path = f"{where}/taught/model"
    # A sixth of the quick start's answers, which are as many times longer.
    config.rollout.prompts, config.rollout.answers = 64, 8
    config.rollout.length = 40
  else:
    config.rollout.answers = 5
    config.data.train.prompt = _PROMPT % _PROMPTS[variant]
    config.evaluation.benchmarks.test.data.prompt = config.data.train.prompt
  _score(config, variant)
  config_lib.wrap_rollout(config, name="tagged", tag="back")
  return config


def _score(config, variant: str) -> None:
  """Sets rewards and the scores of the test questions."""
  accuracy = {"name": "boxed_accuracy", "compare": "lenient"}
  form = {"name": "back_format", "exactly_one": True}
  if variant == "control":
    form = {"name": "answer_format", "form": "boxed"}
  config.rewards = {
    "accuracy": {**accuracy, "weight": 0.9},
    "format": {**form, "weight": 0.1},
    # Only logged.
    "segment": {"name": "back_segment", "weight": 0.0},
    "image": {"name": "attention_share", "weight": 0.0, "of": "image"},
    "gain": {"name": "refocus_gain", "weight": 0.0},
  }
  config.evaluation.benchmarks.test.scores = {
    "accuracy": accuracy,
    "format": form,
    "segment": {"name": "back_segment"},
  }


def _cold(folder: str, variant: str, local: bool):
  """The first stage: likelihood of the texts of the data."""
  config = jsonl.get_config(folder)
  sft.learn_texts(
    config, prompts=128 if local else 64, length=40 if local else 2048
  )
  _score(config, variant)
  config.rewards = {}
  if local:
    config.frozen = ()
    config.models.policy.remat = False
    config.data.train.path = os.path.join(folder, "train.jsonl")
    config.data.lengths, config.data.patches = (40,), (64,)
    config.evaluation.benchmarks.test.data = {
      "name": "EasyVQA",
      "split": "test",
      "prompt": "{question}",
    }
    config.evaluation.batch = 250
    config.train.steps = 150
    sft.warm_up(config, 1e-3, steps=20)
    return config
  large = recipes.images(folder)
  for name in ("models", "mesh", "data", "frozen"):
    config[name] = large[name]
  config.data.train.prompt = _PROMPT % _PROMPTS[variant]
  config.evaluation.benchmarks.test.data.prompt = config.data.train.prompt
  config.train.steps = 100
  config.schedule.value = 1e-5
  return config
