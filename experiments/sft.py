"""Supervised fine-tuning on answers that your data give.

  python -m mmrl.train --config experiments/sft.py:DIR --workdir RUN

DIR holds train.jsonl and test.jsonl as for experiments/jsonl.py. Each line of
train.jsonl has a text to learn besides, whole, as the model is to write it:

  {"question": "what colour is it?", "answer": "red", "images": ["a.png"],
   "answers": ["<think>a red circle</think><answer>red</answer>"]}

The loss is the mean cross-entropy of the answers' tokens, nothing else is
computed: no policy is sampled, no reward graded. Test questions are answered
before and after, and scored. `:DIR,instruct` adds an instruction to every
question, as for experiments/jsonl.py.

`python -m experiments.tiny_model` makes the model that ships with the library
by two such runs, from random parameters to 70 % of easy-VQA's test questions.
Qwen2.5-VL sizes have not been run.
"""

from experiments import jsonl


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: DIR, or DIR,instruct.
  """
  config = jsonl.get_config(arg)
  config.rollout = {
    "name": "given",
    "prompts": config.rollout.prompts,
    "answers": 1,
    "length": config.rollout.length,
    "mask_truncated": False,
  }
  config.rewards = {}
  config.losses = {
    "likelihood": {
      "name": "likelihood",
      "weight": 1.0,
      "reduce": "token_mean",
    }
  }
  config.train.minibatches = 1
  config.shares.every = 0
  return config
