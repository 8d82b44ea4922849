"""A tiny policy without eyes learns by GRPO how often to look, then to answer.

  python -m experiments.look_then_answer --output runs/looks

It reads what colours two or three shapes of a scene have, never the picture. It
may ask for one shape at a time, `<look>star</look>`; the scene's eye replies,
`<seen>red</seen>` (`mmrl.rollouts.turns`), and after looking it answers. First
it learns from texts that look at all that is asked for, and up to two more
times; then by GRPO with a reward of 1 for a right answer, less --cost for each
look. Replies are nothing to learn in GRPO: `token_weights.own_tokens`.

Of the policy's answers it prints how often they look, `reward/looks`, how often
they look exactly as often as shapes are asked for, `reward/as_needed`, and how
often they are right, `reward/accuracy`: means over the first and the last
tenth of the steps of GRPO. A command that was stopped goes on where it was.

It hasn't been run at these sizes yet: no result is known.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
import typing

from experiments import arguments, sft, stages, tiny_model
from mmrl.errors import UserError
from mmrl.worlds.scenes.things import SHAPES

if typing.TYPE_CHECKING:
  import ml_collections

_FILE = str(pathlib.Path(__file__).resolve())
_NUMBERS = ("looks", "as_needed", "accuracy")


class Questions:
  """Questions for the colours of two or three shapes, as text alone."""

  def __init__(self, *, count: int, more: int, seed: int = 0):
    """Opens the scenes.

    Args:
      count: number of questions.
      more: most looks that a text has beside those that are needed.
      seed: of the scenes.
    """
    from mmrl import data

    self._scenes = [
      data.Scenes(
        split="train", count=count, kinds=["read_two"], reads=n, seed=seed
      )
      for n in (2, 3)
    ]
    self._count, self._more, self._seed = count, more, seed

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int):
    from mmrl.rollouts.turns.environments import scene_eye
    from mmrl.worlds.draws import Draws

    example = self._scenes[index % 2][index]
    draws = Draws(self._seed, index, 77)
    shapes = [*example.extra["question"].about]
    looks = shapes + [
      draws.pick(shapes) for _ in range(draws.between(0, self._more))
    ]
    told = [
      f"<look>{one}</look><seen>{scene_eye(example, one)}</seen>"
      for one in looks
    ]
    text = f"{''.join(told)}<answer>{example.answer}</answer>"
    messages = [{"role": "user", "content": example.question}]
    return dataclasses.replace(example, messages=messages, answers=(text,))

  def pairs(self) -> Iterator[tuple[str, str]]:
    return ((one.question, one.answer) for one in map(self.__getitem__, self))

  def given(self) -> Iterator[tuple[str, Sequence[str]]]:
    return ((one.name, one.answers) for one in map(self.__getitem__, self))

  def __iter__(self) -> Iterator[int]:
    return iter(range(self._count))


def looks(text) -> list[list[float]]:
  """How often an answer looks."""
  return [[float(one.count("</look>")) for one in group] for group in text]


def as_needed(text, example) -> list[list[float]]:
  """Whether an answer looks once at all that is asked for, and at nothing else.

  Each shape is counted, whatever the order.
  """
  found = []
  for group, one in zip(text, example, strict=True):
    wanted = sorted(one.extra["question"].about)
    asked = [
      [part.partition("</look>")[0] for part in answer.split("<look>")[1:]]
      for answer in group
    ]
    found.append([float(sorted(shapes) == wanted) for shapes in asked])
  return found


def configs(flags) -> dict[str, "ml_collections.ConfigDict"]:
  """The configs of both stages."""
  return {"taught": _taught(flags), "grpo": _grpo(flags)}


def _base(seed: int) -> "ml_collections.ConfigDict":
  from mmrl import config as config_lib

  config = config_lib.get_config()
  config.seed = seed
  config.data.train = {
    "name": f"{_FILE}:Questions",
    "count": 4000,
    "more": 2,
    "seed": seed,
  }
  config.data.lengths, config.data.patches = (), ()
  config.models.policy.remat = False
  config.evaluation.benchmarks = {}
  config.frozen = ("vision/.*",)
  config.optimizer.weight_decay = 0.0
  config.shares.every = 0
  return config


def _taught(flags) -> "ml_collections.ConfigDict":
  config = _base(flags.seed)
  sft.learn_texts(config, prompts=32, length=128)
  config.train.steps = flags.taught
  sft.warm_up(config, 2e-3, steps=min(30, flags.taught - 1))
  return config


def _grpo(flags) -> "ml_collections.ConfigDict":
  config = _base(flags.seed)
  config.rollout = {
    "name": "conversed",
    "environment": {"name": "scene_eye"},
    "replies": 5,
    "prompts": 16,
    "answers": 8,
    "length": 128,
    "mask_truncated": False,
  }
  config.rewards = {
    "accuracy": {"name": "exact_answer", "weight": 1.0},
    "looks": {"name": f"{_FILE}:looks", "weight": -flags.cost},
    "as_needed": {"name": f"{_FILE}:as_needed", "weight": 0.0},
  }
  config.token_weights = {"own": {"name": "own_tokens"}}
  config.losses = {
    "policy": {
      "name": "clipped_ratio",
      "weight": 1.0,
      "reduce": "token_mean",
    }
  }
  config.train.steps = flags.steps
  config.schedule.value = 2e-4
  return config


def begin(path: pathlib.Path, seed: int) -> None:
  """Writes a model with random parameters and a tokenizer of the texts."""
  import jax

  from mmrl import hub
  from mmrl.prompts.processor import Processor

  source = Questions(count=1000, more=2, seed=seed)
  texts = [text for pair in source.pairs() for text in pair]
  texts += [text for _, found in source.given() for text in found]
  texts += [*SHAPES] + 30 * ["system", "user", "assistant\n"]
  tags = [f"<{end}{tag}>" for tag in ("look", "seen") for end in ("", "/")]
  tokenizer = tiny_model.build_tokenizer(texts, 400, tags)
  config = tiny_model.build_config(tokenizer, len(tokenizer))
  params = tiny_model.init(jax.random.key(seed), config)
  shipped = hub.load("tiny").processor
  processor = Processor(tokenizer, config, shipped.picture, shipped.video)
  hub.save(hub.Model(config, params, processor), path)


def summary(workdir: pathlib.Path) -> str:
  """A table of the policy's looks and answers as GRPO begins and ends."""
  from mmrl.workdir import log

  rows = [row for row in log.read(workdir) if "reward/looks" in row]
  tenth = max(1, len(rows) // 10)
  lines = [f"| steps | {' | '.join(_NUMBERS)} |", "|---|---|---|---|"]
  for name, part in (("first", rows[:tenth]), ("last", rows[-tenth:])):
    means = [
      sum(row[f"reward/{number}"] for row in part) / len(part)
      for number in _NUMBERS
    ]
    cells = " | ".join(f"{mean:.2f}" for mean in means)
    lines.append(f"| {name} {len(part)} | {cells} |")
  return "\n".join(lines)


def main() -> None:
  """Runs both stages, and prints the table."""
  parser = arguments.Parser(__doc__)
  parser.add_output("folder of both stages")
  parser.add_argument("--taught", type=int, default=600, help="steps of texts")
  parser.add_argument("--steps", type=int, default=60, help="steps of GRPO")
  parser.add_argument("--cost", type=float, default=0.1, help="of a look")
  parser.add_argument("--seed", type=int, default=0, help="of all")
  flags = parser.parse()
  if flags.taught < 2 or flags.steps < 1 or not flags.cost >= 0:
    raise UserError(
      "expected --taught of at least 2, --steps of at least 1 and --cost of at"
      f" least 0, found {flags.taught}, {flags.steps} and {flags.cost}"
    )
  model = flags.output / "begin"
  if not (model / "config.json").exists():
    begin(model, flags.seed)
  found = configs(flags)
  found["taught"].models.policy.path = str(model)
  stages.run(found, flags.output)
  print(summary(flags.output / "grpo"))


if __name__ == "__main__":
  arguments.run(main)
