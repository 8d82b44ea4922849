"""DPO and its kin, on pairs of your data or of what the policy samples.

  python -m mmrl.train --config experiments/dpo.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/dpo.py:runlocal,simpo --workdir RUN
  python -m mmrl.train --config experiments/dpo.py:DIR --workdir RUN

A kind may follow: sigmoid (DPO, arXiv 2305.18290; without one), ipo
(2310.12036), hinge (2305.10425), robust (2403.00409, of labels of which a tenth
is wrong) or simpo (2405.14734, without a reference).

`:runlocal` is the quick start with pairs of its own: of 16 sampled answers the
most and the least accurate; groups that are all right or all wrong teach
nothing, and `rollout/pairs` in metrics.jsonl is the share of the others. Two
CPU cores, under five minutes (228 s, seed 0, beside another run). Of 2,000 test
questions 70.0 % are right before and 78.5 % (76.6 to 80.2) after, less than
GRPO's 83 % of as many samples.

`:DIR` learns from DIR/train.jsonl, a pair on each line, the preferred text
first, whole, as the model is to write it:

  {"question": "what colour is it?", "answer": "red", "images": ["a.png"],
   "answers": ["<answer>red</answer>", "<answer>blue</answer>"]}

with Qwen2.5-VL-7B, beta 0.1 and learning rate 5e-7, as RLAIF-V's pairs are
used. It has not been run. After supervised fine-tuning of the same model, say,
two stages are

  python -m mmrl.train --config experiments/sft.py:SFT_DIR --workdir w/sft && \\
  python -m mmrl.train --config experiments/dpo.py:DIR --workdir w/dpo \\
    --config.models.policy.path=w/sft/model

Metrics beside the loss: `dpo/margin` and its accuracy, and the log-probability
of chosen and rejected answers.
"""

from experiments import recipes
from mmrl import config as config_lib

KINDS = ("sigmoid", "ipo", "hinge", "robust", "simpo")


def get_config(arg: str = "runlocal"):
  """The config.

  Args:
    arg: `runlocal` or DIR; then, after a comma, the kind.
  """
  where, _, kind = arg.partition(",")
  kind = kind or "sigmoid"
  if kind not in KINDS:
    raise ValueError(f"dpo.py:{arg}: expected a kind of {', '.join(KINDS)}")
  config = recipes.base(where)
  loss = {"name": "dpo", "kind": kind, "beta": 0.1}
  if kind == "robust":
    loss["label_smoothing"] = 0.1
  if kind == "simpo":
    loss = {"name": "simpo", "beta": 2.0, "margin": 0.5}
  config.losses = {"dpo": loss | {"weight": 1.0, "reduce": "prompt_mean"}}
  if recipes.is_local(where):
    config_lib.wrap_rollout(config, name="sampled_pairs", reward="accuracy")
    return config
  config.rollout = {
    "name": "given_pairs",
    "prompts": 64,
    "answers": 2,
    "length": config.rollout.length,
    "mask_truncated": False,
  }
  config.rewards = {}
  config.train.minibatches = 1
  config.train.accumulate = 8
  config.schedule.value = 5e-7
  return config
