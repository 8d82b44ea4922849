"""The table: its numbers against dense attention, and against an evaluation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import looks
import numpy as np
import pytest
import runs

from mmrl import config as config_lib
from mmrl import hub
from mmrl.benchmarks import greedy, runner
from mmrl.crosstable import effects, sides, table
from mmrl.machines import sharding
from mmrl.probes.scores import Scorer


@pytest.mark.full
def test_numbers_are_those_of_dense_attention():
  """Answers of several lengths and one without tokens; no region, no answer."""
  stage = looks.make()
  layout = sharding.on_one(jax.devices()[0])
  counts = np.zeros(stage.mask.shape, bool)
  counts[0, :, 3:9] = counts[1, 0, :2] = True
  found = table.make_measure(stage.scorer(), layout, fraction=0.3)(
    *(stage.params, stage.prompt, stage.tokens, stage.mask, stage.tokens),
    jnp.asarray(counts),
  )
  found = {k: np.asarray(x) for k, x in found.items()}

  # Policies of the last layer: without the token itself, scaled to sum 1.
  rows = np.array(stage.rows[:, :, :, -1])
  start = stage.prompt.tokens.shape[1]
  place = np.arange(rows.shape[2])
  rows[:, :, place, start + place] = 0
  rows /= rows.sum(-1, keepdims=True)
  region = np.asarray(stage.prompt.region, np.float64)
  visual = np.asarray(stage.prompt.visual_index) >= 0
  on_region, on_visual = (
    np.einsum("pgrs,ps->pgr", rows[..., :start], x) for x in (region, visual)
  )
  for p, g in np.ndindex(*stage.mask.shape[:2]):
    own = np.asarray(stage.mask[p, g])
    empty = not own.any()
    for name, values, applies in (
      ("region", on_region, region[p].any()),
      ("region_share", on_region / on_visual, region[p].any()),
      ("visual", on_visual, True),
    ):
      wanted = np.nan
      if applies and not empty:
        wanted = values[p, g][own].mean()
      # float32 softmax against float64 sums of the same maps.
      np.testing.assert_allclose(found[name][p, g], wanted, rtol=2e-5)

  np.testing.assert_allclose(found["target"], targets(stage), rtol=2e-5)
  each = np.asarray(stage.scores(layers=()).logprobs, np.float64)
  wanted = np.where(counts, each, 0).sum(-1)
  wanted[~counts.any(-1)] = np.nan
  np.testing.assert_allclose(found["right"], wanted, rtol=2e-5)


def targets(stage):
  """SAYO's target score R_a = rho^2 / (1 + rho^2), in loops; NaN of nothing."""
  entropies = np.asarray(stage.scores(layers=()).entropies, np.float64)
  found = np.full(stage.mask.shape[:2], np.nan)
  for p, g in np.ndindex(*found.shape):
    candidates = range(int(stage.mask[p, g].sum()) - 1)
    marked = np.flatnonzero(np.asarray(stage.prompt.region[p]) > 0)
    visual = np.flatnonzero(np.asarray(stage.prompt.visual_index[p]) >= 0)
    if not candidates or not marked.size:
      continue
    uncertain = sorted(candidates, key=lambda t: -entropies[p, g, t])
    chosen = uncertain[: max(1, 3 * len(uncertain) // 10)]
    region, whole = (
      np.mean([stage.rows[p, g, t, -1, i] for t in chosen for i in kind])
      for kind in (marked, visual)
    )
    rho = (region + 1e-8) / (whole + 1e-8)
    found[p, g] = rho**2 / (1 + rho**2)
  return found


@pytest.fixture(scope="module")
def shaken(tmp_path_factory):
  """The tiny model with other weights."""
  model = hub.load("tiny")
  params = jax.tree.map(lambda x: x * 1.1, model.params)
  path = tmp_path_factory.mktemp("models") / "shaken"
  hub.save(hub.Model(model.config, params, model.processor), path)
  return path


@pytest.fixture(scope="module")
def config():
  found = config_lib.get_config()
  found.evaluation.benchmarks.test.questions = 24
  found.rewards.target = {"name": "target_attention", "weight": 0.0}
  return found


@pytest.fixture(scope="module")
def greedy_table(shaken, config):
  """Greedy texts, which an evaluation also has; read in batches of 9, 9, 6."""
  with config.unlocked():
    config.evaluation.batch = 18
  return table.make(
    sides.find("tiny"),
    sides.find(str(shaken)),
    config,
    table.Settings(questions=0, temperature=0.0),
  )


@pytest.mark.full
def test_a_models_own_cell_is_its_evaluation(greedy_table, config, shaken):
  found = greedy_table.metrics["region_share"]
  assert found.questions == greedy_table.asked == 24
  model = hub.load("tiny")
  scorer = Scorer(
    dataclasses.replace(model.config, remat=False), 1.0, (-1,), "self"
  )
  layout = sharding.on_one(jax.devices()[0])
  answer = greedy.make_answer(scorer, 10, layout)
  for path, cell in (("tiny", "aa"), (shaken, "bb")):
    model = hub.load(path)
    result = runner.evaluate(
      runner.build_benchmarks(config.evaluation.to_dict())["test"],
      answer,
      model.params,
      model.processor,
      layout,
      train=None,
      batch=24,
      length=10,
      shown=0,
      lengths=(40,),
      patches=(64,),
    )
    # The same programs but for their batch: float32 sums of 40 numbers.
    wanted = result.numbers["attention/region"]
    assert found.cells[cell].value == pytest.approx(wanted.value, rel=1e-4)
    assert found.cells[cell].low == pytest.approx(wanted.low, rel=1e-4)


@pytest.mark.full
def test_every_number_is_there(greedy_table):
  assert set(greedy_table.metrics) == set(table.TITLES)
  for one in greedy_table.metrics.values():
    assert len({round(x.value, 6) for x in one.cells.values()}) >= 3
  assert greedy_table.metrics["right"].cells["aa"].high < 0


@pytest.mark.full
def test_a_model_beside_itself_changes_nothing(tmp_path):
  """By the command, with texts that are sampled; two of each model's."""
  found = runs.command(
    *("mmrl.crosstable", "tiny", "tiny", "--questions=5", "--answers=2"),
    "--config=experiments/quickstart.py",
    f"--output={tmp_path}",
  )
  assert found.returncode == 0, found.stderr
  assert found.stdout == (tmp_path / "crosstable.md").read_text()
  raw = json.loads((tmp_path / "crosstable.json").read_text())
  assert raw["asked"] == 5 and raw["settings"]["benchmark"] == "test"
  # No reward of the quick start reads SAYO's score.
  assert set(raw["metrics"]) == {*table.TITLES} - {"target"}
  for one in raw["metrics"].values():
    assert set(one["cells"]) == set(effects.CELLS)
    assert all(x == one["cells"]["aa"] for x in one["cells"].values())
    assert all(x["value"] == 0 for x in one["effects"].values())
