"""Makes the small Qwen2.5-VL model that ships with the library.

  python -m experiments.tiny_model --output mmrl/hub/tiny

It builds a byte-level BPE tokenizer with Qwen's special tokens, initialises a
small model of the Qwen2.5-VL architecture, and trains it (supervised) on the
easy-VQA train split, in two stages:

  describe  "describe the image" -> "blue circle", until it sees
  answer    a question -> <think>blue circle</think><answer>yes</answer>,
            stopped early, so that reinforcement learning has room

Colour and shape of an object follow from the published questions and answers
of its picture; pictures whose answers don't settle both are left out. The
script prints the accuracy on the whole test split as it goes.

Takes about eight minutes on two CPU cores. No network. Two variants, with the
tokenizer of the model that ships:

  python -m experiments.tiny_model --teacher --output runs/tiny_teacher
  python -m experiments.tiny_model --direct --output runs/tiny_direct

The first is deeper and wider and trained on, for distillation
(experiments/opad.py); the second answers without a thought, for RAL-zero
(experiments/ral_zero.py).
"""

import argparse
import collections
from collections.abc import Callable, Sequence
import time

import jax
import numpy as np
import optax
import tokenizers
import transformers

from mmrl import data, hub, models
from mmrl.data import sources
from mmrl.losses import reduce
from mmrl.models import config as config_lib
from mmrl.models.families import FAMILIES
from mmrl.prompts import pictures
from mmrl.prompts.packing import Encoded
from mmrl.prompts.processor import Processor
from mmrl.rollouts import sampler
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


def build_tokenizer(texts: Sequence[str], size: int):
  """A byte-level BPE of `size` entries, Qwen's special tokens included."""
  level = tokenizers.pre_tokenizers.ByteLevel
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = level(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=size - len(SPECIALS) - len(TAGS),
    initial_alphabet=sorted(level.alphabet()),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.add_special_tokens(SPECIALS)
  tokenizer.add_tokens(TAGS)
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


def train(
  config: config_lib.ModelConfig,
  params: PyTree,
  batch: Callable[[], tuple],
  *,
  steps: int,
  peak: float,
  report: Callable[[PyTree], None],
  every: int,
) -> PyTree:
  """Minimises the mean negative log-likelihood of the answer tokens."""
  schedule = optax.warmup_cosine_decay_schedule(0.0, peak, 20, steps)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01)
  )

  def loss(params, prompt, tokens, mask):
    visual = models.vision(params, config, prompt.patches)
    prefix = models.prefill(params, config, prompt, visual)
    scores = models.score(params, config, prefix, tokens)
    return reduce.total(-scores.logprobs, reduce.token_mean(mask))

  @jax.jit
  def update(params, state, prompt, tokens, mask):
    gradient = jax.grad(loss)(params, prompt, tokens, mask)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for step in range(1, steps + 1):
    params, state = update(params, state, *batch())
    if step % every == 0 or step == steps:
      print(f"{step}/{steps}", end=" ")
      report(params)
  return params


def targets(
  processor: Processor, texts: Sequence[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Ids [P, 1, length] and mask of the answers to learn."""
  pad = processor.config.pad_token_id
  tokens = np.full((len(texts), 1, length), pad, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, text in enumerate(texts):
    ids = processor.encode_answer(text, length, f"target {text!r}")
    tokens[row, 0, : len(ids)] = ids
    mask[row, 0, : len(ids)] = True
  return tokens, mask


def greedy(config: config_lib.ModelConfig, length: int):
  """Greedy answers, jitted."""

  @jax.jit
  def answer(params, prompt):
    key = jax.random.key(0)
    options = {"answers": 1, "length": length, "temperature": 0.0}
    out = sampler.rollout(params, config, prompt, key, **options)
    return out.tokens, out.mask

  return answer


def descriptions(
  processor: Processor, source: data.EasyVQA
) -> list[tuple[Encoded, str]]:
  """Every picture that can be described, encoded once, with its text."""
  encoded = []
  for picture, text in describe(source).items():
    name = f"picture {picture}"
    image = {"type": "image", "image": source.paths[picture]}
    messages = sources.ask(_DESCRIBE, "{question}", [image])
    encoded.append((processor.encode(messages, name), text))
  return encoded


def describe_stage(processor, params, *, rng, steps, peak, batch_size):
  """Teaches the model to name colour and shape."""
  config = processor.config
  learn = descriptions(processor, data.EasyVQA(split="train"))
  test = descriptions(processor, data.EasyVQA(split="test"))[:500]
  answer = greedy(config, 3)
  held_out = processor.collate([e for e, _ in test])

  def batch():
    rows = [learn[i] for i in rng.choice(len(learn), batch_size, False)]
    prompt = processor.collate([e for e, _ in rows], lengths=(32,))
    return prompt, *targets(processor, [text for _, text in rows], 3)

  def report(params):
    texts = processor.decode(*map(np.asarray, answer(params, held_out)))
    pairs = zip(texts, test, strict=True)
    right = np.mean([text == gold for text, (_, gold) in pairs])
    print(f"describes {right:.1%} of test pictures", flush=True)

  return train(
    config, params, batch, steps=steps, peak=peak, report=report, every=100
  )


def answer_stage(processor, params, *, rng, steps, peak, batch_size, direct):
  """Teaches the form of an answer, and some of what is asked."""
  config = processor.config
  learn, test = (data.EasyVQA(split=split) for split in ("train", "test"))
  thoughts = describe(learn)
  usable = [i for i, row in enumerate(learn.rows) if row[2] in thoughts]
  answer = greedy(config, _LENGTH)

  def batch():
    chosen = rng.choice(usable, batch_size, False)
    examples = [learn[int(i)] for i in chosen]
    encoded = [processor.encode(e.messages, e.name) for e in examples]
    texts = [f"<answer>{example.answer}</answer>" for example in examples]
    if not direct:
      pictures = (learn.rows[i][2] for i in chosen)
      texts = [
        f"<think>{thoughts[picture]}</think>{text}"
        for picture, text in zip(pictures, texts, strict=True)
      ]
    prompt = processor.collate(encoded, lengths=(40,))
    return prompt, *targets(processor, texts, _LENGTH)

  def report(params):
    right = []
    everything = range(len(test))
    for samples, count in data.in_order(
      test,
      processor,
      indices=everything,
      batch_size=250,
      answer_length=_LENGTH,
      lengths=(40,),
    ):
      outputs = map(np.asarray, answer(params, samples.prompt))
      texts = processor.decode(*outputs)[:count]
      right += [
        text.endswith(f"<answer>{example.answer}</answer>")
        for text, example in zip(texts, samples.examples, strict=False)
      ]
    share = np.mean(right)
    print(f"answers {share:.1%} of {len(right)} questions", flush=True)

  return train(
    config, params, batch, steps=steps, peak=peak, report=report, every=40
  )


def main() -> None:
  """Trains both stages and writes the directory."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--output", required=True, help="directory to write")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--describe-steps", type=int, default=400)
  parser.add_argument(
    "--answer-steps", type=int, help="100; direct 140; teacher 500"
  )
  parser.add_argument("--teacher", action="store_true", help="a larger model")
  parser.add_argument("--direct", action="store_true", help="no thoughts")
  flags = parser.parse_args()
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
  rng = np.random.default_rng(flags.seed)
  params = describe_stage(
    processor,
    params,
    rng=rng,
    steps=flags.describe_steps,
    peak=2e-3,
    batch_size=flags.batch,
  )
  params = answer_stage(
    processor,
    params,
    rng=rng,
    steps=steps,
    peak=1e-3,
    batch_size=flags.batch,
    direct=flags.direct,
  )
  hub.save(hub.Model(config, params, processor), flags.output)
  print(f"{flags.output} written after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
  main()
