"""HD-EPIC's annotations of moved objects, and what they say to a question.

`assoc_info.json`: video -> object -> name, and tracks with `time_segment` and
the frames at begin and end (`masks`, or `all_frames`). `frame_info.json` (or
`mask_info.json`): video -> frame -> `frame_number`, `bbox`, `fixture`.
"""

from collections.abc import Mapping, Sequence
import itertools
import re
from typing import Any

from mmrl import json_files, storage
from mmrl.chains import parsing
from mmrl.data.hd_epic.facts import Facts
from mmrl.errors import UserError

_OBJECTS = "assoc_info.json"
_FRAMES = ("frame_info.json", "mask_info.json")
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
    self._objects = _read(root, (_OBJECTS,))
    self._frames = _read(root, _FRAMES)

  def facts(self, kind: str, video: str, question: str, right: str) -> Facts:
    """Returns what is known of a question about an object; empty if nothing.

    Windows are left out where there are not as many moves as are asked for.

    Args:
      kind: of question.
      video: its id.
      question, right: the texts.

    Raises:
      UserError: if the annotations of the object have another form.
    """
    box, moments = _BOX.search(question), parsing.times(question)
    if box is None or not moments or video not in self._objects:
      return {}
    try:
      corners = [float(x) for x in box[1].split()]
      tracks = self._tracks(video, corners, moments[0])
      if tracks is None:
        return {}
      return _of_tracks(kind, tracks, moments[0], right)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise UserError(
        f"expected annotations of {video} as HD-EPIC publishes them, found"
        f" {type(error).__name__}: {error!s:.80}; download them again"
      ) from error

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
    self.frames = list(
      raw["all_frames"] if "all_frames" in raw else raw["masks"]
    )
    fixtures = [frames.get(name, {}).get("fixture") for name in self.frames]
    known = len(fixtures) > 1 and fixtures[0] and fixtures[-1]
    self.ends = (fixtures[0], fixtures[-1]) if known else None

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


def _read(root: Any, names: Sequence[str]) -> dict[str, Any]:
  """Reads the first of some files that is there."""
  for name in names:
    found = json_files.optional(root / name)
    if found:
      return found
  raise UserError(
    f"annotations: expected {' or '.join(names)} of HD-EPIC in {root}, found"
    " none; name the folder scene-and-object-movements, or leave it out"
  )
