"""A video's score from frames, most of them where it looks suspicious: REACT.

Half of the frames are spread evenly. The other half is put between them where
all are good, close to bad ones where some are bad, and else near those below
the mean.

Reference: arXiv 2601.04033.
Reconstructed from others' accounts: thresholds, spacing and what they leave
open.
"""

from collections.abc import Generator, Iterable, Sequence
import json
import math

import numpy as np

from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.rewards.frames import reply
from mmrl.strategies.ask import Answer, Ask, Reply, Steps, Unanswered

# Gaps that differ by less, seconds, are equal.
_TINY = 1e-9
# What is asked for next -> scores, NaN where there is none; at the end (times
# of all frames in order, mean score or NaN).
Rounds = Generator[list[float], Sequence[float], tuple[list[float], float]]


def two_rounds(
  duration: float,
  *,
  fps: float = 2.0,
  high: float = 4.0,
  low: float = 3.0,
  dense_interval: float | None = None,
  seed: int = 0,
) -> Rounds:
  """Yields the times of frames to score, twice; see the module.

  There are max(2, floor(fps T + 1/2)) frames, or one where T is 0.

  Args:
    duration: T, seconds.
    fps: frames a second, on average.
    high: a video whose frames are all above it is taken for good.
    low: a frame below it is bad; at most `high`.
    dense_interval: seconds between frames near a bad one; 1 / (4 fps) if None.
    seed: of the frames near those below the mean.

  Raises:
    UserError: if a number is outside its range.
  """
  check_options(fps=fps, high=high, low=low, dense_interval=dense_interval)
  if not 0 <= duration < math.inf:
    raise UserError(f"expected a duration of at least 0 s, found {duration}")
  if not duration:
    scores = yield [0.0]
    return [0.0], _mean(scores)
  count = max(2, math.floor(fps * duration + 0.5))
  first = -(-count // 2)
  times = [(i + 0.5) * duration / first for i in range(first)]
  scores = list((yield times))
  step = dense_interval or 1 / (4 * fps)
  known = [s for s in zip(scores, times, strict=True) if not math.isnan(s[0])]
  worst = sorted(known)
  near: Iterable[float] = ()
  if any(score < low for score, _ in known):
    near = (
      time + sign * k * step
      for k in range(1, math.ceil(duration / (2 * first) / step))
      for score, time in worst
      if score < low
      for sign in (-1, 1)
    )
  elif not all(score > high for score, _ in known):
    rng, mean = np.random.default_rng(seed), _mean(scores)
    near = (
      rng.uniform(max(time - step, 0.0), min(time + step, duration))
      for score, time in worst
      if score < mean
      for _ in range(2)
    )
  more = _take(near, times, duration, count - first)
  scores += yield more
  return sorted(times + more), _mean(scores)


def _take(near, times, duration, count) -> list[float]:
  """Takes times nearby, then the middles of the largest gaps."""
  more: list[float] = []
  for time in near:
    if len(more) == count:
      break
    taken = any(abs(time - other) < _TINY for other in times + more)
    if 0 <= time <= duration and not taken:
      more.append(time)
  while len(more) < count:
    edges = sorted([0.0, *times, *more, duration])
    gaps = np.diff(edges)
    at = int(np.argmax(gaps >= gaps.max() - _TINY))
    more.append((edges[at] + edges[at + 1]) / 2)
  return more


def _mean(scores: Sequence[float]) -> float:
  """Returns the mean of the scores that there are; NaN of none."""
  known = [score for score in scores if not math.isnan(score)]
  return sum(known) / len(known) if known else math.nan


def check_options(
  *, fps: float, high: float, low: float, dense_interval: float | None
) -> None:
  """Checks the options of `two_rounds`.

  Raises:
    UserError: naming the one that is outside its range.
  """
  if not reply.LOWEST <= low <= high <= reply.HIGHEST:
    raise UserError(
      f"expected {reply.LOWEST:g} <= low <= high <= {reply.HIGHEST:g}, found"
      f" low {low} and high {high}"
    )
  if not 0 < fps < math.inf:
    raise UserError(f"expected fps above 0, found {fps}")
  if dense_interval is not None and not 0 < dense_interval < math.inf:
    raise UserError(f"expected dense_interval above 0, found {dense_interval}")


@marked(asks=lambda *, model="policy", **_: (model,))
def frame_scores(
  example: Example,
  *,
  model: str = "policy",
  fps: float = 2.0,
  high: float = 4.0,
  low: float = 3.0,
  dense_interval: float | None = None,
  seed: int = 0,
) -> Steps:
  """Scores a video frame by frame, by the rounds of `two_rounds`.

  Args:
    example: the question about one frame, in whose place stands the video, as
      frames and their rate.
    model: role of the model.
    fps, high, low, dense_interval, seed: see `two_rounds`.

  Returns:
    The score as JSON; notes say at which times frames were scored.
  """
  (message,) = [m for m in example.messages if m["role"] == "user"]
  videos = [p for p in message["content"] if p["type"] == "video"]
  if len(videos) != 1 or not isinstance(videos[0]["video"], np.ndarray):
    raise UserError(
      f"{example.name}: expected one video as an array of frames, found"
      f" {len(videos)} videos or a file; read it first"
    )
  video = videos[0]
  frames, rate = video["video"], video["fps"]

  def ask(time: float) -> Ask:
    shown = frames[min(int(time * rate), len(frames) - 1)]
    image = {"type": "image", "image": shown}
    parts = [image if part is video else part for part in message["content"]]
    return Ask(model, [{"role": "user", "content": parts}])

  rounds = two_rounds(
    len(frames) / rate,
    fps=fps,
    high=high,
    low=low,
    dense_interval=dense_interval,
    seed=seed,
  )
  try:
    times = next(rounds)
    while True:
      replies: Sequence[Reply] = yield [ask(time) for time in times]
      found = [reply.parse(one.text) for one in replies]
      times = rounds.send([one.score if one else math.nan for one in found])
  except StopIteration as end:
    scored, score = end.value
  if math.isnan(score):
    raise Unanswered(f"none of {len(scored)} replies could be read")
  return Answer(json.dumps({"score": score}), {"times": scored})
