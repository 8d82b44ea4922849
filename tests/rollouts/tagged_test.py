"""The source that marks tokens between tags, around another source."""

import jax
import numpy as np
import pytest

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.train import collect, loop
from mmrl.train import run as run_lib


def make_config(tag: str = "think"):
  config = config_lib.get_config()
  config.rollout.prompts, config.rollout.answers = 4, 2
  config.train.minibatches = 1
  config.shares.every = 0
  config.evaluation.benchmarks = {}
  config.models.policy.remat = False
  config.rewards.gain = {"name": "refocus_gain", "weight": 0.0}
  config_lib.wrap_rollout(config, name="tagged", tag=tag)
  return config


@pytest.mark.full
def test_a_run_marks_the_tokens_of_thoughts():
  """The tiny model writes <think>blue circle</think><answer>..</answer>."""
  run = run_lib.build_run(make_config(), jax.devices()[:1])
  state = run.initial_state()
  questions = loop.read_questions(run)
  with collect.concurrent.futures.ThreadPoolExecutor() as pool:
    batch, values = collect.collect(
      run, state, next(questions), 1, pool, lambda: pytest.fail("asked again")
    )
  questions.close()
  tagged, mask = np.asarray(batch.fields["tagged"]), np.asarray(batch.mask)
  tokenizer = run.processor.tokenizer
  begin, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
  closed = 0
  for marks, tokens, counts in zip(
    tagged.reshape(8, -1),
    np.asarray(batch.tokens).reshape(8, -1),
    mask.reshape(8, -1),
    strict=True,
  ):
    ids = tokens[counts].tolist()
    wanted = []
    if begin in ids and end in ids[ids.index(begin) :]:
      wanted = list(range(ids.index(begin) + 1, ids.index(end)))
      closed += 1
    assert np.flatnonzero(marks).tolist() == wanted
  assert closed and -1 <= values["reward/gain"] <= 1


def test_a_tag_is_of_letters():
  with pytest.raises(
    UserError, match="config.rollout: tag: expected a name of"
  ):
    run_lib.build_run(make_config("<back>"), jax.devices()[:1])
