"""Supervised fine-tuning on answers that your data give.

  python -m mmrl.train --config experiments/sft.py:DIR --workdir RUN

DIR holds train.jsonl and test.jsonl as for experiments/jsonl.py. Each line of
train.jsonl has a text to learn besides, whole, as the model is to write it:

  {"question": "what colour is it?", "answer": "red", "images": ["a.png"],
   "answers": ["<think>a red circle</think><answer>red</answer>"]}

The loss is the mean cross-entropy of the answers' tokens, nothing else is
computed: no policy is sampled, no reward graded. Test questions are answered
before and after, and scored. `:DIR,instruct` adds an instruction to every
question, as for experiments/jsonl.py. A question may have several texts: set
`--config.rollout.answers` to the most that one has, and
`--config.rollout.fewer=True` if others have fewer; with
`--config.losses.likelihood.reduce=sequence_mean` each text counts alike, not
each token.

`:DIR,masked` learns whole texts in the first pass over the data, and only their
answer blocks, with the thought before them, in later ones (REACT's first stage,
arXiv 2601.04033: the form is learned, chains of thought aren't learned by
heart). The next stage starts from RUN/model:

  python -m mmrl.train --config experiments/sft.py:DIR,masked \\
    --workdir w/sft && \\
  python -m mmrl.train --config experiments/jsonl.py:DIR --workdir w/rl \\
    --config.models.policy.path=w/sft/model

and `python -m experiments.stages --config experiments/cold_start.py:DIR
--workdir w` runs both, and goes on where it was stopped.

`python -m experiments.tiny_model` makes the model that ships with the library
by two such runs, from random parameters to 70 % of easy-VQA's test questions.
Qwen2.5-VL sizes have not been run.
"""

from experiments import jsonl


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: DIR, or DIR,instruct, or either with ,masked.
  """
  masked = arg.endswith(",masked")
  config = jsonl.get_config(arg.removesuffix(",masked"))
  config.rollout = {
    "name": "given",
    "fewer": False,
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
  if masked:
    config.token_weights.spans = {
      "name": "span_weights",
      # Of the first pass and of all later ones.
      "reasoning": (1.0, 0.0),
      "answer": (1.0, 1.0),
      "other": (1.0, 0.0),
    }
    config.losses.likelihood.reduce = "weighted_token_mean"
  config.train.minibatches = 1
  config.shares.every = 0
  return config
