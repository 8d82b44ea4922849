"""Examples for a prompt by what they say and show (CVR-ICL), and their bank.

    s_j = alpha cos(x_m, x_m^j) + cos(x_t, x_t^j)

x_m is a multimodal embedding of task and picture, x_t the BM25 vector of task
and description. The k best are taken.

Reference: arXiv 2409.13980, equations 3 to 5.
Reconstructed: BM25 as a vector, ties, and that a question isn't its own
example.
"""

from collections.abc import Collection, Sequence
import dataclasses
import functools
import json
import re

from jaxtyping import Float, Int
import numpy as np

from mmrl.errors import UserError
from mmrl.strategies.evaluating import items

Words = Sequence[str]


def words(text: str) -> list[str]:
  """Splits a text into its words, in small letters."""
  return re.findall(r"\w+", text.lower())


class Bm25:
  """Vectors of documents over their own vocabulary, words sorted.

      idf_w  = ln(1 + (N - n_w + 0.5) / (n_w + 0.5))
      x_w(d) = idf_w tf (k1 + 1) / (tf + k1 (1 - b + b |d| / mean |d|))

  Attributes:
    vectors: [N, V], of the documents.
  """

  def __init__(self, documents: Sequence[Words], k1: float, b: float):
    self._k1, self._b = k1, b
    known = sorted({word for one in documents for word in one})
    self._place = {word: i for i, word in enumerate(known)}
    counts = [self._counts(one) for one in documents]
    shape = len(documents), len(known)
    there = np.array(counts, np.float64).reshape(shape) > 0
    n = there.sum(0)
    self._idf = np.log1p((len(documents) - n + 0.5) / (n + 0.5))
    self._mean = float(np.mean([len(one) for one in documents] or [0])) or 1.0
    self.vectors = np.array([self(one) for one in documents]).reshape(shape)

  def __call__(self, document: Words) -> Float[np.ndarray, "V"]:
    """Returns the vector of a document; unknown words count in its length."""
    tf = self._counts(document)
    length = 1 - self._b + self._b * len(document) / self._mean
    bottom = tf + self._k1 * length
    share = np.divide(tf * (self._k1 + 1), bottom, where=tf > 0, out=0 * tf)
    return self._idf * share

  def _counts(self, document: Words) -> np.ndarray:
    tf = np.zeros(len(self._place))
    for word in document:
      if word in self._place:
        tf[self._place[word]] += 1
    return tf


def bm25_vectors(
  documents: Sequence[Words],
  queries: Sequence[Words] = (),
  *,
  k1: float = 1.5,
  b: float = 0.75,
) -> tuple[Float[np.ndarray, "N V"], Float[np.ndarray, "Q V"]]:
  """Computes the vectors of documents, and of queries by their statistics."""
  bank = Bm25(documents, k1, b)
  shape = len(queries), bank.vectors.shape[1]
  return bank.vectors, np.array([bank(one) for one in queries]).reshape(shape)


def cosines(
  x: Float[np.ndarray, "D"], bank: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, "N"]:
  """Computes the cosines of a vector with others; 0 where one is 0."""
  bottom = np.linalg.norm(x) * np.linalg.norm(bank, axis=1)
  return np.divide(bank @ x, bottom, where=bottom > 0, out=0 * bottom)


def icl_scores(
  xm: Float[np.ndarray, "M"],
  xm_bank: Float[np.ndarray, "N M"],
  xt: Float[np.ndarray, "T"],
  xt_bank: Float[np.ndarray, "N T"],
  *,
  alpha: float = 1.0,
) -> Float[np.ndarray, "N"]:
  """Computes how near each example of a bank is; see the module."""
  return alpha * cosines(xm, xm_bank) + cosines(xt, xt_bank)


def select_icl(
  scores: Float[np.ndarray, "N"], *, k: int = 4, exclude: Collection[int] = ()
) -> Int[np.ndarray, "k"]:
  """Returns the k best, best first; of equal ones the first.

  Args:
    scores: from `icl_scores`.
    k: number of examples; fewer if there aren't as many.
    exclude: those that aren't taken, such as the question itself.
  """
  order = np.argsort(-np.asarray(scores), kind="stable")
  return order[~np.isin(order, list(exclude))][:k]


@dataclasses.dataclass(frozen=True)
class Row:
  """An answered question, as an example of others.

  Attributes:
    name: of the question.
    task: its text.
    description: of its picture.
    answer: that was inferred; the right one would be a leak.
    embedding: of task and picture; empty if none was made.
  """

  name: str
  task: str
  description: str
  answer: str
  embedding: tuple[float, ...] = ()

  @property
  def text(self) -> str:
    """Task and description."""
    return f"{self.task}\n{self.description}"


class Bank:
  """Answered questions, of which the nearest are found.

  Attributes:
    rows: the questions.
    embedded: whether they have embeddings.
  """

  def __init__(self, rows: Sequence[Row]):
    """Takes the questions.

    Raises:
      UserError: if some have embeddings and others not, or of other lengths.
    """
    self.rows = tuple(rows)
    sizes = sorted({len(row.embedding) for row in rows})
    if len(sizes) > 1:
      raise UserError(
        "bank: expected embeddings of one length in all rows, or in none, found"
        f" {', '.join(map(str, sizes))} numbers"
      )
    self.embedded = bool(sizes and sizes[0])
    self._texts = Bm25([words(row.text) for row in rows], 1.5, 0.75)
    self._embeddings = np.array([row.embedding for row in rows])

  def nearest(
    self,
    name: str,
    text: str,
    embedding: Sequence[float],
    *,
    k: int,
    alpha: float,
  ) -> list[Row]:
    """Returns the nearest rows, best first, without the question itself.

    Args:
      name: of the question.
      text: task and description.
      embedding: of task and picture; empty to go by the text alone.
      k: how many.
      alpha: weight of embeddings.

    Raises:
      UserError: if the embedding has another length than those of the rows.
    """
    scores = cosines(self._texts(words(text)), self._texts.vectors)
    if len(embedding):
      size = self._embeddings.shape[-1]
      if len(embedding) != size:
        raise UserError(
          f"{name}: expected an embedding of {size} numbers, as the bank has,"
          f" found {len(embedding)}; ask the embedder that made the bank"
        )
      scores = scores + alpha * cosines(np.array(embedding), self._embeddings)
    own = [i for i, row in enumerate(self.rows) if row.name == name]
    return [self.rows[i] for i in select_icl(scores, k=k, exclude=own)]

  def at_random(self, name: str, *, k: int, seed: int) -> list[Row]:
    """Returns k rows that only name and seed choose, without the question."""
    others = [row for row in self.rows if row.name != name]
    rng = np.random.default_rng([seed, *name.encode()])
    order = rng.permutation(len(others))[:k]
    return [others[i] for i in order]


@functools.lru_cache(8)
def read(path: str) -> Bank:
  """Reads a bank: items.jsonl of a run of `cvr_llm`; failed items are left out.

  Raises:
    UserError: if it can't be read, or has no answers of `cvr_llm`.
  """
  # An item that was asked again has several lines, the last of which counts.
  found = {one.index: one for one in items.read(path)}
  rows = []
  for one in found.values():
    if one.answer is None:
      continue
    try:
      rows.append(_row(one))
    except (ValueError, LookupError, TypeError) as error:
      raise UserError(
        f"bank: expected items of cvr_llm in {path}, found {one.name} without"
        f" its {error}"
      ) from error
  if not rows:
    raise UserError(f"bank: expected answered items in {path}, found none")
  return Bank(rows)


def _row(one: items.Item) -> Row:
  texts = {name: one.notes[name] for name in ("task", "description")}
  embedding = tuple(map(float, one.notes.get("embedding", ())))
  for name, text in texts.items():
    if not isinstance(text, str):
      raise TypeError(name)
  return Row(one.name, **texts, answer=one.answer or "", embedding=embedding)


def embedding_text(embedding: Sequence[float]) -> str:
  """Writes an embedding as a reply."""
  return json.dumps([*map(float, embedding)])


def parse_embedding(text: str) -> list[float] | None:
  """Reads a reply that is a list of numbers; None if it isn't one."""
  try:
    found = json.loads(text)
  except (ValueError, RecursionError):
    return None
  numbers = isinstance(found, list) and all(
    type(x) in (int, float) and abs(x) < 1e300 for x in found
  )
  return [float(x) for x in found] if numbers and found else None
