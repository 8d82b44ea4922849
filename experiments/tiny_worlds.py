"""Makes small Qwen2.5-VL models of the worlds of `mmrl.worlds`.

  python -m experiments.tiny_worlds --world scenes --output runs/scenes

The output then has the model that ships with the library with a tokenizer of
the world's words, and a run for each stage of supervised learning, which starts
from the model that the one before has written:

  scenes    describe   "What is in the picture?", answered without a thought
            questions  what colour or shape a thing is, whether it is there,
                       what is beside it, answered with a short thought
  kitchens  questions  all kinds, a second between frames, with a chain
  figures   faults     which faults a frame has, with a chain

OUTPUT/STAGE/model is a stage's model. A command that was stopped goes on where
it was. No network.
"""

from collections.abc import Iterator
import dataclasses
import json
import pathlib
import re
import typing

from experiments import arguments, sft, stages, tiny_model
from mmrl.worlds.scenes.scene import COLOURS
from mmrl.worlds.scenes.things import SHAPES

if typing.TYPE_CHECKING:
  import ml_collections

_VOCABULARY = 640  # tokens at most
OBJECTS = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]


@dataclasses.dataclass(frozen=True)
class Stage:
  """Supervised learning of a world.

  Attributes:
    data: options of the source.
    splits: that it is tested on, by the names of benchmarks.
    lengths, patches: buckets of prompts.
    length: most tokens of an answer.
    count: items of the split "train".
    batch, steps, peak: prompts of a step, steps, highest learning rate.
    skip_long: whether some items are too long.
    words: other options of the source for the texts that make the tokenizer.
  """

  data: dict
  splits: dict[str, str]
  lengths: tuple[int, ...]
  patches: tuple[int, ...]
  length: int
  count: int
  batch: int
  steps: int
  peak: float = 2e-3
  skip_long: bool = False
  words: dict = dataclasses.field(default_factory=dict)


_SCENES = {"test": "test", "novel": "novel"}
# About one or two of the things in a picture.
KINDS = ("attribute", "exists", "relation")
# The tokenizer has the words of these, too, for further training.
_ONE_PICTURE = (
  *("attribute", "exists", "count", "relation"),
  *("compare", "arithmetic", "read_two"),
)
STAGES: dict[str, dict[str, Stage]] = {
  "scenes": {
    "describe": Stage(
      {"name": "Scenes", "kinds": ("describe",), "thoughts": ("direct",)},
      _SCENES,
      (72,),
      (196,),
      length=32,
      count=100_000,
      batch=32,
      steps=1200,
    ),
    "questions": Stage(
      {"name": "Scenes", "kinds": KINDS, "thoughts": ("short",)},
      _SCENES,
      (80,),
      (196,),
      length=80,
      count=60_000,
      batch=32,
      steps=1200,
      words={"kinds": _ONE_PICTURE},
    ),
  },
  "kitchens": {
    "questions": Stage(
      {"name": "Kitchens", "fps": 1.0, "thoughts": True},
      {"L1": "L1", "L2": "L2", "L3": "L3"},
      (512, 864),
      (4 * 448, 4 * 784),
      length=144,
      count=5_000,
      batch=8,
      steps=300,
      skip_long=True,
    ),
  },
  "figures": {
    "faults": Stage(
      {"name": "Figures", "thoughts": True},
      {"test": "test", "novel": "novel"},
      (136,),
      (196,),
      length=80,
      count=20_000,
      batch=32,
      steps=400,
    ),
  },
}


def labels(text, answer) -> list[list[float]]:
  """1 where a frame's faults are named, all of them and no other, else 0."""
  return [
    [float(_labels(one) == _labels(right)) for one in row]
    for row, right in zip(text, answer, strict=True)
  ]


def _labels(text: str) -> set[str] | None:
  """Returns the labels of the last JSON object; None where there are none."""
  found = re.findall(r'\{"labels": \[[^\]{}]*\][^{}]*\}', text)
  try:
    return {*json.loads(found[-1])["labels"]} if found else None
  except (ValueError, TypeError):
    return None


def configs_of(world: str) -> dict[str, "ml_collections.ConfigDict"]:
  """The configs of a world's stages, in order."""
  return {name: _config(stage) for name, stage in STAGES[world].items()}


def _config(stage: Stage) -> "ml_collections.ConfigDict":
  """The config of a stage; its model is set by who runs it."""
  config = sft.get_config()
  config.models.policy.remat = False
  config.data.train = stage.data | {"split": "train", "count": stage.count}
  config.data.lengths, config.data.patches = stage.lengths, stage.patches
  config.data.skip_long = stage.skip_long
  config.rollout.prompts = stage.batch
  config.rollout.length = stage.length
  config.frozen = ()
  config.optimizer.weight_decay = 0.0
  config.train.steps = stage.steps
  config.checkpoint.every = 100
  sft.warm_up(config, stage.peak, steps=30)
  config.schedule.end_value = stage.peak / 20
  config.evaluation.batch = 100
  config.evaluation.benchmarks = {
    name: _benchmark(stage, split) for name, split in stage.splits.items()
  }
  return config


def _benchmark(stage: Stage, split: str) -> dict:
  """The spec of 500 held-out items."""
  data = {key: x for key, x in stage.data.items() if key != "thoughts"}
  data |= {"split": split, "count": 500}
  if data.get("kinds") == ("describe",):
    return {"name": "objects", "data": data, "objects": OBJECTS}
  right = {"name": "exact_answer"}
  if data["name"] == "Figures":
    right = {"name": f"{pathlib.Path(__file__).resolve()}:labels"}
  return {
    "name": "questions",
    "data": data,
    "questions": 0,
    "scores": {"accuracy": right},
  }


def _texts(world: str) -> Iterator[str]:
  """What a tokenizer is made from: questions, answers and the chat's words."""
  from mmrl import build, data

  for stage in STAGES[world].values():
    spec = stage.data | stage.words | {"split": "train", "count": 3000}
    source = build.construct(data.sources, spec, world)
    yield from (text for pair in source.pairs() for text in pair)
    yield from (text for _, texts in source.given() for text in texts)
  yield from 30 * ["system", "user", "assistant\n"]


def write_model(path: pathlib.Path, texts: list[str], seed: int) -> None:
  """Writes the shipped model with a tokenizer of the words of some texts.

  Tokens that both tokenizers have keep their embeddings, others are random.
  """
  import jax
  import numpy as np

  from mmrl import hub
  from mmrl.prompts.processor import Processor

  shipped = hub.load("tiny")
  old = shipped.processor.tokenizer.get_vocab()
  tokenizer = tiny_model.build_tokenizer(texts, _VOCABULARY)
  config = tiny_model.build_config(tokenizer, len(tokenizer))
  params = tiny_model.init(jax.random.key(seed), config)
  table = np.array(params["text"]["embed"]["embedding"])
  known = shipped.params["text"]["embed"]["embedding"]
  for token, place in tokenizer.get_vocab().items():
    if token in old:
      table[place] = known[old[token]]
  params = shipped.params | {
    "text": shipped.params["text"]
    | {"embed": {"embedding": jax.numpy.asarray(table)}}
  }
  budget, video = shipped.processor.picture, shipped.processor.video
  processor = Processor(tokenizer, config, budget, video)
  hub.save(hub.Model(config, params, processor), path)


def main() -> None:
  """Writes the first model and runs the stages."""
  parser = arguments.Parser(__doc__)
  parser.add_argument("--world", required=True, choices=[*STAGES])
  parser.add_output("folder of all stages")
  parser.add_argument("--seed", type=int, default=0, help="of all stages")
  flags = parser.parse()
  model = flags.output / "begin"
  if not (model / "config.json").exists():
    write_model(model, [*_texts(flags.world)], flags.seed)
  configs = configs_of(flags.world)
  for config in configs.values():
    config.seed = flags.seed
  next(iter(configs.values())).models.policy.path = str(model)
  stages.run(configs, flags.output)


if __name__ == "__main__":
  arguments.run(main)
