"""Programs that are compiled ahead: a run finds them, and they are its own."""

import concurrent.futures

import jax
import pytest
import small_models

from mmrl import config as config_lib
from mmrl.machines import compilation
from mmrl.train import collect, loop, walk
from mmrl.train import run as run_lib


@pytest.fixture
def compiled():
  """Names of the programs that were compiled since, in order."""
  names = []

  def listen(event, seconds, **about):
    del seconds
    if event == compilation.EVENT:
      names.append(compilation.name_of(about))

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield names
  jax.monitoring.unregister_event_duration_listener(listen)


def make_run(devices=1, **mesh):
  config = config_lib.get_config()
  config.rollout.update(prompts=8, answers=4, length=6)
  config.losses.kl.weight = 1.0
  config.compilation_cache = ""
  config.mesh.update(mesh)
  return run_lib.build_run(config, jax.devices()[:devices])


def step(run, state, compiling):
  questions = loop.read_questions(run)
  samples = next(questions)
  questions.close()
  compiling.wait(samples.prompt, shares=True)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    batch, values = collect.collect(
      run, state, samples, 1, pool, small_models.no_more
    )
  return loop.learn(run, state, batch, values, 1, 0)


PROGRAMS = {"rollout", "probe", "prepare", "update", "shares"}


def check(run, compiled):
  """Everything is compiled once, before the step."""
  state = run.initial_state()
  compiled.clear()
  with walk.ahead(run) as compiling:
    compiling.wait(shares=True)
    assert set(compiled) & PROGRAMS == PROGRAMS
    compiled.clear()
    step(run, state, compiling)
  assert not PROGRAMS & set(compiled)


@pytest.mark.full
def test_a_step_finds_its_programs(compiled):
  check(make_run(), compiled)


@pytest.mark.full
def test_a_step_on_a_mesh_finds_its_programs(compiled):
  check(make_run(8, data=2, fsdp=2, tensor=2), compiled)


@pytest.mark.full
def test_programs_are_left_out_after_the_end(compiled):
  """What hasn't begun when a run ends isn't compiled."""
  run = make_run()
  with walk.ahead(run):
    compiled.clear()
  # That which was being compiled, at most.
  assert len(PROGRAMS & set(compiled)) <= 1
