"""Conversations to padded prompts.

A prompt is built together with its pictures: the chat template's placeholder
of each picture is replaced by exactly as many ids as it has visual tokens,
and every position knows which visual token stands there. What doesn't fit a
bucket is refused by name; an image span is never cut.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np
import transformers

from mmrl.errors import UserError
from mmrl.models import pictures
from mmrl.models.config import ModelConfig
from mmrl.types import Patches, Prompt

# Buckets when none are given: multiples of these.
_TOKENS_STEP, _PATCHES_STEP = 32, 64
# Private-use characters stand for texts that must not be parsed.
_MARK = "\ue000{}\ue001"


@dataclasses.dataclass(frozen=True)
class Encoded:
  """One conversation, not padded yet.

  Attributes:
    name: what errors call it.
    tokens: [S] ids.
    positions: [S, 3] rotary positions.
    visual_index: [S] visual token at each position, -1 for text.
    region: [S] share of the token's cell that the marked region covers.
    cuts: its pictures.
  """

  name: str
  tokens: np.ndarray
  positions: np.ndarray
  visual_index: np.ndarray
  region: np.ndarray
  cuts: tuple[pictures.Cut, ...]

  @property
  def shrunk(self) -> int:
    """How many pictures the pixel budget made smaller."""
    return sum(cut.shrunk for cut in self.cuts)


@dataclasses.dataclass(frozen=True)
class Processor:
  """Tokenizer, chat template and picture settings of a model.

  Attributes:
    tokenizer: a fast Transformers tokenizer.
    config: the model it belongs to.
    picture: pixel budget and normalisation; `dataclasses.replace` changes it.
  """

  tokenizer: Any
  config: ModelConfig
  picture: pictures.PictureConfig

  @classmethod
  def load(cls, path: str | pathlib.Path, config: ModelConfig) -> "Processor":
    """Reads tokenizer, chat template and preprocessor of a model directory."""
    path = pathlib.Path(path)
    if not (path / "tokenizer.json").exists():
      raise UserError(
        f"expected a tokenizer in {path}, found no tokenizer.json; copy the"
        " tokenizer files of the model there"
      )
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    if tokenizer.chat_template is None:
      raise UserError(
        f"expected a chat template in {path}, found none; add"
        " chat_template.jinja"
      )
    if len(tokenizer) > config.text.vocab_size:
      raise UserError(
        f"{path}: the tokenizer has {len(tokenizer)} entries, the model only"
        f" {config.text.vocab_size}; they don't belong together"
      )
    return cls(tokenizer, config, pictures.from_hf(path))

  def save(self, path: str | pathlib.Path) -> None:
    """Writes tokenizer, chat template and preprocessor to a directory."""
    path = pathlib.Path(path)
    self.tokenizer.save_pretrained(path)
    preprocessor = pictures.to_hf(self.picture, self.config.vision)
    text = json.dumps(preprocessor, indent=2) + "\n"
    (path / "preprocessor_config.json").write_text(text)

  def __call__(
    self,
    conversations: Sequence[Sequence[dict]],
    *,
    lengths: Sequence[int] = (),
    patches: Sequence[int] = (),
  ) -> Prompt:
    """A list of chat conversations to one padded prompt batch.

    Args:
      conversations: each a list of messages `{"role", "content"}`, content
        being text or parts `{"type": "text", "text"}` and `{"type": "image",
        "image"}` with a path, bytes, PIL image or uint8 array, and optionally
        `"region"`, a box in its pixels.
      lengths: allowed S; multiples of 32 if empty.
      patches: allowed M; multiples of 64 if empty.

    Returns:
      NumPy arrays, padded on the left to the smallest buckets that fit.
    """
    encoded = [
      self.encode(conversation, f"conversation {i}")
      for i, conversation in enumerate(conversations)
    ]
    return self.collate(encoded, lengths=lengths, patches=patches)

  def encode(self, conversation: Sequence[dict], name: str) -> Encoded:
    """Tokens, positions and patches of one conversation.

    Args:
      conversation: see `__call__`. Unless its last message is the
        assistant's, the template opens an answer.
      name: what errors call the sample.

    Raises:
      UserError: if a picture can't be read, or a message part is of a kind
        that isn't known.
    """
    parts = [
      part
      for message in conversation
      if not isinstance(message["content"], str)
      for part in message["content"]
    ]
    unknown = {part.get("type") for part in parts} - {"text", "image"}
    if unknown:
      raise UserError(
        f"{name}: expected message parts of type 'text' or 'image', found"
        f" {sorted(map(str, unknown))}"
      )
    cuts = tuple(
      self._cut(part, name) for part in parts if part["type"] == "image"
    )
    tokens = self._tokenize(conversation)
    return self._place(np.array(tokens, np.int32), cuts, name)

  def encode_answer(self, text: str, length: int, name: str) -> list[int]:
    """Ids of an answer, its end of sequence included.

    Raises:
      UserError: if there are more than `length`.
    """
    ids = self.tokenizer.encode(text, add_special_tokens=False)
    ids.append(self.config.eos_token_id)
    if len(ids) > length:
      raise UserError(
        f"{name}: expected an answer of at most {length} tokens, found"
        f" {len(ids)}; raise the answer length or shorten the answer"
      )
    return ids

  def decode(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
    """Texts of [.., R] answers, without the closing end of sequence."""
    keep = np.asarray(mask) & (np.asarray(tokens) != self.config.eos_token_id)
    rows = [
      row[kept].tolist()
      for row, kept in zip(
        np.asarray(tokens).reshape(-1, tokens.shape[-1]),
        keep.reshape(-1, keep.shape[-1]),
        strict=True,
      )
    ]
    return self.tokenizer.batch_decode(rows, skip_special_tokens=False)

  def _cut(self, part: dict, name: str) -> pictures.Cut:
    source = part.get("image", part.get("path"))
    picture = pictures.read(source, name)
    try:
      return pictures.cut(
        picture, self.picture, self.config.vision, part.get("region")
      )
    except ValueError as error:
      raise UserError(f"{name}: {error}; crop the picture") from error

  def _tokenize(self, conversation: Sequence[dict]) -> list[int]:
    """Ids of the rendered conversation, one placeholder per picture.

    Special tokens that a user typed stay text: such texts are rendered as
    marks and tokenised apart, with special tokens split like other text.
    """
    typed: list[str] = []
    specials = [
      str(token)
      for token in self.tokenizer.added_tokens_decoder.values()
      if token.special
    ]

    def protect(text: str) -> str:
      # A typed mark must not stand for another text.
      if not any(special in text for special in [*specials, _MARK[0]]):
        return text
      typed.append(text)
      return _MARK.format(len(typed) - 1)

    def plain(message: dict) -> dict:
      content = message["content"]
      if message["role"] == "assistant":
        return message
      if isinstance(content, str):
        return message | {"content": protect(content)}
      return message | {
        "content": [
          part | {"text": protect(part["text"])}
          if part["type"] == "text"
          else {"type": "image"}
          for part in content
        ]
      }

    open_answer = conversation[-1]["role"] != "assistant"
    text = self.tokenizer.apply_chat_template(
      [plain(message) for message in conversation],
      tokenize=False,
      add_generation_prompt=open_answer,
    )
    ids: list[int] = []
    for i, piece in enumerate(re.split(_MARK.format(r"(\d+)"), text)):
      if i % 2:
        ids += self.tokenizer.encode(
          typed[int(piece)], add_special_tokens=False, split_special_tokens=True
        )
      else:
        ids += self.tokenizer.encode(piece, add_special_tokens=False)
    return ids

  def _place(
    self, ids: np.ndarray, cuts: tuple[pictures.Cut, ...], name: str
  ) -> Encoded:
    """Puts each picture's visual tokens where its placeholder stands."""
    config, merge = self.config, self.config.vision.spatial_merge_size
    (holes,) = np.nonzero(ids == config.image_token_id)
    if len(holes) != len(cuts):
      raise UserError(
        f"{name}: the chat template made {len(holes)} image placeholders for"
        f" {len(cuts)} pictures; use a template that makes one per picture"
      )
    tokens, positions, index, region = [], [], [], []
    start = at = seen = 0
    for hole, cut in zip([*holes, len(ids)], [*cuts, None], strict=True):
      text = ids[start:hole]
      tokens.append(text)
      positions.append(np.tile(at + np.arange(len(text))[:, None], (1, 3)))
      index.append(np.full(len(text), -1))
      region.append(np.zeros(len(text)))
      at += len(text)
      if cut is None:
        break
      count = len(cut.region)
      tokens.append(np.full(count, config.image_token_id))
      positions.append(pictures.visual_positions(cut.grid, merge, at))
      index.append(seen + np.arange(count))
      region.append(cut.region)
      at += max(cut.grid[1:]) // merge
      seen += count
      start = hole + 1
    return Encoded(
      name=name,
      tokens=np.concatenate(tokens).astype(np.int32),
      positions=np.concatenate(positions).astype(np.int32),
      visual_index=np.concatenate(index).astype(np.int32),
      region=np.concatenate(region).astype(np.float32),
      cuts=cuts,
    )

  def collate(
    self,
    encoded: Sequence[Encoded],
    *,
    lengths: Sequence[int] = (),
    patches: Sequence[int] = (),
  ) -> Prompt:
    """Pads conversations to one batch. See `__call__`."""
    length = _bucket(
      {e.name: len(e.tokens) for e in encoded}, lengths, _TOKENS_STEP, "tokens"
    )

    def pad(rows, fill):
      shape = (len(rows), length, *rows[0].shape[1:])
      out = np.full(shape, fill, rows[0].dtype)
      for i, row in enumerate(rows):
        out[i, length - len(row) :] = row
      return out

    return Prompt(
      tokens=pad([e.tokens for e in encoded], self.config.pad_token_id),
      mask=pad([np.ones(len(e.tokens), bool) for e in encoded], False),
      positions=pad([e.positions for e in encoded], 0),
      visual_index=pad([e.visual_index for e in encoded], -1),
      next_position=np.array(
        [e.positions.max() + 1 for e in encoded], np.int32
      ),
      region=pad([e.region for e in encoded], 0),
      patches=self._collate_patches(encoded, patches),
    )

  def _collate_patches(
    self, encoded: Sequence[Encoded], buckets: Sequence[int]
  ) -> Patches:
    vision = self.config.vision
    per_window = (vision.window_cells * vision.spatial_merge_size) ** 2
    # Windows at the right and lower edge are cut off, so there are more of
    # them than patches / per_window. A batch of M patches has room for twice
    # as many; pictures so thin that they need more count as more patches.
    need = {
      e.name: sum(
        max(
          len(c.pixels),
          len(pictures.window_lists(c.grid, vision)) * per_window // 2,
        )
        for c in e.cuts
      )
      for e in encoded
    }
    count = _bucket(need, buckets, _PATCHES_STEP, "patches")
    windows = 2 * -(-count // per_window)
    rows = len(encoded)
    out = Patches(
      pixels=np.zeros((rows, count, vision.patch_values), np.float32),
      rows_columns=np.zeros((rows, count, 2), np.int32),
      image=np.full((rows, count), -1, np.int32),
      windows=np.full((rows, windows, per_window), -1, np.int32),
      window_slot=np.zeros((rows, count), np.int32),
    )
    for row, one in enumerate(encoded):
      start = window = 0
      for number, cut in enumerate(one.cuts):
        span = slice(start, start + len(cut.pixels))
        out.pixels[row, span] = cut.pixels
        out.rows_columns[row, span] = cut.rows_columns
        out.image[row, span] = number
        for members in pictures.window_lists(cut.grid, vision):
          members = members + start
          out.windows[row, window, : len(members)] = members
          slots = window * per_window + np.arange(len(members))
          out.window_slot[row, members] = slots
          window += 1
        start = span.stop
    return out


def _bucket(
  sizes: dict[str, int], buckets: Sequence[int], step: int, what: str
) -> int:
  """The smallest bucket that holds every size, or an error that names one."""
  name = max(sizes, key=sizes.get)
  need = sizes[name]
  if not buckets:
    return max(step, -(-need // step) * step)
  fitting = [bucket for bucket in sorted(buckets) if bucket >= need]
  if not fitting:
    raise UserError(
      f"{name}: expected at most {max(buckets)} {what}, found {need}; add a"
      f" larger bucket, shrink the pictures (max_pixels) or shorten the text"
    )
  return fitting[0]
