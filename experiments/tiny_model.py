"""Makes the small Qwen2.5-VL model that ships with the library.

  python experiments/tiny_model.py --output mmrl/models/tiny

It builds a byte-level BPE tokenizer with Qwen's special tokens, initialises a
small model of the Qwen2.5-VL architecture, and trains it (supervised) on the
easy-VQA train split to answer in RAL's form,

  <think>blue circle</think><answer>yes</answer>

where the thought, colour and shape of the object, follows from the published
questions and answers of the same picture; questions of pictures whose answers
don't settle both are left out. Training stops early, so that reinforcement
learning has room: the script prints the accuracy on the test split.

Takes about N minutes on two CPU cores. No network.
"""

import collections

import jax
import numpy as np
import optax
import tokenizers
import transformers

from mmrl import data, models
from mmrl.losses import reduce
from mmrl.models import config as config_lib
from mmrl.rollout import sampler

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


def build_tokenizer(texts: list[str], size: int):
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


def build_config(tokenizer, size: int) -> config_lib.ModelConfig:
  """The architecture: 64 px pictures become 16 visual tokens."""
  ids = tokenizer.convert_tokens_to_ids
  width = 96
  return config_lib.ModelConfig(
    text=config_lib.TextConfig(
      vocab_size=size,
      hidden_size=width,
      intermediate_size=256,
      num_hidden_layers=4,
      num_attention_heads=4,
      num_key_value_heads=2,
      mrope_section=(4, 4, 4),
      rope_theta=10000.0,
    ),
    vision=config_lib.VisionConfig(
      depth=2,
      hidden_size=64,
      intermediate_size=128,
      num_heads=4,
      out_hidden_size=width,
      patch_size=PATCH,
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


def describe(rows) -> dict[int, str]:
  """Picture -> "colour shape" where the train answers settle both."""
  colours, shapes = collections.defaultdict(set), collections.defaultdict(set)
  for question, answer, picture in rows:
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


def supervised_step(config, optimizer):
  """One update: mean negative log-likelihood of the answer tokens."""

  def loss(params, prompt, tokens, mask):
    visual = models.vision(params, config, prompt.patches)
    prefix = models.prefill(params, config, prompt, visual)
    scores = models.score(params, config, prefix, tokens)
    return reduce.total(-scores.logprobs, reduce.token_mean(mask))

  @jax.jit
  def step(params, state, prompt, tokens, mask):
    value, gradient = jax.value_and_grad(loss)(params, prompt, tokens, mask)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  return step


def test_accuracy(params, config, processor, length, batch=250):
  """Greedy accuracy on the whole test split."""
  source = data.EasyVQA(split="test")

  @jax.jit
  def answer(params, prompt):
    out = sampler.rollout(
      params,
      config,
      prompt,
      jax.random.key(0),
      answers=1,
      length=length,
      temperature=0,
    )
    return out.tokens, out.mask

  right = []
  for samples, count in data.in_order(
    source, processor, indices=range(len(source)), batch_size=batch
  ):
    texts = processor.decode(*map(np.asarray, answer(params, samples.prompt)))
    for text, example in zip(texts[:count], samples.examples, strict=False):
      right.append(text.endswith(f"<answer>{example.answer}</answer>"))
  return float(np.mean(right))
