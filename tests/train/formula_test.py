"""Tests of an update against its equations, computed by NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np
import pytest
from scipy import special
import small_models

from mmrl import config as config_lib
from mmrl import losses, models
from mmrl.errors import UserError
from mmrl.machines import sharding
from mmrl.models import parameters
from mmrl.probes.scores import Scorer
from mmrl.train import objective, walk
from mmrl.train import parts as parts_lib
from mmrl.train import step as step_lib
from mmrl.train.state import State
from mmrl.types import Batch, Prompt

TERMS = {
  "policy": {"name": "clipped_ratio", "weight": 1.0, "reduce": "token_mean"},
  "kl": {"name": "reference_kl", "weight": 0.04, "reduce": "token_mean"},
  "attention": {
    "name": "attention_jsd",
    "weight": 1.0,
    "reduce": "sequence_mean",
  },
}
CONFIG = small_models.small_config(remat=False)
P, G, S, R, N = 4, 2, 6, 3, 2
READ = ("advantages", "logprobs_old", "logprobs_ref")


def make_prompt() -> Prompt:
  """Two visual tokens and some text, padded on the left by 0, 1, 2 and 3."""
  rng = np.random.default_rng(0)
  place = np.arange(S) - np.arange(P)[:, None]
  return Prompt(
    tokens=jnp.asarray(rng.integers(0, 250, (P, S)), jnp.int32),
    mask=jnp.asarray(place >= 0),
    positions=jnp.asarray(np.stack(3 * [np.maximum(place, 0)], -1)),
    visual_index=jnp.asarray(np.where((place >= 0) & (place < N), place, -1)),
    next_position=jnp.asarray(S - np.arange(P)),
    region=jnp.zeros((P, S)),
    patches=small_models.no_patches(P),
  )


def make_params(seed: int):
  """Larger than at the start of training: attention is far from uniform."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    mean = 3.0 if path[-1].key == "scale" else 0.0
    return jnp.asarray(rng.normal(mean, 0.1, leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(one, parameters.shapes(CONFIG))


def bind(specs, provided):
  return objective.bind_terms(
    objective.resolve_terms(specs), provided=provided, remedies={}
  )


@functools.cache
def stage():
  """Scorer, terms, state, a batch of fixed tokens and rewards, and scores.

  The behaviour policy is another model, so that every term has a value.
  """
  scorer = Scorer(CONFIG, 1.0, (-1,), "self")

  params, old, reference = map(make_params, range(3))
  prompt, rng = make_prompt(), np.random.default_rng(1)
  visual = jnp.asarray(rng.normal(size=(P, N, 32)), jnp.float32)
  tokens = jnp.asarray(rng.integers(0, 250, (P, G, R)), jnp.int32)
  lengths = np.array([[3, 2], [1, 3], [2, 2], [3, 0]])
  mask = jnp.asarray(np.arange(R) < lengths[..., None])

  @jax.jit
  def score(params):
    scores = scorer(params, scorer.prefill(params, prompt, visual), tokens)
    return scores, models.attention_rows(scores.attention)

  behaviour, _ = score(old)
  # Nearer to the current policy than a stranger's, so that ratios matter.
  current, far = (score(x)[0].logprobs for x in (params, reference))
  rewards = jnp.array([[1.0, 0.1], [0.0, 0.9], [1.0, 1.0], [0.1, 0.0]])
  fields = {
    "rewards": rewards,
    "advantages": rewards - rewards.mean(axis=1, keepdims=True),
    "token_weights": jnp.ones((P, G, R)),
    "logprobs_old": current + 0.1 * (behaviour.logprobs - current),
    "logprobs_ref": current + 0.1 * (far - current),
    "entropies_old": behaviour.entropies,
    "attention_old": behaviour.attention,
  }
  batch = Batch(prompt, visual, tokens, mask, fields)
  terms = bind(TERMS, (*fields, "mask", "logprobs", "attention"))
  trainable, frozen = parameters.partition(params, ("vision/.*",))
  return scorer, terms, trainable, frozen, batch, score


@functools.cache
def one_update(accumulate: int):
  return updated(accumulate, stage()[1])


def updated(accumulate: int, terms):
  """Parameters after an update, what it measured, and the loss after it."""
  scorer, _, trainable, frozen, batch, _ = stage()
  transform = parts_lib.make_optimizer(
    {"name": "sgd"}, {"name": "constant_schedule", "value": 0.1}, 1.0
  )
  update = step_lib.make_update(
    step_lib.make_loss(scorer, terms, ()),
    terms,
    transform,
    {},
    sharding.on_one(jax.devices()[0]),
    accumulate=accumulate,
    dtype="float32",
  )
  state = State(
    step=jnp.zeros((), jnp.int32),
    trainable=jax.tree.map(jnp.copy, trainable),
    frozen=jax.tree.map(jnp.copy, frozen),
    optimizer=transform.init(trainable),
    running={},
    averages={},
    norms={},
  )
  state, measured = update(state, {}, batch, 0)
  trainable = jax.tree.map(jnp.copy, state.trainable)
  _, after = update(state, {}, batch, 0)
  return trainable, jax.device_get(measured), after["loss/total"].item()


def formula(trainable) -> dict[str, float]:
  """What an update measures before it moves, by the equations in float64.

  Of the library's there are hidden states, output head and attention rows.
  """
  *_, frozen, batch, score = stage()
  scores, p = score(parameters.merge(trainable, frozen))
  _, q = score(make_params(1))
  double = functools.partial(np.asarray, dtype=np.float64)
  p, q, mask = double(p), double(q), np.asarray(batch.mask)
  fields = {name: double(batch.fields[name]) for name in READ}
  logits = double(scores.logits.hidden) @ double(scores.logits.head).T
  logits[..., list(CONFIG.banned_token_ids)] = -np.inf
  logs = special.log_softmax(logits, axis=-1)
  logprobs = np.take_along_axis(logs, np.asarray(batch.tokens)[..., None], -1)
  logprobs = logprobs[..., 0]

  def token_mean(x):
    return x[mask].sum() / mask.sum()

  def sequence_mean(x):
    rows = zip(x.reshape(-1, R), mask.reshape(-1, R), strict=True)
    return np.mean([row[kept].mean() for row, kept in rows if kept.any()])

  advantages = fields["advantages"][..., None]
  ratio = np.exp(logprobs - fields["logprobs_old"])
  clipped = np.clip(ratio, 0.8, 1.2)
  k = fields["logprobs_ref"] - logprobs
  m = (p + q) / 2
  jsd = (special.rel_entr(p, m) + special.rel_entr(q, m)).sum(-1) / 2
  terms = {
    "policy": token_mean(-np.minimum(advantages * ratio, advantages * clipped)),
    "kl": token_mean(np.exp(k) - k - 1),
    "attention": sequence_mean(advantages * jsd),
  }
  total = terms["policy"] + 0.04 * terms["kl"] + terms["attention"]
  return {f"loss/{name}": value for name, value in terms.items()} | {
    "loss/total": total,
    "policy/entropy": token_mean(special.entr(np.exp(logs)).sum(-1)),
    "policy/ratio_deviation": token_mean(np.abs(ratio - 1)),
    "attention/jsd_mean": token_mean(jsd),
    "attention/jsd_good": jsd[mask & (advantages > 0)].mean(),
    "attention/jsd_bad": jsd[mask & (advantages < 0)].mean(),
    "attention/jsd_max": jsd[mask].max(),
  }


@pytest.mark.full
def test_an_update_is_its_equations():
  """Before and after it; the model computes in float32, to about 1e-6."""
  _, _, trainable, *_ = stage()
  moved, measured, after = one_update(1)
  expected = formula(trainable)
  assert set(measured) == {*expected, "gradient/norm", "gradient/skipped"}
  assert measured["gradient/skipped"] == 0
  for name, value in expected.items():
    np.testing.assert_allclose(
      measured[name], value, rtol=1e-4, atol=1e-6, err_msg=name
    )
  np.testing.assert_allclose(
    after, formula(moved)["loss/total"], rtol=1e-4, atol=1e-6
  )


@pytest.mark.full
def test_the_gradient_is_the_slope_of_the_equations():
  """Along the gradient the loss rises by its norm: central differences.

  The step is the gradient clipped to 1, times 0.1. Of a slope of 8, over 0.005
  of a step, the rounding of float32 takes 1e-4 and the curve as much.
  """
  _, _, trainable, *_ = stage()
  moved, measured, _ = one_update(1)
  change = {path: x - moved[path] for path, x in trainable.items()}
  size = np.linalg.norm([np.linalg.norm(x) for x in change.values()])
  np.testing.assert_allclose(size, 0.1, rtol=1e-5)

  def loss(width):
    at = {path: trainable[path] + width * x for path, x in change.items()}
    return formula(at)["loss/total"]

  width = 0.005
  slope = (loss(width) - loss(-width)) / (2 * width * 0.1)
  np.testing.assert_allclose(measured["gradient/norm"], slope, rtol=1e-3)


@pytest.mark.full
def test_accumulated_parts_equal_the_whole():
  """Lengths differ by prompt: an average of averages would not do."""
  (one, before, _), (four, after, _) = one_update(1), one_update(4)
  for path in one:
    np.testing.assert_allclose(four[path], one[path], atol=1e-6, err_msg=path)
  assert set(before) == set(after)
  for name in before:
    assert np.isfinite(before[name])
    np.testing.assert_allclose(
      after[name], before[name], rtol=1e-4, atol=1e-7, err_msg=name
    )


def of_answers(
  logprobs: Float[Array, "P G R"],
  advantages: Float[Array, "P G"],
  mask: Bool[Array, "P G R"],
) -> Float[Array, "P G"]:
  """Computes a toy term of whole answers."""
  return -advantages * jnp.where(mask, logprobs, 0).sum(-1)


def of_pairs(
  logprobs: Float[Array, "P G R"], mask: Bool[Array, "P G R"]
) -> Float[Array, "P"]:
  """Computes a toy preference for the first of two answers."""
  likelihood = jnp.where(mask, logprobs, 0).sum(-1)
  return -jax.nn.log_sigmoid(likelihood[:, 0] - likelihood[:, 1])


@pytest.fixture
def toys(monkeypatch):
  """Terms of a run in which each toy is reduced by its rank's reduction."""
  for function in (of_answers, of_pairs):
    monkeypatch.setattr(losses, function.__name__, function, raising=False)
  names = [*losses.__all__, "of_answers", "of_pairs"]
  monkeypatch.setattr(losses, "__all__", names)
  specs = {
    "answers": {"name": "of_answers", "weight": 0.5, "reduce": "answer_mean"},
    "pairs": {"name": "of_pairs", "weight": 2.0, "reduce": "prompt_mean"},
  }
  fields = stage()[4].fields
  return specs, bind(specs, (*fields, "mask", "logprobs"))


@pytest.mark.full
@pytest.mark.parametrize("accumulate", [1, 4])
def test_terms_of_answers_and_of_prompts(toys, accumulate):
  """By hand, whole and in parts. The last prompt has but one answer."""
  *_, batch, score = stage()
  _, measured, _ = updated(accumulate, toys[1])
  logprobs = np.float64(score(make_params(0))[0].logprobs)
  likelihood = np.where(batch.mask, logprobs, 0).sum(-1)
  advantages = np.float64(batch.fields["advantages"])
  there = np.asarray(batch.mask).any(-1)
  answers = (-advantages * likelihood)[there].mean()
  first, second = likelihood[there.all(-1)].T
  pairs = np.log1p(np.exp(second - first)).mean()
  for name, value in (
    ("loss/answers", answers),
    ("loss/pairs", pairs),
    ("loss/total", 0.5 * answers + 2 * pairs),
  ):
    np.testing.assert_allclose(measured[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
  ("term", "reduction", "message"),
  [
    pytest.param(
      "answers",
      "token_mean",
      r"\[P, G\], such as answer_mean, found token_mean",
      marks=pytest.mark.full,
    ),
    pytest.param(
      "pairs",
      "answer_mean",
      r"\[P\], such as prompt_mean, found answer_mean",
      marks=pytest.mark.full,
    ),
    ("policy", "prompt_mean", r"\[P, G, R\], such as token_mean, token_sum,"),
  ],
)
def test_a_reduction_of_another_rank_is_refused(toys, term, reduction, message):
  config = config_lib.get_config()
  config.losses = {"policy": TERMS["policy"]} | toys[0]
  config.losses[term].reduce = reduction
  layout = sharding.on_one(jax.devices()[0])
  parts = parts_lib.build_parts(config, CONFIG, layout, {})
  with pytest.raises(
    UserError, match=f"config.losses.{term}.reduce: expected a .*{message}"
  ):
    walk.check(parts)
