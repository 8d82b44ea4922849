"""VaLR: latent segments aligned with an encoder's view. arXiv 2602.04476.

  python -m experiments.latent_model --model MODEL --output runs/valr/begin
  python -m experiments.stages --config experiments/valr.py:DIR --workdir w

Two stages of supervised learning: `texts` learns the chains of thought of DIR
(lines of experiments/sft.py), `latent` the same with a latent segment in front
of each text of a question with a picture, whose states are aligned with a
frozen encoder's features of it: cross-entropy + 0.5 alignment. The first begins
with runs/valr/begin, a model that has latent tokens; `:DIR,begin=MODEL` is
another. Texts may open segments themselves, by `<latent>`; with several
pictures a line's `looks` says which one each segment is about. The model of the
last stage answers with segments wherever it is sampled: GRPO on it is

  python -m mmrl.train --config experiments/jsonl.py:DIR --workdir w/rl \\
    --config.models.policy.path=w/latent/model

`:DIR` aligns with the model's own tower. `,encoder=FOLDER` aligns with a SigLIP
or DINOv2 of that directory instead; several are averaged.

`:runlocal` is small scenes, with 30 words of other text between picture and
question, from a model of `python -m experiments.tiny_worlds --world scenes`:

  python -m experiments.latent_model --model runs/scenes/describe/model \\
    --output runs/valr/begin --segments 1
  python -m experiments.stages --config experiments/valr.py:runlocal --workdir w

Its test questions have 0, 30 and 60 such words. `,plain` learns the texts
without segments in both stages, `,unaligned` has segments and no alignment; so
has `,weight=0.25` another weight. None of these has been compared yet.

Differs from the paper: segments are about pictures of the prompt, not about
pictures that come up inside of a chain. Reconstructed: see
`mmrl.losses.latent_alignment` and `mmrl.models.config.Latent`.
"""

import pathlib

import optax

from experiments import jsonl, sft, tiny_worlds
from mmrl.errors import UserError

_BEGIN = "runs/valr/begin"
_SEGMENT = 16
_DISTANCES = (0, 30, 60)


def two_rates(
  *, learning_rate, head_ratio: float = 5.0, weight_decay: float = 0.01
):
  """AdamW, with a larger learning rate for parameters that terms add."""

  def scale(updates, params=None):
    del params
    return {
      path: x * head_ratio if path.startswith("terms/") else x
      for path, x in updates.items()
    }

  return optax.chain(
    optax.adamw(learning_rate, weight_decay=weight_decay),
    optax.stateless(scale),
  )


def get_stages(arg: str = "data"):
  """The configs of both stages, in order.

  Args:
    arg: "runlocal" or DIR, and options behind commas.

  Raises:
    UserError: for an option that isn't known.
  """
  folder, *options = arg.split(",")
  begin, weight, encoders, kind = _BEGIN, 0.5, [], "aligned"
  for option in options:
    name, _, value = option.partition("=")
    if name == "begin" and value:
      begin = value
    elif name == "encoder" and value:
      encoders.append({"name": "vit", "path": value})
    elif name == "weight" and value:
      weight = float(value)
    elif option in ("plain", "unaligned"):
      kind = option
    else:
      raise UserError(
        f"valr.py:{arg}: expected plain, unaligned, weight=W, begin=MODEL or"
        f" encoder=FOLDER behind the first comma, found {option!r}"
      )
  stages = {}
  for name in ("texts", "latent"):
    config = _local() if folder == "runlocal" else _large(folder, name)
    config.models.policy.path = begin
    stages[name] = config
  if kind != "plain":
    config.rollout.first = True
    config.rollout.length += _SEGMENT
  if kind == "aligned":
    config.losses.alignment = {
      "name": "latent_alignment",
      "weight": weight,
      "reduce": "segment_mean",
      "encoders": tuple(encoders) or ({"name": "own_tower"},),
    }
    if folder == "runlocal":
      config.losses.alignment.hidden = 128
  return stages


def _large(folder: str, stage: str):
  """The paper's sizes, on one's own data."""
  config = sft.get_config(folder)
  config.models.policy.dtype = "bfloat16"
  config.rollout.prompts, config.train.accumulate = 128, 16
  config.rollout.length = 1024
  config.frozen = ("vision/.*",)
  config.schedule.value = 1e-5 if stage == "texts" else 2e-6
  if stage == "latent":
    config.optimizer = {
      "name": f"{pathlib.Path(__file__).resolve()}:two_rates",
      "head_ratio": 5.0,
      "weight_decay": 0.01,
    }
  config.evaluation.benchmarks.test.data.path = jsonl.find(folder, "test")
  return config


def _local():
  """Scenes, with other text between picture and question."""
  config = tiny_worlds.configs_of("scenes")["questions"]
  config.data.train.distance = _DISTANCES[1]
  config.data.lengths = (80, 160)
  config.frozen = ("vision/.*",)
  base = config.evaluation.benchmarks.test.to_dict()
  config.evaluation.benchmarks = {}
  for distance in _DISTANCES:
    one = {**base, "data": {**base["data"], "distance": distance}}
    config.evaluation.benchmarks[f"after_{distance}"] = one
  config.evaluation.batch = 50
  return config
