"""Training of the diffusion model of shapes: a loop that can be stopped."""

import contextlib
import functools
import json
import time
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import ml_collections
import numpy as np
import optax
import safetensors.numpy

from mmrl import config as config_lib
from mmrl import console, storage
from mmrl.diffusion import config as defaults
from mmrl.diffusion import ddim, shapes
from mmrl.diffusion.network import unet
from mmrl.diffusion.network.unet import Params, UNetConfig
from mmrl.errors import UserError, say
from mmrl.machines import compilation, signals
from mmrl.types import PyTree, pytree
from mmrl.workdir import checkpoint, claim, lock, sound
from mmrl.workdir import log as log_lib
from mmrl.worlds.palette import check_number

_WEIGHTS, _SIZES = "model.safetensors", "config.json"


@pytree
class State:
  """State of a run, in the parts that a checkpoint has.

  Attributes:
    step: number of updates done.
    trainable: parameters.
    frozen, running, norms: empty; other trainers have some.
    optimizer: optimiser state.
    averages: the average of parameters, "model".
  """

  step: Int[Array, ""]
  trainable: Params
  frozen: dict[str, Any]
  optimizer: PyTree
  running: dict[str, Any]
  averages: dict[str, Params]
  norms: dict[str, Any]


def check(config: ml_collections.ConfigDict) -> UNetConfig:
  """Checks all fields, and returns the model's sizes.

  Raises:
    UserError: naming the field that is wrong, is missing or isn't one.
  """
  config_lib.check_table(config.to_dict(), defaults.get_config().to_dict(), "")
  train = config.train
  for name, low, high in (
    *(("steps", 1, 10**7), ("batch", 1, 10**5), ("warmup", 0, 10**7)),
    *(("decay", 1, 10**7), ("dropped", 0.0, 1.0), ("rate", 1e-9, 1.0)),
    *(("clip_norm", 1e-9, 1e9), ("average", 0.0, 1.0)),
  ):
    check_number(f"config.train.{name}", train[name], low, high)
  check_number("config.every", config.every, 1, 10**7)
  check_number("config.checkpoint.keep", config.checkpoint.keep, 1, 10**7)
  for name, steps in (
    ("checkpoint.every", config.checkpoint.every),
    ("train.steps", train.steps),
  ):
    if steps < 1 or steps % config.every:
      raise UserError(
        f"config.{name}: expected a multiple of config.every, {config.every},"
        f" found {steps}"
      )
  if train.decay <= train.warmup:
    raise UserError(
      f"config.train.decay: expected more than config.train.warmup,"
      f" {train.warmup}, found {train.decay}"
    )
  try:
    return model_config(config.model.to_dict())
  except UserError as error:
    raise UserError(f"config.{error}") from error


def model_config(fields: dict) -> UNetConfig:
  """Makes the sizes of the model of shapes from fields of a config."""
  lists = {
    k: tuple(v) for k, v in fields.items() if isinstance(v, list | tuple)
  }
  return UNetConfig(**(fields | lists), words=len(shapes.WORDS))


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
  """Trains a model, and writes the average of its parameters.

  Args:
    config: see `mmrl.diffusion.config`.
    workdir: directory of all outputs: config.json, metrics.jsonl, checkpoints/
      and model/.

  Returns:
    What was logged last.

  Raises:
    UserError: for a mistake in the config, or if something can't be written.
    Preempted: if SIGTERM or ctrl-C asked the run to stop.
  """
  model, path = check(config), storage.path(workdir)
  with contextlib.ExitStack() as stack:
    termination = stack.enter_context(signals.Termination())
    stack.enter_context(lock.hold(path))
    claim.check(path, config)
    stack.enter_context(console.Console())
    compilation.keep_programs(config.compilation_cache)
    claim.claim(path, config)
    state, values = _train(config, model, path, termination)
    save(state.averages["model"], config.model.to_dict(), path / "model")
  return values


def _train(
  config: ml_collections.ConfigDict,
  model: UNetConfig,
  path: epath.Path,
  termination: signals.Termination,
) -> tuple[State, dict[str, float]]:
  state = begin(config, model)
  checkpoints = checkpoint.Checkpoints(
    path, keep=config.checkpoint.keep, fault=sound.Soundness(vars(state))
  )
  if checkpoints.latest is not None:
    state, _ = checkpoints.restore(state)
    say(f"resuming {path} after step {int(state.step)}")
  first, last = int(state.step), config.train.steps
  log, saved = log_lib.Log(path, step=first), first
  values: dict[str, float] = {}
  advance = updates(config, model)
  try:
    with console.steps(first, last) as progress:
      for step in range(first + config.every, last + 1, config.every):
        termination.in_step = True
        began = time.perf_counter()
        with console.doing("updating the parameters"):
          state, measured = advance(state)
          values = log_lib.floats(measured)
        sound.require_finite(values, step, config.every, saved)
        seconds = time.perf_counter() - began
        log.write(step, values | {"time/step": seconds / config.every})
        if progress:
          progress.end(step, seconds / config.every, f"{values['loss']:.4f}")
        stop = termination.asked > 0
        if stop or step == last or step % config.checkpoint.every == 0:
          log.flush()
          checkpoints.save(state, {})
          saved = step
        if stop:
          termination.leave(step)
        termination.in_step = False
  finally:
    log.close()
    checkpoints.wait()
    checkpoints.close()
  return state, values


def _optimizer(
  config: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
  train = config.train
  rate = optax.warmup_cosine_decay_schedule(
    0.0, train.rate, train.warmup, train.decay
  )
  return optax.chain(
    optax.clip_by_global_norm(train.clip_norm), optax.adam(rate)
  )


def begin(config: ml_collections.ConfigDict, model: UNetConfig) -> State:
  """Makes the state of step 0."""

  # One program: operation by operation there is one for each shape.
  @jax.jit
  def state(key: Array) -> State:
    params = unet.init(key, model)
    return State(
      step=jnp.int32(0),
      trainable=params,
      frozen={},
      optimizer=_optimizer(config).init(params),
      running={},
      averages={"model": jax.tree.map(jnp.copy, params)},
      norms={},
    )

  return state(jax.random.key(config.seed))


def updates(config: ml_collections.ConfigDict, model: UNetConfig):
  """Makes the program of `config.every` updates, which gives metrics, too."""
  settings, optimizer = config.train, _optimizer(config)
  signal = jnp.asarray(ddim.signals(), jnp.float32)

  def loss(params: Params, key: Array) -> Array:
    keys = jax.random.split(key, 4)
    drawn = shapes.draw(keys[0], settings.batch, model.size)
    time = jax.random.randint(keys[1], (settings.batch,), 0, ddim.TIMES)
    noise = jax.random.normal(keys[2], drawn.pictures.shape)
    kept = jax.random.uniform(keys[3], (settings.batch, 1)) >= settings.dropped
    share = signal[time][:, None, None, None]
    noisy = jnp.sqrt(share) * drawn.pictures + jnp.sqrt(1 - share) * noise
    words = drawn.words * kept
    found = unet.noise(params, model, noisy, time, drawn.masks, words)
    return jnp.square(found - noise).mean()

  def update(state: State, _) -> tuple[State, dict[str, Array]]:
    key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
    value, grads = jax.value_and_grad(loss)(state.trainable, key)
    changes, optimizer_state = optimizer.update(grads, state.optimizer)
    params = optax.apply_updates(state.trainable, changes)
    # An average that is young forgets faster.
    decay = jnp.minimum(settings.average, (1 + state.step) / (10 + state.step))
    average = jax.tree.map(
      lambda a, b: decay * a + (1 - decay) * b, state.averages["model"], params
    )
    new = State(
      step=state.step + 1,
      trainable=params,
      frozen={},
      optimizer=optimizer_state,
      running={},
      averages={"model": average},
      norms={},
    )
    return new, {"loss": value, "gradient_norm": optax.tree.norm(grads)}

  @functools.partial(jax.jit, donate_argnums=0)
  def advance(state: State) -> tuple[State, dict[str, Array]]:
    state, values = jax.lax.scan(update, state, length=config.every)
    return state, jax.tree.map(jnp.mean, values)

  return advance


def save(params: Params, sizes: dict[str, Any], folder: storage.Name) -> None:
  """Writes a model: its parameters, in names of diffusers, and its sizes.

  Raises:
    UserError: if it can't be written.
  """
  path = storage.path(folder)
  flat = {
    f"{part}.{name}": np.ascontiguousarray(value)
    for part, values in jax.device_get(params).items()
    for name, value in values.items()
  }
  storage.write_bytes(path / _WEIGHTS, safetensors.numpy.save(flat))
  storage.write_text(path / _SIZES, json.dumps(sizes, indent=2) + "\n")


def load(folder: storage.Name) -> tuple[UNetConfig, Params]:
  """Reads a model that `train` has written.

  Args:
    folder: of the model; `model` of a run's working directory.

  Raises:
    UserError: if there is none, or its files don't fit each other.
  """
  path = storage.path(folder)
  try:
    sizes = json.loads(storage.read_text(path / _SIZES))
    flat = safetensors.numpy.load(storage.read_bytes(path / _WEIGHTS))
    config = model_config(sizes)
  except (
    *(OSError, ValueError, TypeError, AttributeError),
    safetensors.SafetensorError,
  ) as error:
    raise UserError(
      f"expected a model of mmrl.diffusion.train at {path}, found:"
      f" {' '.join(str(error).split()):.200}; name the folder `model` of its"
      " --workdir"
    ) from error
  params: Params = {"unet": {}, "control": {}, "words": {}}
  for name, value in flat.items():
    part, _, rest = name.partition(".")
    params.setdefault(part, {})[rest] = jnp.asarray(value)
  wanted = jax.eval_shape(lambda: unet.init(jax.random.key(0), config))
  shape = functools.partial(jax.tree.map, jnp.shape)
  if shape(params) != shape(wanted):
    raise UserError(
      f"{path}: expected the parameters of the sizes in {_SIZES}, found others;"
      " put the two files of one run there"
    )
  return config, params
