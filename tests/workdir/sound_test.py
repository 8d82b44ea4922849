"""States that blew up are neither saved nor gone on from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.errors import UserError
from mmrl.workdir import checkpoint, sound
from tests.workdir import checkpoint_test
from tests.workdir.checkpoint_test import make_state, names, restore, save

PARTS = {
  "trainable/text/a": lambda s, x: dataclasses.replace(
    s, trainable={"text/a": s.trainable["text/a"].at[1, 1].set(x)}
  ),
  "optimizer/0/mu": lambda s, x: dataclasses.replace(
    s, optimizer=({"mu": s.optimizer[0]["mu"].at[3].set(x)}, ())
  ),
  "running/term/mean": lambda s, x: dataclasses.replace(
    s, running={"term": {"mean": s.running["term"]["mean"].at[0].set(x)}}
  ),
  "averages/slow/values/text/a": lambda s, x: dataclasses.replace(
    s,
    averages={
      "slow": dataclasses.replace(
        s.averages["slow"],
        values={"text/a": s.averages["slow"].values["text/a"].at[0, 0].set(x)},
      )
    },
  ),
}
SOUND = sound.Soundness(vars(make_state(0)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", PARTS)
def test_what_is_not_finite_is_named(name, value):
  assert SOUND(vars(make_state(4))) == ""
  found = SOUND(vars(PARTS[name](make_state(4), value)))
  assert found == f"{name} is {abs(value)}"


def test_finite_parameters_a_thousand_times_as_large():
  """Only those: a running value or a moment may be of any size."""
  start = make_state(0)
  largest = float(jnp.abs(start.trainable["text/a"]).max())
  assert largest > 1
  blow = PARTS["trainable/text/a"]
  assert SOUND(vars(blow(start, 999 * largest))) == ""
  for value in (1001 * largest, -1e30):
    assert "text/a holds" in SOUND(vars(blow(start, value)))
  small = dataclasses.replace(start, trainable={"text/a": jnp.zeros(3)})
  of_small = sound.Soundness(vars(small))
  for value, wrong in ((999.0, False), (1001.0, True)):
    state = dataclasses.replace(start, trainable={"text/a": jnp.full(3, value)})
    assert bool(of_small(vars(state))) == wrong
  for name in ("optimizer/0/mu", "running/term/mean"):
    assert SOUND(vars(PARTS[name](start, 1e30))) == ""


def test_what_was_not_finite_at_the_start_may_stay_so():
  odd = PARTS["optimizer/0/mu"](make_state(0), np.inf)
  assert sound.Soundness(vars(odd))(vars(odd)) == ""


def test_sharded_and_narrow_arrays():
  eight = checkpoint_test.placed(make_state(0, 64), 8)
  narrow = dataclasses.replace(
    eight, trainable={"text/a": eight.trainable["text/a"].astype(jnp.bfloat16)}
  )
  for start in (eight, narrow):
    check = sound.Soundness(vars(start))
    assert check(vars(start)) == ""
    bad = jax.tree.map(lambda x: x, start)
    bad.trainable["text/a"] = bad.trainable["text/a"].at[63, 3].set(jnp.nan)
    assert check(vars(bad)) == "trainable/text/a is nan"


def test_it_is_not_saved(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path, keep=1, fault=SOUND)
  blow = PARTS["trainable/text/a"]
  with pytest.raises(UserError, match="step 1, which isn't saved: there is no"):
    saved.save(blow(make_state(1), np.nan), {})
  saved.save(make_state(2), {"next_index": 2})
  saved.wait()
  with pytest.raises(UserError, match="a holds 1e.30, .*step 3.* is of step 2"):
    saved.save(blow(make_state(3), 1e30), {})
  saved.close()
  assert names(tmp_path) == {"2"}


def test_one_that_was_saved_is_put_aside(tmp_path, capsys):
  """And the run goes on from the one before it."""
  bad = PARTS["trainable/text/a"](make_state(5), 1e30)
  save(tmp_path, make_state(3), bad)
  state, data, step = restore(tmp_path, make_state(0), fault=SOUND)
  assert step == 3 and data == {"next_index": 3}
  checkpoint_test.assert_same(state, make_state(3))
  assert names(tmp_path) == {"3", "corrupt-5"}
  told = capsys.readouterr().err
  assert told.count("warning: ") == 1
  assert "step 5" in told and "holds 1e+30" in told
