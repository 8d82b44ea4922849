"""Tests of the objective: named weighted terms, one number, its metrics."""

import functools

import jax
import jax.numpy as jnp
from losses.attention_test import MASK, NEW, OLD
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.losses import attention, reduce
from mmrl.train import objective
from mmrl.types import Scores

PROVIDED = (
  *("mask", "advantages", "token_weights", "logprobs", "entropies"),
  *("attention", "logprobs_old", "logprobs_ref", "attention_old"),
)
POLICY = {"name": "clipped_ratio", "weight": 1.0, "reduce": "token_mean"}
KL = {"name": "reference_kl", "weight": 0.04, "reduce": "token_mean"}
LOOK = {"name": "attention_jsd", "weight": 1.0, "reduce": "sequence_mean"}
SPECS = {"policy": POLICY, "kl": KL, "attention": LOOK}
# The worked example of the attention method: two answers of 2 and 1 tokens.
SCORES = Scores(
  logprobs=jnp.array([[[-1, -0.5]], [[-2, -9]]], jnp.float32),
  entropies=jnp.array([[[1, 2]], [[6, 99]]], jnp.float32),
  attention=NEW,
)
FIELDS = {
  "mask": MASK,
  "advantages": jnp.array([[1.0], [-0.5]]),
  "token_weights": jnp.ones((2, 1, 2)),
  "logprobs_old": jnp.array([[[-1.2, -0.5]], [[-1.5, 0]]], jnp.float32),
  "logprobs_ref": jnp.array([[[-1.1, -0.7]], [[-2.2, 0]]], jnp.float32),
  "attention_old": OLD,
}


def build(**specs):
  return bind(specs, PROVIDED)


def bind(specs, provided):
  return objective.bind_terms(
    objective.resolve_terms(specs), provided=provided, remedies={}
  )


def objective_of(terms, scores, fields, weights):
  """Loss and metrics; no term here has state."""
  loss, (metrics, statistics) = objective.objective(
    terms, fields | vars(scores), weights
  )
  assert not statistics
  return loss, metrics


def value_of(terms, scores=SCORES, fields=FIELDS):
  weights = objective.reduction_coefficients(terms, fields["mask"], fields)
  return objective_of(terms, scores, fields, weights)


@pytest.mark.parametrize(
  ("weight", "total"), [(1.0, -0.582745), (0.5, -0.591090), (0.0, -0.599436)]
)
def test_total_golden(weight, total):
  terms = build(**SPECS | {"attention": LOOK | {"weight": weight}})
  loss, metrics = value_of(terms)
  expected = {
    "loss/policy": -0.6,
    "loss/kl": 0.014100,
    "loss/total": total,
    "policy/entropy": 3.0,  # (1 + 2 + 6) / 3
    # |rho - 1| of 1.221403, 1, 0.606531
    "policy/ratio_deviation": 0.204957,
  }
  if weight:
    expected |= {
      "loss/attention": 0.016691,
      # Of the good answer's two tokens, and of the bad one's.
      "attention/jsd_mean": (0.066414 + 0.005860 + 0.005509) / 3,
      "attention/jsd_good": (0.066414 + 0.005860) / 2,
      "attention/jsd_bad": 0.005509,
      "attention/jsd_max": 0.066414,
    }
  np.testing.assert_allclose(loss, total, atol=2e-6)
  assert set(metrics) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, atol=2e-6, err_msg=name)


def test_term_of_weight_zero_is_left_out():
  terms = build(**SPECS | {"attention": LOOK | {"weight": 0.0}})
  assert terms == build(policy=POLICY, kl=KL)
  assert not any(term.needs_attention for term in terms)
  assert any(term.needs_attention for term in build(**SPECS))


def test_term_of_weight_zero_is_checked_all_the_same():
  with pytest.raises(UserError, match="clip_hihg"):
    build(kl=KL, policy=POLICY | {"weight": 0.0, "clip_hihg": 1})


@pytest.mark.parametrize("specs", [{}, {"kl": KL | {"weight": 0.0}}])
def test_objective_without_a_term_is_refused(specs):
  with pytest.raises(UserError, match="a term of non-zero weight"):
    build(**specs)


def test_attention_rows_are_read_once_and_only_for_a_term(monkeypatch):
  """The metrics are of the divergence that the term has."""
  calls = []
  of_rows = attention.jensen_shannon

  def counted(p, q):
    calls.append(1)
    return of_rows(p, q)

  monkeypatch.setattr(attention, "jensen_shannon", counted)
  _, metrics = value_of(build(policy=POLICY))
  assert not any(name.startswith("attention/") for name in metrics)
  assert not calls
  _, metrics = value_of(build(policy=POLICY, attention=LOOK))
  assert "attention/jsd_mean" in metrics
  assert len(calls) == 1


def test_good_and_bad_are_means_over_tokens():
  """Of both answers: two tokens and one, not the mean of two means."""
  for sign, name in ((1.0, "good"), (-1.0, "bad")):
    fields = FIELDS | {"advantages": jnp.full((2, 1), sign)}
    _, metrics = value_of(build(attention=LOOK), fields=fields)
    mean = (0.066414 + 0.005860 + 0.005509) / 3
    found = metrics[f"attention/jsd_{name}"]
    np.testing.assert_allclose(found, mean, atol=2e-6)


def test_answers_without_an_advantage_are_neither_good_nor_bad():
  fields = FIELDS | {"advantages": jnp.array([[1.0], [0.0]])}
  _, metrics = value_of(build(attention=LOOK), fields=fields)
  mean = (0.066414 + 0.005860) / 2
  np.testing.assert_allclose(metrics["attention/jsd_good"], mean, atol=2e-6)
  assert metrics["attention/jsd_bad"] == 0


def test_largest_is_of_answer_tokens_alone():
  """Not of padding, which isn't a number, and not of an expert's."""
  fields = FIELDS | {"sampled": jnp.array([[False], [True]])}
  _, metrics = value_of(build(attention=LOOK), fields=fields)
  for name in ("mean", "bad", "max"):
    value = metrics[f"attention/jsd_{name}"]
    np.testing.assert_allclose(value, 0.005509, atol=2e-6)
  assert metrics["attention/jsd_good"] == 0


def test_metrics_have_no_gradient():
  terms = build(policy=POLICY | {"weight": 0.5}, attention=LOOK)

  @jax.jit
  @jax.grad
  def gradient(scores):
    loss, metrics = value_of(terms, scores)
    names = [n for n in metrics if not n.startswith("loss/")]
    return loss + sum(100 * metrics[name] for name in names)

  one = gradient(SCORES)
  two = jax.jit(jax.grad(lambda scores: value_of(terms, scores)[0]))(SCORES)
  jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.full
@pytest.mark.parametrize("reduction", reduce.BY_RANK[3])
def test_parts_add_up_to_the_whole(reduction):
  """Loss, metrics and gradient: what accumulation rests on."""
  specs = {name: spec | {"reduce": reduction} for name, spec in SPECS.items()}
  terms = bind(specs, (*PROVIDED, "segment_pictures"))
  opened = {
    "segment_pictures": jnp.arange(MASK.size).reshape(MASK.shape) % 3 - 1
  }
  weights = objective.reduction_coefficients(terms, MASK, FIELDS | opened)

  @jax.jit
  def gradient(scores, fields, weights):
    def loss(logprobs):
      changed = Scores(logprobs, scores.entropies, scores.attention)
      return objective_of(terms, changed, fields, weights)

    return jax.grad(loss, has_aux=True)(scores.logprobs)

  slopes, whole = gradient(SCORES, FIELDS, weights)
  parts = [
    gradient(
      *jax.tree.map(lambda x, i=i: x[i : i + 1], (SCORES, FIELDS, weights))
    )
    for i in (0, 1)
  ]
  np.testing.assert_allclose(
    jnp.concatenate([g for g, _ in parts]), slopes, rtol=1e-6
  )
  total = reduce.add(*(metrics for _, metrics in parts))
  assert set(total) == set(whole)
  for name in whole:
    np.testing.assert_allclose(
      total[name], whole[name], rtol=1e-5, err_msg=name
    )


EVERY_REDUCTION = [
  *objective._REDUCTIONS,
  {"name": "sequence_mean", "count_empty": True},
  {"name": "sequence_sum", "horizon": 3, "count_empty": True},
]


@pytest.mark.parametrize("reduction", EVERY_REDUCTION, ids=str)
def test_only_terms_that_know_of_experts_are_reduced_over_their_rows(reduction):
  """Two questions, two sampled answers and an expert each, one not kept."""
  lengths = jnp.array([[1, 2, 3], [2, 0, 0]])
  mask = jnp.array(np.arange(3) < np.array(lengths)[..., None])
  sampled = jnp.array([[True, True, False]] * 2)
  shaped = POLICY | {"name": "expert_shaped", "reduce": reduction}
  provided = (*PROVIDED, "sampled", "segment_pictures")
  specs = {"own": POLICY | {"reduce": reduction}, "shaped": shaped}
  own, shaped = bind(specs, provided)
  fields = {"sampled": sampled, "token_weights": jnp.full(mask.shape, 0.5)}
  fields["segment_pictures"] = jnp.broadcast_to(jnp.arange(3) - 1, mask.shape)
  weights = objective.reduction_coefficients([own, shaped], mask, fields)
  spec = {"name": reduction} if isinstance(reduction, str) else reduction
  options = {k: v for k, v in spec.items() if k != "name"}
  if spec["name"].startswith("weighted"):
    options["token_weights"] = fields["token_weights"]
  if spec["name"] == "segment_mean":
    options["segment_pictures"] = fields["segment_pictures"]
  of = functools.partial(getattr(reduce, spec["name"]), **options)
  rows = mask & sampled[..., None]
  np.testing.assert_array_equal(weights[own.reduction], of(rows))
  np.testing.assert_array_equal(weights[shaped.reduction], of(mask))
  np.testing.assert_array_equal(weights["token_mean"], reduce.token_mean(rows))


def test_numbers_of_a_term_are_means_over_where_they_apply():
  """Of parts, too: the mean of 3, 5 and 10, and of nothing."""
  weights = reduce.token_mean(MASK)
  numbers = jnp.array([[[3.0, 5.0]], [[10.0, jnp.nan]]])
  found = reduce.mean(numbers, weights)
  parts = [reduce.mean(numbers[i : i + 1], weights[i : i + 1]) for i in (0, 1)]
  (added,) = reduce.add(*({"x": part} for part in parts)).values()
  for one in (found, added):
    final = reduce.finish({"x": one, "y": jnp.ones(())})
    assert final == {"x": 6, "y": 1}
  nothing = reduce.mean(jnp.full((2, 1, 2), jnp.nan), weights)
  assert reduce.finish({"x": nothing}) == {"x": 0}


def test_metrics_add_up_but_maxima():
  one, other = ({"x": x, "x_max": x} for x in jnp.array([1.0, 2.0]))
  for pair in ((one, other), (other, one)):
    assert reduce.add(*pair) == {"x": 3, "x_max": 2}


def test_reduction_coefficients_are_those_in_use_and_the_metrics():
  weights = objective.reduction_coefficients(
    build(attention=LOOK), MASK, FIELDS
  )
  assert set(weights) == {"token_mean", "sequence_mean", "good", "bad"}
  weights = objective.reduction_coefficients(build(kl=KL), MASK, FIELDS)
  assert set(weights) == {"token_mean"}
