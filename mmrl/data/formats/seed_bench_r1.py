"""Rows of SEED-Bench-R1 (TencentARC/SEED-Bench-R1, grpo.py, sft.py, infer.py).

Training rows list wrong actions, of which three are drawn; those of validation
have four choices, in their order. Of its texts to learn from (`response`) the
conversation is in the row.
"""

from collections.abc import Sequence
import posixpath
from typing import Any
import zlib

import numpy as np

from mmrl.data.formats import fields
from mmrl.errors import UserError

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
USED = {
  "question": "question, behind the video of progress and the picture of now",
  "answer": "right action",
  "negative_answers": "wrong actions, of which three are drawn",
  **dict.fromkeys(_CHOICES, "action of this letter"),
  "golden_choice_idx": "letter of the right action, A to D",
  "video_source": "folder in `videos` and `images`",
  "video_basename": "video in `videos/SOURCE`",
  "current_observation_basename": "picture in `images/SOURCE`",
  "task_progress_metadata": "actions so far; where it is empty, no video shows",
  "sample_id": "draws the wrong actions, with the question",
  "domain": "kind",
  "prompt": "messages, beside `response`",
  "response": "whole text to learn from",
}
UNUSED = (
  *("task_goal", "task_level", "scenario", "video_id", "problem", "solution"),
  *("current_observation_frame", "task_start_frame"),
)


def claims(row: dict[str, Any]) -> bool:
  """Tells whether a row looks like one of this format."""
  return "task_progress_metadata" in row or {"prompt", "response"} <= row.keys()


def build_mcq(
  question: str,
  right: str,
  negatives: Sequence[str],
  rng: np.random.Generator,
) -> tuple[str, str]:
  """Builds a question with four choices in random order.

  Args:
    question: without choices.
    right: the right action.
    negatives: wrong ones; those equal to the right one or to another are
      dropped, and three of the others drawn.
    rng: draws them, and the order.

  Returns:
    (question with a line for each choice, letter of the right one).

  Raises:
    UserError: if there are fewer than three wrong actions.
  """
  wrong = [text for text in dict.fromkeys(negatives) if text != right]
  if len(wrong) < len(_CHOICES) - 1:
    raise UserError(
      "expected at least 3 different wrong actions in 'negative_answers', found"
      f" {len(wrong)}; leave the row out"
    )
  drawn = [wrong[i] for i in rng.permutation(len(wrong))[:3]] + [right]
  choices = [drawn[i] for i in rng.permutation(len(drawn))]
  return _listed(question, choices), "ABCD"[choices.index(right)]


def row(raw: dict[str, Any]) -> dict[str, Any]:
  """Returns a row of our own format."""
  if "response" in raw:
    fields.refuse(raw, _CHOICES, "'prompt' is all that is asked")
    return {
      "messages": raw.get("prompt"),
      "answers": [fields.text(raw, "response")],
    }
  asked = fields.text(raw, "question")
  right = fields.text(raw, "answer")
  if "golden_choice_idx" in raw:
    asked, letter = _fixed(raw, asked, right)
  else:
    asked, letter = build_mcq(asked, right, _negatives(raw), _rng(raw, asked))
  fields.check_unmarked(asked)
  source = _name(raw, "video_source")
  picture = _name(raw, "current_observation_basename")
  found: dict[str, Any] = {
    "question": "<image>" + asked,
    "images": [posixpath.join("images", source, picture)],
    "answer": letter,
    "kind": raw.get("domain", "all"),
  }
  progress = raw.get("task_progress_metadata")
  if not isinstance(progress, list):
    raise UserError(
      "expected 'task_progress_metadata' as a list of actions, found"
      f" {progress!r:.80}"
    )
  if progress:
    video = _name(raw, "video_basename")
    found["question"] = "<video>" + found["question"]
    found["videos"] = [posixpath.join("videos", source, video)]
  return found


def _listed(question: str, choices: Sequence[str]) -> str:
  lines = [f"{a}. {b}" for a, b in zip("ABCD", choices, strict=True)]
  return "\n".join([question, *lines])


def _fixed(raw: dict[str, Any], question: str, right: str) -> tuple[str, str]:
  """Lists choices that a row has, in their order; returns the letter, too."""
  fields.refuse(raw, ["negative_answers"], "'golden_choice_idx' is enough")
  choices = [fields.text(raw, key) for key in _CHOICES]
  letter = raw["golden_choice_idx"]
  if not isinstance(letter, str) or letter not in {*"ABCD"}:
    raise UserError(
      f"expected 'golden_choice_idx' as A, B, C or D, found {letter!r:.80}"
    )
  if choices["ABCD".index(letter)] != right:
    raise UserError(
      f"expected choice {letter} to be the 'answer', {right!r:.80}, found"
      f" {choices['ABCD'.index(letter)]!r:.80}; mend one of them"
    )
  return _listed(question, choices), letter


def _negatives(raw: dict[str, Any]) -> list[str]:
  found = raw.get("negative_answers")
  if not isinstance(found, list) or not all(
    isinstance(text, str) and text.strip() for text in found
  ):
    raise UserError(
      "expected 'negative_answers' as a list of texts that aren't empty, or"
      f" 'golden_choice_idx', found {found!r:.80}"
    )
  return found


def _rng(raw: dict[str, Any], asked: str) -> np.random.Generator:
  """Returns what draws for a row: the same at each reading."""
  named = f"{raw.get('sample_id', '')}\n{asked}"
  return np.random.default_rng(zlib.crc32(named.encode()))


def _name(raw: dict[str, Any], key: str) -> str:
  """Returns the name of a file or folder, which leads nowhere else."""
  name = fields.text(raw, key)
  if name in (".", "..") or "/" in name or "\\" in name:
    raise UserError(
      f"expected {key!r} as a name without a folder, found {name!r:.80}"
    )
  return name
