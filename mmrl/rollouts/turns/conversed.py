"""Answers in which the policy asks and is replied to, in several turns.

What the policy writes between two tags is asked, the reply stands behind it
between two others, and the policy goes on from there. Tokens of replies are the
environment's: `environment` marks them, and they are nothing to learn.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
import numpy as np

from mmrl import build
from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.machines import processes
from mmrl.prompts.processor import Processor
from mmrl.rollouts import measures
from mmrl.rollouts.answers import Answers
from mmrl.rollouts.sampled import make_program
from mmrl.rollouts.source import Call, Request, Setup, Source
from mmrl.rollouts.turns import environments


def _replies(environment: Bool[Array, "P G R"]) -> dict[str, Array]:
  """Computes the mean number of replies in an answer."""
  before = jnp.pad(environment[..., :-1], ((0, 0), (0, 0), (1, 0)))
  return {"rollout/replies": (environment & ~before).sum(-1).mean()}


class Conversed(Source):
  """Samples answers again behind each reply, with what was written so far."""

  fields = ("ended", "logprobs_sampler", "environment")
  measures = (
    measures.lengths,
    measures.sampler_scorer_gap,
    _replies,
  )

  def __init__(
    self,
    setup: Setup,
    environment: build.Bound,
    replies: int,
    tags: tuple[str, str],
    temperature: float,
  ):
    self._setup, self._environment = setup, environment
    self._most, self._tags = replies, tags
    self.group, self.temperature = setup.answers, temperature
    self._program = make_program(setup, forces=True, temperature=temperature)
    self._processor: Processor | None = None

  def open(self, questions, processor):
    self._processor = processor

  def calls(self, state, prompt, key, held=None):
    prompts, array = len(prompt.next_position), self._setup.shape
    shape = prompts, self.group, self._setup.length
    forced = array(*shape, dtype="int32")
    arguments = state, prompt, key, forced
    batch = yield Call("rollout", self._program, arguments, held)
    return batch.with_fields(environment=array(*shape, dtype=bool))

  def collect(self, request: Request):
    layout, examples = self._setup.layout, request.samples.examples
    shape = len(examples), self.group, self._setup.length
    forced = np.full(shape, -1, np.int32)
    environment = np.zeros(shape, bool)
    known = np.zeros(shape[:2], int)  # forced tokens of each answer
    open_ = np.ones(shape[:2], bool)
    prompt = layout.put(request.samples.prompt)
    for turn in range(self._most + 1):
      batch = self._program(
        request.state, prompt, request.key, layout.put(forced)
      )
      answers = Answers.of(examples, batch, layout)
      # All processes draw again if one has to.
      share = {"open": float(open_.any())}
      if turn == self._most or not processes.mean(share)["open"]:
        break
      for p, g in np.argwhere(open_).tolist():
        count = int(answers.mask[p, g].sum())
        written = answers.tokens[p, g, :count]
        reply = self._reply(examples[p], written, int(known[p, g]))
        forced[p, g, :count] = written
        if reply is None:
          open_[p, g] = False
          continue
        at, ids = reply
        end = at + len(ids)
        forced[p, g, at:] = -1
        forced[p, g, at:end], environment[p, g, at:end] = ids, True
        known[p, g] = end
    # What has no room for an answer behind it is none of the environment's.
    batch = answers.batch.with_fields(
      environment=layout.put(environment & answers.mask)
    )
    return Answers(examples, batch, answers.tokens, answers.mask), {}

  def _reply(
    self, example: Example, written: Int[np.ndarray, "count"], known: int
  ) -> tuple[int, list[int]] | None:
    """Asks what is asked behind the tokens that are known; None if nothing is.

    Returns:
      (number of tokens up to the reply, the reply's tokens).
    """
    processor, (ask, told) = self._processor, self._tags
    assert processor is not None, "open comes first"
    pieces = processor.tokenizer.batch_decode(
      written[known:, None].tolist(), clean_up_tokenization_spaces=False
    )
    found = asked(pieces, ask)
    if found is None:
      return None
    text, count, beyond = found
    reply = self._environment({"example": example, "asked": text})
    if not isinstance(reply, str):
      raise UserError(
        f"{self._environment.where}: expected {self._environment.name} to"
        f" return a text, found {reply!r:.80}"
      )
    reply = tagged(reply, told, beyond)
    # The end of sequence, which closes every text, isn't the environment's.
    ids = processor.encode_text(reply, 10**6, f"reply to {example.name}")[:-1]
    at = known + count
    return (at, ids) if at + len(ids) < self._setup.length else None


def asked(pieces: Sequence[str], tag: str) -> tuple[str, int, str] | None:
  """Finds what stands between a tag and its end for the first time.

  Args:
    pieces: text of each token.
    tag: its name.

  Returns:
    (text, number of tokens until the end is whole, what the last of them has
    beyond it); None if there is none.
  """
  found = re.search(f"<{tag}>(.*?)</{tag}>", "".join(pieces), re.DOTALL)
  if not found:
    return None
  ends = np.cumsum([len(piece) for piece in pieces])
  last = int(np.searchsorted(ends, found.end()))
  over = int(ends[last]) - found.end()
  return found[1], last + 1, pieces[last][len(pieces[last]) - over :]


def tagged(reply: str, tag: str, written: str) -> str:
  """Puts a reply between tags, less what a token that asks has of it.

  In Qwen's vocabulary "><" is a token, which ends one tag and begins the next.

  Args:
    reply: text.
    tag: its name.
    written: what stands behind the end of what is asked.
  """
  return f"<{tag}>{reply}</{tag}>".removeprefix(written)


def conversed(
  setup: Setup,
  *,
  environment: Mapping[str, Any],
  replies: int,
  ask: str = "look",
  told: str = "seen",
  temperature: float = 1.0,
) -> Source:
  """Samples answers in which what the policy asks is replied to.

  `<look>..</look>` is asked, and `<seen>..</seen>` stands behind it, whatever
  was drawn there before. The field `environment` marks the tokens of replies:
  give them weight 0 (`token_weights.own_tokens`). Tags that are tokens of their
  own (`tokenizer.add_tokens`) are the same in an answer and in a text to learn;
  others may share a token with what stands beside them. A reply without room
  isn't given, nor is one beyond `replies`: then the answer goes on without.
  Answers are drawn again from their beginning for each reply, what is known
  being forced, so a step costs up to `replies` + 1 samplings.

  Args:
    setup: of the run.
    environment: spec of `rollouts.turns.environments`: a function of the
      question and of what is asked.
    replies: most of an answer, at least 1.
    ask: tag of what is asked, of letters.
    told: tag of a reply, another one.
    temperature: divides the logits, above 0.

  Raises:
    UserError: if an option is outside its range.
  """
  letters = all(re.fullmatch("[A-Za-z]+", tag) for tag in (ask, told))
  if not letters or ask == told:
    raise UserError(
      f"expected ask and told as two names of letters, found {ask!r} and"
      f" {told!r}"
    )
  if setup.model.latent:
    raise UserError(
      "config.rollout.name: expected a model without latent segments, which"
      " replies would be put into, found one with them; take sampled"
    )
  if replies < 1 or not temperature > 0:
    raise UserError(
      "expected replies of at least 1 and a temperature above 0, found"
      f" {replies} and {temperature}"
    )
  bound = build.bind(
    environments,
    environment,
    "config.rollout.environment",
    provided=("example", "asked"),
  )
  return Conversed(setup, bound, replies, (ask, told), temperature)
