"""Functions of one's own: a reward of texts, one of arrays, and questions."""

import re

import jax.numpy as jnp

from mmrl.data import Example


def said_why(text, *, word="because"):
  """1 for an answer that gives a reason, in a word of the config's choice."""
  pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
  return [[float(bool(pattern.search(one))) for one in row] for row in text]


def sure(entropies_old, mask):
  """1 for an answer without doubt, down to 0: exp of minus its mean entropy."""
  total = jnp.where(mask, entropies_old, 0.0).sum(-1)
  return jnp.exp(-total / jnp.maximum(mask.sum(-1), 1))


class Sums:
  """Questions of arithmetic, without pictures."""

  def __init__(self, *, largest=9):
    self.largest = largest

  def __len__(self):
    return self.largest**2

  def __getitem__(self, index):
    a, b = divmod(index, self.largest)
    question = f"{a} + {b}?"
    messages = [{"role": "user", "content": question}]
    return Example(f"sums/{index}", question, messages, str(a + b))

  def pairs(self):
    """Question and answer of all, for what is right without a picture."""
    examples = (self[i] for i in range(len(self)))
    return ((e.question, e.answer) for e in examples)
