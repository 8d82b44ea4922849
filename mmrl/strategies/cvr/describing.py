"""CVR-LLM: a mind without eyes has a captioner describe what it needs to know.

    loop 1:  d_init    = captioner(picture, prompt from the task)
             p         = reasoner(task, d_init, examples)
    loop 2:  d_revised = captioner(picture, a further question around p)
    answer   = reasoner(task, d_revised, examples)

These are context-aware image descriptions (CaID); examples are those of
`retrieval`.

Reference: arXiv 2409.13980, equations 1 and 2. Prompts in our own words.
Reconstructed: how many calls there are, and what stands for empty replies.
"""

from collections.abc import Callable, Generator, Sequence
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
from mmrl.strategies.cvr import retrieval
from mmrl.strategies.cvr.retrieval import Row

Choose = Literal["nearest", "random"]
# From a description to the examples that are shown with it.
Examples = Callable[[str], Sequence[Row]]


def _asks(*, embed: bool = False, **_: Any) -> tuple[str, ...]:
  return ("captioner", "reasoner", *(("embedder",) if embed else ()))


def _check(
  *,
  bank: str = "",
  k: int = 4,
  alpha: float = 1.0,
  choose: Choose = "nearest",
  embed: bool = False,
  **_: Any,
) -> None:
  if k < 1 or not alpha >= 0:
    raise UserError(
      f"expected k of at least 1 and alpha of at least 0, found {k} and {alpha}"
    )
  if not bank:
    if choose == "random":
      raise UserError(
        "choose: expected a bank of examples with 'random', found none; add"
        " bank, or leave it out"
      )
    return
  embedded = retrieval.read(bank).embedded
  if embed and not embedded:
    raise UserError(
      f"embed: expected embeddings in {bank}, found none; make the bank with"
      " embed, too, or leave it out"
    )


@marked(asks=_asks, check=_check)
def cvr_llm(
  example: Example,
  *,
  revise: bool = True,
  bank: str = "",
  k: int = 4,
  alpha: float = 1.0,
  choose: Choose = "nearest",
  embed: bool = False,
  seed: int = 0,
) -> Steps:
  """Answers from a description of the picture that the question asks for.

  Args:
    example: the question; each of its pictures is described for itself.
    revise: whether the description is revised; else it is the first one.
    bank: items.jsonl of a run of this strategy on other questions, whose
      inferred answers are examples; none without.
    k: number of examples.
    alpha: weight of embeddings against texts.
    choose: "nearest" examples, or "random" ones: the control.
    embed: whether "embedder" is asked for an embedding of task and picture, by
      which examples are found, too. It is kept in the notes.
    seed: of random examples.

  Returns:
    Notes have the task, the description, what the loops said for each picture,
    and the names of the examples.

  Raises:
    Unanswered: if there is no picture, or an embedding can't be read.
  """
  task, pictures = written(example.messages), shown(example.messages)
  if not pictures:
    raise Unanswered("expected a picture to describe, found none")
  embedding: Sequence[float] = ()
  if embed:
    embedding = yield from _embedding(task, pictures)
  rows = retrieval.read(bank) if bank else None

  def examples(description: str) -> Sequence[Row]:
    if rows is None:
      return ()
    if choose == "random":
      return rows.at_random(example.name, k=k, seed=seed)
    return rows.nearest(
      example.name, f"{task}\n{description}", embedding, k=k, alpha=alpha
    )

  loops = []
  for picture in pictures:
    loops.append((yield from caid(task, picture, examples, revise=revise)))
  description = joined([loop["revised"] for loop in loops])
  chosen = examples(description)
  reply = yield Ask("reasoner", user(build_prompt(task, description, chosen)))
  notes = {
    "task": task,
    "description": description,
    "loops": loops,
    "examples": [row.name for row in chosen],
  }
  return Answer(reply.text, notes | ({"embedding": embedding} if embed else {}))


def caid(
  task: str,
  picture: dict,
  examples: Examples = lambda _: (),
  *,
  revise: bool = True,
) -> Generator[Ask, Any, dict[str, str]]:
  """Describes a picture for a task, in two loops.

  An empty question is the first prompt again, an empty revised description the
  first one.

  Args:
    task: requirements, question and choices.
    picture: part of a message.
    examples: shown with the first prediction.
    revise: whether there is a second loop.

  Returns:
    What was said: "init", "pseudo", "query" and "revised".
  """
  asked = wording.fill("cvr_caption", task=task)
  prompt = (yield Ask("reasoner", user(asked))).text
  init = (yield Ask("captioner", user(prompt, [picture]))).text
  if not revise:
    return {"init": init, "pseudo": "", "query": "", "revised": init}
  asked = build_prompt(task, init, examples(init))
  pseudo = (yield Ask("reasoner", user(asked))).text
  asked = wording.fill(
    "cvr_question", task=task, description=init, prediction=pseudo
  )
  system = {"role": "system", "content": wording.fill("cvr_questioner")}
  query = (yield Ask("reasoner", [system, *user(asked)])).text
  further = query if query.strip() else prompt
  revised = (yield Ask("captioner", user(further, [picture]))).text
  revised = revised if revised.strip() else init
  return {"init": init, "pseudo": pseudo, "query": query, "revised": revised}


def _embedding(
  task: str, pictures: Sequence[dict]
) -> Generator[Ask, Any, list[float]]:
  reply = yield Ask("embedder", user(task, pictures))
  found = retrieval.parse_embedding(reply.text)
  if found is None:
    raise Unanswered(
      f"expected a list of numbers from the embedder, found {reply.text!r:.80}"
    )
  return found


def joined(descriptions: Sequence[str]) -> str:
  """Joins descriptions of pictures; of several each with its number."""
  if len(descriptions) == 1:
    return descriptions[0]
  return "\n".join(
    f"Picture {number}: {one}" for number, one in enumerate(descriptions, 1)
  )


def build_prompt(task: str, description: str, examples: Sequence[Row]) -> str:
  """Asks the task with a description in the picture's place, examples first."""
  blocks = [
    wording.fill("cvr_example", task=x.task, description=x.description)
    + f" {x.answer}"
    for x in examples
  ]
  blocks.append(wording.fill("cvr_example", task=task, description=description))
  return "\n\n".join(blocks)
