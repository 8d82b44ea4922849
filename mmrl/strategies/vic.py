"""Visual Inference Chain: plan without the picture, then look, then answer.

    steps s_1 .. s_k = planner(question)                  without the picture
    evidence         = eyes(picture, s_1 .. s_{k-1})
    answer           = eyes(question, picture, evidence, s_k)

The last prompt warns of the evidence, which may be wrong.

Reference: arXiv 2411.12591, and its published code. Prompts in our own words.
Differs from the code, unless `strict_upstream`: the plan's header is looked for
in its first line and cut once, lines are stripped, a plan of one step isn't
looked for, and without any plan the universal one is taken.
"""

from collections.abc import Generator, Sequence
from typing import Any, Literal

from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.strategies import wording
from mmrl.strategies.ask import (
  Answer,
  Ask,
  Steps,
  Unanswered,
  shown,
  user,
  written,
)

Mode = Literal["single", "multi", "visual"]
_REFUSALS = ("cannot provide", "cannot answer", "can't provide", "can't answer")
_HEADERS = ("reasoning steps", "step-by-step reasoning")


def _check(*, attempts: int = 3, **_: Any) -> None:
  if attempts < 1:
    raise UserError(f"expected attempts of at least 1, found {attempts}")


@marked(asks=("planner", "eyes"), check=_check)
def vic(
  example: Example,
  *,
  mode: Mode = "single",
  attempts: int = 3,
  strict_upstream: bool = False,
) -> Steps:
  """Plans from the question's text alone, looks as planned, and answers.

  Args:
    example: the question.
    mode: "single" looks in one call (VIC), "multi" in one for each step, which
      reads what the earlier ones found (VIC_M). "visual" is "single" with a
      planner that sees the picture: the control.
    attempts: most times that a plan is asked for.
    strict_upstream: see the module.

  Raises:
    Unanswered: if no plan can be read and `strict_upstream`.
  """
  question, pictures = written(example.messages), shown(example.messages)
  *steps, last = yield from _plan(
    question, pictures if mode == "visual" else (), attempts, strict_upstream
  )
  if mode == "multi":
    evidence = yield from _look_by_steps(pictures, steps)
  elif steps or strict_upstream:
    asked = wording.fill("vic_look", steps=numbered(steps))
    evidence = (yield Ask("eyes", user(asked, pictures))).text
  else:
    evidence = ""
  if mode != "multi":
    last = f"Answer as this says: {last}"
  asked = wording.fill(
    "vic_answer", question=question, evidence=evidence, form=last
  )
  reply = yield Ask("eyes", user(asked, pictures))
  return Answer(reply.text, {"chain": [*steps, last], "evidence": evidence})


def _plan(
  question: str, pictures: Sequence[dict], attempts: int, strict: bool
) -> Generator[Ask, Any, list[str]]:
  """Asks for a plan until one can be read."""
  messages = [
    {"role": "system", "content": wording.fill("vic_plan")},
    *user(question, pictures),
  ]
  for _ in range(attempts):
    text = (yield Ask("planner", messages)).text
    if is_refusal(text):
      text = wording.fill("vic_universal")
    steps = parse_chain(text, strict_upstream=strict)
    if steps:
      return steps
  if strict:
    raise Unanswered(f"found no plan in {attempts} replies")
  return wording.fill("vic_universal").splitlines()


def _look_by_steps(
  pictures: Sequence[dict], steps: Sequence[str]
) -> Generator[Ask, Any, str]:
  """Asks for one step after the other."""
  evidence = ""
  for number, step in enumerate(steps, 1):
    asked = wording.fill("vic_look_once", step=step, evidence=evidence)
    reply = yield Ask("eyes", user(asked, pictures))
    evidence += f"step{number}:{reply.text}\n"
  return evidence


def numbered(steps: Sequence[str]) -> str:
  """Lists steps, a line each."""
  return "".join(f"{i}. {step}\n" for i, step in enumerate(steps, 1))


def is_refusal(text: str) -> bool:
  """Tells whether a reply refuses; case and straight apostrophes count."""
  return any(words in text for words in _REFUSALS)


def parse_chain(
  text: str, *, strict_upstream: bool = False
) -> list[str] | None:
  """Reads the steps of a plan, a line each; None if there is none.

  Args:
    text: the reply.
    strict_upstream: as in the published code. A header anywhere in the text
      costs everything up to the first colon, and all other colons as well;
      lines keep their own leading spaces.
  """
  if strict_upstream:
    if any(header in text.lower() for header in _HEADERS):
      text = "".join(text.split(":")[1:])
    return [x for x in text.strip().split("\n") if x.strip()] or None
  first, _, rest = text.strip().partition("\n")
  if any(header in first.lower() for header in _HEADERS):
    text = f"{first.partition(':')[2]}\n{rest}"
  lines = (line.strip() for line in text.split("\n"))
  return [line for line in lines if line] or None
