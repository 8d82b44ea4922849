"""Perception-R1: reward what is stated to be seen. arXiv 2506.07218.

  python -m mmrl.train --config experiments/perception_r1.py:runlocal \\
    --workdir RUN
  OPENAI_BASE_URL=http://HOST:8000/v1 python -m mmrl.train \\
    --config experiments/perception_r1.py:DIR --workdir RUN

GRPO whose reward is 0.1 format + 0.9 accuracy + 0.7 share of the question's
visual facts that the answer states - 2 times the share of repeated 20-grams,
with clip 0.2 and 0.3, dual clip 3, and no KL. (It isn't arXiv 2504.07954, which
has the same name, nor ToR's perception weights, experiments/tor.py.)

`:DIR` is Qwen2.5-VL-7B, all of it trained: 128 questions x 8 answers of up to
4,096 tokens a step in one update, learning rate 1e-6 after 5 % of warm-up,
weight decay 1e-3, 275 steps. DIR holds the parquet files of the authors' data
(Geometry3K with `visual_key_info`), train*.parquet and test*.parquet; rows of
our own have `facts`. It needs `pip install -e '.[data,judge,math]'`. The judge
is Qwen2.5-32B-Instruct-AWQ at an OpenAI-compatible address, such as vLLM's,
which comes from OPENAI_BASE_URL and its key from OPENAI_API_KEY. A model of
one's own devices instead:

  config.models.judge = {"name": "LocalModel", "path": DIRECTORY}

`,accuracy` leaves the facts out; `,guarded` counts them only for answers of the
form, as an answer that is never closed earns them as well. `facts_judged` is
the share of facts that the judge gave a verdict on, `asked/judge_failures`
counts requests without a reply. It has not been run.

`:runlocal` is a tiny model on drawn scenes, whose facts are exact; no model is
asked, a fact counts where it stands word by word. The policy begins with what
was taught the form:

  python -m experiments.tiny_worlds --world scenes --output runs/scenes

Differs from the published run: the judge's prompt has words of our own, and
tags of verdicts in answers are broken up; losses are a mean over the tokens of
the whole update, not of its parts.

Plan of `:DIR` (libtpu 0.0.52): fits v5p:2x2x4, 16 chips of 95 GiB. Evaluation
takes 34.41 GiB a chip, the rollout 75.81, the probe 52.47, the update 35.50.
The judge isn't counted.
"""

import os

from experiments import recipes

PROMPT = r"""{question} First think the reasoning through, then give the answer.
Write, each on a line of its own: <think>, the thought, </think>, <answer>, the
answer with its final value in \boxed{}, </answer>."""
_ARMS = ("", "accuracy", "guarded")


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal" or DIR, alone or with ",accuracy" or ",guarded".
  """
  folder, _, arm = arg.partition(",")
  local = recipes.is_local(folder)
  if arm not in _ARMS:
    raise ValueError(
      f"perception_r1.py:{arg}: expected one argument, alone or with ,accuracy"
      " or ,guarded"
    )
  config = _local() if local else _large(folder)
  recipes.drop_kl(config)
  config.losses.policy.clip_high = 0.3
  config.losses.policy.dual_clip = 3.0
  config.rewards = {
    "format": _form(local) | {"weight": 0.1},
    "accuracy": _right(local) | {"weight": 0.9},
    "repetition": {"name": "repeated_ngrams", "weight": 2.0, "n": 20},
  }
  if arm != "accuracy":
    facts = {
      "name": "stated_facts" if local else "judged_facts",
      "weight": 0.7,
      "without": "refuse",
    }
    config.rewards.facts = facts
    if arm == "guarded":
      config.rewards.facts.times = ("format",)
    if not local:
      config.rewards.facts_judged = {"name": "judged_share", "weight": 0.0}
      config.models.judge = {
        "name": "Endpoint",
        "model": "Qwen/Qwen2.5-32B-Instruct-AWQ",
        "in_flight": 512,
      }
  elif local:
    # Only logged.
    config.rewards.facts = {"name": "stated_facts", "weight": 0.0}
  return config


def _form(local: bool) -> dict:
  if local:  # What the world's texts to learn from have.
    return {"name": "answer_format", "form": "think"}
  return {"name": "lined_format"}


def _right(local: bool) -> dict:
  if local:
    return {"name": "exact_answer"}
  return {"name": "first_math_answer", "strict_upstream": False}


def _large(folder: str):
  """The sizes of the published run."""
  config = recipes.images(folder)
  test = config.evaluation.benchmarks.test
  config.data.train, test.data = (
    {
      "name": "Files",
      "path": os.path.join(folder, f"{split}*.parquet"),
      "format": "easyr1",
      "prompt": PROMPT,
    }
    for split in ("train", "test")
  )
  test.questions = 0
  test.scores = {"accuracy": _right(False), "format": _form(False)}
  config.models.policy.max_pixels = 1806336
  # A picture has up to 2,304 visual tokens, 4 patches each.
  config.data.lengths, config.data.patches = (4096,), (4 * 2304,)
  config.rollout.prompts, config.rollout.answers = 128, 8
  config.rollout.length = 4096
  config.train.minibatches = 1
  config.train.accumulate = 8
  config.train.steps = 275
  config.optimizer.weight_decay = 1e-3
  config.schedule = {
    "name": "linear_schedule",
    "init_value": 0.0,
    "end_value": 1e-6,
    "transition_steps": 14,
  }
  return config


def _local():
  """GRPO on drawn scenes with the model that was taught their form."""
  config = recipes.local()
  data = {"name": "Scenes", "kinds": ("attribute", "relation")}
  config.data.train = {**data, "split": "train", "count": 20000}
  # The tiny model's tokens of pictures of 112 pixels, and of its words.
  config.data.lengths, config.data.patches = (80,), (196,)
  config.models.policy.path = "runs/scenes/questions/model"
  config.rollout.prompts, config.rollout.answers = 64, 8
  config.rollout.length = 80
  config.schedule = {"name": "constant_schedule", "value": 1e-4}
  test = config.evaluation.benchmarks.test
  test.data = {**data, "split": "test", "count": 500}
  test.questions = 0
  test.scores = {
    "accuracy": _right(True),
    "format": _form(True),
    "facts": {"name": "stated_facts"},
  }
  return config
