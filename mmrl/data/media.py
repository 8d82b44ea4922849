"""Pictures and videos that rows name: files, or pictures in the row itself."""

import base64
import io
import os
import re
from typing import Any, NoReturn

from etils import epath
from PIL import Image

from mmrl import storage
from mmrl.data import lines
from mmrl.errors import UserError
from mmrl.prompts import regions
from mmrl.types import Box

_ONE = {"image": "a picture", "video": "a video", "frame": "a frame"}
# Keys that may hold what a part shows, and the one that says more about it.
_SOURCES = {
  "image": ("image", "path", "url", "bytes"),
  "video": ("video", "path", "url"),
}
# What PNG and JPEG files begin with, the header of the former included.
_BEGINNINGS = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff"
_OPTION = {"image": "region", "video": "fps"}
_KNOWN = {
  kind: ("type", *sources, _OPTION[kind]) for kind, sources in _SOURCES.items()
}
_MEANT = {
  **dict.fromkeys(("bbox", "box"), "region"),
  **dict.fromkeys(("sample_fps", "frame_rate", "framerate", "rate"), "fps"),
  **dict.fromkeys(("image_path", "video_path", "file", "filename"), "path"),
  **dict.fromkeys(("image_url", "video_url"), "url"),
}
# How PNG, JPEG, GIF and WebP files begin in base64.
_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
_LONGEST_PATH = 4096


class _Unread(bytes):
  """Bytes that a table has and didn't read."""


# A picture in a row of which the texts alone were read.
UNREAD = _Unread()


def has_source(part: dict[str, Any]) -> bool:
  """Tells whether a part of type "image" or "video" holds what it shows."""
  return not part.keys().isdisjoint(_SOURCES[part["type"]])


class Media:
  """Makes message parts of the pictures and videos that rows name."""

  def __init__(self, folder: epath.Path):
    """Looks for files from `folder` on, which may be in a store."""
    self._folder = folder
    self._local = "" if str(folder) == "." else str(folder)
    self._remote = storage.is_remote(folder)
    self._listed: dict[str, frozenset[str]] = {}

  def part(self, kind: str, value: Any) -> dict[str, Any]:
    """Returns the message part of one picture or video.

    Args:
      kind: "image" or "video".
      value: a path, a data URI, a PIL image, a list of frames, or an object
        with one.

    Raises:
      UserError: if there is no such file, or it is given in another way.
    """
    if isinstance(value, str):
      return {"type": kind, kind: self._source(kind, value)}
    if isinstance(value, bytes) and kind == "image":
      return {"type": kind, kind: _picture(value)}
    if isinstance(value, Image.Image) and kind == "image":
      return {"type": kind, kind: value}  # As `datasets` decodes them.
    if isinstance(value, list):
      value = {kind: value}
    if not isinstance(value, dict):
      raise UserError(
        f"expected {_ONE[kind]} as a path, found {value!r:.80}; write its path"
      )
    source = value.get(kind)
    if (
      len(value) == 2 and isinstance(source, str) and value.get("type") == kind
    ):
      return {"type": kind, kind: self._source(kind, source)}
    part = self.options(kind, value)
    given = [key for key in _SOURCES[kind] if key in value]
    if "bytes" in given:
      # The path beside them is where they came from.
      given = [key for key in given if key != "path"]
    if len(given) != 1:
      raise UserError(
        f"expected {_ONE[kind]} in one of {', '.join(_SOURCES[kind])}, found"
        f" {', '.join(given) or 'none'}; give one of them"
      )
    source = value[given[0]]
    if given[0] == "bytes":
      part[kind] = _picture(source)
    elif isinstance(source, dict | Image.Image):
      part = self.part(kind, source) | part
    elif isinstance(source, list) and kind == "video":
      part[kind] = self._frames(source, part)
    else:
      part[kind] = self._source(kind, source)
    return part

  def options(self, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    """Returns type and option of a part, its keys checked."""
    option = _OPTION[kind]
    lines.check_keys(value, _KNOWN[kind], _ONE[kind], _MEANT)
    if value.get("type", kind) != kind:
      raise UserError(
        f"expected {_ONE[kind]}, found type {value['type']!r:.80}; list it with"
        " others of its type"
      )
    part: dict[str, Any] = {"type": kind}
    if option in value:
      check = region if kind == "image" else _rate
      part[option] = check(value[option])
    return part

  def _frames(self, frames: list, part: dict[str, Any]) -> list[str | bytes]:
    """Finds the frames of a video that were taken already."""
    found = [self._source("frame", frame) for frame in frames]
    if not found or "fps" not in part:
      raise UserError(
        f"expected frames and how many of them make a second, found"
        f' {len(found)} frames {"with" if "fps" in part else "without"} "fps";'
        ' write {"video": [..], "fps": 2}'
      )
    return found

  def _source(self, kind: str, text: Any) -> str | bytes:
    """Returns the path of a file, or the bytes of a picture in a data URI."""
    if not isinstance(text, str) or not text.strip():
      raise UserError(
        f"expected {_ONE[kind]} as a path, found {text!r:.80}; write its path"
      )
    if text.startswith("data:"):
      return _in_data_uri(kind, text)
    if "://" in text:
      if not storage.is_remote(text) and not text.startswith("file://"):
        raise UserError(
          f"expected {_ONE[kind]} on this machine, found {text!r:.80}; download"
          " it first and write its path"
        )
      text = text.removeprefix("file://")
    if self._remote or storage.is_remote(text):
      remote = storage.is_remote(text)
      file = storage.path(text) if remote else self._folder / text
      path, there = str(file), self._is_stored(file)
    else:
      path = os.path.join(self._local, text)
      there = os.path.isfile(path)
    if not there:
      _refuse(kind, text, path)
    return path

  def _is_stored(self, file: epath.Path) -> bool:
    """Tells whether a file exists, by one request per folder of a store."""
    if not storage.is_remote(file):
      return os.path.isfile(file)
    folder = str(file.parent)
    if folder not in self._listed:
      self._listed[folder] = storage.names(folder)
    return file.name in self._listed[folder]


def _refuse(kind: str, text: str, file: str) -> NoReturn:
  if len(text) > _LONGEST_PATH or text.startswith(_BASE64):
    raise UserError(
      f"expected {_ONE[kind]} as a path, found bare base64 or another long"
      f" text, {text[:40]!r}..; write a picture as data:image/png;base64,.."
    )
  shown = repr(file)[1:-1]
  if len(shown) > 200:
    shown = f"{shown[:80]}..{shown[-80:]}"
  found = "a folder" if os.path.isdir(file) else "no file"
  raise UserError(
    f"expected {_ONE[kind]} at {shown}, found {found}; paths are relative to"
    " the data file, or to the option media"
  )


def _in_data_uri(kind: str, text: str) -> bytes:
  head, _, body = text.partition(",")
  if kind == "video":
    raise UserError(
      f"expected a video as a file, found {text[:40]!r}..; write it to a file"
    )
  if not re.fullmatch(r"data:image/[\w.+-]+(;[\w=.+-]+)*;base64", head):
    raise UserError(
      f"expected a picture as data:image/png;base64,.., found {text[:40]!r}..;"
      " write it so or as a path"
    )
  return _picture(body)


def _picture(text: Any) -> bytes:
  """Returns a picture's bytes, perhaps from base64, if they are a picture's."""
  if text is UNREAD:
    return UNREAD
  try:
    content = text
    if not isinstance(text, bytes):
      content = base64.b64decode("".join(text.split()), validate=True)
    # A file's content is looked at when it is inspected or used, here, too.
    if content.startswith(_BEGINNINGS):
      return content
    # Pillow raises anything.
    with Image.open(io.BytesIO(content)):
      return content
  except Exception as error:
    raise UserError(
      f"expected the base64 of a picture's file, found {text!r:.60}; write it"
      " so or as a path"
    ) from error


def _is_number(value: Any) -> bool:
  """Tells whether a value is a number, neither infinite nor a boolean."""
  return type(value) in (int, float) and abs(value) < 1e9


def region(value: Any) -> Box | regions.Region:
  """Checks a region; a box in pixels stays one."""
  found = regions.read(value)
  if len(found.boxes) == 1 and found.unit == "pixels":
    return found.boxes[0]
  return found


def _rate(value: Any) -> float:
  if not _is_number(value) or value <= 0:
    raise UserError(f"expected 'fps' as a number above 0, found {value!r:.80}")
  return float(value)
