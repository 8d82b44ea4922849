"""SAYO: reward attention on the region at uncertain tokens. arXiv 2602.08241.

  python -m mmrl.train --config experiments/sayo.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/sayo.py:DIR --workdir RUN
  python -m mmrl.plan --config experiments/sayo.py:DIR --topology v5p:2x2x2

GRPO with two rewards: attention of the 30 % most uncertain tokens on the
question's region, in the last layer, and an answer block within a window of
lengths. There is no accuracy reward, as in the published run. The paper ablates
one that is METEOR, which `,meteor` adds: it wants `pip install -e '.[meteor]'`
and NLTK's WordNet, or `--config.rewards.accuracy.synonyms=False`. `,accuracy`
adds one of right or wrong instead. `,format` leaves the attention out, without
which a gain can't be told from one of format and length.
`reward/target` is the target attention score, 0.5 where the region has its
share of the area.

`:runlocal` is the quick start with this method; the object's box is the region,
the window is 6 to 9 tokens. `:DIR` is Qwen3-VL-8B on your questions
(experiments/jsonl.py), each with a `region` or SAYO's own `focus_area`: 24
questions x 16 answers of up to 110 tokens a step in one update, window 60 to
100, learning rate 5e-6, KL 0.001, top-p 0.9, gradient norm 0.8, LoRA of rank 16
and alpha 32; the reference is the policy without it. It has not been run.

Differs from the published run: the prompt has words of our own, in the user's
turn.

Plan (libtpu 0.0.52, v5p:2x2x2, 8 chips of 95 GiB): evaluation takes 32.92 GiB a
chip, the rollout 28.45, the probe 17.57, the update 21.64. Parameters take
4.20, moments 0.22, the reference nothing.
"""

from experiments import jsonl, recipes

_PROMPT = """{question}
Look at the parts of the picture that the question is about. Reason briefly
first, then give the complete answer between <answer> and </answer>."""


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal" or DIR; either with ",accuracy", ",meteor" or ",format".
  """
  folder, _, arm = arg.partition(",")
  if arm not in ("", "accuracy", "meteor", "format"):
    raise ValueError(
      f"sayo.py:{arg}: expected one argument, or one and ,accuracy or ,meteor"
      " or ,format"
    )
  if recipes.is_local(folder):
    config = recipes.local()
    config.schedule.warmup_steps = 4
    config.schedule.decay_steps = 28
    low, high = 6, 9
  else:
    config = _large(folder)
    low, high = 60, 100
  config.rollout.top_p = 0.9
  config.train.minibatches = 1
  config.advantage.epsilon = 1e-4
  config.losses.kl.weight = 1e-3
  accuracy = dict(config.rewards.accuracy) | {"weight": 1.0}
  if arm == "meteor":
    accuracy = {"name": "meteor", "weight": 1.0, "synonyms": True}
  config.rewards = {
    "window": {
      "name": "length_window",
      "weight": 1.0,
      "low": low,
      "high": high,
    },
    # Only logged.
    "target": {"name": "target_attention", "weight": 0.0},
  }
  if arm != "format":
    config.rewards.looks = {
      "name": "region_attention",
      "weight": 1.0,
      "fraction": 0.3,
      "without": "refuse",
    }
  if arm in ("accuracy", "meteor"):
    config.rewards.accuracy = accuracy
  return config


def _large(folder: str):
  """The sizes of the published run."""
  config = jsonl.get_config(folder)
  del config.losses["attention"]
  config.models.policy.path = "Qwen/Qwen3-VL-8B-Instruct"
  config.models.policy.dtype = "bfloat16"
  config.models.policy.max_pixels = 2048 * 32 * 32
  # Of all linear layers of the decoder.
  config.models.policy.lora = {
    "rank": 16,
    "alpha": 32,
    "targets": "text/layers/.*",
  }
  config.mesh = {"data": 1, "fsdp": -1, "tensor": 1}
  test = config.evaluation.benchmarks.test
  config.data.train.prompt = test.data.prompt = _PROMPT
  test.scores.format.form = "answer"
  config.data.lengths = (2560,)
  config.data.patches = (4 * 2048,)
  config.data.threads = 8
  config.rollout.prompts = 24
  config.rollout.answers = 16
  config.rollout.length = 110
  # 16,000 questions of GQA and 4,000 of ReFocus, three times.
  config.train.steps = 2475
  config.schedule.value = 5e-6
  config.clip_norm = 0.8
  config.shares.every = 0
  return config
