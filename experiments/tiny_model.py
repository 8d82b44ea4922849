"""Makes the small Qwen2.5-VL model that ships with the library.

  python -m experiments.tiny_model --output mmrl/hub/tiny

It builds a byte-level BPE tokenizer with Qwen's special tokens, initialises a
small model of the Qwen2.5-VL architecture, and trains it by two runs of
`mmrl.train` with given answers and their likelihood (supervised learning) on
the easy-VQA train split:

  describe  "describe the image" -> "blue circle", until it sees
  answer    a question -> <think>blue circle</think><answer>yes</answer>,
            stopped early, so that reinforcement learning has room

Colour and shape of an object follow from the published questions and answers
of its picture; pictures whose answers don't settle both are left out. At the
end the accuracy on the whole test split is printed. It differs much from seed
to seed, as learning is stopped on its way up.

Takes about ten minutes on two CPU cores. No network. Two variants, with the
tokenizer of the model that ships:

  python -m experiments.tiny_model --teacher --output runs/tiny_teacher
  python -m experiments.tiny_model --direct --output runs/tiny_direct

The first is deeper and wider and trained on, for distillation
(experiments/opad.py); the second answers without a thought, for RAL-zero
(experiments/ral_zero.py).
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterable, Iterator, Sequence
import json
import pathlib
import tempfile
import time
import typing

from experiments import arguments, sft
from mmrl.errors import UserError

# Imported where they are used, so that a mistyped flag is answered at once.
if typing.TYPE_CHECKING:
  import jax

  from mmrl import data
  from mmrl.models import config as config_lib
  from mmrl.types import PyTree

SPECIALS = [
  "<|endoftext|>",
  "<|im_start|>",
  "<|im_end|>",
  "<|vision_start|>",
  "<|vision_end|>",
  "<|vision_pad|>",
  "<|image_pad|>",
  "<|video_pad|>",
]
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
COLOURS = ["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"]
SHAPES = ["circle", "rectangle", "triangle"]
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
_DESCRIBE = "describe the image"
_VOCABULARY = 384
_LENGTH = 10  # most tokens of an answer


def build_tokenizer(texts: Sequence[str], size: int, tags: Sequence[str] = ()):
  """Builds a byte-level BPE with Qwen's special tokens.

  Args:
    texts: that it learns from.
    size: number of entries, special tokens and tags included.
    tags: that are tokens of their own, beside those of thoughts and answers.
  """
  import tokenizers
  import transformers

  level = tokenizers.pre_tokenizers.ByteLevel
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = level(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=size - len(SPECIALS) - len(TAGS) - len(tags),
    initial_alphabet=sorted(level.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.add_special_tokens(SPECIALS)
  tokenizer.add_tokens([*TAGS, *tags])
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    eos_token="<|im_end|>",
    pad_token="<|endoftext|>",
    padding_side="left",
  )
  fast.chat_template = CHAT_TEMPLATE
  return fast


def build_config(
  tokenizer, size: int, *, width: int = 96, layers: int = 4, heads: int = 4
) -> config_lib.ModelConfig:
  """The architecture: a 64 px picture becomes 16 visual tokens."""
  from mmrl.models import config as config_lib

  ids = tokenizer.convert_tokens_to_ids
  return config_lib.ModelConfig(
    text=config_lib.TextConfig(
      vocab_size=size,
      hidden_size=width,
      intermediate_size=8 * width // 3,
      num_hidden_layers=layers,
      num_attention_heads=heads,
      num_key_value_heads=2,
      head_dim=24,
      mrope_section=(4, 4, 4),
      rope_theta=10000.0,
    ),
    vision=config_lib.VisionConfig(
      depth=2,
      hidden_size=64,
      intermediate_size=128,
      num_heads=4,
      out_hidden_size=width,
      patch_size=8,
      window_size=32,
      fullatt_block_indexes=(1,),
    ),
    tie_word_embeddings=True,
    image_token_id=ids("<|image_pad|>"),
    video_token_id=ids("<|video_pad|>"),
    vision_start_token_id=ids("<|vision_start|>"),
    vision_end_token_id=ids("<|vision_end|>"),
    eos_token_id=ids("<|im_end|>"),
    pad_token_id=ids("<|endoftext|>"),
    remat=False,
  )


def init(key: jax.Array, config: config_lib.ModelConfig) -> PyTree:
  """Random parameters with variance 1 / fan-in.

  The published 0.02 is made for widths of thousands; at width 96 it slows
  learning several times.
  """
  import jax
  import numpy as np

  from mmrl import models

  def scale(path, leaf):
    if path[-1].key == "kernel":
      return leaf / 0.02 / np.sqrt(leaf.shape[-2])
    return leaf * 2.5 if path[-1].key == "embedding" else leaf

  return jax.tree_util.tree_map_with_path(scale, models.init(key, config))


def describe(source: data.EasyVQA) -> dict[int, str]:
  """Picture -> "colour shape" where its answers settle both."""
  colours, shapes = collections.defaultdict(set), collections.defaultdict(set)
  for question, answer, picture in source.rows:
    words = set(question.rstrip("?").split())
    negated = bool(words & {"not", "no"})
    if answer in COLOURS + SHAPES or (answer == "yes") != negated:
      stated = words | {answer}
      colours[picture] |= stated & set(COLOURS)
      shapes[picture] |= stated & set(SHAPES)
  return {
    picture: f"{min(colours[picture])} {min(shapes[picture])}"
    for picture in colours
    if len(colours[picture]) == len(shapes[picture]) == 1
  }


def write_rows(path: pathlib.Path, rows: Iterable[dict]) -> str:
  """Writes JSON Lines, and returns their path."""
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def descriptions(source: data.EasyVQA) -> Iterator[dict]:
  """Every picture that can be described, with its text."""
  for picture, text in describe(source).items():
    yield {
      "question": _DESCRIBE,
      "images": [source.pictures[picture]],
      "answer": text,
      "answers": [text],
    }


def thoughts(source: data.EasyVQA, direct: bool) -> Iterator[dict]:
  """Every question about such a picture, with a thought and the answer."""
  described = describe(source)
  for question, answer, picture in source.rows:
    if picture in described:
      text = f"<answer>{answer}</answer>"
      if not direct:
        text = f"<think>{described[picture]}</think>{text}"
      yield {
        "question": question,
        "images": [source.pictures[picture]],
        "answer": answer,
        "answers": [text],
      }


def stage_config(model: pathlib.Path, rows: str, *, steps: int, peak: float):
  """Supervised learning on rows, from a model."""
  config = sft.get_config()
  config.models.policy.path = str(model)
  config.models.policy.remat = False
  config.data.train = {"name": "Files", "path": rows}
  config.data.lengths, config.data.patches = (40,), (64,)
  config.rollout.length = _LENGTH
  config.frozen = ()
  config.train.steps = steps
  config.checkpoint.every = steps
  sft.warm_up(config, peak, steps=20)
  test = config.evaluation.benchmarks.test
  test.data = {"name": "EasyVQA", "split": "test"}
  test.questions = 0  # all of them
  config.evaluation.batch = 250
  return config


def main() -> None:
  """Trains both stages and writes the directory."""
  parser = arguments.Parser(__doc__)
  parser.add_output("directory to write")
  parser.add_argument("--seed", type=int, default=0, help="of both runs")
  parser.add_argument("--batch", type=int, default=128, help="rows of a step")
  parser.add_argument(
    "--describe-steps", type=int, default=400, help="steps of the first run"
  )
  parser.add_argument(
    "--answer-steps",
    type=int,
    help="steps of the second; None is 100, with --direct 140, with --teacher"
    " 500",
  )
  parser.add_argument("--teacher", action="store_true", help="a larger model")
  parser.add_argument("--direct", action="store_true", help="no thoughts")
  flags = parser.parse()
  for name in ("batch", "describe_steps"):
    if getattr(flags, name) < 1:
      raise UserError(
        f"expected --{name.replace('_', '-')} of at least 1, found"
        f" {getattr(flags, name)}"
      )
  make(flags)


def make(flags: argparse.Namespace) -> None:
  """Makes what the flags ask for."""
  import jax

  from mmrl import data, hub
  from mmrl.models.families import FAMILIES
  from mmrl.prompts import pictures
  from mmrl.prompts.processor import Processor
  from mmrl.train import loop

  usual = 500 if flags.teacher else 140 if flags.direct else 100
  steps = flags.answer_steps or usual
  began = time.perf_counter()
  if flags.teacher or flags.direct:
    tokenizer = hub.load("tiny").processor.tokenizer
  else:
    learn = data.EasyVQA(split="train")
    texts = [
      *(text for pair in learn.pairs() for text in pair),
      *3 * list(describe(learn).values()),
      *9 * ["system", "user", "assistant\n", _DESCRIBE],
    ]
    tokenizer = build_tokenizer(texts, _VOCABULARY)
  larger = {"width": 144, "layers": 6, "heads": 6} if flags.teacher else {}
  config = build_config(tokenizer, _VOCABULARY, **larger)
  budget = pictures.PictureConfig(min_pixels=32**2, max_pixels=128**2)
  video = FAMILIES[config.family].video
  processor = Processor(tokenizer, config, budget, video)
  params = init(jax.random.key(flags.seed), config)
  learn = data.EasyVQA(split="train")
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    model = folder / "untrained"
    hub.save(hub.Model(config, params, processor), model)
    rows = write_rows(folder / "describe.jsonl", descriptions(learn))
    first = stage_config(model, rows, steps=flags.describe_steps, peak=2e-3)
    first.evaluation.benchmarks = {}  # of questions it has seen none
    rows = write_rows(folder / "answer.jsonl", thoughts(learn, flags.direct))
    model = folder / "describe" / "model"
    second = stage_config(model, rows, steps=steps, peak=1e-3)
    if flags.direct:
      scores = second.evaluation.benchmarks.test.scores
      scores.format.form = "answer"
    for stage, run in (("describe", first), ("answer", second)):
      run.seed, run.rollout.prompts = flags.seed, flags.batch
      loop.train(run, str(folder / stage))
    hub.save(hub.load(str(folder / "answer" / "model")), flags.output)
  print(f"{flags.output} written after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
  arguments.run(main)
