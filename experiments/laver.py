"""LaVer: masked visual tokens are reconstructed. arXiv 2512.06281.

  python -m experiments.stages --config experiments/laver.py:DIR --workdir w

Three stages of supervised learning on the texts of DIR (experiments/sft.py):
`connector` trains what maps visual tokens into the decoder, `visual` that and
the decoder with the reconstruction, `instruct` the same without it. In all of
them visual tokens of a picture see each other both ways
(`config.models.policy.mixed_attention`), which the model's files say; other
programs don't do that. Positions of visual tokens have rows and columns as
these models have them anyway (M-RoPE).

`,sft` leaves the reconstruction out, `,mim` has it without the Gram term,
`,ga` with that of the released code, which isn't clipped; `,causal` lets visual
tokens see those before them only. `,begin=MODEL` begins with another model than
the tiny one.

`:runlocal` is small scenes, from the first model of `python -m
experiments.tiny_worlds --world scenes`, runs/scenes/begin. Logged are the mean
cosines of visual tokens in each layer (`reward/layer_1`, ...). A picture has
few visual tokens there, so up to 0.4 of them are masked, where the released
config has 0.05. None of these has been compared yet.

Reconstructed: see `mmrl.losses.visual_reconstruction`. The average of the
policy has a decay of 0.999 at each update in `:runlocal`; with DIR it is the
released code's, 0.95 at every fiftieth part of the run, which rises to 1.
"""

from experiments import sft, tiny_worlds
from mmrl.errors import UserError

_BEGIN = "runs/scenes/begin"
# What stays of the vision tower where its connector trains.
_TOWER = "vision/(?!merger|deepstack).*"
_STEPS = {"connector": 4360, "visual": 6250, "instruct": 6250}
_LOCAL_STEPS = {"connector": 100, "visual": 400, "instruct": 200}
_WARM_UP = {"connector": 500, "visual": 100, "instruct": 100}
_LAYERS = 4  # of the tiny model


def get_stages(arg: str = "data"):
  """The configs of the stages, in order.

  Args:
    arg: "runlocal" or DIR, and options behind commas.

  Raises:
    UserError: for an option that isn't known.
  """
  folder, *options = arg.split(",")
  local = folder == "runlocal"
  begin, kind, mixed = _BEGIN if local else "tiny", "cga", True
  for option in options:
    name, _, value = option.partition("=")
    if name == "begin" and value:
      begin = value
    elif option in ("sft", "mim", "ga"):
      kind = option
    elif option == "causal":
      mixed = False
    else:
      raise UserError(
        f"laver.py:{arg}: expected sft, mim, ga, causal or begin=MODEL behind"
        f" the first comma, found {option!r}"
      )
  stages = {}
  for name, steps in (_LOCAL_STEPS if local else _STEPS).items():
    config = _local(name) if local else _large(folder)
    config.models.policy.path = begin
    config.models.policy.mixed_attention = mixed
    config.train.steps = steps
    config.frozen = (_TOWER, "text/.*") if name == "connector" else (_TOWER,)
    peak = 2e-3 if local or name == "connector" else 2e-5
    sft.warm_up(config, peak, steps=min(_WARM_UP[name], steps // 5))
    stages[name] = config
  if kind != "sft":
    _reconstruct(stages["visual"], kind, local)
  return stages


def _reconstruct(config, kind: str, local: bool) -> None:
  """Adds the reconstruction and the average that is its teacher."""
  steps = config.train.steps
  config.losses.reconstruction = {
    "name": "visual_reconstruction",
    "weight": 1.0,
    "reduce": "prompt_mean",
    "steps": steps,
    "mask_ratio": 0.4 if local else 0.05,
    "gram_weight": 0.0 if kind == "mim" else 1.0,
    "clip": kind != "ga",
  }
  config.models.average = {"name": "Average", "decay": 0.999}
  if not local:
    config.models.average.update(
      decay=0.95, every=max(1, steps // 50), rise_over=steps
    )


def _large(folder: str):
  """The paper's sizes, on one's own data."""
  config = sft.get_config(folder)
  config.models.policy.dtype = "bfloat16"
  config.rollout.prompts, config.train.accumulate = 128, 16
  config.rollout.length = 1024
  return config


def _local(stage: str):
  """Small scenes: what is in the picture, at the end questions about it."""
  world = tiny_worlds.configs_of("scenes")
  config = world["questions" if stage == "instruct" else "describe"]
  for layer in range(_LAYERS):
    config.rewards[f"layer_{layer + 1}"] = {
      "name": "visual_cosine",
      "weight": 0.0,
      "layer": layer,
    }
  return config
