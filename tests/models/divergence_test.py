"""Divergence of two policies over the vocabulary, against the dense formula."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from mmrl.models import divergence as module
from mmrl.models import vocabulary
from mmrl.types import Logits

divergence = module.divergence
# An end and the middle by default.
BETAS = [0.0, *small_models.first(0.5, 0.25, 1.0)]
SHAPE = 2, 2, 3
V = 37


def make_logits(
  seed: int,
  *,
  width: int = 5,
  entries: int = V,
  pattern: str = "vd",
  banned: tuple[int, ...] = (3, 20),
  temperature: float = 0.8,
) -> Logits:
  rng = np.random.default_rng(seed)
  shape = (entries, width) if pattern == "vd" else (width, entries)
  return Logits(
    jnp.asarray(rng.normal(size=(*SHAPE, width)), jnp.float32),
    jnp.asarray(rng.normal(size=shape), jnp.float32),
    pattern,
    banned,
    temperature,
  )


# Unequal widths, layouts, banned entries and temperatures.
STUDENT = make_logits(0)
TEACHER = make_logits(
  1, width=7, pattern="dv", banned=(20, 36), temperature=1.25
)
WEIGHTS = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)


def few_entries(monkeypatch, entries: int):
  """Parts of so many, for `SHAPE` tokens of two policies."""
  count = 2 * math.prod(SHAPE)
  monkeypatch.setattr(vocabulary, "_CHUNK_VALUES", entries * count)
  monkeypatch.setattr(vocabulary, "_LEAST_ENTRIES", 1)


@functools.cache
def weighted(function, parts: tuple[int, int], **options):
  """A program for each size of parts, which is a constant in it."""
  assert parts == (vocabulary._CHUNK_VALUES, vocabulary._LEAST_ENTRIES)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def program(student, teacher):
    values = function(student, teacher, **options)
    return (values * WEIGHTS).sum(), values

  return program


def run(function, student: Logits, teacher: Logits, **options):
  """Values, and the gradients of their weighted sum by both policies."""
  parts = vocabulary._CHUNK_VALUES, vocabulary._LEAST_ENTRIES
  program = weighted(function, parts, **options)
  (_, values), gradients = program(student, teacher)
  return values, *gradients


def wide(logits: Logits) -> Logits:
  return jax.tree.map(lambda x: jnp.asarray(np.float64(x)), logits)


def dense(student, teacher, *, beta, temperature=1.0):
  """The formula as printed, entries of probability zero taken out of it."""
  banned = {*student.banned, *teacher.banned}
  size = min(x.head.shape[x.pattern.index("v")] for x in (student, teacher))
  kept = np.array([i for i in range(size) if i not in banned])

  def policy(logits):
    head = logits.head if logits.pattern == "vd" else logits.head.T
    scale = logits.temperature * temperature
    return jax.nn.log_softmax(logits.hidden @ head[kept].T / scale)

  def kl(p, q):
    return (jnp.exp(p) * (p - q)).sum(-1)

  p, q = policy(teacher), policy(student)
  if beta in (0, 1):
    return kl(q, p) if beta else kl(p, q)
  m = jnp.log(beta * jnp.exp(p) + (1 - beta) * jnp.exp(q))
  return beta * kl(p, m) + (1 - beta) * kl(q, m)


def check(student, teacher, **options):
  """Values and gradients equal those of the dense formula in float64."""
  found = run(divergence, student, teacher, **options)
  with jax.enable_x64(True):
    wanted = run(dense, wide(student), wide(teacher), **options)
  np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=2e-6)
  for name in ("hidden", "head"):
    one, other = (getattr(x[1], name) for x in (found, wanted))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=5e-6)
  assert all((x == 0).all() for x in jax.tree.leaves(found[2]))


# In parts of 16, the last of which begins among those before.
@pytest.mark.parametrize("entries", small_models.first(16, 36, 1, 37))
@pytest.mark.parametrize("temperature", small_models.first(2.0, 1.0))
@pytest.mark.parametrize("beta", BETAS)
def test_equals_the_dense_formula(monkeypatch, beta, temperature, entries):
  few_entries(monkeypatch, entries)
  student, teacher = STUDENT, TEACHER
  if entries == 37:
    student, teacher = (
      dataclasses.replace(x, head=x.head.T, pattern=x.pattern[::-1])
      for x in (student, teacher)
    )
  check(student, teacher, beta=beta, temperature=temperature)


@pytest.mark.parametrize("sizes", small_models.first((V, 30), (30, V)))
def test_vocabularies_are_cut_to_the_smaller(monkeypatch, sizes):
  """An entry only one of them has gets no probability and no gradient."""
  few_entries(monkeypatch, 16)
  student = make_logits(0, entries=sizes[0], banned=(3, 35))
  teacher = make_logits(1, entries=sizes[1], banned=())
  check(student, teacher, beta=0.5)
  _, gradient, _ = run(divergence, student, teacher, beta=0.5)
  head = np.asarray(gradient.head)
  assert (head[30:] == 0).all() and (head[3] == 0).all()
  assert (head[:3] != 0).all()


@pytest.mark.parametrize("beta", BETAS)
def test_what_either_bans_has_no_probability(beta):
  """Not even where both are sure of it."""
  sure = 100 * STUDENT.hidden[0, 0, :2]
  student = dataclasses.replace(
    STUDENT, head=STUDENT.head.at[jnp.array([3, 36])].set(sure)
  )
  value, gradient, _ = run(divergence, student, TEACHER, beta=beta)
  same, _, _ = run(divergence, STUDENT, TEACHER, beta=beta)
  np.testing.assert_array_equal(value, same)
  for entry in (3, 20, 36):
    assert (gradient.head[entry] == 0).all()


@pytest.mark.parametrize("entries", small_models.first(16, 37))
@pytest.mark.parametrize(
  "beta, dtype",
  [
    *((0.0, "float32"), (0.5, "float32"), (0.3, "bfloat16")),
    *(
      pytest.param(*case, marks=pytest.mark.full)
      for case in (
        *((beta, "float32") for beta in (0.25, 0.3, 1.0)),
        *((beta, "bfloat16") for beta in (0.0, 1.0)),
      )
    ),
  ],
)
def test_exactly_zero_at_the_teacher(monkeypatch, beta, dtype, entries):
  """The fixed point of the method, not nearly but bit for bit."""
  few_entries(monkeypatch, entries)
  student = jax.tree.map(lambda x: 4 * x.astype(dtype), STUDENT)
  teacher = jax.tree.map(jnp.copy, student)
  options = {"beta": beta, "temperature": 1.3}
  for leaf in jax.tree.leaves(run(divergence, student, teacher, **options)):
    assert (leaf == 0).all()


@pytest.mark.parametrize("beta", small_models.first(0.5, 0.0, 1.0))
def test_narrow_types(beta):
  """Products of bfloat16, sums of float32, gradients in their own type."""
  narrow = [
    jax.tree.map(lambda x: x.astype(jnp.bfloat16), x)
    for x in (STUDENT, TEACHER)
  ]
  found = run(divergence, *narrow, beta=beta)
  with jax.enable_x64(True):
    wanted = run(dense, *map(wide, narrow), beta=beta)
  assert found[0].dtype == jnp.float32
  np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=2e-6)
  for name in ("hidden", "head"):
    one, other = (getattr(x[1], name) for x in (found, wanted))
    assert one.dtype == jnp.bfloat16
    # Slopes and results are rounded to 8 bits.
    scale = np.abs(other).max()
    np.testing.assert_allclose(np.float32(one), other, atol=0.01 * scale)


@pytest.mark.parametrize("beta", BETAS)
def test_range_and_limits(beta):
  """Between sure policies: bounded in the middle, far from it at the ends."""
  # Tokens in which either is sure of an entry of its own, far beyond what
  # the exponential of float32 can hold.
  hidden = jnp.full((*SHAPE, 1), 300.0)
  one, other = (jnp.zeros((V, 1)).at[i].set(1.0) for i in (1, 2))
  student = Logits(hidden, one, "vd", (), 1.0)
  teacher = Logits(hidden, other, "vd", (), 1.0)
  values, gradient, _ = run(divergence, student, teacher, beta=beta)
  if beta in (0, 1):
    wanted = 300.0
  else:
    wanted = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
  np.testing.assert_allclose(values, wanted, rtol=1e-6)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("beta", [0.0, 1e-6, 0.3, 1 - 1e-6, 1.0])
def test_terms_of_far_and_near_entries(beta):
  """One entry, from equal to 300 nats apart, either way round, in float64."""
  apart = np.array([0, 1e-6, 1e-3, 0.1, 1, 10, 20, 50, 90, 300])
  apart = np.concatenate([apart, -apart])
  log_q = np.where(apart < 0, apart, 0) - 0.5
  log_p = np.where(apart > 0, -apart, 0) - 0.5
  log_q, log_p = np.float32(log_q), np.float32(log_p)
  terms = jax.jit(module._terms, static_argnums=0)
  found = terms(beta, jnp.asarray(log_q), jnp.asarray(log_p))
  log_q, log_p = np.float64(log_q), np.float64(log_p)
  p, q, difference = np.exp(log_p), np.exp(log_q), log_q - log_p
  if beta in (0, 1):
    value = q * difference if beta else -p * difference
    slope = q * difference if beta else q - p
  else:
    m = beta * p + (1 - beta) * q
    slope = (1 - beta) * q * (log_q - np.log(m))
    value = beta * p * (log_p - np.log(m)) + slope
  for one, other in zip(found, (q, value, slope), strict=True):
    # Terms of a value cancel: to its parts' rounding, 1e-7 of at most 1 nat,
    # or of 300 at the ends.
    np.testing.assert_allclose(one, other, rtol=3e-6, atol=1e-7)


def test_memory_does_not_grow_with_tokens_times_entries():
  """Four times the entries: not four times the memory."""

  def temporary(count, entries):
    def loss(hidden, head, other_hidden, other_head):
      student = Logits(hidden, head, "vd", (3,), 1.0)
      teacher = Logits(other_hidden, other_head, "vd", (3,), 1.0)
      return divergence(student, teacher, beta=0.5).sum()

    shapes = [
      jax.ShapeDtypeStruct((n, width), "float32")
      for width in (8, 12)
      for n in (count, entries)
    ]
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  logits = 4 * 4096 * 32768
  assert temporary(4096, 32768) < 0.6 * logits
  assert temporary(4096, 4 * 32768) < 0.2 * 4 * logits
