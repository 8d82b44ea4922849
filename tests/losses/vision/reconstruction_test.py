"""Reconstruction of masked visual tokens: golden values, masks, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.losses import visual_reconstruction
from mmrl.losses.vision import masks, reconstruction
from mmrl.models.passes.visual import mean_cosine
from mmrl.train import state as state_lib

Z_S = jnp.array([[0.2, 0.1, 0], [0, 0.3, 0.1], [0.5, 0.5, 0.5]])
Z_T = jnp.array([[0.1, 0.06, 0], [0.02, 0.1, 0.1], [0.3, 0, 0]])
mim = jax.jit(reconstruction.mim)
exact = jax.jit(masks.exact, static_argnums=2)
cosine_of = jax.jit(mean_cosine)


@pytest.mark.parametrize(
  ("centre", "mask", "expected"),
  [
    ((0, 0, 0), (1, 0, 0), 0.774546),
    ((0, 0, 0), (1, 1, 0), 1.035575),
    ((0, 0, 0), (1, 1, 1), 1.056587),
    ((0.05, 0.02, 0), (1, 1, 0), 1.259132),
    ((0.05, 0.02, 0), (1, 1, 1), 1.205626),
  ],
)
def test_masked_tokens_are_golden(centre, mask, expected):
  found = mim(Z_S, Z_T, jnp.array(centre, jnp.float32))
  mean = np.asarray(found)[np.array(mask, bool)].mean()
  assert mean == pytest.approx(expected, abs=1e-6)


gram_rows = jax.jit(reconstruction.gram_rows, static_argnames="clip")


def gram_mean(student, teacher, clip=True):
  student, teacher = (
    jnp.asarray(x, jnp.float32)[None] for x in (student, teacher)
  )
  runs = np.tile(np.array([0, student.shape[1]]), (1, student.shape[1], 1))
  return gram_rows(student, teacher, runs, clip=clip).sum()


def test_the_gram_term_is_golden():
  student, teacher = [[1, 0], [1, 1], [0, 2]], [[1, 0], [0, 1], [1, 1]]
  assert gram_mean(student, teacher) == pytest.approx(1 / 9, abs=1e-6)
  assert gram_mean(student, teacher, False) == pytest.approx(2 / 9, abs=1e-6)
  slope = jax.jit(jax.grad(gram_mean))(
    jnp.array(student, jnp.float32), jnp.array(teacher, jnp.float32)
  )
  np.testing.assert_allclose(
    slope, [[0, 0.222222], [0.111111, -0.111111], [0, 0]], atol=1e-5
  )
  zero = jnp.array([[0.0, 0], [1, 1]])
  value, slope = jax.jit(jax.value_and_grad(gram_mean))(zero, jnp.eye(2))
  assert value == 0 and (np.asarray(slope) == 0).all()
  cosine = cosine_of(np.float32(student), np.ones(3, bool))
  assert cosine == pytest.approx(0.471405, abs=1e-6)
  assert np.isnan(cosine_of(zero, np.array([True, False])))


def test_pictures_of_one_row_are_apart():
  one, other = [[1.0, 0], [1, 1]], [[0.0, 1], [1, 0], [2, 1]]
  student = jnp.array([one + other + [[5.0, 5.0]]])
  teacher = student[..., ::-1] * jnp.array([1.0, 3.0])[None, None]
  spans = [[0, 2]] * 2 + [[2, 5]] * 3 + [[0, 0]]
  found = gram_rows(student, teacher, jnp.array([spans]))
  parts = [(0, 2), (2, 5)]
  expected = sum(gram_mean(student[0, a:b], teacher[0, a:b]) for a, b in parts)
  assert found.sum() == pytest.approx(float(expected), abs=1e-6)
  assert found[0, 5] == 0


def test_the_centre_is_golden_and_waits_for_visual_tokens():
  made = visual_reconstruction(steps=10)
  running = {"centre": jnp.zeros(2), "updates": jnp.int32(0)}
  found = made.update(
    running, {"sum": jnp.array([4.0, 2.0]), "count": jnp.float32(2)}
  )
  np.testing.assert_allclose(found["centre"], [0.2, 0.1], rtol=1e-6)
  still = made.update(found, {"sum": jnp.zeros(2), "count": jnp.float32(0)})
  np.testing.assert_array_equal(still["centre"], found["centre"])
  assert still["updates"] == 2


@pytest.mark.parametrize(
  ("step", "ratio", "decay"),
  [
    (0, 0, 0.95),
    (625, 0.001224, 0.951224),
    (3125, 0.025, 0.975),
    (6250, 0.05, 1),
  ],
)
def test_schedules_are_golden(step, ratio, decay):
  found = masks.ratio_at(step, 6250, 0.05)
  assert found == pytest.approx(ratio, abs=1e-6)
  average = state_lib.Averaged(jnp.int32(step), {"x": jnp.zeros(())})
  moved = state_lib.advance_average(
    average, {"x": jnp.ones(())}, decay=0.95, every=1, rise_over=6250
  )
  assert 1 - moved.values["x"] == pytest.approx(decay, abs=1e-6)


def test_a_constant_mask_begins_later():
  found = [masks.ratio_at(t, 80, 0.4, "constant") for t in (0, 9, 10, 79)]
  np.testing.assert_allclose(found, [0, 0, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
  ("ratio", "counts", "expected"),
  [(0.05, (16, 20), (0, 1)), (0.4, (9, 1), (3, 0)), (0.0, (5, 7), (0, 0))],
)
def test_counts_of_masked_tokens_are_exact(ratio, counts, expected):
  spans, at = [], 0
  for count in counts:
    spans += [[at, at + count]] * count
    at += count
  runs = jnp.array([spans + [[0, 0]] * 3])
  seen = set()
  for seed in range(3):
    noise = jax.random.uniform(jax.random.key(seed), runs.shape[:2])
    hidden = np.asarray(exact(noise, runs, ratio))[0]
    first, second = hidden[: counts[0]], hidden[counts[0] : at]
    assert (first.sum(), second.sum()) == expected
    assert not hidden[at:].any()
    seen.add(hidden.tobytes())
  assert len(seen) > 1 or not sum(expected)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"steps": 0}, "steps: expected"),
    ({"steps": 5, "mask_ratio": 1.0}, r"mask_ratio: expected .* \[0, 1\)"),
    ({"steps": 5, "mask_ratio": -0.1}, r"mask_ratio: expected"),
    ({"steps": 5, "centre_decay": 1.0}, "centre_decay: expected"),
    ({"steps": 5, "tau_t": 0.0}, "tau_t: expected"),
  ],
)
def test_wrong_options_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    visual_reconstruction(**options)
