"""The random Qwen2.5-VL that benches run: sizes are flags."""

import argparse
import dataclasses

import jax
import numpy as np
import tokenizers
import transformers

from experiments import tiny_model
from mmrl import hub, models
from mmrl.errors import UserError
from mmrl.hub import directory
from mmrl.models import config as config_lib
from mmrl.models.families import FAMILIES
from mmrl.prompts import packing, pictures
from mmrl.prompts.processor import Processor
from mmrl.types import Prompt, PyTree

# Hub ids of what is measured at the sizes that are trained.
SMALL, LARGE = "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"
COLOURS = {
  "red": (220, 40, 40),
  "green": (40, 180, 70),
  "blue": (50, 80, 220),
  "yellow": (235, 210, 40),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
  """The model's sizes; without them, those of a peer's tiny model."""
  add = parser.add_argument
  add(
    "--architecture",
    default="",
    help="hub id of a published model, whose sizes come before those below",
  )
  add("--hidden", type=int, default=128, help="text width")
  add("--layers", type=int, default=4, help="text layers")
  add("--heads", type=int, default=4)
  add("--kv-heads", type=int, default=2)
  add("--intermediate", type=int, default=0, help="0 = 3 x hidden")
  add("--vision-hidden", type=int, default=64)
  add("--vision-depth", type=int, default=2)
  add("--vision-heads", type=int, default=4)
  add(
    "--vocab",
    type=int,
    default=512,
    help="at least the bytes' 268; ignored with --tokenizer",
  )
  add("--tokenizer", default="", help="path of a tokenizer.json")
  add("--untied", action="store_true", help="separate output head")
  add("--image-size", type=int, default=112)
  add("--dtype", default="float32", choices=["float32", "bfloat16"])
  add("--free-length", action="store_true", help="let an answer end")
  add("--seed", type=int, default=0)


def architecture(name: str, layers: int = 0) -> config_lib.ModelConfig:
  """The architecture of a published model, with fewer layers if asked."""
  config = directory.public_config(name)
  if config is None:
    raise UserError(
      "expected the hub id of a model whose config.json ships with the"
      f" library, such as Qwen/Qwen2.5-VL-3B-Instruct, found {name!r}"
    )
  if not layers:
    return config
  text = dataclasses.replace(config.text, num_hidden_layers=layers)
  return dataclasses.replace(config, text=text)


def weights(config: config_lib.ModelConfig, dtype: str, seed: int) -> PyTree:
  """Random parameters, which are never held in another type."""

  @jax.jit
  def make(key):
    params = models.init(key, config)
    return jax.tree.map(lambda x: x.astype(dtype), params)

  return make(jax.random.key(seed))


def _tokenizer(flags: argparse.Namespace):
  """A tokenizer, and the entries that its model has."""
  if not flags.tokenizer:
    texts = [f"what is the colour of the {c} shape?" for c in COLOURS] * 9
    tokenizer = tiny_model.build_tokenizer(texts, flags.vocab)
    return tokenizer, max(flags.vocab, len(tokenizer))
  inner = tokenizers.Tokenizer.from_file(flags.tokenizer)
  inner.add_special_tokens(tiny_model.SPECIALS)
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>"
  )
  tokenizer.chat_template = tiny_model.CHAT_TEMPLATE
  return tokenizer, -(-len(tokenizer) // 64) * 64


def sizes(flags: argparse.Namespace, vocabulary: int) -> dict:
  """Decoder and tower of the asked sizes."""
  if flags.architecture:
    found = architecture(flags.architecture)
    return {
      name: getattr(found, name)
      for name in ("text", "vision", "tie_word_embeddings", "family")
    }
  half = flags.hidden // flags.heads // 2
  time_part = half // 4
  height = (half - time_part) // 2
  text = config_lib.TextConfig(
    vocab_size=vocabulary,
    hidden_size=flags.hidden,
    intermediate_size=flags.intermediate or 3 * flags.hidden,
    num_hidden_layers=flags.layers,
    num_attention_heads=flags.heads,
    num_key_value_heads=flags.kv_heads,
    head_dim=flags.hidden // flags.heads,
    mrope_section=(time_part, height, half - time_part - height),
  )
  vision = config_lib.VisionConfig(
    depth=flags.vision_depth,
    hidden_size=flags.vision_hidden,
    intermediate_size=3 * flags.vision_hidden,
    num_heads=flags.vision_heads,
    out_hidden_size=flags.hidden,
    fullatt_block_indexes=(flags.vision_depth - 1,),
  )
  tied = not flags.untied
  return {"text": text, "vision": vision, "tie_word_embeddings": tied}


def build(flags: argparse.Namespace) -> hub.Model:
  """A random model of the asked size and type, with its processor."""
  tokenizer, vocabulary = _tokenizer(flags)
  ids = tokenizer.convert_tokens_to_ids
  config = config_lib.ModelConfig(
    **sizes(flags, vocabulary),
    image_token_id=ids("<|image_pad|>"),
    video_token_id=ids("<|video_pad|>"),
    vision_start_token_id=ids("<|vision_start|>"),
    vision_end_token_id=ids("<|vision_end|>"),
    # A placeholder can't be sampled, so it never ends an answer.
    eos_token_id=ids("<|im_end|>" if flags.free_length else "<|video_pad|>"),
    pad_token_id=ids("<|endoftext|>"),
    dtype=flags.dtype,
  )
  area = flags.image_size**2
  picture = pictures.PictureConfig(min(56 * 56, area), max(area, 56 * 56))
  params = weights(config, flags.dtype, flags.seed)
  video = FAMILIES[config.family].video
  processor = Processor(tokenizer, config, picture, video)
  return hub.Model(config, params, processor)


def encoded(
  config: config_lib.ModelConfig, rng, length: int, side: int
) -> packing.Encoded:
  """A prompt of random tokens and a picture of side x side random patches.

  It needs no tokenizer. `side` is even; 0 is no picture.
  """
  tower = config.vision
  count = (side // tower.spatial_merge_size) ** 2
  places = np.arange(length, dtype=np.int32)
  pixels = rng.standard_normal((side**2, tower.patch_values), np.float32)
  cut = pictures.Cut(
    kind="image",
    pixels=pixels,
    grid=(1, side, side),
    spans=(),
    shrunk=False,
    region=np.zeros(count, np.float32),
    evidence=np.zeros(count, np.float32),
  )
  return packing.Encoded(
    name="random",
    tokens=rng.integers(0, 200, length, np.int32),
    positions=np.stack([places] * 3, -1),
    visual_index=np.where(places < count, places, -1).astype(np.int32),
    region=np.zeros(length, np.float32),
    evidence=np.zeros(length, np.float32),
    cuts=(cut,) if side else (),
  )


def question(picture, words: int = 7) -> list[dict]:
  """A conversation about a picture."""
  text = " ".join(["colour"] * words)
  parts = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
  return [{"role": "user", "content": parts}]


def prompt(processor: Processor, picture, length: int) -> Prompt:
  """One prompt of about `length` tokens, padded to it: a picture and words."""

  def tokens(words):
    return len(processor.encode(question(picture, words), "bench").tokens)

  # One more word is as many tokens more each time.
  each = tokens(3) - tokens(2)
  words = (length - tokens(2)) // each + 2
  return processor([question(picture, words)], lengths=(length,))
