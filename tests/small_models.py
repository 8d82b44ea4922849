"""Small models, prompts and reproducible weights that several tests share.

Weights are drawn from a seed that is the tensor's Hugging Face name, so that
tests and torch scripts build the same model without exchanging files.
"""

import dataclasses
import functools
import json
import pathlib
import zlib

import jax
import numpy as np
import safetensors.numpy
import tokenizers
import transformers

from mmrl import models
from mmrl.models import checkpoint
from mmrl.models import config as config_lib
from mmrl.models.config import ModelConfig, TextConfig, VisionConfig
from mmrl.models.pictures import PictureConfig
from mmrl.models.processor import Processor
from mmrl.types import Patches, Prompt

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
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
PICTURE = PictureConfig(min_pixels=64, max_pixels=4096)


def small_config(*, tied: bool = True, **changes) -> ModelConfig:
  """Grouped queries, uneven rotary sections, windowed and full vision."""
  return ModelConfig(
    text=TextConfig(
      vocab_size=272,
      hidden_size=32,
      intermediate_size=48,
      num_hidden_layers=3,
      num_attention_heads=4,
      num_key_value_heads=2,
      mrope_section=(1, 1, 2),
      rope_theta=1e4,
    ),
    vision=VisionConfig(
      depth=3,
      hidden_size=24,
      intermediate_size=36,
      num_heads=2,
      out_hidden_size=32,
      patch_size=4,
      window_size=16,
      fullatt_block_indexes=(1,),
    ),
    tie_word_embeddings=tied,
    **IDS,
    **changes,
  )


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The tensor called `name`, in Hugging Face's layout.

  Matrices keep the size of what they multiply, so that attention is far from
  uniform; norms and biases differ from their initial values.
  """
  name = name.replace("model.language_model.", "model.", 1)
  name = name.replace("model.visual.", "visual.", 1)
  values = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
  if len(shape) > 1:
    values /= np.sqrt(np.prod(shape[1:]))
    values *= 1.3 if "q_proj" in name or "k_proj" in name else 1.0
  elif name.endswith("bias"):
    values *= 0.1
  else:
    values = 1 + 0.1 * values
  return values.astype(np.float32)


def weights(config: ModelConfig) -> dict[str, np.ndarray]:
  """Every tensor of the model, by Hugging Face name, written out by hand."""
  text, tower = config.text, config.vision
  width, inner = text.hidden_size, text.intermediate_size
  kv = text.num_key_value_heads * text.head_dim
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
      layer + "self_attn.q_proj.weight": (width, width),
      layer + "self_attn.q_proj.bias": (width,),
      layer + "self_attn.k_proj.weight": (kv, width),
      layer + "self_attn.k_proj.bias": (kv,),
      layer + "self_attn.v_proj.weight": (kv, width),
      layer + "self_attn.v_proj.bias": (kv,),
      layer + "self_attn.o_proj.weight": (width, width),
      layer + "mlp.gate_proj.weight": (inner, width),
      layer + "mlp.up_proj.weight": (inner, width),
      layer + "mlp.down_proj.weight": (width, inner),
    }
  seen, hidden = tower.hidden_size, tower.intermediate_size
  merged = seen * tower.spatial_merge_size**2
  patch = (3, tower.temporal_patch_size, tower.patch_size, tower.patch_size)
  shapes |= {
    "visual.patch_embed.proj.weight": (seen, *patch),
    "visual.merger.ln_q.weight": (seen,),
    "visual.merger.mlp.0.weight": (merged, merged),
    "visual.merger.mlp.0.bias": (merged,),
    "visual.merger.mlp.2.weight": (width, merged),
    "visual.merger.mlp.2.bias": (width,),
  }
  for i in range(tower.depth):
    block = f"visual.blocks.{i}."
    shapes |= {
      block + "norm1.weight": (seen,),
      block + "norm2.weight": (seen,),
      block + "attn.qkv.weight": (3 * seen, seen),
      block + "attn.qkv.bias": (3 * seen,),
      block + "attn.proj.weight": (seen, seen),
      block + "attn.proj.bias": (seen,),
    }
    for name in ("gate", "up"):
      shapes[f"{block}mlp.{name}_proj.weight"] = (hidden, seen)
      shapes[f"{block}mlp.{name}_proj.bias"] = (hidden,)
    shapes[block + "mlp.down_proj.weight"] = (seen, hidden)
    shapes[block + "mlp.down_proj.bias"] = (seen,)
  return {name: weight(name, shape) for name, shape in shapes.items()}


def write_weights(path: pathlib.Path, config: ModelConfig) -> pathlib.Path:
  """A model directory without a tokenizer; returns `path`."""
  path.mkdir(parents=True, exist_ok=True)
  raw = config_lib.to_hf(config, "float32")
  (path / "config.json").write_text(json.dumps(raw))
  safetensors.numpy.save_file(weights(config), path / "model.safetensors")
  return path


def make_params(config: ModelConfig):
  """The parameters whose tensors are `weights(config)`."""

  def one(path, leaf):
    ours = checkpoint.path_name(path)
    name, stacked = checkpoint._hf_name(ours)
    names = [name.format(i) for i in range(leaf.shape[0] if stacked else 1)]
    arrays = [checkpoint._from_hf_array(ours, tensors[n]) for n in names]
    return jax.numpy.asarray(np.stack(arrays) if stacked else arrays[0])

  tensors = weights(config)
  abstract = checkpoint.abstract_params(config)
  return jax.tree_util.tree_map_with_path(one, abstract)


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
  return Processor(make_tokenizer(), config, PICTURE)


def make_model(config: ModelConfig) -> models.Model:
  return models.Model(config, make_params(config), make_processor(config))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
  """Random pixels."""
  rng = np.random.RandomState(seed)
  return rng.randint(0, 256, (height, width, 3), np.uint8)


def user(*parts) -> list[dict]:
  """A conversation with one message of texts and pictures."""
  content = [
    {"type": "text", "text": part}
    if isinstance(part, str)
    else {"type": "image", "image": part}
    for part in parts
  ]
  return [{"role": "user", "content": content}]


def conversations() -> list[list[dict]]:
  """One picture; two of other sizes, apart; none."""
  return [
    user(picture(24, 40, 1), "what is it?"),
    user("is ", picture(16, 16, 2), " in ", picture(24, 32, 3), "?"),
    user("say yes"),
  ]


def golden_cases() -> dict[str, tuple[ModelConfig, list]]:
  """The models and conversations of testdata/transformers_*.npz."""
  pair = [user(picture(23, 41, 4), "what?"), user("say yes")]
  return {
    "tied": (small_config(), pair),
    "untied": (small_config(tied=False), conversations()[1:]),
  }


def full_rows(prompt: Prompt, tokens: np.ndarray) -> Prompt:
  """P * G prompts that end in the answers [P, G, R]."""
  answers, count = tokens.shape[1:]
  repeated = jax.tree.map(lambda x: np.repeat(x, answers, axis=0), prompt)
  tokens = np.reshape(tokens, (-1, count))
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
  )


def pad_prompt(
  prompt: Prompt, *, left: int = 0, right: int = 0, patches: int = 0
) -> Prompt:
  """More padding on either side of the tokens and after the patches."""

  def tokens(array, fill):
    widths = ((0, 0), (left, right)) + ((0, 0),) * (array.ndim - 2)
    return np.pad(array, widths, constant_values=fill)

  def after(array, count, fill):
    widths = ((0, 0), (0, count)) + ((0, 0),) * (array.ndim - 2)
    return np.pad(array, widths, constant_values=fill)

  old = prompt.patches
  return dataclasses.replace(
    prompt,
    tokens=tokens(prompt.tokens, IDS["pad_token_id"]),
    mask=tokens(prompt.mask, False),
    positions=tokens(prompt.positions, 0),
    visual_index=tokens(prompt.visual_index, -1),
    region=tokens(prompt.region, 0),
    patches=Patches(
      pixels=after(old.pixels, patches, 0),
      rows_columns=after(old.rows_columns, patches, 0),
      image=after(old.image, patches, -1),
      windows=after(old.windows, patches, -1),
      window_slot=after(old.window_slot, patches, 0),
    ),
  )


def to_the_left(prompt: Prompt) -> Prompt:
  """The same prompts with their padding on the right."""

  def roll(array):
    shifts = np.argmax(prompt.mask, axis=1)
    rows = zip(array, shifts, strict=True)
    return np.stack([np.roll(row, -shift, axis=0) for row, shift in rows])

  names = ("tokens", "mask", "positions", "visual_index", "region")
  return dataclasses.replace(
    prompt, **{name: roll(getattr(prompt, name)) for name in names}
  )
