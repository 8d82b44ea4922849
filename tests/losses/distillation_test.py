"""Tests of the distillation terms."""

import dataclasses
import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import compiled

from losses.attention_test import MASK, NEW, OLD
from mmrl import models
from mmrl.errors import UserError
from mmrl.losses import distillation, reduce
from mmrl.models import rows
from mmrl.types import Attention, Logits

GOLDEN = pathlib.Path(__file__).parents[1] / "testdata" / "trl_gkd.json"
# One answer of two tokens over three entries.
STUDENT = [[[[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]]]
TEACHER = [[[[0.5, 0.5, 0.0], [2.0, 0.0, 0.0]]]]
BOTH = jnp.array([[[True, True]]])
# Of the reverse KL by the student's logits, first token.
GRADIENT = [0.252641, -0.151787, -0.100855]


def as_logits(values) -> Logits:
  """The identity for a head: hidden states are logits."""
  hidden = jnp.asarray(values, jnp.float32)
  return Logits(hidden, jnp.eye(hidden.shape[-1]), "vd", (), 1.0)


def normal(*shape, seed):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


distillation_kl = compiled(distillation.distillation_kl)


@functools.partial(jax.jit, static_argnames="beta")
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def kl_and_gradients(logits, logits_teacher, mask, beta=1.0):
  """The reduced term, as the objective computes it."""
  values = distillation.distillation_kl(logits, logits_teacher, mask, beta=beta)
  return reduce.total(values, reduce.sequence_mean(mask))


@pytest.mark.parametrize(
  ("beta", "temperature", "expected"),
  [
    # q = [.665241, .244728, .090031], p = [.383652, .383652, .232697]:
    # .665241 ln 1.733970 + .244728 ln .637893 + .090031 ln .386901
    (1.0, 1.0, [0.170640, 0.474266]),
    (0.0, 1.0, [0.182282, 0.433040]),
    (0.5, 1.0, [0.043200, 0.108673]),
    (0.25, 1.0, [0.033070, 0.080598]),
    (1.0, 2.0, [0.048409, 0.119499]),
  ],
)
def test_kl_golden(beta, temperature, expected):
  values = distillation_kl(
    as_logits(STUDENT),
    as_logits(TEACHER),
    BOTH,
    beta=beta,
    temperature=temperature,
  )
  np.testing.assert_allclose(values[0, 0], expected, atol=1e-6)


def test_gradient_golden():
  """The reverse KL is the default; padding isn't a number."""
  mask = jnp.array([[[True, False]]])
  student, teacher = (
    dataclasses.replace(x, hidden=x.hidden.at[0, 0, 1].set(jnp.nan))
    for x in (as_logits(STUDENT), as_logits(TEACHER))
  )
  value, (gradient, of_teacher) = kl_and_gradients(student, teacher, mask)
  np.testing.assert_allclose(value, 0.170640, atol=1e-6)
  expected = [GRADIENT, [0, 0, 0]]
  np.testing.assert_allclose(gradient.hidden[0, 0], expected, atol=1e-6)
  # Of head row j: slope_j times the hidden state, [1, 0, -1].
  wanted = np.outer(GRADIENT, STUDENT[0][0][0])
  np.testing.assert_allclose(gradient.head, wanted, atol=1e-6)
  assert all((x == 0).all() for x in jax.tree.leaves(of_teacher))
  values = distillation_kl(student, teacher, mask)
  assert values[0, 0, 1] == 0


@pytest.mark.full
@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["cases"])
def test_equals_trl(case):
  """Values and gradients that TRL's trainer computed."""
  inputs = json.loads(GOLDEN.read_text())
  mask = jnp.array(inputs["mask"])[None]
  teacher = as_logits([inputs["teacher"]])

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def term(student):
    values = distillation.distillation_kl(
      student,
      teacher,
      mask,
      beta=case["beta"],
      temperature=case["temperature"],
    )
    return reduce.total(values, reduce.token_mean(mask)), values

  (loss, values), gradient = term(as_logits([inputs["student"]]))
  wanted = np.where(mask[0], case["values"], 0)
  np.testing.assert_allclose(values[0], wanted, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(loss, case["loss"], rtol=1e-5)
  np.testing.assert_allclose(gradient.hidden[0], case["gradient"], atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.7, 1.0])
def test_kl_is_exactly_zero_at_the_teacher(beta):
  student = as_logits(normal(2, 3, 4, 50, seed=0))
  teacher = jax.tree.map(jnp.copy, student)
  mask = jnp.ones((2, 3, 4), bool)
  found = kl_and_gradients(student, teacher, mask, beta=beta)
  assert all((x == 0).all() for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"beta": 1.5}, r"beta must be in \[0, 1\], got 1.5"),
    ({"beta": math.nan}, r"beta must be in \[0, 1\]"),
    ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
  ],
)
def test_options_out_of_range(options, message):
  logits = as_logits(STUDENT)
  with pytest.raises(UserError, match=message):
    distillation.distillation_kl(logits, logits, BOTH, **options)


def test_attention_golden():
  """Padding, which isn't a number, is 0; only the student has a gradient."""

  def total(student, teacher):
    values = distillation.attention_distillation(student, teacher, MASK)
    return values.sum(), values

  both = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
  (_, values), (slope, of_teacher) = both(NEW, OLD)
  expected = [[[0.066414, 0.005860]], [[0.005509, 0]]]
  np.testing.assert_allclose(values, expected, atol=1e-6)
  assert (slope[MASK] != 0).any() and (slope[~MASK] == 0).all()
  assert (of_teacher == 0).all()


def make_attention(seed: int, layers: int, heads: int, width: int) -> Attention:
  """Policies of 2 prompts of 4 tokens, 2 answers of 6."""
  return models.attention_policy(
    Attention(
      queries=normal(2, 2, 6, layers, heads, width, seed=seed),
      keys=normal(2, 2, 6, layers, 1, width, seed=seed + 1),
      prefix_keys=normal(2, 4, layers, 1, width, seed=seed + 2),
      prefix_mask=jnp.array([[False, True, True, True], [True] * 4]),
      last_query=normal(2, layers, heads, width, seed=seed + 3),
    )
  )


@pytest.mark.full
def test_rows_not_computed_yet(monkeypatch):
  """A teacher of more layers and heads; the same a few tokens at a time."""
  student, teacher = make_attention(0, 1, 2, 3), make_attention(9, 2, 4, 5)
  mask = jnp.arange(6)[None, None] < jnp.array([[6, 3], [0, 5]])[..., None]

  def value(student, teacher):
    values = distillation.attention_distillation(student, teacher, mask)
    return values.sum(), values

  def grad(*attentions):
    """Compiled anew: how many tokens go at a time is a constant."""
    return jax.jit(
      jax.value_and_grad(
        lambda *a: value(*a), argnums=(0, 1), has_aux=True, allow_int=True
      )
    )(*attentions)

  (_, whole), (of_student, of_teacher) = grad(student, teacher)
  directly = value(*map(models.attention_rows, (student, teacher)))[1]
  np.testing.assert_allclose(whole, directly, atol=1e-7)
  assert (np.asarray(whole)[~np.asarray(mask)] == 0).all()
  assert (of_teacher.queries == 0).all() and (of_teacher.keys == 0).all()
  assert (of_student.queries != 0).any()
  monkeypatch.setattr(rows, "_CHUNK_VALUES", 2 * 2 * 2 * (4 + 6) * 2)
  (_, parts), (by_parts, _) = grad(student, teacher)
  np.testing.assert_allclose(parts, whole, atol=1e-7)
  np.testing.assert_allclose(by_parts.queries, of_student.queries, atol=1e-6)
