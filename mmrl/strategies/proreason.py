"""ProReason: a dispatcher asks eyes and mind until a referee is satisfied.

    repeat at most 8 times:
      dispatcher: which expert is asked what next?
      expert:     the vision expert sees the picture, the reasoning expert reads
                  the memory, to which the answer is added
      referee:    can the question be solved from the memory?
    summariser: the answer, from the memory

Where no expert's answer suffices, the vision expert answers at once.

Reference: arXiv 2410.14138, and its published code. Prompts in our own words.
Differs from the code, unless `strict_upstream`: replies are read in more forms,
what a marker doesn't precede is taken whole, and what is taken is stripped.
Reconstructed: texts to learn from (`to_sft`).
"""

import ast
from collections.abc import Iterable
import dataclasses
import json
import re
from typing import Any
import warnings

from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.marks import marked
from mmrl.rewards.answer import extract, label
from mmrl.strategies import wording
from mmrl.strategies.ask import (
  Answer,
  Ask,
  AskFailed,
  Steps,
  shown,
  user,
  written,
)

VISION, REASONING = "Vision Expert", "Reasoning Expert"
_SOLVED = "Answer: CAN_SOLVE"
_FIELDS = ("Thought", "EXPERT name", "Question")
# What isn't read as an object: a reply of a model that repeats itself.
_LONGEST = 20000


def _check(*, attempts: int = 8, **_: Any) -> None:
  if attempts < 1:
    raise UserError(f"expected attempts of at least 1, found {attempts}")


@marked(
  asks=("dispatcher", "vision", "reasoner", "referee", "summariser"),
  check=_check,
)
def proreason(
  example: Example,
  *,
  attempts: int = 8,
  open_ended: bool = True,
  vision_thought: bool = True,
  strict_upstream: bool = False,
) -> Steps:
  """Lets experts look and reason until the question can be answered.

  A question without a picture is the reasoning expert's alone.

  Args:
    example: the question.
    attempts: most requests to the dispatcher; one that can't be read, and an
      expert that fails, use one up.
    open_ended: whether the summariser's whole reply is the answer; else it
      gives a thought and an answer, which is taken.
    vision_thought: whether the vision expert is asked to go step by step.
    strict_upstream: see the module.

  Returns:
    Notes have the memory, the turns (expert, question, answer), the number of
    attempts, and whether the vision expert answered at once.
  """
  question, pictures = written(example.messages), shown(example.messages)
  if not pictures:
    reply = yield Ask("reasoner", user(question))
    return Answer(reply.text, _notes("", [], 0, fallback=False))
  memory, turns = "", []  # type: tuple[str, list[dict[str, str]]]
  for attempt in range(1, attempts + 1):
    last = turns[-1]["expert"] if turns else ""
    reply = yield Ask(
      "dispatcher", user(_dispatch_prompt(question, memory, last))
    )
    chosen = parse_dispatch(reply.text, strict_upstream=strict_upstream)
    if chosen is None:
      continue
    expert, asked = chosen
    try:
      reply = yield _expert(expert, asked, memory, pictures, vision_thought)
    except AskFailed:
      continue
    answer = reply.text
    if expert == REASONING:
      answer = after(answer, "Final Answer:", strict_upstream=strict_upstream)
    memory += f"{answer}\n"
    turns.append({"expert": expert, "question": asked, "answer": answer})
    verdict = yield Ask(
      "referee",
      user(wording.fill("proreason_referee", question=question, memory=memory)),
    )
    if not is_solved(verdict.text):
      continue
    memory += verdict.text
    form = "open" if open_ended else "closed"
    summary = wording.fill(
      f"proreason_summary_{form}", question=question, memory=memory
    )
    reply = yield Ask("summariser", user(summary))
    text = reply.text
    if not open_ended:
      text = after(text, "Answer:", strict_upstream=strict_upstream)
    return Answer(text, _notes(memory, turns, attempt, fallback=False))
  reply = yield Ask("vision", example.messages)
  return Answer(reply.text, _notes(memory, turns, attempts, fallback=True))


def _notes(memory, turns, attempts, *, fallback: bool) -> dict[str, Any]:
  return {
    "memory": memory,
    "turns": turns,
    "attempts": attempts,
    "fallback": fallback,
  }


def _dispatch_prompt(question: str, memory: str, last: str) -> str:
  """Asks the dispatcher; of the memory only once there is one."""
  known = ""
  if memory:
    known = wording.fill("proreason_known", memory=memory, expert=last)
    known = f"\n{known}\n"
  return wording.fill("proreason_dispatch", question=question, known=known)


def _expert(expert, asked, memory, pictures, vision_thought: bool) -> Ask:
  """Asks an expert."""
  if expert == VISION:
    if vision_thought:
      asked = wording.fill("proreason_vision", question=asked)
    return Ask("vision", user(asked, pictures))
  system = {"role": "system", "content": wording.fill("proreason_reasoner")}
  return Ask("reasoner", [system, *user(f"{memory}{asked}")])


def is_solved(text: str) -> bool:
  """Tells whether a referee's reply has the words that end the loop."""
  return _SOLVED in text


def after(text: str, marker: str, *, strict_upstream: bool = False) -> str:
  """Returns what stands behind a marker for the first time, stripped.

  Args:
    text: the reply; without the marker it is taken whole.
    marker: as "Final Answer:".
    strict_upstream: as in the published code, which cuts as many characters as
      the marker has but one from a text without it, and leaves white space at
      the end.
  """
  if strict_upstream:
    return text[text.find(marker) + len(marker) :].lstrip()
  before, found, behind = text.partition(marker)
  return (behind if found else before).strip()


def parse_dispatch(
  text: str, *, strict_upstream: bool = False
) -> tuple[str, str] | None:
  """Reads the dispatcher's choice, (expert, question); None if there is none.

  Between the first `{` and the last `}` it may be JSON, a Python literal, or
  one field a line, whose quotes need not be right.

  Args:
    text: the reply.
    strict_upstream: as in the published code: one field in single quotes a
      line, not indented; an empty question is one.
  """
  inside = text[:_LONGEST].partition("{")[2].rpartition("}")[0]
  if strict_upstream:
    fields = _strict_fields(inside)
  else:
    fields = _literal(f"{{{inside}}}") or _by_line(inside)
  expert, question = fields.get("EXPERT name"), fields.get("Question")
  if not isinstance(expert, str) or not isinstance(question, str):
    return None
  if not strict_upstream:
    expert, question = expert.strip(), question.strip()
  if expert not in (VISION, REASONING) or not (question or strict_upstream):
    return None
  return expert, question


def _literal(text: str) -> dict[Any, Any]:
  """Reads an object of JSON or Python; empty if it is neither."""
  for read in (json.loads, ast.literal_eval):
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of backslashes in Python's strings
        found = read(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
      continue
    if isinstance(found, dict):
      return found
  return {}


def _by_line(text: str) -> dict[str, str]:
  """Reads one field a line; what is quoted on both ends is unquoted."""
  names = "|".join(_FIELDS)
  found = {}
  for line in text.split("\n"):
    field = re.match(rf"\s*['\"]?({names})['\"]?\s*:(.*)", line)
    if field:
      value = field[2].strip().removesuffix(",").strip()
      if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
      found[field[1]] = value
  return found


def _strict_fields(text: str) -> dict[str, str]:
  found = {}
  for line in text.split("\n"):
    for separator in ("':'", "': '"):
      name, there, value = line.partition(separator)
      value = value.removesuffix(",")
      if there and name[:1] == "'" and value[-1:] == "'":
        found[name[1:]] = value[:-1]
  return found


def to_sft(answer: Answer, example: Example) -> Example | None:
  """Makes a text to learn from of an answer's turns, if the answer is right.

  The turns are the thought, then comes the answer block. Only what stands after
  `<think>` is learned: no prompt of a role is in it.

  Args:
    answer: of `proreason`.
    example: the question, with what is right.

  Returns:
    The question with the text in `answers`; None if the answer is wrong or
    isn't from the loop.
  """
  found = extract(answer.text) or answer.text.strip()
  right = found in {label(one) for one in example.right}
  turns = answer.notes["turns"]
  if not right or not turns or answer.notes["fallback"]:
    return None
  told = [
    f"{turn['expert']}: {turn['question']}\n{turn['answer']}" for turn in turns
  ]
  thought = "\n".join(told)
  text = f"<think>{thought}</think><answer>{found}</answer>"
  return dataclasses.replace(example, answers=(text,))


def dispatch_stats(answers: Iterable[Answer]) -> dict[str, float]:
  """Counts who was asked: shares of experts and fallbacks, and mean attempts.

  Returns:
    `vision` and `reasoning`, shares of all turns; `fallback`, share of all
    answers; `mean_attempts`. Empty without answers.
  """
  notes = [answer.notes for answer in answers]
  if not notes:
    return {}
  experts = [turn["expert"] for one in notes for turn in one["turns"]]
  turns = max(len(experts), 1)
  return {
    "vision": experts.count(VISION) / turns,
    "reasoning": experts.count(REASONING) / turns,
    "fallback": sum(one["fallback"] for one in notes) / len(notes),
    "mean_attempts": sum(one["attempts"] for one in notes) / len(notes),
  }
