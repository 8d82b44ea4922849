"""HD-EPIC's annotations of moved objects, and what they say to a question.

`assoc_info.json`: video -> object -> `name`, and `tracks` of `track_id`,
`time_segment` and ids of its frames, which are `masks` of `mask_info.json`, or,
as first published, `all_frames` of `frame_info.json`. That: video -> id ->
`frame_number`, `3d_location`, `bbox`, `fixture`. Ids are the same in both.
"""

from collections.abc import Mapping, Sequence
import itertools
import os
import re
from typing import Any

from mmrl import json_files, storage
from mmrl.chains import parsing
from mmrl.data import lines
from mmrl.data.hd_epic.facts import Facts
from mmrl.errors import UserError, is_number

_OBJECTS = "assoc_info.json"
# Key of a track's ids -> the file that has them.
_FRAMES = {"masks": "mask_info.json", "all_frames": "frame_info.json"}
_FRAME = ("frame_number", "3d_location", "bbox", "fixture")
_BOX = re.compile(r"<BBOX ([-\d.e ]+)>")
_RATE = 30.0  # Frames of a video per second, to tell equal boxes apart.
_CLOSE = 0.01  # Pixels that boxes may differ by: they are rounded.


class Annotations:
  """Moves of the objects in videos."""

  def __init__(self, folder: str):
    """Reads both files of a folder.

    Raises:
      UserError: if one of them isn't there, or has another form.
    """
    root = storage.path(folder)
    path = root / _OBJECTS
    self._objects = json_files.optional(path)
    if not self._objects:
      raise UserError(
        f"annotations: expected {_OBJECTS} of HD-EPIC in {root}, found none;"
        " name the folder scene-and-object-movements, or leave it out"
      )
    key = _check_objects(path, self._objects)
    # The one that goes with them first.
    for name in sorted(_FRAMES.values(), key=lambda one: one != _FRAMES[key]):
      self._frames = json_files.optional(root / name)
      if self._frames:
        _check_frames(root / name, self._frames)
        return
    raise UserError(
      f"annotations: expected {' or '.join(_FRAMES.values())} of HD-EPIC in"
      f" {root}, found none; download it, or leave the folder out"
    )

  def facts(self, kind: str, video: str, question: str, right: str) -> Facts:
    """Returns what is known of a question about an object; empty if nothing.

    Windows are left out where there are not as many moves as are asked for.

    Args:
      kind: of question.
      video: its id.
      question, right: the texts.

    Raises:
      UserError: if the question's box isn't one.
    """
    box, moments = _BOX.search(question), parsing.times(question)
    if box is None or not moments or video not in self._objects:
      return {}
    corners = _corners(box[1])
    tracks = self._tracks(video, corners, moments[0])
    return _of_tracks(kind, tracks, moments[0], right) if tracks else {}

  def _tracks(
    self, video: str, box: Sequence[float], time: float
  ) -> list["_Track"] | None:
    """Returns the tracks of the object in a box, by their begin."""
    frames = self._frames.get(video, {})
    found = [
      (abs(frame["frame_number"] / _RATE - time), name)
      for name, frame in frames.items()
      if all(
        abs(a - b) < _CLOSE for a, b in zip(frame["bbox"], box, strict=True)
      )
    ]
    if not found:
      return None
    chosen = min(found)[1]
    for one in self._objects[video].values():
      tracks = [_Track(track, frames) for track in one["tracks"]]
      if any(chosen in track.frames for track in tracks):
        return sorted(tracks, key=lambda track: track.window)
    return None


class _Track:
  """One movement of an object.

  Attributes:
    window: begin and end, seconds.
    frames: ids of annotated frames.
    ends: fixtures that it leaves and reaches; None where not both are known.
  """

  def __init__(self, raw: Mapping[str, Any], frames: Mapping[str, Any]):
    start, end = raw["time_segment"]
    self.window = float(start), float(end)
    self.frames = next(raw[key] for key in _FRAMES if key in raw)
    fixtures = [_fixture(frames.get(name, {})) for name in self.frames]
    first, last = (fixtures[0], fixtures[-1]) if fixtures[1:] else (None, None)
    self.ends = (first, last) if first and last else None

  @property
  def moved(self) -> bool:
    """Whether the object is somewhere else than before."""
    return self.ends is not None and self.ends[0] != self.ends[1]


def _of_tracks(
  kind: str, tracks: Sequence[_Track], time: float, right: str
) -> Facts:
  if kind == "object_location":
    nearest = min(tracks, key=lambda t: min(abs(x - time) for x in t.window))
    put = abs(nearest.window[0] - time) <= abs(nearest.window[1] - time)
    # Asked at its begin where it was put, at its end where it came from.
    moment = nearest.window[1 if put else 0]
    found: Facts = {"windows": ((moment, moment),)}
    if nearest.ends:
      fixture = nearest.ends[1 if put else 0]
      found |= {"fixture": fixture, "names": (fixture,)}
    return found
  if kind == "stationary_object_localization":
    found = {"windows": (tracks[0].window,)}
    if tracks[0].ends:
      found["moves"] = (_places(tracks[0].ends),)
    start = parsing.times(right)[0]
    for before, after in itertools.pairwise(tracks):
      if abs(before.window[1] - start) <= 1.0:
        found["rest"] = (before.window[1], after.window[0])
    return found
  moves = [track for track in tracks if track.moved]
  wanted = right.count("from ") or int(right)
  if len(moves) != wanted:
    return {}
  found = {"windows": tuple(track.window for track in moves)}
  if kind == "object_movement_counting":
    ends = [track.ends for track in moves if track.ends]
    found["moves"] = tuple(map(_places, ends))
    found["names"] = tuple(
      dict.fromkeys(name for pair in ends for name in pair)
    )
  return found


def _places(ends: tuple[str, str]) -> tuple[str, str]:
  """Names two fixtures for people, by their kinds."""
  return parsing.plain(ends[0]), parsing.plain(ends[1])


def _fixture(frame: Mapping[str, Any]) -> str | None:
  """Returns the fixture of a frame; none is null, or a text that says so."""
  found = frame.get("fixture")
  return None if found is None or found.lower() == "null" else found


def _corners(text: str) -> list[float]:
  """Reads the box of a question."""
  try:
    found = [float(x) for x in text.split()]
  except ValueError:
    found = []
  if len(found) != 4:
    raise UserError(
      f"expected a box such as <BBOX 1.5 2 30 40>, found <BBOX {text:.80}>"
    )
  return found


def _check_objects(path: os.PathLike, raw: Mapping[str, Any]) -> str:
  """Checks what `assoc_info.json` has; returns the key of tracks' ids.

  Raises:
    UserError: naming file and keys of what is wrong first.
  """
  used = ""
  for video, objects in raw.items():
    for name, one in _entries(path, video, objects):
      where = f"{path}[{video}][{name}]"
      _check_keys(where, one, ("name", "tracks"))
      _expect(f"{where}[name]", "a text", one["name"], str)
      _expect(f"{where}[tracks]", "a list", one["tracks"], list)
      for number, track in enumerate(one["tracks"]):
        at = f"{where}[tracks][{number}]"
        _expect(at, "an object", track, dict)
        there = [key for key in _FRAMES if key in track]
        key = used or (there[0] if there else next(iter(_FRAMES)))
        _check_keys(at, track, ("track_id", "time_segment", key))
        times, ids = track["time_segment"], track[key]
        if not _numbers(times, 2) or times[0] > times[1]:
          _wrong(f"{at}[time_segment]", "[start, end] in seconds", times)
        if not isinstance(ids, list) or not all(
          isinstance(x, str) for x in ids
        ):
          _wrong(f"{at}[{key}]", "a list of ids", ids)
        used = key
  return used or next(iter(_FRAMES))


def _check_frames(path: os.PathLike, raw: Mapping[str, Any]) -> None:
  """Checks what the file of frames has; see `_check_objects`."""
  for video, frames in raw.items():
    for name, one in _entries(path, video, frames):
      where = f"{path}[{video}][{name}]"
      _check_keys(where, one, _FRAME)
      number, fixture = one["frame_number"], one["fixture"]
      if type(number) is not int or number < 0:
        _wrong(f"{where}[frame_number]", "a number from 0 on", number)
      if not _numbers(one["bbox"], 4):
        _wrong(f"{where}[bbox]", "four numbers", one["bbox"])
      if fixture is not None:
        _expect(f"{where}[fixture]", "a text or null", fixture, str)


def _entries(path: os.PathLike, video: str, raw: Any) -> Any:
  """Returns the entries of a video, checked to be objects."""
  _expect(f"{path}[{video}]", "an object", raw, dict)
  for name, one in raw.items():
    _expect(f"{path}[{video}][{name}]", "an object", one, dict)
  return raw.items()


def _check_keys(where: str, raw: dict[str, Any], keys: Sequence[str]) -> None:
  """Checks that an object has all of some keys, and no others."""
  lacking = [key for key in keys if key not in raw]
  if lacking:
    _wrong(where, f"{', '.join(map(repr, keys))}", list(raw))
  try:
    lines.check_keys(raw, keys, "it")
  except UserError as error:
    raise UserError(f"{where}: {error}") from error


def _numbers(value: Any, count: int) -> bool:
  return (
    isinstance(value, list)
    and len(value) == count
    and all(map(is_number, value))
  )


def _expect(where: str, what: str, value: Any, kind: type) -> None:
  if not isinstance(value, kind):
    _wrong(where, what, value)


def _wrong(where: str, what: str, value: Any) -> None:
  raise UserError(
    f"{where}: expected {what}, as HD-EPIC publishes it, found {value!r:.80};"
    " download the file again"
  )
