"""Small models, prompts and reproducible weights that several tests share.

Weights are drawn from a seed that is the tensor's Hugging Face name, so that
tests and torch scripts build the same model without exchanging files.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
import inspect
import pathlib
from typing import Any
import zlib

import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import transformers

from mmrl import build, hub
from mmrl.hub import config_json, tensors
from mmrl.models import parameters
from mmrl.models.config import ModelConfig, TextConfig, VisionConfig
from mmrl.models.families import VideoConfig
from mmrl.prompts.pictures import PictureConfig
from mmrl.prompts.processor import Processor
from mmrl.rollouts.answers import Reward
from mmrl.types import Batch, Patches, Prompt

# The tokens after the 256 bytes.
SPECIALS = {
  "<|endoftext|>": 256,
  "<|im_start|>": 257,
  "<|im_end|>": 258,
  "<|vision_start|>": 259,
  "<|vision_end|>": 260,
  "<|image_pad|>": 261,
  "<|video_pad|>": 262,
}
IDS = {
  "pad_token_id": 256,
  "eos_token_id": 258,
  "vision_start_token_id": 259,
  "vision_end_token_id": 260,
  "image_token_id": 261,
  "video_token_id": 262,
}
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
PICTURE = PictureConfig(min_pixels=64, max_pixels=4096)
VIDEO = VideoConfig(min_pixels=64, max_pixels=1024)


_TOWER = VisionConfig(
  depth=3,
  hidden_size=24,
  intermediate_size=36,
  num_heads=2,
  out_hidden_size=32,
  patch_size=4,
  window_size=16,
  fullatt_block_indexes=(1,),
)
_PLAIN = dataclasses.replace(
  _TOWER,
  norm="layer",
  gated_mlp=False,
  window_size=0,
  fullatt_block_indexes=(),
  tokens_per_second=0,
)
_TOWERS = {
  "qwen2_vl": dataclasses.replace(
    _PLAIN, depth=2, intermediate_size=96, hidden_act="quick_gelu"
  ),
  "qwen2_5_vl": _TOWER,
  "qwen3_vl": dataclasses.replace(
    _PLAIN,
    depth=4,
    hidden_act="gelu_pytorch_tanh",
    patch_bias=True,
    position_grid=5,
    deepstack_visual_indexes=(0, 2),
  ),
}
_DECODERS = {
  "qwen2_vl": {"head_dim": 8},
  "qwen2_5_vl": {"head_dim": 8},
  # Heads that are wider than their share, and 3 + 2 + 1 channels that take
  # turns until some run out.
  "qwen3_vl": {
    "head_dim": 12,
    "mrope_section": (3, 2, 1),
    "mrope_interleaved": True,
    "qkv_bias": False,
    "qk_norm": True,
  },
}


def small_config(
  *, tied: bool = True, family: str = "qwen2_5_vl", **changes
) -> ModelConfig:
  """Grouped queries, uneven rotary sections; windows where there are any."""
  decoder = {"mrope_section": (1, 1, 2)} | _DECODERS[family]
  return ModelConfig(
    text=TextConfig(
      vocab_size=272,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=3,
      num_attention_heads=4,
      num_key_value_heads=2,
      rope_theta=1e4,
      **decoder,
    ),
    vision=_TOWERS[family],
    tie_word_embeddings=tied,
    family=family,
    **IDS,
    **changes,
  )


def one_family(families: Iterable[str]) -> list:
  """Parameters of a test: the family of the shipped model; others are `full`.

  What a family computes differently has tests of its own; that it does so
  under every transformation of the whole model costs minutes of compiling.
  """
  return [
    pytest.param(
      family, marks=() if family == "qwen2_5_vl" else pytest.mark.full
    )
    for family in families
  ]


def first(value: Any, *others: Any) -> list:
  """Parameters of a test: the first of several sizes; the others are `full`."""
  return [value, *(pytest.param(x, marks=pytest.mark.full) for x in others)]


def compiled(function: Callable) -> Callable:
  """The function as one program a shape; what is keyword-only is constant."""
  parameters = inspect.signature(function).parameters.values()
  constant = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
  return jax.jit(function, static_argnames=constant)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The tensor called `name`, in Hugging Face's layout.

  Matrices keep the size of what they multiply, so that attention is far from
  uniform; norms and biases differ from their initial values.
  """
  name = tensors.canonical(name)
  values = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
  if len(shape) > 1:
    values /= np.sqrt(np.prod(shape[1:]))
    values *= 1.3 if "q_proj" in name or "k_proj" in name else 1.0
  elif name.endswith("bias"):
    values *= 0.1
  else:
    values = 1 + 0.1 * values
    values *= 1.6 if "q_norm" in name or "k_norm" in name else 1.0
  return values.astype(np.float32)


def weights(config: ModelConfig) -> dict[str, np.ndarray]:
  """Every tensor of the model, by Hugging Face name, written out by hand."""
  shapes = _decoder_shapes(config) | _tower_shapes(config)
  if config.family == "qwen3_vl":
    shapes = {nested(name): shape for name, shape in shapes.items()}
  return {name: weight(name, shape) for name, shape in shapes.items()}


def nested(name: str) -> str:
  """A tensor's name where both halves of a model are inside of `model`."""
  if name.startswith("visual."):
    return "model." + name
  return name.replace("model.", "model.language_model.", 1)


def _decoder_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  text = config.text
  width, inner, head = text.hidden_size, text.intermediate_size, text.head_dim
  q, kv = text.num_attention_heads * head, text.num_key_value_heads * head
  shapes: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (text.vocab_size, width),
    "model.norm.weight": (width,),
  }
  if not config.tie_word_embeddings:
    shapes["lm_head.weight"] = (text.vocab_size, width)
  for i in range(text.num_hidden_layers):
    layer = f"model.layers.{i}."
    shapes |= {
      layer + "input_layernorm.weight": (width,),
      layer + "post_attention_layernorm.weight": (width,),
      layer + "self_attn.q_proj.weight": (q, width),
      layer + "self_attn.k_proj.weight": (kv, width),
      layer + "self_attn.v_proj.weight": (kv, width),
      layer + "self_attn.o_proj.weight": (width, q),
      layer + "mlp.gate_proj.weight": (inner, width),
      layer + "mlp.up_proj.weight": (inner, width),
      layer + "mlp.down_proj.weight": (width, inner),
    }
    if config.family == "qwen3_vl":
      shapes[layer + "self_attn.q_norm.weight"] = (head,)
      shapes[layer + "self_attn.k_norm.weight"] = (head,)
    else:
      shapes[layer + "self_attn.q_proj.bias"] = (q,)
      shapes[layer + "self_attn.k_proj.bias"] = (kv,)
      shapes[layer + "self_attn.v_proj.bias"] = (kv,)
  return shapes


def _tower_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  family, tower, width = config.family, config.vision, config.text.hidden_size
  seen, hidden = tower.hidden_size, tower.intermediate_size
  merged = seen * tower.spatial_merge_size**2
  patch = (3, tower.temporal_patch_size, tower.patch_size, tower.patch_size)
  # (name of the norm, of the two layers, width of the norm)
  mergers = [("visual.merger.", ("ln_q", "mlp.0", "mlp.2"), seen)]
  if family == "qwen3_vl":
    names = "norm", "linear_fc1", "linear_fc2"
    mergers = [("visual.merger.", names, seen)] + [
      (f"visual.deepstack_merger_list.{i}.", names, merged)
      for i in range(len(tower.deepstack_visual_indexes))
    ]
  norm_biases = family != "qwen2_5_vl"
  mlp = {
    "qwen2_vl": [("mlp.fc1", hidden, seen), ("mlp.fc2", seen, hidden)],
    "qwen2_5_vl": [
      ("mlp.gate_proj", hidden, seen),
      ("mlp.up_proj", hidden, seen),
      ("mlp.down_proj", seen, hidden),
    ],
    "qwen3_vl": [
      ("mlp.linear_fc1", hidden, seen),
      ("mlp.linear_fc2", seen, hidden),
    ],
  }[family]
  norms: dict[str, int] = {}
  dense: dict[str, tuple[int, int]] = {}
  for prefix, (norm, first, second), size in mergers:
    norms[prefix + norm] = size
    dense[prefix + first] = merged, merged
    dense[prefix + second] = width, merged
  for i in range(tower.depth):
    block = f"visual.blocks.{i}."
    norms |= {block + "norm1": seen, block + "norm2": seen}
    dense |= {block + "attn.qkv": (3 * seen, seen)}
    dense |= {block + "attn.proj": (seen, seen)}
    dense |= {block + name: (out, into) for name, out, into in mlp}
  shapes: dict[str, tuple[int, ...]] = {
    "visual.patch_embed.proj.weight": (seen, *patch)
  }
  if family == "qwen3_vl":
    shapes["visual.patch_embed.proj.bias"] = (seen,)
    shapes["visual.pos_embed.weight"] = (tower.position_grid**2, seen)
  for name, size in norms.items():
    shapes[name + ".weight"] = (size,)
    if norm_biases:
      shapes[name + ".bias"] = (size,)
  for name, shape in dense.items():
    shapes[name + ".weight"] = shape
    shapes[name + ".bias"] = shape[:1]
  return shapes


def write_weights(path: pathlib.Path, config: ModelConfig) -> pathlib.Path:
  """A model directory without a tokenizer; returns `path`."""
  path.mkdir(parents=True, exist_ok=True)
  config_json.write(config, path, "float32")
  safetensors.numpy.save_file(weights(config), path / tensors.FILE)
  return path


def make_params(config: ModelConfig):
  """The parameters whose tensors are drawn by `weight`."""
  drawn: dict[str, list[np.ndarray]] = {}
  for name, tensor in tensors.of_model(config).items():
    values = weight(name, tensor.shape)
    if tensor.leaf.endswith("/kernel"):
      values = values.reshape(len(values), -1).T
    drawn.setdefault(tensor.leaf, []).append(values)

  def one(path, leaf):
    return jax.numpy.asarray(
      np.stack(drawn[parameters.path_name(path)]).reshape(leaf.shape)
    )

  return jax.tree_util.tree_map_with_path(one, parameters.shapes(config))


def on_device(prompt: Prompt) -> Prompt:
  """The same prompt as JAX arrays, which inner functions insist on."""
  return jax.tree.map(jax.numpy.asarray, prompt)


@functools.cache
def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
  """A token is a byte."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocab = {byte: i for i, byte in enumerate(alphabet)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(list(SPECIALS))
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token="<|endoftext|>",
    eos_token="<|im_end|>",
    padding_side="left",
    chat_template=CHAT_TEMPLATE,
  )


def make_processor(config: ModelConfig) -> Processor:
  """Bytes, and the pictures of `small_config`."""
  return Processor(make_tokenizer(), config, PICTURE, VIDEO)


def make_model(config: ModelConfig) -> hub.Model:
  return hub.Model(config, make_params(config), make_processor(config))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
  """Random pixels."""
  rng = np.random.RandomState(seed)
  return rng.randint(0, 256, (height, width, 3), np.uint8)


def clip(
  frames: int, height: int, width: int, fps: float, seed: int = 0
) -> dict:
  """A message part of random frames."""
  video = np.stack([picture(height, width, seed + i) for i in range(frames)])
  return {"type": "video", "video": video, "fps": fps}


def user(*parts) -> list[dict]:
  """A conversation with one message of texts, pictures and other parts."""

  def whole(part):
    if isinstance(part, dict):
      return part
    kind = "text" if isinstance(part, str) else "image"
    return {"type": kind, kind: part}

  return [{"role": "user", "content": [whole(part) for part in parts]}]


def conversations() -> list[list[dict]]:
  """One picture; two of other sizes, apart; none."""
  return [
    user(picture(24, 40, 1), "what is it?"),
    user("is ", picture(16, 16, 2), " in ", picture(24, 32, 3), "?"),
    user("say yes"),
  ]


def mixed() -> list[list[dict]]:
  """The same, and one of a video and a picture.

  The video has an odd number of frames, which are a second apart.
  """
  video = clip(3, 16, 24, 1.0, 20)
  return [*conversations(), user("in ", video, " as ", picture(16, 8, 5), "?")]


def golden_cases() -> dict[str, tuple[ModelConfig, list]]:
  """The models and conversations of testdata/transformers_*.npz."""
  chats = [
    user(picture(23, 41, 4), "a", picture(16, 8, 5), "what?"),
    user("in ", clip(3, 15, 25, 1.5, 20), "?"),
  ]
  return {
    "qwen2_vl": (small_config(family="qwen2_vl", tied=False), chats),
    "qwen2_5_vl": (small_config(family="qwen2_5_vl"), chats),
    "qwen3_vl": (small_config(family="qwen3_vl", tied=False), chats),
  }


def reward(name: str, weight: float, function: Callable) -> Reward:
  """A reward of (text, tokens, question), called for one answer at a time."""

  def whole(text, length, example):
    return [
      [function(*one, question) for one in zip(texts, counts, strict=True)]
      for texts, counts, question in zip(text, length, example, strict=True)
    ]

  needs = ("text", "length", "example")
  where = f"config.rewards.{name}"
  return Reward(name, weight, build.Bound(name, whole, needs, {}, where))


def with_rewards(run, *rewards: Reward):
  """The run with other rewards that read texts."""
  method = dataclasses.replace(run.method, rewards=rewards)
  return dataclasses.replace(run, method=method)


def no_more():
  """Where a step must not ask for further questions."""
  raise AssertionError("asked for more questions")


def make_batch(
  prompt: Prompt, tokens, mask=None, *, visual=None, prefix=None, **fields
) -> Batch:
  """A batch of answers; all their tokens count without a mask."""
  tokens = jax.numpy.asarray(tokens, jax.numpy.int32)
  mask = np.ones(tokens.shape, bool) if mask is None else mask
  return Batch(prompt, visual, tokens, jax.numpy.asarray(mask), fields, prefix)


def no_patches(rows: int) -> Patches:
  """Where the visual tokens are given, or there are none."""
  none = jax.numpy.asarray(np.zeros((rows, 1, 1), np.float32))
  return Patches(*(none for _ in range(6)))


def full_rows(prompt: Prompt, tokens: np.ndarray) -> Prompt:
  """P * G prompts that end in the answers [P, G, R].

  Their pictures are packed in rows of their own, one for each answer, so the
  prompt's must have one row a prompt.
  """
  answers, count = tokens.shape[1:]
  repeated = jax.tree.map(lambda x: np.repeat(x, answers, axis=0), prompt)
  tokens = np.reshape(tokens, (len(repeated.tokens), count))
  positions = repeated.next_position[:, None] + np.arange(count)

  def append(array, values):
    return np.concatenate([array, values.astype(array.dtype)], axis=1)

  return Prompt(
    tokens=append(repeated.tokens, tokens),
    mask=append(repeated.mask, np.ones_like(tokens)),
    positions=append(repeated.positions, np.stack([positions] * 3, axis=-1)),
    visual_index=append(repeated.visual_index, np.full_like(tokens, -1)),
    next_position=repeated.next_position + count,
    region=append(repeated.region, np.zeros_like(tokens)),
    patches=repeated.patches,
    evidence=append(repeated.evidence, np.zeros_like(tokens)),
  )


def marked_prompt(visual) -> Prompt:
  """Prompts [P, S] without pictures, of which some tokens count as visual."""
  index = np.where(visual, 0, -1)
  prompts, length = index.shape
  none = np.zeros(index.shape, np.float32)
  prompt = Prompt(
    tokens=np.zeros(index.shape, np.int32),
    mask=np.ones(index.shape, bool),
    positions=np.zeros((*index.shape, 3), np.int32),
    visual_index=index,
    next_position=np.full(prompts, length),
    region=none,
    patches=no_patches(prompts),
    evidence=none,
  )
  return on_device(prompt)


def pad_prompt(
  prompt: Prompt, *, left: int = 0, right: int = 0, patches: int = 0
) -> Prompt:
  """More padding on either side of the tokens and after the patches."""

  def pad(array, fill, *sides):
    widths = ((0, 0), sides) + ((0, 0),) * (array.ndim - 2)
    return np.pad(array, widths, constant_values=fill)

  def tokens(array, fill):
    return pad(array, fill, left, right)

  def after(array, fill):
    return None if array is None else pad(array, fill, 0, patches)

  old = prompt.patches
  return dataclasses.replace(
    prompt,
    tokens=tokens(prompt.tokens, IDS["pad_token_id"]),
    mask=tokens(prompt.mask, False),
    positions=tokens(prompt.positions, 0),
    visual_index=tokens(prompt.visual_index, -1),
    region=tokens(prompt.region, 0),
    evidence=tokens(prompt.evidence, 0),
    patches=Patches(
      pixels=after(old.pixels, 0),
      rows_columns=after(old.rows_columns, 0),
      extent=after(old.extent, 1),
      frame=after(old.frame, 0),
      windows=after(old.windows, -1),
      window_slot=after(old.window_slot, 0),
    ),
  )


def to_the_left(prompt: Prompt) -> Prompt:
  """The same prompts with their padding on the right."""

  def roll(array):
    shifts = np.argmax(prompt.mask, axis=1)
    rows = zip(array, shifts, strict=True)
    return np.stack([np.roll(row, -shift, axis=0) for row, shift in rows])

  names = ("tokens", "mask", "positions", "visual_index", "region", "evidence")
  return dataclasses.replace(
    prompt, **{name: roll(getattr(prompt, name)) for name in names}
  )
