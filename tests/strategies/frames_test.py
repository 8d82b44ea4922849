"""Two rounds of frames: REACT's values, and a dip that is found."""

import json
import math

import numpy as np
import pytest

from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.strategies import frame_scores, run, two_rounds, user
from mmrl.strategies.responders import Scripted


def sample(duration, scores, **options):
  """Runs both rounds; returns what each asked for, times and score."""
  rounds = two_rounds(float(duration), **options)
  asked = [next(rounds)]
  try:
    while True:
      given = scores(asked[-1]) if callable(scores) else scores
      asked.append(rounds.send(given[: len(asked[-1])]))
  except StopIteration as end:
    return asked, *end.value


@pytest.mark.parametrize(
  "scores, added",
  [
    ([4.5] * 4, [1, 2, 3, 0.25]),
    ([4.5, 2.5, 4.5, 4.5], [1.375, 1.625, 1.25, 1.75]),
    ([2.0, 4.5, 2.5, 4.5], [0.375, 0.625, 2.375, 2.625]),
    # What can't be read is no reason to look closer.
    ([math.nan, 4.5, 4.5, 4.5], [1, 2, 3, 0.25]),
    ([math.nan] * 4, [1, 2, 3, 0.25]),
  ],
)
def test_golden(scores, added):
  (first, second), times, _ = sample(4, scores)
  assert first == [0.5, 1.5, 2.5, 3.5]
  assert second == pytest.approx(added)
  assert times == sorted(first + second)


def test_lengths_golden():
  _, times, score = sample(3.5, [5.0] * 4)
  expected = [0.4375, 0.875, 1.3125, 1.75, 2.1875, 2.625, 3.0625]
  assert times == pytest.approx(expected) and score == 5
  assert sample(0.2, [5.0] * 4)[1] == pytest.approx([0.05, 0.1])
  asked, times, score = sample(0, [2.0])
  assert asked == [[0.0]] and times == [0.0] and score == 2


def test_mixed_frames_are_looked_at_nearby():
  (first, second), _, _ = sample(4, [3.2, 4.5, 3.4, 4.5])
  below = [
    t for t, s in zip(first, [3.2, 4.5, 3.4, 4.5], strict=True) if s < 3.9
  ]
  near = np.repeat(below, 2)
  assert np.abs(np.array(second) - near).max() <= 0.125
  assert second == sample(4, [3.2, 4.5, 3.4, 4.5])[0][1]
  assert second != sample(4, [3.2, 4.5, 3.4, 4.5], seed=1)[0][1]
  # None is below the mean: they are put between.
  assert sample(4, [3.5] * 4)[0][1] == [1, 2, 3, 0.25]


def test_score_is_the_mean_of_what_can_be_read():
  _, _, score = sample(4, [math.nan, 4.5, 4.7, 4.8])
  assert score == pytest.approx(2 * (4.5 + 4.7 + 4.8) / 6)
  assert math.isnan(sample(4, [math.nan] * 4)[2])


def test_dips_are_hit_more_often_than_by_even_frames():
  """A dip of half a second in eight, anywhere, of as many frames."""
  hits = {"rounds": 0, "even": 0}
  even = (np.arange(16) + 0.5) / 2
  starts = np.linspace(0, 7.5, 101)
  for start in starts:

    def scores(times, start=start):
      inside = [start <= t < start + 0.5 for t in times]
      return [1.5 if one else 4.6 for one in inside]

    _, times, _ = sample(8, scores)
    assert len(times) == 16
    hits["rounds"] += scores(times).count(1.5)
    hits["even"] += scores(even).count(1.5)
  # Even frames are at least one in every dip, two rounds sometimes miss it.
  assert hits["rounds"] > 1.5 * hits["even"]


@pytest.mark.parametrize(
  "options, message",
  [
    ({"low": 4.5}, "1 <= low <= high <= 5, found low 4.5 and high 4.0"),
    ({"high": 6.0}, "1 <= low <= high <= 5, found low 3.0 and high 6.0"),
    ({"low": 0.0}, "1 <= low <= high <= 5, found low 0.0"),
    ({"fps": 0.0}, "expected fps above 0, found 0.0"),
    ({"dense_interval": 0.0}, "expected dense_interval above 0, found 0.0"),
  ],
)
def test_options_are_checked(options, message):
  with pytest.raises(UserError, match=message):
    next(two_rounds(4.0, **options))


def test_a_video_is_scored_by_asking_about_frames():
  video = np.zeros((16, 2, 2, 3), np.uint8) + np.arange(16)[:, None, None, None]
  video = video.astype(np.uint8)
  shown = [{"type": "video", "video": video, "fps": 4.0}]
  example = Example("clip", "?", user("what is wrong?", shown), "")
  seen = []

  def script(ask):
    (part, text) = ask.messages[0]["content"]
    assert part["type"] == "image" and text["text"] == "what is wrong?"
    seen.append(int(part["image"][0, 0, 0]))
    body = {"labels": [], "score": 4.5}
    return f"<think>x</think><answer>{json.dumps(body)}</answer>"

  found = run(frame_scores, [example], {"policy": Scripted(script)})
  (result,) = found.results
  assert json.loads(result.answer.text) == {"score": 4.5}
  assert seen == [2, 6, 10, 14, 4, 8, 12, 1]
  assert len(result.answer.notes["times"]) == 8
  found = run(frame_scores, [example], {"policy": Scripted(lambda ask: "no")})
  (result,) = found.results
  assert result.answer is None
  assert "none of 8 replies could be read" in str(result.failure)
