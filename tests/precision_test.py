"""Arithmetic is in float32 whatever the type of the data."""

from contract_test import (
  METHODS,
  G,
  P,
  R,
  bound_method,
  first_two,
  has_state,
  make_fields,
  make_prompt,
  title,
)
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl import advantages, losses, token_weights
from mmrl.models import vocabulary
from mmrl.models.divergence import divergence
from mmrl.types import Logits

# Options of whole branches that the contract's rows don't take.
MORE = [
  (losses, "clipped_sequence_ratio", {"length_normalize": False}),
  (losses, "reference_kl", {"estimator": "k1"}),
  (token_weights, "low_probability", {"sign": "both"}),
  (token_weights, "sampler_mismatch", {"kind": "mask"}),
]
SLOTS = (advantages, losses, token_weights)
# What a term with state computes is in its own tests.
ROWS = [row for row in METHODS if row[0] in SLOTS and not has_state(row)] + MORE
# Primitives that round nothing.
EXACT = {
  *("abs", "broadcast_in_dim", "concatenate", "convert_element_type", "copy"),
  *("dynamic_slice", "dynamic_update_slice", "gather", "max", "min", "neg"),
  *("reshape", "select_n"),
  *("slice", "sort", "squeeze", "stop_gradient", "transpose"),
}


# Numbers to log beside a loss may count.
FLOAT32 = {jnp.dtype("float32"), jnp.dtype("bool")}


def narrow(tree):
  def one(x):
    wide = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(jnp.bfloat16) if wide else x

  return jax.tree.map(one, tree)


def equations(value):
  """Those of a traced function and of all functions in it."""
  if hasattr(value, "eqns"):
    for equation in value.eqns:
      yield equation
      for inner in equation.params.values():
        yield from equations(inner)
  elif hasattr(value, "jaxpr"):
    yield from equations(value.jaxpr)
  elif isinstance(value, list | tuple):
    for inner in value:
      yield from equations(inner)


def rounded(function, *arguments) -> set[str]:
  """Primitives whose results are rounded to bfloat16."""
  found = set()
  for equation in equations(jax.make_jaxpr(function)(*arguments)):
    types = {getattr(x.aval, "dtype", None) for x in equation.outvars}
    calls = any(list(equations(x)) for x in equation.params.values())
    if jnp.dtype(jnp.bfloat16) in types and not calls:
      found.add(equation.primitive.name)
  return found - EXACT


@pytest.mark.parametrize("row", ROWS, ids=title)
def test_nothing_is_computed_in_bfloat16(row):
  bound = bound_method(*row)
  fields = make_fields() | {
    "key": jax.random.key(0),
    "prompt": make_prompt(),
    "tokens": jnp.zeros((P, G, R), jnp.int32),
  }
  needed = {name: fields[name] for name in bound.needs}
  if "chosen" in needed:  # a pair has two answers
    needed = first_two(needed)
  data = narrow(needed)
  found = jax.eval_shape(bound, data)
  assert {x.dtype for x in jax.tree.leaves(found)} <= FLOAT32
  assert not rounded(bound, data)


def test_what_is_rounded_is_found():
  """In a function that is called, too."""
  data = jnp.ones(3, jnp.bfloat16)
  assert rounded(lambda x: jnp.exp(x), data) == {"exp"}
  assert rounded(lambda x: jax.jit(lambda y: y - 1)(x), data) == {"sub"}
  assert rounded(lambda x: jnp.where(x > 0, -x, 0), data) == set()


def narrow_logits(seed: int) -> Logits:
  rng = np.random.default_rng(seed)
  hidden, head = rng.normal(size=(6, 5)), rng.normal(size=(37, 5))
  return narrow(Logits(jnp.array(hidden), jnp.array(head), "vd", (3,), 1.0))


TOKENS = jnp.array([0, 16, 20, 21, 31, 36])


def chosen(logits):
  options = {"pattern": "vd", "banned": logits.banned, "temperature": 1.0}
  found = vocabulary.chosen(logits.hidden, logits.head, TOKENS, **options)
  return sum(x.sum() for x in found)


def apart(logits):
  return divergence(logits, narrow_logits(1), beta=0.3).sum()


@pytest.mark.full
@pytest.mark.parametrize("function", [chosen, apart])
def test_gradient_of_the_head_is_rounded_once(function, monkeypatch):
  """Whatever the parts: of 16 entries, the last of which begins in another's.

  Products are summed in float32, in an order that may hang on the part's size,
  so a result may be on the other side of a rounding: a step of bfloat16.
  """
  monkeypatch.setattr(vocabulary, "_LEAST_ENTRIES", 1)
  logits, found = narrow_logits(0), []
  assert not rounded(jax.grad(function), logits)
  for entries in (37, 16):
    rows = 12 if function is apart else 6  # two policies, or one
    monkeypatch.setattr(vocabulary, "_CHUNK_VALUES", rows * entries)
    found.append(np.float32(jax.grad(function)(logits).head))
  assert (found[0][4:] != 0).all() and (found[0][3] == 0).all()
  np.testing.assert_allclose(*found, rtol=2**-7)
