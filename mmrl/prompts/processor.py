"""Conversations to padded prompts.

A prompt is built together with its pictures and videos: the placeholder that
the chat template sets for each is replaced by exactly as many ids as it has
visual tokens, and every position has the index of its visual token.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import re
import tempfile
from typing import Any

import numpy as np

from mmrl import json_files, storage
from mmrl.errors import UserError
from mmrl.models.config import ModelConfig
from mmrl.models.families import FAMILIES, VideoConfig, uniform_frames
from mmrl.models.passes import segments
from mmrl.prompts import (
  files,
  outlines,
  packing,
  parts,
  pictures,
  preprocessor_json,
  regions,
  templates,
  videos,
)
from mmrl.prompts.packing import Encoded
from mmrl.types import Prompt

# Endings of a tokenizer's files.
_FILES = (".json", ".jinja", ".txt")
# Private-use characters stand for texts that must not be parsed.
_MARK = "\ue000{}\ue001"


@dataclasses.dataclass(frozen=True)
class Processor:
  """Tokenizer, chat template, picture and video settings of a model.

  Attributes:
    tokenizer: a fast Transformers tokenizer.
    config: the model it belongs to.
    picture: pixel budget and normalisation; `dataclasses.replace` changes it.
    video: which frames of a video are taken, and their pixel budget.
    template_file: what errors call the chat template's file.
  """

  tokenizer: Any
  config: ModelConfig
  picture: pictures.PictureConfig
  video: VideoConfig
  template_file: str = "chat_template.jinja"

  @classmethod
  def load(cls, path: storage.Name, config: ModelConfig) -> "Processor":
    """Reads tokenizer, chat template and settings of a model directory."""
    import transformers  # late: it takes seconds, and no other module needs it

    path = storage.path(path)
    if not (path / "tokenizer.json").exists():
      raise UserError(
        f"expected a tokenizer in {path}, found no tokenizer.json; copy the"
        " tokenizer files of the model there"
      )
    try:
      files = [n for n in storage.names(path) if n.endswith(_FILES)]
      for file in files:
        json_files.check_regular(path / file)
      with storage.local(path, files) as folder:
        # Of this class whatever the files ask for: no code of theirs is run.
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
      # Settings of a wrong type show when they are used.
      _ = tokenizer.encode("a"), tokenizer.unk_token_id
    except UserError:
      raise
    except Exception as error:  # The tokenizers package raises bare ones.
      reason = " ".join(str(error).split())
      raise UserError(
        f"expected a readable tokenizer in {path}: {reason:.200}; download"
        " the model's files again"
      ) from error
    # It would save these: where it was read from, and code that isn't run.
    for name in ("auto_map", "is_local", "local_files_only"):
      tokenizer.init_kwargs.pop(name, None)
    template = templates.read(path, tokenizer)
    if len(tokenizer) > config.text.vocab_size:
      raise UserError(
        f"{path}: the tokenizer has {len(tokenizer)} entries, the model only"
        f" {config.text.vocab_size}; they don't belong together"
      )
    settings = preprocessor_json.read(path, config)
    return cls(tokenizer, config, *settings, template)

  def save(self, path: storage.Name) -> None:
    """Writes tokenizer, chat template and settings to a directory."""
    path = storage.path(path)
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      self.tokenizer.save_pretrained(folder)
      for file in filter(pathlib.Path.is_file, folder.rglob("*")):
        storage.write_bytes(path / file.relative_to(folder), file.read_bytes())
    preprocessor_json.write(self.picture, self.video, self.config, path)

  def __call__(
    self,
    conversations: Sequence[Sequence[dict]],
    *,
    lengths: Sequence[int] = (),
    patches: Sequence[int] = (),
    rows: int = 1,
  ) -> Prompt:
    """Encodes chat conversations to one padded prompt batch.

    Args:
      conversations: each a list of messages `{"role", "content"}`, content
        being text or parts:
        `{"type": "text", "text"}`;
        `{"type": "image", "image"}` with a path, bytes, PIL image or uint8
        array, and optionally `"region"`, see `prompts.regions`;
        `{"type": "video", "video"}` with a path or bytes of a file, of which
        "fps" frames a second are taken (the processor's number by default),
        or with frames taken already, an array or a list of pictures, and
        "fps", how many of them make a second. Of a video with fewer frames
        than `video.frames`, all whole patches are taken.
      lengths: allowed S; multiples of 32 if empty.
      patches: allowed M per prompt of a row, on average; multiples of 64 if
        empty.
      rows: B, rows that the pictures are packed into.

    Returns:
      NumPy arrays, padded on the left to the smallest buckets that fit.
    """
    encoded = [
      self.encode(conversation, f"conversation {i}")
      for i, conversation in enumerate(conversations)
    ]
    return self.collate(encoded, lengths=lengths, patches=patches, rows=rows)

  def encode(
    self,
    conversation: Sequence[dict],
    name: str,
    *,
    measure: bool = False,
  ) -> Encoded:
    """Encodes one conversation to tokens, positions and patches.

    Args:
      conversation: see `__call__`. Unless its last message is the
        assistant's, the template opens an answer.
      name: what errors call the sample.
      measure: whether only the beginning of a picture's file is read: its
        patches have no values, and its sides may be exchanged.

    Raises:
      UserError: if a picture or video can't be read, or a message part is of
        a kind that isn't known.
    """
    cuts = tuple(
      self._cut(part, name, measure)
      for part in parts.each(conversation, name)
      if part["type"] != "text"
    )
    tokens = self._tokenize(conversation, cuts, name)
    return self._place(np.array(tokens, np.int32), cuts, name)

  def encode_answer(self, text: str, length: int, name: str) -> list[int]:
    """Tokenises an answer, its end of sequence included.

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

  def encode_text(self, text: str, length: int, name: str) -> list[int]:
    """Tokenises an answer that the policy could have sampled.

    A policy samples no placeholder, nothing after an end, and nothing that its
    vocabulary lacks. Each `<latent>` becomes a segment.

    Raises:
      UserError: if the text has such a token, or more than `length`.
    """
    ids = self.encode_answer(text, length, name)
    config, unknown = self.config, self.tokenizer.unk_token_id
    refused = {*config.banned_token_ids, *config.end_token_ids}
    found = (refused | {config.pad_token_id, unknown}).intersection(ids[:-1])
    if found:
      raise UserError(
        f"{name}: expected a text in words of the model's vocabulary, found the"
        f" token {self._text(min(found))!r}; take it out of the text"
      )
    return segments.whole(ids, config.latent, length, name)

  def decode(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
    """Decodes [.., R] answers to texts, without the closing end of sequence."""
    keep = np.asarray(mask) & ~self.config.ends(np.asarray(tokens))
    rows = [
      row[kept].tolist()
      for row, kept in zip(
        np.asarray(tokens).reshape(-1, tokens.shape[-1]),
        keep.reshape(-1, keep.shape[-1]),
        strict=True,
      )
    ]
    return self.tokenizer.batch_decode(rows, skip_special_tokens=False)

  def _text(self, token_id: int) -> str:
    return self.tokenizer.convert_ids_to_tokens(token_id)

  def _cut(
    self, part: Mapping[str, Any], name: str, measure: bool
  ) -> pictures.Cut:
    config, kind = self.config, part["type"]
    source = parts.source(part, name)
    try:
      if kind == "image" and measure:
        return outlines.outline(
          pictures.sides(source, name),
          self.picture,
          config.vision,
          self._text(config.image_token_id),
        )
      if kind == "image":
        return pictures.cut(
          pictures.read(source, name),
          self.picture,
          config.vision,
          self._text(config.image_token_id),
          part.get("region"),
        )
      video, family = self.video, FAMILIES[config.family]
      fps = parts.fps(part, name)
      if fps:
        # A part's own rate replaces a fixed number of frames.
        video = dataclasses.replace(video, fps=fps, frames=0)

      def sample(total, fps):
        span = config.vision.temporal_patch_size
        if total < span:
          return np.arange(total)
        choose = uniform_frames if video.uniform else family.sample_frames
        try:
          return choose(total, fps, video, span)
        except ValueError as error:
          if not video.frames:
            raise UserError(
              "expected config.models.policy.video.max_frames of at least"
              f" {span}, the frames of a patch, found {video.max_frames}; raise"
              " it"
            ) from error
        # Shorter than the number asked for: all of its whole patches.
        count = min(max(video.frames, span), total // span * span)
        fewer = dataclasses.replace(video, frames=count)
        return choose(total, fps, fewer, span)

      clip = videos.read(source, name, sample, fps, videos.fit(video, config))
      marks = (
        self._text(config.video_token_id),
        self._text(config.vision_start_token_id),
        self._text(config.vision_end_token_id),
      )
      return videos.cut(clip, video, self.picture, config, marks)
    except UserError:
      raise
    except ValueError as error:
      wrong = "region" if isinstance(error, regions.OutsideError) else kind
      raise UserError(
        f"{name}: {error} in {files.shown(source)}; change the {wrong}"
      ) from error

  def _tokenize(
    self,
    conversation: Sequence[dict],
    cuts: Sequence[pictures.Cut],
    name: str,
  ) -> list[int]:
    """Tokenises the rendered conversation, one placeholder per span.

    Special tokens that somebody typed stay text: such texts are rendered as
    marks and tokenised separately, with special tokens split like other text.
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
      if isinstance(content, str):
        return message | {"content": protect(content)}
      return message | {
        "content": [
          part | {"text": protect(part["text"])}
          if part["type"] == "text"
          else {"type": part["type"]}
          for part in content
        ]
      }

    text = templates.render(
      self.tokenizer,
      [plain(message) for message in conversation],
      open_answer=conversation[-1]["role"] != "assistant",
      name=name,
      file=self.template_file,
    )
    text = self._expand(text, cuts, name)
    ids: list[int] = []
    for i, piece in enumerate(re.split(_MARK.format(r"(\d+)"), text)):
      if i % 2:
        ids += self.tokenizer.encode(
          typed[int(piece)], add_special_tokens=False, split_special_tokens=True
        )
      else:
        ids += self.tokenizer.encode(piece, add_special_tokens=False)
    return ids

  def _expand(self, text: str, cuts: Sequence[pictures.Cut], name: str) -> str:
    """Replaces the placeholder of each picture by the text of its spans."""
    kinds = {
      self._text(self.config.image_token_id): "image",
      self._text(self.config.video_token_id): "video",
    }
    pieces = re.split("(" + "|".join(map(re.escape, kinds)) + ")", text)
    found = [kinds[placeholder] for placeholder in pieces[1::2]]
    wanted = [cut.kind for cut in cuts]
    if found != wanted:
      raise UserError(
        f"{name}: the chat template in {self.template_file} made placeholders"
        f" for {found!s:.200}, expected {wanted!s:.200}; use"
        " a template that makes one per picture and video"
      )
    pieces[1::2] = ["".join(span.text for span in cut.spans) for cut in cuts]
    return "".join(pieces)

  def _place(
    self, ids: np.ndarray, cuts: tuple[pictures.Cut, ...], name: str
  ) -> Encoded:
    """Replaces the placeholder of each span by its visual tokens."""
    config, merge = self.config, self.config.vision.spatial_merge_size
    (holes,) = np.nonzero(np.isin(ids, config.banned_token_ids))
    spans = [span for cut in cuts for span in cut.spans]
    tokens, positions, index = [], [], []
    start = at = seen = 0
    for hole, span in zip([*holes, len(ids)], [*spans, None], strict=True):
      text = ids[start:hole]
      tokens.append(text)
      positions.append(np.tile(at + np.arange(len(text))[:, None], (1, 3)))
      index.append(np.full(len(text), -1))
      at += len(text)
      if span is None:
        break
      place = pictures.visual_positions(span.grid, merge, at, span.interval)
      tokens.append(np.full(len(place), ids[hole]))
      positions.append(place)
      index.append(seen + np.arange(len(place)))
      at += max(span.grid[1:]) // merge
      seen += len(place)
      start = hole + 1
    visual_index = np.concatenate(index).astype(np.int32)
    # The last entry is what text, at -1, reads.
    pairs = [np.stack([cut.region, cut.evidence], -1) for cut in cuts]
    marks = np.concatenate([*pairs, np.zeros((1, 2))])[visual_index]
    return Encoded(
      name=name,
      tokens=np.concatenate(tokens).astype(np.int32),
      positions=np.concatenate(positions).astype(np.int32),
      visual_index=visual_index,
      region=marks[:, 0].astype(np.float32),
      evidence=marks[:, 1].astype(np.float32),
      cuts=cuts,
    )

  def collate(self, encoded: Sequence[Encoded], **buckets) -> Prompt:
    """Pads conversations to one batch; see `packing.collate`."""
    return packing.collate(encoded, self.config, **buckets)
