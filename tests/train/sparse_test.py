"""Runs with sparse attention: what is refused, and what is punctuation."""

import concurrent.futures

import jax
import numpy as np
import pytest
import small_models

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.hub.tokens import punctuation
from mmrl.train import collect, loop
from mmrl.train import run as run_lib

SPEC = {
  "name": "punctuation_sparse",
  "block": 8,
  "init": 8,
  "local": 8,
  "top_k": 1,
  "mix": 0.5,
}


def make_config(spec):
  config = config_lib.get_config()
  config.rollout.update(prompts=8, answers=4, length=6)
  config.shares.every = 0
  config.models.policy.attention = spec
  return config


WHERE = "^config.models.policy.attention: "
MISTAKES = {
  "block": (
    SPEC | {"block": 16},
    WHERE + "expected blocks that divide config.data.lengths, found 16 .* 40;",
  ),
  "no keys": (SPEC | {"block": 0}, WHERE + "expected block .* found 0"),
  "no blocks": (SPEC | {"top_k": 0}, WHERE + "expected top_k .* found 0"),
  "no window": (SPEC | {"local": 0}, WHERE + "expected local .* found 0"),
  "mix": (SPEC | {"mix": 2.0}, WHERE + r"expected mix .* \[0, 1\], found 2.0"),
  "unknown": (
    SPEC | {"stride": 4},
    WHERE + "punctuation_sparse has no option stride; valid options: block",
  ),
  "marks": (
    SPEC | {"marks": "fr"},
    r"^config.models.policy.attention.marks: expected one of 'en', 'en\+zh'",
  ),
  "name": (
    SPEC | {"name": "sparse"},
    WHERE + ".* no 'sparse'; valid names: infllm_v2, punctuation_sparse",
  ),
  "baseline": (
    {"name": "infllm_v2", "top_k": 4},
    WHERE + "expected top_k .* at least 11, found 4",
  ),
}


@pytest.mark.parametrize("spec, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(spec, message):
  with pytest.raises(UserError, match=message) as error:
    run_lib.prepare(make_config(spec), jax.devices()[:1])
  assert "\n" not in str(error.value)


def test_tokens_that_are_punctuation():
  texts = [".", " ,", "...", "?!", "a.", "", " ", "。", "a", "、"]

  def ids(kind):
    return punctuation.token_ids(lambda i: texts[i[0]], len(texts), kind)

  assert ids("en") == (0, 1, 2, 3)
  assert ids("en+zh") == (0, 1, 2, 3, 7, 9)


def test_a_tokenizer_without_punctuation():
  with pytest.raises(UserError, match="found none among its 2;"):
    punctuation.token_ids(lambda i: "ab"[i[0]], 2, "en")


@pytest.mark.full
def test_a_step_of_ral():
  """The sampler's probabilities are the scorer's; the update is finite."""
  config = config_lib.add_ral(make_config(SPEC))
  run = run_lib.build_run(config, jax.devices()[:1])
  marks = run.model_config.sparse.punctuation
  assert "?" in {run.processor.tokenizer.decode([i]).strip() for i in marks}
  state = run.initial_state()
  questions = loop.read_questions(run)
  samples = next(questions)
  questions.close()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    batch, values = collect.collect(
      run, state, samples, 1, pool, small_models.no_more
    )
  assert values["rollout/sampler_scorer_gap"] < 1e-4
  _, metrics = loop.learn(run, state, batch, values, 1, 0)
  assert all(np.isfinite(x).all() for x in metrics.values())
