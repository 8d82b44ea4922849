"""The attention term's share of the gradient: measured, and predicted.

  python -m experiments.attention_share --output docs/attention_share.png

From the tiny model and one rollout batch of easy-VQA, RAL is updated several
times, each time on another minibatch, by SGD and by Adam at several learning
rates. Before each update it measures what share of the last minibatch's
gradient the attention term has, at weight 1. Predicted is that share to first
order, from the gradients at theta_old alone: see docs/attention_term.md. Prints
a line of JSON per update, and draws a plot. Takes about two minutes on two CPU
cores.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

from experiments import arguments
from mmrl.errors import UserError, not_installed

UPDATES = 8
# Those that are drawn: updates that were made before.
SHOWN = (1, 3, 7)
RATES: Mapping[str, Sequence[float]] = {
  "sgd": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
  "adam": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
}
TERMS = ("policy", "attention")


class Row(NamedTuple):
  """What is measured after some updates.

  Attributes:
    optimizer, rate, updates: how far the policy has moved.
    share, predicted: of the gradient's norms, in [0, 1].
    divergence, predicted_divergence: the attention term's value: the mean of
      A JSD, nats.
  """

  optimizer: str
  rate: float
  updates: int
  share: float
  predicted: float
  divergence: float
  predicted_divergence: float


def make_config(prompts: int, answers: int):
  """The quick start without evaluation, of one batch."""
  from experiments import quickstart

  config = quickstart.get_config()
  config.rollout.update(prompts=prompts, answers=answers)
  config.train.minibatches = 1
  config.evaluation.benchmarks = {}
  config.compilation_cache = ""
  return config


class Measure:
  """A run's terms at the parameters of its first step, and near them.

  Attributes:
    start: theta_old, the trainable parameters.
    last: number of the minibatch that shares are measured on.
  """

  def __init__(self, config: Any, minibatches: int = UPDATES):
    """Samples one batch of answers.

    Raises:
      UserError: if no group of the last minibatch has advantages.
    """
    from concurrent import futures

    import jax

    from mmrl.train import collect, loop
    from mmrl.train import run as run_lib

    self._run = run_lib.build_run(config, jax.devices()[:1])
    state = self._run.initial_state()
    self.start, self._frozen = state.trainable, state.frozen
    questions = loop.read_questions(self._run)
    with futures.ThreadPoolExecutor(1) as pool:
      self._batch, _ = collect.collect(
        self._run, state, next(questions), 1, pool, lambda: next(questions)
      )
    questions.close()
    self.last = minibatches - 1
    each = self._batch.fields["advantages"].reshape(minibatches, -1)
    if not each[self.last].any():
      raise UserError(
        "--answers: expected groups with right and wrong answers, found none in"
        f" the last minibatch of {len(each[0])}; raise it, or change --seed"
      )
    self._gradients = jax.jit(self._of_both)
    self._bent = jax.jit(self._of_drift)

  def gradients(self, trainable: Any, number: int) -> dict[str, tuple]:
    """Returns value and gradient of each term on a minibatch, at weight 1."""
    return self._gradients(trainable, self._frozen, self._batch, number)

  def bent(self, drift: Any) -> Any:
    """Returns the Hessian of the attention term at theta_old times a drift."""
    return self._bent(self.start, drift, self._frozen, self._batch, self.last)

  def _loss(self, name, trainable, frozen, batch, number):
    from mmrl.models import parameters
    from mmrl.train import objective, step

    run = self._run
    batch = run.layout.cut(batch, self.last + 1, number)
    (term,) = (x for x in run.method.terms if x.name == name)
    loss = step.make_loss(
      run.scorer, (dataclasses.replace(term, weight=1.0),), ()
    )
    coefficients = objective.reduction_coefficients(
      (term,), batch.mask, batch.fields
    )
    return loss(parameters.merge(trainable, frozen), batch, coefficients)[0]

  def _of_both(self, trainable, *rest):
    import jax

    def one(name):
      return jax.value_and_grad(lambda x: self._loss(name, x, *rest))

    return {name: one(name)(trainable) for name in TERMS}

  def _of_drift(self, start, drift, *rest):
    import jax

    gradient = jax.grad(lambda x: self._loss("attention", x, *rest))
    return jax.jvp(gradient, (start,), (drift,))[1]


def predict(measure: Measure, name: str) -> list[tuple[float, float, float]]:
  """Predicts from the gradients at theta_old, at a learning rate of 1.

  The optimiser is given these, minibatch by minibatch, and its updates are
  added up: that is the drift to first order, which is linear in the rate.

  Returns:
    Before each update: the norms of the policy's and of the attention term's
    gradient, and the attention term.
  """
  import jax
  import jax.numpy as jnp
  import optax

  optimizer = _optimizer(name, 1.0)
  start = measure.start
  drift, state = jax.tree.map(jnp.zeros_like, start), optimizer.init(start)
  policy = optax.tree.norm(measure.gradients(start, measure.last)["policy"][1])
  found = []
  for number in range(measure.last + 1):
    bent = measure.bent(drift)
    half = optax.tree.vdot(drift, bent) / 2
    found.append((float(policy), float(optax.tree.norm(bent)), float(half)))
    gradient = measure.gradients(start, number)["policy"][1]
    change, state = optimizer.update(gradient, state, start)
    drift = jax.tree.map(jnp.add, drift, change)
  return found


def rows(
  measure: Measure,
  name: str,
  rate: float,
  predicted: Sequence[tuple[float, float, float]],
) -> list[Row]:
  """Updates from theta_old, one a minibatch, and what is before each."""
  import jax
  import jax.numpy as jnp
  import optax

  optimizer = _optimizer(name, rate)
  now, state = measure.start, optimizer.init(measure.start)
  found = []
  for number, (policy, attention, term) in enumerate(predicted):
    there = measure.gradients(now, measure.last)
    norms = [float(optax.tree.norm(there[one][1])) for one in TERMS]
    found.append(
      Row(
        optimizer=name,
        rate=rate,
        updates=number,
        share=norms[1] / sum(norms),
        predicted=rate * attention / (policy + rate * attention),
        divergence=float(there["attention"][0]),
        predicted_divergence=rate**2 * term,
      )
    )
    own = measure.gradients(now, number)
    whole = jax.tree.map(jnp.add, *(own[one][1] for one in TERMS))
    change, state = optimizer.update(whole, state, now)
    now = optax.apply_updates(now, change)
  return found


def _optimizer(name: str, rate: float) -> Any:
  """Makes the optimiser of optax of that name, with its defaults."""
  import optax

  return getattr(optax, name)(rate)


def draw(found: Sequence[Row], path: pathlib.Path) -> None:
  """Draws shares against learning rates: dots measured, lines predicted."""
  try:
    import matplotlib
  except ImportError as error:
    raise not_installed("the package matplotlib", "notebooks") from error
  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.4), sharey=True)
  for axis, (name, title) in zip(
    axes, (("sgd", "SGD"), ("adam", "Adam")), strict=True
  ):
    for number, colour in zip(
      SHOWN, ("#2458c5", "#c5572b", "#3a8f4f"), strict=True
    ):
      own = [x for x in found if (x.optimizer, x.updates) == (name, number)]
      rates = [x.rate for x in own]
      axis.plot(rates, [100 * x.predicted for x in own], "-", color=colour)
      axis.plot(
        rates,
        [100 * x.share for x in own],
        "o",
        color=colour,
        label=f"after {number} update{'s' * (number > 1)}",
      )
    axis.set(title=title, xlabel="learning rate", xscale="log", yscale="log")
    axis.grid(alpha=0.3)
  axes[0].set_ylabel("attention term, % of the gradient")
  axes[0].legend(
    title="dots measured, lines predicted",
    loc="upper left",
    fontsize=7,
    title_fontsize=7,
  )
  figure.tight_layout()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=80)


def main() -> None:
  """Measures, prints and draws."""
  parser = arguments.Parser(__doc__)
  parser.add_output("PNG to draw", arguments.output_file)
  parser.add_argument("--seed", type=int, default=0, help="of the answers")
  parser.add_argument("--answers", type=int, default=16, help="to each prompt")
  flags = parser.parse()
  config = make_config(8 * UPDATES, flags.answers)
  config.seed = flags.seed
  measure, found = Measure(config), []
  for name, rates in RATES.items():
    predicted = predict(measure, name)
    for rate in rates:
      found += rows(measure, name, rate, predicted)
      for row in found[-UPDATES:]:
        print(json.dumps(row._asdict()), flush=True)
  draw(found, flags.output)


if __name__ == "__main__":
  arguments.run(main)
