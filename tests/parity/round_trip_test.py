"""The same questions three ways: here, in Transformers, and by lmms-eval.

500 questions about pictures, answered greedily in float32 by the shipped model:
all answers are the same texts. What asks by lmms-eval, or VLMEvalKit, is
skipped where that isn't installed.
"""

import base64
import csv
import functools
import io
import json

import jax
import numpy as np
from PIL import Image
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("easy_vqa")

import transformers

from experiments import quickstart
from mmrl import data, hub
from mmrl.benchmarks import runner
from mmrl.harnesses import model as harness
from mmrl.models import policy, tower, vlm
from mmrl.train import run as run_lib
from mmrl.worlds.kitchens import drawing
from parity import oracle

pytestmark = pytest.mark.parity

QUESTIONS, LENGTH, BATCH = 500, 10, 50


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run's, whose model is the shipped one."""
  folder = tmp_path_factory.mktemp("run")
  hub.save(hub.load("tiny"), folder / "model")
  return folder


@pytest.fixture(scope="module")
def config(workdir):
  found = quickstart.get_config("grpo")
  found.models.policy.path = str(workdir / "model")
  found.evaluation.benchmarks.test.questions = QUESTIONS
  found.evaluation.batch = BATCH
  found.evaluation.shown = QUESTIONS
  found.rollout.length = LENGTH
  plain = json.loads(json.dumps(found.to_dict()))
  (workdir / "config.json").write_text(json.dumps(plain))
  return found


@pytest.fixture(scope="module")
def ours(config):
  """What `mmrl.evaluate` makes of the questions."""
  built = run_lib.build_run(config, jax.devices()[:1])
  return runner.evaluate_run(built, built.params)["test"]


@pytest.fixture(scope="module")
def examples():
  source = data.EasyVQA(split="test")
  return [source[i] for i in data.spread(len(source), QUESTIONS)]


def picture_of(example) -> Image.Image:
  return Image.fromarray(example.picture["image"])


@pytest.fixture(scope="module")
def by_transformers(workdir, examples):
  """Answers of the exported model, to what Transformers' processor makes."""
  path = workdir / "model"
  processor = hub.load(path).processor
  processor.tokenizer.padding_side = "left"
  model = transformers.AutoModelForImageTextToText.from_pretrained(
    path, dtype=torch.float32
  )
  found = []
  for start in range(0, QUESTIONS, BATCH):
    asked = examples[start : start + BATCH]
    batch = oracle.make_inputs(processor, [one.messages for one in asked])
    with torch.inference_mode():
      tokens = model.generate(**batch, max_new_tokens=LENGTH, do_sample=False)
    tokens = tokens[:, batch["input_ids"].shape[1] :].numpy()
    for row in tokens:
      ends = np.flatnonzero(processor.config.ends(row))
      kept = row[: ends[0]] if len(ends) else row
      found.append(processor.tokenizer.decode(kept, skip_special_tokens=False))
  return found


def test_transformers_answers_alike(ours, by_transformers):
  assert len(ours.shown) == QUESTIONS
  assert [one.text for one in ours.shown] == by_transformers


UTILS = """
from PIL import Image
from mmrl.rewards import exact_answer

def visual(doc):
  file = doc["file"]
  return [file if file.endswith(".mp4") else Image.open(file).convert("RGB")]

def text(doc, lmms_eval_specific_kwargs=None):
  return doc["question"]

def messages(doc, lmms_eval_specific_kwargs=None):
  kind = "video" if doc["file"].endswith(".mp4") else "image"
  parts = [{"type": kind, "url": visual(doc)[0]}]
  return [{"role": "user",
           "content": parts + [{"type": "text", "text": doc["question"]}]}]

def results(doc, results):
  return {"accuracy": float(exact_answer([results], [doc["answer"]])[0, 0])}
"""
TASK = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
task: {name}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_messages: !function utils.messages
doc_to_target: answer
generation_kwargs:
  max_new_tokens: {length}
  do_sample: false
process_results: !function utils.results
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
"""
CHOICE = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
task: {name}
test_split: test
output_type: multiple_choice
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_choice: ["red", "blue", "<answer>"]
doc_to_target: 0
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, examples):
  """A folder of tasks: pictures, videos, choices by likelihood."""
  folder = tmp_path_factory.mktemp("tasks")
  (folder / "utils.py").write_text(UTILS)
  rows = []
  for i, example in enumerate(examples):
    file = folder / f"{i}.png"
    picture_of(example).save(file)
    rows.append(
      {
        "question": example.question,
        "answer": example.answer,
        "file": str(file),
      }
    )
  clips = []
  for i in range(3):
    file = folder / f"{i}.mp4"
    shown = np.stack([examples[i + j].picture["image"] for j in range(6)])
    drawing.write_frames(shown, file, 2.0)
    clips.append({"question": "is it red?", "answer": "yes", "file": str(file)})
  for name, form, found in (
    ("pictures", TASK, rows),
    ("videos", TASK, clips),
    ("choices", CHOICE, rows[:20]),
  ):
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, found)))
    text = form.format(file=file, name=f"mmrl_{name}", length=LENGTH)
    (folder / f"{name}.yaml").write_text(text)
  return folder


@pytest.fixture(scope="module")
def ask_lmms(tasks, tmp_path_factory):
  """Runs a task by lmms-eval, with the model that its entry point names."""
  pytest.importorskip("lmms_eval")
  from lmms_eval import evaluator
  from lmms_eval import models as registry
  from lmms_eval.tasks import TaskManager

  from mmrl.harnesses.manifest import manifest

  # An older installation of this library has no entry point.
  registry.MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
  patch = pytest.MonkeyPatch()
  for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    patch.setenv(name, "1")
  patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))

  def run(name: str, path, simple: bool, **settings):
    arguments = ",".join(
      f"{k}={x}" for k, x in ({"pretrained": path} | settings).items()
    )
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = evaluator.simple_evaluate(
      model="mmrl",
      model_args=arguments,
      tasks=[f"mmrl_{name}"],
      task_manager=manager,
      batch_size=BATCH,
      force_simple=simple,
      bootstrap_iters=0,
    )
    key = f"mmrl_{name}"
    samples = sorted(found["samples"][key], key=lambda one: one["doc_id"])
    return found["results"][key], samples

  yield run
  patch.undo()


def first(sample):
  """The reply of a sample, whatever lists it is in."""
  found = sample["resps"]
  while isinstance(found, list | tuple):
    found = found[0]
  return getattr(found, "text", found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("simple", [False, True], ids=["chat", "simple"])
def test_lmms_eval_answers_alike(ask_lmms, ours, workdir, simple):
  """Texts of all questions, and the score; of a run, and its model."""
  path = workdir / "model" if simple else workdir
  results, samples = ask_lmms("pictures", path, simple)
  assert [first(one) for one in samples] == [one.text for one in ours.shown]
  assert results["accuracy,none"] == pytest.approx(
    ours.numbers["accuracy"].value
  )


@pytest.mark.filterwarnings("ignore")
def test_videos_by_lmms_eval(ask_lmms, tasks, workdir):
  """Messages and texts alike, as the library itself answers about a file."""
  told = [
    [first(one) for one in ask_lmms("videos", workdir, simple, frames=4)[1]]
    for simple in (False, True)
  ]
  asked = harness.AskedModel(str(workdir / "model"), batch=1, frames=4)
  own = [
    asked.answers(
      [
        harness.conversation(
          "is it red?", [{"type": "video", "video": str(tasks / f"{i}.mp4")}]
        )
      ],
      ["one"],
      [{"length": LENGTH}],
    )[0].text
    for i in range(3)
  ]
  assert told == [own, own]


@pytest.mark.filterwarnings("ignore")
def test_choices_by_likelihood(ask_lmms, examples, workdir):
  """Each loss is that of its tokens, computed directly; the least is taken."""
  _, samples = ask_lmms("choices", workdir / "model", True)
  model = hub.load(workdir / "model")
  processor = model.processor
  score = functools.partial(policy.score, model.params, model.config)
  for sample, example in zip(samples[:5], examples, strict=False):
    prompt = processor([example.messages])
    visual = tower.vision(model.params, model.config, prompt.patches)
    prefix = vlm.prefill(model.params, model.config, prompt, visual)
    for choice, found in zip(
      ("red", "blue", "<answer>"), sample["filtered_resps"], strict=True
    ):
      ids = processor.tokenizer.encode(choice, add_special_tokens=False)
      logprobs = score(prefix, jax.numpy.asarray([[ids]])).logprobs
      # Sums over a padded prompt in another order.
      assert float(found[0]) == pytest.approx(-float(logprobs.sum()), abs=1e-3)
    losses = [float(loss) for loss, _ in sample["filtered_resps"]]
    assert sample["acc"] == float(np.argmin(losses) == 0)


@pytest.mark.filterwarnings("ignore")
def test_vlmevalkit_answers_alike(ours, workdir, examples, tmp_path):
  """Twenty rows of a TSV that its own data set reads, in LMUData."""
  pytest.importorskip("vlmeval.dataset")
  from vlmeval.dataset import build_dataset

  from mmrl.harnesses.vlmevalkit import Mmrl

  patch = pytest.MonkeyPatch()
  patch.setenv("LMUData", str(tmp_path))
  with open(tmp_path / "Mine.tsv", "w", newline="") as file:
    writer = csv.writer(file, delimiter="\t")
    writer.writerow(["index", "question", "answer", "image"])
    for i, example in enumerate(examples[:20]):
      stream = io.BytesIO()
      picture_of(example).save(stream, "PNG")
      image = base64.b64encode(stream.getvalue()).decode()
      writer.writerow([i, example.question, example.answer, image])
  dataset = build_dataset("Mine")
  model = Mmrl(str(workdir), options={"max_new_tokens": LENGTH})
  told = [
    model.generate(dataset.build_prompt(dataset.data.iloc[i]), dataset="Mine")
    for i in range(20)
  ]
  patch.undo()
  assert told == [one.text for one in ours.shown[:20]]
