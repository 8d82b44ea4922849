"""AdaViP: preferences over answers and over pictures in one loss.

  python -m mmrl.train --config experiments/adavip.py:DIR --workdir RUN
  python -m mmrl.train --config experiments/adavip.py:DIR,mixed --workdir RUN
  python -m mmrl.train --config experiments/adavip.py:DIR,language --workdir RUN

Method: arXiv 2504.15619. A pair has a second picture, from which the key
element of the answer is removed. Each question is two prompts of a batch: about
its picture, with the chosen and the rejected answer, and about the other
picture with the chosen answer. The loss is the cross-entropy of the right one
of three samples. `mixed` is what it is compared with, DPO of the answers plus
half of DPO of the pictures (`--config.losses.preference.vision_weight`);
`language` is DPO of the answers alone.

DIR/train.jsonl has a pair on each line; where no element was found there is no
`rejected_images`, and the pair has DPO's loss:

  {"question": "what is there?", "answer": "a cup", "images": ["1.png"],
   "rejected_images": ["1_without.png"], "answers": ["A cup.", "A dog."]}

Finding elements, cutting them out and filling the hole is done before, with the
models of your choice; `python -m experiments.vision_negatives` selects, of the
candidates that you bring, the picture with which the chosen answer fits least.

Differs from the paper, as far as it is known: Qwen2.5-VL instead of LLaVA-1.5,
one pass over the data a run unless `config.train.steps` says more. beta 0.1,
learning rate 5e-7 and 16 pairs a step are of a sibling's code. 7B has not been
run. After supervised fine-tuning, say, two stages are

  python -m mmrl.train --config experiments/sft.py:SFT_DIR --workdir w/sft && \\
  python -m mmrl.train --config experiments/adavip.py:DIR --workdir w/adavip \\
    --config.models.policy.path=w/sft/model

`:DIR,ARM,local` is a tiny model of drawn scenes instead, where removal is
exact, 60 steps, vision frozen, and a learning rate to match:

  python -m experiments.tiny_worlds --world scenes --output runs/scenes
  python -m experiments.scene_pairs --output runs/pairs
  python -m experiments.vision_negatives --data runs/pairs/candidates.jsonl \\
    --output runs/pairs/least/train.jsonl --model runs/scenes/describe/model
  python -m experiments.vision_negatives --data runs/pairs/candidates.jsonl \\
    --output runs/pairs/random/train.jsonl --random 0
  python -m mmrl.train --workdir RUN \\
    --config experiments/adavip.py:runs/pairs/least,joint,local

`test/response` and `test/mention` are then hallucination in the sense of Object
HalBench, by response and by mention, on 500 held-out scenes; `test/recall` is
the share of things that are named. docs/results.md has what the arms do.
"""

from experiments import recipes, tiny_worlds

LOSSES = {
  "joint": {"name": "joint_preference"},
  "mixed": {"name": "mixed_preference", "vision_weight": 0.5},
  "language": {"name": "dpo"},
}


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: DIR; DIR,ARM; or DIR,ARM,local.
  """
  folder, *rest = arg.split(",")
  arm = rest[0] if rest else "joint"
  if arm not in LOSSES or rest[1:] not in ([], ["local"]):
    raise ValueError(
      f"adavip.py:{arg}: expected DIR, DIR,ARM or DIR,ARM,local, with an arm of"
      f" {', '.join(LOSSES)}"
    )
  config = recipes.images(folder)
  pictures = arm != "language"
  config.rollout = {
    "name": "given_pairs",
    # Two prompts of each pair, where pictures are compared.
    "prompts": 32 if pictures else 16,
    "answers": 2,
    "length": 512,
    "mask_truncated": False,
    "pictures": pictures,
  }
  config.rewards = {}
  terms = {"weight": 1.0, "reduce": "prompt_mean", "beta": 0.1}
  config.losses = {"preference": LOSSES[arm] | terms}
  config.train.minibatches = 1
  config.train.accumulate = 4
  config.schedule.value = 5e-7
  if rest[1:]:
    _local(config)
  return config


def _local(config) -> None:
  """A tiny model on drawn scenes, on two CPU cores."""
  config.models.policy.path = "runs/scenes/describe/model"
  config.models.policy.dtype = "float32"
  config.models.policy.remat = False
  config.models.policy.max_pixels = 0
  config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
  config.data.train.prompt = "{question}"
  config.data.lengths, config.data.patches = (72,), (196,)
  config.frozen = ("vision/.*",)
  config.rollout.length = 28
  config.train.accumulate = 1
  config.train.steps = 60
  config.schedule.value = 2e-5
  config.evaluation.batch = 100
  config.evaluation.benchmarks = {
    "test": {
      "name": "objects",
      "data": {
        "name": "Scenes",
        "split": "test",
        "kinds": ("describe",),
        "count": 500,
      },
      "objects": tiny_worlds.OBJECTS,
    }
  }
