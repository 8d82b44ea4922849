"""REACT's preference reward: scores of two frames and what people prefer.

Frames A and B of a pair are two prompts of a batch, one after the other
(`config.rollout` of name `paired`). Their `extra` has `side`, "A" or "B", and
`preference`, "A", "B" or "tie".

Reference: Rao and Kupper 1967; arXiv 2601.04033, whose accounts quote a
denominator by which the three don't sum to 1; these do, as in the code of the
precursor (arXiv 2501.13918).
"""

from collections.abc import Sequence
import math
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
import numpy as np

from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.rewards.frames import reply
from mmrl.rewards.frames.reply import HIGHEST, LOWEST

Mode = Literal["index", "all_pairs"]
PREFERENCES = ("A", "B", "tie")
_MIDDLE = (LOWEST + HIGHEST) / 2


def log_probs(
  difference: Float[np.ndarray, "..."], theta: float = 5.0
) -> Float[np.ndarray, "... 3"]:
  """Computes ln P of "A is better", "B is better" and "tie".

      ln P(A) = ln s(d - ln theta),  ln P(B) = ln s(-d - ln theta)
      ln P(tie) = ln P(A) + ln P(B) + ln(theta^2 - 1)

  Args:
    difference: d, the score of A less that of B; s is the logistic function.
    theta: width of a tie, above 1.
  """
  difference = np.asarray(difference, np.float64)
  width = math.log(theta)
  better = -np.logaddexp(0.0, width - difference)
  worse = -np.logaddexp(0.0, width + difference)
  tie = better + worse + math.log(theta**2 - 1)
  return np.stack([better, worse, tie], -1)


def preference_reward(
  scores: Float[np.ndarray, "2 P G"],
  read: Bool[np.ndarray, "2 P G"],
  preferred: Int[np.ndarray, "P"],
  *,
  theta: float = 5.0,
  mode: Mode = "index",
) -> Float[np.ndarray, "2 P G"]:
  """Computes ln P(what is preferred) for answers to both frames of pairs.

  Answer i to A is paired with answer i to B, and both get the value. One that
  can't be read gets the worst value that scores of 1 to 5 can have; its partner
  is compared with the mean score of the other frame, or with 3 where none of
  its answers could be read, so that it doesn't pay for another's failure.

  Args:
    scores: of A and B; anything where they can't be read.
    read: whether an answer could be.
    preferred: 0 A, 1 B, 2 a tie.
    theta: see `log_probs`.
    mode: "index"; or "all_pairs", the mean over all answers to the other frame
      that can be read: the same expectation with less variance.
  """
  scores = np.where(read, scores, 0.0).astype(np.float64)
  count = read.sum(-1, keepdims=True)
  mean = scores.sum(-1, keepdims=True) / np.maximum(count, 1)
  mean = np.where(count > 0, mean, _MIDDLE)

  def value(first, second):
    logs = log_probs(first - second, theta)
    which = preferred.reshape(-1, *[1] * (logs.ndim - 1))
    which = np.broadcast_to(which, (*logs.shape[:-1], 1))
    return np.take_along_axis(logs, which, -1)[..., 0]

  if mode == "index":
    other = np.where(read, scores, mean)
    found = np.stack([value(scores[0], other[1]), value(other[0], scores[1])])
  else:
    every = value(scores[0][:, :, None], scores[1][:, None, :])
    kept = read[:, :, None, :]
    sums = [
      np.where(kept[1], every, 0.0).sum(-1),
      np.where(kept[0], every.swapaxes(-1, -2), 0.0).sum(-1),
    ]
    whole = np.stack(sums) / np.maximum(count[::-1], 1)
    middle = np.broadcast_to(np.float64(_MIDDLE), scores[0].shape)
    alone = [value(scores[0], middle), value(middle, scores[1])]
    found = np.where(count[::-1] > 0, whole, np.stack(alone))
  span = HIGHEST - LOWEST
  ends = log_probs(np.array([-span, span]), theta).min(0)
  return np.where(read, found, ends[preferred][None, :, None])


def _pairs(example: Sequence[Any]) -> Int[np.ndarray, "pairs"]:
  """Returns what is preferred of each pair of neighbours.

  Raises:
    UserError: naming the question whose neighbour isn't the other frame.
  """
  for first, second in zip(example[::2], example[1::2], strict=False):
    known = [
      (one.extra.get("pair"), one.extra.get("side")) for one in (first, second)
    ]
    if known[0][0] is None or known != [(known[0][0], "A"), (known[0][0], "B")]:
      raise UserError(
        f"{first.name}: expected frames A and B of a pair one after the other,"
        f" found {second.name} after it; wrap config.rollout in 'paired', which"
        " asks about both"
      )
  if len(example) % 2:
    raise UserError(
      f"{example[-1].name}: expected frames A and B of a pair one after the"
      " other, found it without the other; wrap config.rollout in 'paired'"
    )
  found = []
  for one in example[::2]:
    preference = one.extra.get("preference")
    if preference not in PREFERENCES:
      raise UserError(
        f"{one.name}: expected a 'preference' of A, B or tie, found"
        f" {preference!r:.80}; add it to the data"
      )
    found.append(PREFERENCES.index(preference))
  return np.array(found, int)


def _check(*, theta: float = 5.0, **_: Any) -> None:
  if not 1 < theta < math.inf:
    raise UserError(f"theta: expected it above 1, found {theta!r:.80}")


@marked(check=_check, needs_extra=("preference",))
def pair_preference(
  text: Sequence[Sequence[str]],
  example: Sequence[Any],
  *,
  theta: float = 5.0,
  mode: Mode = "index",
) -> Float[np.ndarray, "P G"]:
  """Rewards scores of two frames by the likelihood of what people prefer.

  No score is compared with a right one; see `preference_reward`.

  Args:
    text: P lists of G answers; P is even.
    example: the questions, A and B of each pair one after the other.
    theta, mode: see `preference_reward`.

  Returns:
    At most 0; from -5.613 for theta 5.
  """
  preferred = _pairs(example)
  judged = [[reply.parse(one) for one in group] for group in text]
  scores = np.array([[x.score if x else 0.0 for x in row] for row in judged])
  read = np.array([[x is not None for x in row] for row in judged], bool)
  shape = (len(preferred), 2, -1)
  found = preference_reward(
    scores.reshape(shape).swapaxes(0, 1),
    read.reshape(shape).swapaxes(0, 1),
    preferred,
    theta=theta,
    mode=mode,
  )
  return found.swapaxes(0, 1).reshape(len(text), -1).astype(np.float32)
