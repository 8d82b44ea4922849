"""Every field of a run's config, with its default and its meaning.

An experiment is a file with `get_config`. It starts from this config, changes
the fields that its paper changes, and documents them in its docstring. No other
code of the library has a default for a field of the config.

The comment above a field, or behind it, is what `--help-config` prints: each
field has one, but for the options of a spec, which are those of its function.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from mmrl.errors import UserError, nearest

# Tables whose entries have names of one's own, or are checked elsewhere.
TABLES = (
  "models",
  "models.policy.attention",
  "models.policy.lora",
  "rewards",
  "probes",
  "token_weights",
  "losses",
  "trackers",
  "evaluation.benchmarks",
)
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
      # step 0) and Average (a moving average of the policy); or of
      # `mmrl.strategies.asking`, for rewards that name `ask_NAME`: Endpoint (an
      # OpenAI-compatible address, from the environment) and LocalModel.
      "models": {
        # The one that is trained.
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
          # Let visual tokens of a picture see each other both ways. A model
          # that was trained so must be; its files say so.
          "mixed_attention": False,
          # Adapters beside dense layers, which alone train: fields of
          # `mmrl.models.config.Lora`, such as {"rank": 16, "alpha": 32,
          # "targets": "text/layers/.*"}; none if empty. They are float32.
          "lora": {},
          # Which keys the decoder attends to: a spec of
          # `mmrl.models.kernels.blocks`, such as {"name": "punctuation_sparse",
          # "block": 16, "init": 16, "local": 128, "top_k": 2, "mix": 0.5}; all
          # if empty. `data.lengths` are multiples of a block then.
          "attention": {},
          # A directory of PEFT's to take the adapter from, instead of a new
          # one; "" is none.
          "adapter": "",
          # Largest picture area in pixels; 0 keeps the model's own budget.
          "max_pixels": 0,
          # Side in pixels of the square that every picture and frame is scaled
          # to, rounded to whole visual tokens, whatever its own sides; 0 keeps
          # these as well as a budget of pixels allows. It isn't in the files of
          # the model that a run writes.
          "side": 0,
          # Sampling of video frames; 0 keeps the model's own setting.
          "video": {
            "fps": 0.0,  # frames a second, where `frames` is 0
            "frames": 0,  # number of frames, whatever the length
            "max_frames": 0,  # most that `fps` samples
            # Largest area of a frame, pixels; of Qwen3-VL, the largest volume
            # of a whole video, pixels x frames.
            "max_pixels": 0,
            # Take frames from the first to the last, evenly, as qwen-vl-utils
            # does; else as the model's processor in Transformers does.
            "uniform": False,
          },
        },
        "reference": {"name": "Initial"},
      },
      # Folder where compiled programs are kept for the next run, by version of
      # jaxlib and kind of processor, up to 4 GiB each; "" keeps none. JAX's own
      # setting, JAX_COMPILATION_CACHE_DIR, comes first.
      "compilation_cache": "~/.cache/mmrl",
      # Devices on each axis, -1 for all others: `mmrl.machines.sharding`.
      "mesh": {
        "data": -1,  # prompts
        "fsdp": 1,  # prompts, answers where these are few, and parameters
        "tensor": 1,  # parameters
      },
      # Questions to learn from, and how they become batches.
      "data": {
        # Spec of `mmrl.data.sources`; a prompt's "{question}" is the question.
        "train": {
          "name": "EasyVQA",
          "split": "train",
          "prompt": "{question}",
        },
        # Allowed padded prompt lengths, tokens. Each pair of these and of
        # `patches` that occurs is compiled once; prompts that fit none are an
        # error. Empty, as `patches`, are chosen from those of all questions,
        # benchmarks' included: the fewest pairs that add a quarter of padding
        # at most; one up to 1,000 questions, or with several processes.
        "lengths": (40,),
        # Allowed patches per prompt, on average over the prompts whose pictures
        # are packed together.
        "patches": (64,),
        # Threads that read and preprocess pictures ahead, in each of `workers`
        # processes.
        "threads": 2,
        # Processes that do so; 0 is the run's own. They help where pictures are
        # large and cores idle; their batches are in /dev/shm.
        "workers": 0,
        # Leave out training questions that can't be read: all are opened before
        # the run, and skipped.jsonl lists these. Benchmarks are never changed.
        "skip_broken": False,
        # Leave out training questions whose prompt, pictures, answer or text to
        # learn are larger than the sizes above or `rollout.length`.
        "skip_long": False,
      },
      # Where answers come from: a spec of `mmrl.rollouts`, and sizes.
      "rollout": {
        "name": "sampled",  # function of `mmrl.rollouts`
        "prompts": 64,  # P, of a rollout batch
        "answers": 8,  # G, of each prompt
        "length": 10,  # R, most tokens of an answer
        # Overlong filtering: answers truncated at R count in rewards and
        # advantages, but in no loss, no reduction, no token weight and no
        # metric of an update. TRL's `mask_truncated_completions`.
        "mask_truncated": False,
        "temperature": 1.0,  # 0 is greedy
        "top_k": 0,  # 0 keeps all tokens
        "top_p": 1.0,  # share of the probability that is kept
      },
      # Specs of `mmrl.rewards`, each with a weight; of weight 0, it is logged
      # only. Options of any: `times`, names of other rewards that its value is
      # multiplied by in the total, and `start`, the first step it counts at.
      "rewards": {
        "accuracy": {"name": "exact_answer", "weight": 0.9},
        "format": {"name": "answer_format", "weight": 0.1, "form": "think"},
      },
      # Spec of `mmrl.advantages`.
      "advantage": {"name": "group_normalised", "epsilon": 1e-6, "ddof": 1},
      # Where attention is a policy.
      "attention": {
        "layers": (-1,),  # of the decoder; -1 is the last
        "row": "self",  # which of a token's rows: "self" or "emit"
        # "averaged": the mean of heads and layers is one policy; "apart": each
        # is one, and what is computed of their rows is averaged.
        "heads": "averaged",
      },
      # Specs of `mmrl.probes` with options, or whose fields are optional data;
      # others are run if a function names a field of theirs.
      "probes": {},
      # Specs of `mmrl.token_weights`; a token's weight is their product.
      "token_weights": {},
      # Specs of `mmrl.losses`, each with a reduction and a weight: a number, or
      # {"share": s, "over": 10, "most": 1000}, a share of the gradient, for
      # which `shares` must be measured; see `mmrl.losses.weight`.
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
      # How long a run is, and how a rollout batch becomes updates.
      "train": {
        "steps": 100,  # rollout batches
        "minibatches": 2,  # updates per rollout batch and epoch
        "epochs": 1,  # times each rollout batch is used
        "accumulate": 1,  # parts of a minibatch (gradient accumulation)
      },
      # Spec of optax.
      "optimizer": {"name": "adamw", "weight_decay": 0.01},
      # Spec of optax: the learning rate, by updates, not by rollout batches.
      "schedule": {"name": "constant_schedule", "value": 1e-4},
      # Largest norm of a gradient; larger ones are scaled to it.
      "clip_norm": 1.0,
      # Parameters whose path matches one of these expressions are frozen. RAL
      # freezes vision tower and projector.
      "frozen": ("vision/.*",),
      # What of a run can be resumed.
      "checkpoint": {
        "every": 20,  # steps between checkpoints
        "keep": 2,  # number of the newest ones that stay
        # Number of an evaluation, as metrics.jsonl names it, such as
        # "test/accuracy": the checkpoint of the step at which it was best stays
        # as well. Needs `evaluation.every`; "" keeps none.
        "best": "",
        "best_mode": "max",  # which number is best: "max" or "min"
      },
      # Where the logged numbers go besides metrics.jsonl: specs of
      # `mmrl.workdir.trackers`.
      "trackers": {"tensorboard": {"name": "tensorboard"}},
      # Sample completions: printed, and in samples.jsonl, TensorBoard and the
      # report.
      "samples": {
        "every": 10,  # steps between them, after the first; 0 for none
        "count": 2,  # questions of a batch whose first answer is shown
      },
      # Measurement of each term's share of the gradient.
      "shares": {
        "every": 1,  # steps between measurements; 0 for never
        "prompts": 8,  # number of those that are measured
      },
      # Held-out questions, before, while and after it trains.
      "evaluation": {
        # Steps between evaluations while training, whose numbers are logged; 0
        # for none but those before and after. With `checkpoint.best` there is
        # one after the last step, too.
        "every": 0,
        "batch": 250,  # questions at a time
        "shown": 12,  # questions of each benchmark in the report
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
  config: ml_collections.ConfigDict, weight: float | Mapping[str, float] = 1.0
) -> ml_collections.ConfigDict:
  """Adds RAL's attention term, as in the paper, to a config.

  Args:
    config: to change.
    weight: a number, or the share of the gradient that the term is to have,
      such as {"share": 0.1}; see `mmrl.losses.weight`.
  """
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
  """Checks that a config has the fields of this module, and no others.

  Entries of `TABLES`, and options of specs, are checked where they are used.

  Raises:
    UserError: naming the field, and what it is now or which one is nearest.
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
  check_table(fields, get_config().to_dict(), "")


def check_table(found: Mapping, base: Mapping, prefix: str) -> None:
  """Compares the names of a table's fields with those of the base config."""
  free = prefix.removesuffix(".") in TABLES
  for name in found:
    if name not in base and not free:
      raise UserError(unknown_field(prefix + name, base))
  for name, value in base.items():
    path = prefix + name
    if free and path != "models.policy":
      continue
    if name not in found:
      raise UserError(
        f"config.{path}: expected this field of the config, found none; leave"
        " it as mmrl/config.py has it, or change its value"
      )
    _check_kind(found[name], value, path)
    if isinstance(value, dict) and "name" not in value:
      check_table(found[name], value, f"{path}.")


def _check_kind(found: Any, base: Any, path: str) -> None:
  """Compares the type of a value with the base config's."""
  if isinstance(base, tuple):
    kind, fits = "a tuple", isinstance(found, tuple | list)
    if fits and base:
      for one in found:
        _check_kind(one, base[0], path)
  elif isinstance(base, dict):
    kind, fits = "a table", isinstance(found, dict)
  elif isinstance(base, float):
    kind, fits = "a number", isinstance(found, int | float)
  else:
    kind, fits = type(base).__name__, isinstance(found, type(base))
  if not fits or (isinstance(found, bool) and not isinstance(base, bool)):
    raise UserError(f"config.{path}: expected {kind}, found {found!r:.100}")


def unknown_field(path: str, fields: Iterable[str]) -> str:
  """Says that a field isn't one of the config.

  Args:
    path: as "rollout.anwsers".
    fields: that are there beside it.
  """
  name = path.rpartition(".")[2]
  return (
    f"config.{path}: expected a field of the config, found none of name"
    f" {name}{nearest(name, fields)}; --help-config lists them"
  )
