"""RAL on your own pictures, videos and questions.

  python -m mmrl.train --config experiments/jsonl.py:DIR --workdir runs/mine

DIR holds train.jsonl and test.jsonl, one question per line, or .json, .parquet
or .tsv files in one of the formats of docs/data.md:

  {"question": "what colour is it?", "answer": "red", "images": ["a.png"]}

Paths are relative to the file; `videos` may stand beside `images` or instead.
`messages` in the form of chat templates may stand for all three. `region`, a
box x0, y0, x1, y1 in pixels of the first picture, turns on the measure of
attention on it. An answer is right however it is written (`lenient_answer`).
The model is the tiny one, which was trained to think and
answer; for a model that has to be told so, `:DIR,instruct` adds an instruction
to every question:

  python -m mmrl.train --config experiments/jsonl.py:DIR,instruct \\
    --config.models.policy.path=MODEL_DIR --workdir runs/mine
"""

import os

from mmrl import config as config_lib
from mmrl.errors import UserError

INSTRUCTION = """{question}
Think first: look at the picture step by step and check yourself. Write your
thoughts between <think> and </think>, then only the final answer between
<answer> and </answer>."""


def find(folder: str, split: str) -> str:
  """Finds a split's file in a local folder, whatever its ending.

  Args:
    folder: that the config's argument names.
    split: "train" or "test".

  Returns:
    The file; that of JSON Lines where there is none or several, or the folder
    isn't local.
  """
  endings = (".jsonl", ".json", ".parquet", ".tsv")
  names = [f"{split}{ending}" for ending in endings]
  paths = [os.path.join(folder, name) for name in names]
  found = [path for path in paths if os.path.exists(path)]
  return found[0] if len(found) == 1 else paths[0]


def get_config(arg: str = "data"):
  """RAL with the settings of its paper that are known.

  Answer length and number of prompts are for small pictures and short
  answers; a question whose answer is longer is refused by name.

  Args:
    arg: DIR, or DIR,instruct.
  """
  folder, _, instruct = arg.partition(",")
  if instruct not in ("", "instruct"):
    raise UserError(f"jsonl.py:{arg}: expected :DIR or :DIR,instruct")
  config = config_lib.add_ral(config_lib.get_config())
  config.data.train, config.evaluation.benchmarks.test.data = (
    {
      "name": "Files",
      "path": find(folder, split),
      "prompt": INSTRUCTION if instruct else "{question}",
    }
    for split in ("train", "test")
  )
  config.data.lengths = config.data.patches = ()  # from the data
  config.rewards.accuracy.name = "lenient_answer"
  config.evaluation.benchmarks.test.scores.accuracy.name = "lenient_answer"
  config.rollout.prompts = 8
  config.rollout.length = 32
  config.train.minibatches = 4
  config.schedule.value = 1e-5
  # Its program is the largest; it is compiled while the first steps go on.
  config.shares.update(every=10, prompts=2)
  config.evaluation.batch = 32
  return config
