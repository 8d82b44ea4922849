"""Every field of a run's config, with its default and its meaning.

An experiment is a file with `get_config`. It starts from this config, changes
the fields that its paper changes, and documents them in its docstring. No other
code of the library has a default for a field of the config.
"""

from typing import Any

import ml_collections

from mmrl.errors import UserError

# Fields of `rollout` that aren't options of where answers come from.
ROLLOUT_SIZES = ("prompts", "answers", "length", "mask_truncated")
# Fields that were renamed: what they are now, and how, where they are part of
# another field.
MOVED: dict[str, str] = {
  "model": "models.policy",
  "teacher": "models, as its entry 'teacher'",
  "experts": "rollout, as with_experts (config.wrap_rollout)",
  "rollout.refill": "rollout, as refilled (config.wrap_rollout)",
  "data.test": "evaluation.benchmarks.test.data",
  "evaluation.questions": "evaluation.benchmarks.test.questions",
  "evaluation.form": "evaluation.benchmarks.test.scores.format.form",
}


def get_config() -> ml_collections.ConfigDict:
  """Returns the base config of all experiments: GRPO, easy-VQA, tiny model."""
  return ml_collections.ConfigDict(
    {
      # One run is a function of (config, seed).
      "seed": 0,
      # Models by name; a function that names `params_NAME` reads model NAME.
      # `policy` is trained. The others are specs of `mmrl.train.models`:
      # Directory (with a mesh of its own, or the run's), Initial (the policy at
      # step 0) and Average (a moving average of the policy).
      "models": {
        "policy": {
          # Directory in the Hugging Face layout; "tiny" ships with the library.
          "path": "tiny",
          # Type of matrix products: float32 or bfloat16.
          "dtype": "float32",
          # Type that parameters and optimiser state are stored in.
          "param_dtype": "float32",
          # Recompute each layer in the backward pass: less memory, more
          # compute.
          "remat": True,
          # Largest picture area in pixels; 0 keeps the model's own budget.
          "max_pixels": 0,
          # Sampling of video frames; 0 keeps the model's own setting. `frames`
          # samples that many whatever the length; without it `fps` applies, up
          # to `max_frames`.
          "video": {"fps": 0.0, "frames": 0, "max_frames": 0, "max_pixels": 0},
        },
        "reference": {"name": "Initial"},
      },
      # Devices on each axis, -1 for all others. Prompts are sharded over data x
      # fsdp, parameters over fsdp x tensor: `mmrl.machines.sharding`.
      "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
      "data": {
        # Spec of `mmrl.data.sources`; a prompt's "{question}" is the question.
        "train": {
          "name": "EasyVQA",
          "split": "train",
          "prompt": "{question}",
        },
        # Allowed padded prompt lengths, and patches per prompt, on average over
        # the prompts whose pictures are packed together. Each pair that occurs
        # is compiled once; prompts that fit none are an error.
        "lengths": (40,),
        "patches": (64,),
        # Threads that read and preprocess pictures ahead, in each of `workers`
        # processes; with 0 workers in the run's own process. Workers help where
        # pictures are large and cores idle; their batches are in /dev/shm.
        "threads": 2,
        "workers": 0,
      },
      # Where answers come from: a spec of `mmrl.rollouts`, and sizes.
      "rollout": {
        "name": "sampled",
        "prompts": 64,  # P of a rollout batch
        "answers": 8,  # G
        "length": 10,  # R, most tokens of an answer
        # Overlong filtering: answers truncated at R count in rewards and
        # advantages, but in no loss, no reduction, no token weight and no
        # metric of an update. TRL's `mask_truncated_completions`.
        "mask_truncated": False,
        "temperature": 1.0,  # 0 is greedy
        "top_k": 0,  # 0 keeps all tokens
        "top_p": 1.0,
      },
      # Specs of `mmrl.rewards`, each with a weight.
      "rewards": {
        "accuracy": {"name": "exact_answer", "weight": 0.9},
        "format": {"name": "answer_format", "weight": 0.1, "form": "think"},
      },
      "advantage": {"name": "group_normalised", "epsilon": 1e-6, "ddof": 1},
      # Layers whose attention is a policy, and which row: "self" or "emit".
      "attention": {"layers": (-1,), "row": "self"},
      # Specs of `mmrl.probes` with options, or whose fields are optional data;
      # others are run if a function names a field of theirs.
      "probes": {},
      # Specs of `mmrl.token_weights`; a token's weight is their product.
      "token_weights": {},
      # Specs of `mmrl.losses`, each with a weight and a reduction.
      "losses": {
        "policy": {
          "name": "clipped_ratio",
          "weight": 1.0,
          "reduce": "token_mean",
          "clip_low": 0.2,
          "clip_high": 0.2,
        },
        "kl": {
          "name": "reference_kl",
          "weight": 0.04,
          "reduce": "token_mean",
          "estimator": "k3",
        },
      },
      "train": {
        "steps": 100,  # rollout batches
        "minibatches": 2,  # updates per rollout batch and epoch
        "epochs": 1,  # times each rollout batch is used
        "accumulate": 1,  # parts of a minibatch (gradient accumulation)
      },
      # Specs of optax; the schedule counts updates, not rollout batches.
      "optimizer": {"name": "adamw", "weight_decay": 0.01},
      "schedule": {"name": "constant_schedule", "value": 1e-4},
      "clip_norm": 1.0,
      # Parameters whose path matches one of these expressions are frozen. RAL
      # freezes vision tower and projector.
      "frozen": ("vision/.*",),
      # Steps between checkpoints, and how many are kept.
      "checkpoint": {"every": 20, "keep": 2},
      # Steps between measurements of each term's share of the gradient (0 for
      # never), and the number of prompts measured.
      "shares": {"every": 1, "prompts": 8},
      "evaluation": {
        # Steps between evaluations while training, whose numbers are logged; 0
        # for none but those before and after.
        "every": 0,
        "batch": 250,  # questions
        "shown": 12,  # of each benchmark in the report
        # Specs of `mmrl.benchmarks`. Of `questions`, `questions` are spread
        # evenly over `data` (0 for all), and each of `scores` is one of
        # `mmrl.rewards` that reads texts.
        "benchmarks": {
          "test": {
            "name": "questions",
            "data": {
              "name": "EasyVQA",
              "split": "test",
              "prompt": "{question}",
            },
            "questions": 1000,
            "scores": {
              "accuracy": {"name": "exact_answer"},
              "format": {"name": "answer_format", "form": "think"},
            },
          },
        },
      },
    }
  )


def add_ral(
  config: ml_collections.ConfigDict, weight: float = 1.0
) -> ml_collections.ConfigDict:
  """Adds RAL's attention term, as in the paper, to a config."""
  config.losses.attention = {
    "name": "attention_jsd",
    "weight": weight,
    "reduce": "sequence_mean",
  }
  return config


def wrap_rollout(
  config: ml_collections.ConfigDict, **spec
) -> ml_collections.ConfigDict:
  """Wraps where a config's answers come from in another source of answers.

  Args:
    config: to change.
    **spec: name and options of the wrapper, without `of`.
  """
  rollout = config.rollout.to_dict()
  outer = {name: rollout.pop(name) for name in ROLLOUT_SIZES}
  config.rollout = {**outer, **spec, "of": rollout}
  return config


def check_fields(config: ml_collections.ConfigDict) -> None:
  """Checks that a config has no field that was renamed.

  Raises:
    UserError: naming the field, and what it is now.
  """
  fields = config.to_dict()
  for old, new in MOVED.items():
    *path, last = old.split(".")
    table: Any = fields
    for name in path:
      table = table.get(name) if isinstance(table, dict) else None
    if isinstance(table, dict) and last in table:
      raise UserError(
        f"config.{old}: expected it as config.{new}, where it is now, found it"
        " under its old name"
      )
