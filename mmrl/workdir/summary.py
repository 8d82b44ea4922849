"""Summary of a finished run: summary.json and report.html."""

import json

import jax
import numpy as np

from mmrl import storage
from mmrl.benchmarks import accuracy
from mmrl.prompts import pictures
from mmrl.workdir import log as log_lib
from mmrl.workdir import report

_CURVES = {
  "Reward": "reward/total",
  "Accuracy (sampled)": "reward/accuracy",
  "Well-formed": "reward/format",
  "Attention on the object": "attention/region",
  "Attention divergence (JSD, nats)": "attention/jsd_mean",
  "Attention's share of the gradient": "gradient/share_attention",
  "KL to the reference (nats)": "loss/kl",
  "Divergence from the teacher (nats)": "loss/distillation",
  "Attention from the teacher's (JSD, nats)": "loss/attention_distillation",
  "Entropy (nats)": "policy/entropy",
  "Groups with unequal rewards": "reward/mixed_groups",
  "Answer length (tokens)": "rollout/length",
  "Gradient norm": "gradient/norm",
  "Seconds in updates": "time/update",
}


def write(
  workdir: storage.Name,
  config,
  train_source,
  test_source,
  before: accuracy.Evaluation,
  after: accuracy.Evaluation,
  *,
  wall_seconds: float,
  compile_seconds: float,
) -> dict:
  """Writes summary.json and report.html and prints the result.

  Only the first process writes and prints.

  Args:
    workdir: of the run.
    config: of the run.
    train_source, test_source: questions of the run.
    before, after: evaluations.
    wall_seconds: of this start of the run.
    compile_seconds: XLA's part of them.

  Returns:
    The content of summary.json.
  """
  blind = accuracy.blind_baseline(train_source, test_source)
  result = {
    "accuracy_before": before.accuracy,
    "accuracy_after": after.accuracy,
    "blind_baseline": blind,
    "questions": after.questions,
    "format_before": before.format,
    "format_after": after.format,
    "attention_on_region_before": before.region,
    "attention_on_region_after": after.region,
    "attention_on_region_uniform": after.region_uniform,
    "steps": config.train.steps,
    "seed": config.seed,
    "wall_seconds": wall_seconds,
    "compile_seconds": compile_seconds,
  }
  if jax.process_index():
    return result
  workdir = storage.path(workdir)
  text = json.dumps(result, indent=2) + "\n"
  storage.write_text(workdir / "summary.json", text)
  _write_report(workdir, config, test_source, before, after, result)
  print(
    f"after:  accuracy {after.accuracy:.1%} (before {before.accuracy:.1%},"
    f" question alone {blind:.1%}) on {after.questions} questions,"
    f" {wall_seconds:.0f} s\nreport: {workdir / 'report.html'}"
  )
  return result


def _write_report(workdir, config, source, before, after, result) -> None:
  rows = log_lib.read(workdir)
  curves = {
    title: [(row["step"], row[name]) for row in rows if name in row]
    for title, name in _CURVES.items()
  }
  blind = result["blind_baseline"]
  table = [
    ("All questions", before.accuracy, after.accuracy),
    *(
      (f"{kind.capitalize()} questions", before.accuracy_by_kind[kind], share)
      for kind, share in after.accuracy_by_kind.items()
      if len(after.accuracy_by_kind) > 1
    ),
    ("Blind baseline: the question alone", blind, blind),
    ("Well-formed answers", before.format, after.format),
    ("Visual attention on the object", before.region, after.region),
    (
      "The same if attention were uniform",
      before.region_uniform,
      after.region_uniform,
    ),
  ]
  terms = ", ".join(
    f"{name} ({spec['weight']:g})"
    for name, spec in config.losses.to_dict().items()
  )
  report.write(
    workdir / "report.html",
    title=f"mmrl: {workdir.name}",
    subtitle=(
      f"{config.train.steps} steps of {config.rollout.prompts} prompts x"
      f" {config.rollout.answers} answers on {config.data.train.name}, model"
      f" {config.models.policy.path}, seed {config.seed}; losses: {terms}."
    ),
    figures=[
      (
        "Test accuracy, before → after",
        f"{before.accuracy:.1%} → {after.accuracy:.1%}",
      ),
      ("Blind baseline", f"{blind:.1%}"),
      ("Questions", f"{after.questions:,}"),
      ("Wall time", f"{result['wall_seconds']:.0f} s"),
    ],
    table=table,
    curves={title: points for title, points in curves.items() if points},
    # Attention can only be drawn on a picture.
    examples=[
      _example(source[first.index], first, second)
      for first, second in zip(before.shown, after.shown, strict=True)
      if source[first.index].picture
    ],
    config=json.dumps(config.to_dict(), indent=2),
  )


def _example(example, before, after) -> report.Example:
  part = example.picture
  picture = pictures.read(part["image"], example.name)

  def answer(shown) -> report.Answer:
    heat = np.asarray(shown.heat, np.float32)
    return report.Answer(shown.text, shown.correct, heat, shown.region)

  return report.Example(
    picture=np.asarray(picture),
    question=example.question,
    gold=example.answer,
    region=part.get("region"),
    before=answer(before),
    after=answer(after),
  )
