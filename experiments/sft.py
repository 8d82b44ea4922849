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


def learn_texts(
  config, *, prompts: int, length: int, masked: bool = False
) -> None:
  """Sets the likelihood of texts that the data give, in place of GRPO.

  Args:
    config: to change; each question has one text.
    prompts: questions in a batch.
    length: longest text, in tokens.
    masked: whether later passes learn only answer blocks.
  """
  config.rollout = {
    "name": "given",
    "fewer": False,
    "prompts": prompts,
    "answers": 1,
    "length": length,
    "mask_truncated": False,
  }
  config.rewards = {}
  config.losses = {
    "likelihood": {
      "name": "likelihood",
      "weight": 1.0,
      "reduce": "weighted_token_mean" if masked else "token_mean",
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
  config.train.minibatches = 1
  config.shares.every = 0


def warm_up(config, peak: float, *, steps: int) -> None:
  """Sets a learning rate that rises to a peak, then falls over all steps.

  Args:
    config: to change; the number of its updates is `train.steps`.
    peak: largest learning rate.
    steps: that it rises.
  """
  config.schedule = {
    "name": "warmup_cosine_decay_schedule",
    "init_value": 0.0,
    "peak_value": peak,
    "warmup_steps": steps,
    "decay_steps": config.train.steps,
  }


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: DIR, or DIR,instruct, or either with ,masked.
  """
  masked = arg.endswith(",masked")
  config = jsonl.get_config(arg.removesuffix(",masked"))
  sizes = config.rollout
  learn_texts(config, prompts=sizes.prompts, length=sizes.length, masked=masked)
  return config
