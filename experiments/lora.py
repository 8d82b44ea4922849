"""GRPO with LoRA: low-rank pairs train, the model stays. arXiv 2106.09685.

  python -m mmrl.train --config experiments/lora.py:runlocal --workdir RUN
  python -m mmrl.train --config experiments/lora.py:DIR --workdir RUN
  python -m mmrl.plan --config experiments/lora.py:DIR --topology v5e:4x4

`:runlocal` is the quick start with pairs of rank 16 on every layer of the
decoder, at three times its learning rate. Of 2,000 test questions 70.0 % are
right before and 82.2 % (80.5 to 83.9) after, seed 0, as with the whole model;
372 seconds of processor time, 8 minutes on two cores beside another run.

`:DIR` is Qwen2.5-VL-7B on your questions (experiments/jsonl.py), held in
bfloat16 on 16 chips of 16 GiB each, at a learning rate ten times that of the
whole model. It has not been run. The reference is the policy without its pairs.

Plan (libtpu, v5e:4x4): 40.4 of 8,332.5 million parameters train. Parameters
take 1.00 GiB a chip, moments 0.08, the reference nothing. 32 prompts of up to
2,048 visual tokens and 8 answers of up to 2,048 tokens fit: evaluation takes
10.16 GiB, the rollout 12.60, the probe 12.20, the update 7.77. With 64 prompts
the rollout doesn't: its temporaries are 20.2 GiB.
"""

from experiments import recipes


def get_config(arg: str = "data"):
  """The config.

  Args:
    arg: "runlocal", or DIR.
  """
  config = recipes.base(arg)
  config.models.policy.lora = {
    "rank": 16,
    "alpha": 32,
    "targets": "text/layers/.*",
  }
  if recipes.is_local(arg):
    config.schedule.peak_value *= 3
    return config
  config.models.policy.param_dtype = "bfloat16"
  config.mesh = {"data": 1, "fsdp": -1, "tensor": 4}
  config.frozen = ("vision/.*",)
  config.rollout.prompts = 32
  config.train.accumulate = 2
  config.schedule.value = 1e-5
  config.evaluation.batch = 32
  return config
