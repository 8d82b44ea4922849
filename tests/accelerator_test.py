"""The bench for a lent accelerator, at tiny shapes on the CPU."""

import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import runs

from experiments.bench import accelerator, accelerator_parts, accelerator_step
from mmrl.errors import UserError

# What each part says that it has run.
WORKS = {
  "device": {"device", "product of 64 x 64 bfloat16", "copy of 0.000977 GiB"},
  "attention-3b": {
    f"{work}, {kind}: {form}"
    for work in ("causal, 64 tokens", "8 answers of 8 behind 64")
    for kind in ("forward", "with gradient")
    for form in ("blocked", "blocked form")
  },
  "forward-3b": {
    "prefill, 1 x 64 tokens",
    "decoding, 1 token of 2 answers behind 64",
  },
}


def rows(part: str) -> list[dict]:
  return [*accelerator.rows_of(part, tiny=True)]


@pytest.mark.full
@pytest.mark.parametrize("part", WORKS)
def test_parts(part):
  found = {row["work"]: row for row in rows(part)}
  assert set(found) == WORKS[part]
  for work, row in found.items():
    assert "failed" not in row.get("note", ""), row
    if work != "device" and not work.startswith("product"):
      assert row["seconds"] > 0
  for row in found.values():
    json.dumps(row)


@pytest.mark.full
def test_the_kernel_is_compared_with_whole_maps_on_the_cpu():
  """They aren't the same numbers: one of them is in bfloat16."""
  note = accelerator_step.kernel_values()["note"]
  assert note.startswith("good: ") and "good: 0.0e+00" not in note


@pytest.mark.full
def test_a_real_step(monkeypatch):
  """GRPO without a reference, which is less to compile."""
  make = accelerator_step.make_config

  def plain(sizes, method):
    config = make(sizes, method)
    del config.losses.kl
    return config

  monkeypatch.setattr(accelerator_step, "make_config", plain)
  made = accelerator_step.Step(accelerator_parts.TINY, "", jax.devices()[0])
  made.start()
  ran = {program.name: run() for program, run in made.walk()}
  metrics = ran["update"]
  assert [*ran] == ["rollout", "probe", "prepare", "update"] and int(
    made.batch.mask.sum()
  ) > 0
  assert np.isfinite(metrics["loss/total"])
  assert np.isfinite(made.update()["gradient/norm"])  # of the next state


@pytest.mark.parametrize(
  ("tokens", "loss", "note"),
  [
    ([1, 2], 2.0, "good: 0.0e+00 apart, at most 1e-03; tokens are equal"),
    ([1, 2], 2.1, "WRONG: 4.8e-02 apart, at most 1e-03; tokens are equal"),
    ([1, 3], 2.0, "WRONG: 50% of the tokens are the CPU's"),
  ],
)
def test_steps_of_both_devices_are_compared(tokens, loss, note, monkeypatch):
  found = iter([(tokens, loss), ([1, 2], 2.0)])

  class Other(FakeStep):
    def walk(self):
      tokens, loss = next(found)
      fields = {"old": np.ones(2)}
      self.batch = types.SimpleNamespace(tokens=np.array(tokens), fields=fields)
      yield self.program("update"), lambda: {"loss": np.float32(loss)}

  if loss == 2.1:
    found = iter([([1, 2], 2.0), (tokens, loss)])
  monkeypatch.setattr(accelerator_step, "Step", Other)
  assert accelerator_step.step_values("RAL") == {"note": note}


class FakeStep:
  """A step whose programs are numbers; its state counts the updates."""

  def __init__(self, sizes, method, where):
    self.method, self.state, self.fixed = method, None, None

  def start(self):
    self.state, self.fixed = 0, {}

  def walk(self):
    for name in ("rollout", "probe"):
      yield self.program(name), lambda: jax.numpy.ones(1)
    yield self.program("update"), self.update

  def program(self, name):
    return types.SimpleNamespace(
      name=name, total=2**30, flops=10, compile_seconds=1.0
    )

  def update(self):
    FakeStep.order.append((self.method, self.state))
    self.state += 1
    return jax.numpy.ones(1)


def test_updates_go_in_turn_from_state_to_state(monkeypatch):
  FakeStep.order = []
  monkeypatch.setattr(accelerator_step, "Step", FakeStep)
  monkeypatch.setattr(accelerator_parts, "fastest", lambda: 1e9)
  found = {row["work"]: row for row in rows("step-3b")}
  assert [*found] == [
    *("GRPO: rollout", "GRPO: probe", "RAL: probe"),
    *("GRPO: update", "RAL: update"),
  ]
  assert FakeStep.order == [
    (method, number) for number, method in enumerate(["GRPO", "RAL"] * 4)
  ]
  assert found["RAL: update"]["note"].endswith(" times GRPO's")
  assert all(row["plan_gib"] == 1 for row in found.values())
  assert all(row["share"] > 0 for row in found.values())


def test_what_differs_too_much_is_said():
  difference, judged = accelerator_step.difference, accelerator_step.judged
  ones = jax.numpy.ones(3)
  assert difference({"a": ones}, {"a": 2 * ones}) == 0.5
  assert judged(0.5, 0.1, "").get("note").startswith("WRONG")
  # Finite and not: neither may pass.
  found = difference([ones], [ones * float("nan")])
  assert judged(found, 0.1, "").get("note").startswith("WRONG")
  assert judged(0.0, 0.1, "").get("note").startswith("good")


def test_what_fails_is_a_row(monkeypatch):
  def fails():
    raise MemoryError("out of\nmemory | all of it")

  row = accelerator_parts.attempt("this", fails)
  note = "failed: out of memory / all of it"
  assert row == {"work": "this", "note": note}

  def part(sizes):
    yield {"work": "first"}
    fails()

  monkeypatch.setattr(accelerator_parts, "device", part)
  found = [*accelerator.rows_of("device", tiny=True)]
  assert found == [{"work": "first"}, {"work": "the rest", "note": note}]


def test_peers_that_are_not_installed_are_one_line(monkeypatch):
  find = accelerator_parts.importlib.util.find_spec
  monkeypatch.setattr(
    accelerator_parts.importlib.util,
    "find_spec",
    lambda name: None if name == "trl" else find(name),
  )
  (row,) = rows("peers-3b")
  assert row["note"].startswith("left out: ") and "trl" in row["note"]


def test_results_are_written_after_every_row(monkeypatch, tmp_path):
  def apart(part, seconds, *, tiny):
    yield {"work": "first", "seconds": 0.5, "share": 0.25}
    if part == "values":
      raise KeyboardInterrupt

  monkeypatch.setattr(accelerator, "run_apart", apart)
  with pytest.raises(KeyboardInterrupt):
    accelerator.measure(["device", "values"], tmp_path, 1.0, tiny=True)
  found = json.loads((tmp_path / "results.json").read_text())
  assert [row["part"] for row in found["rows"]] == ["device", "values"]
  text = (tmp_path / "results.md").read_text()
  assert "| part | work | time, s | of peak |\n" in text
  assert "| values | first | 0.5 | 25.0% |\n" in text


def test_parts_are_left_out_when_the_time_is_up(monkeypatch, tmp_path):
  monkeypatch.setattr(accelerator, "run_apart", None)
  found = accelerator.measure(["device", "values"], tmp_path, 0.0, tiny=True)
  assert [row["note"] for row in found["rows"]] == [
    "left out: the time was up"
  ] * 2


def test_a_part_that_runs_then_is_ended():
  (row,) = accelerator.run_apart("device", 0.01, tiny=True)
  assert row == {"work": "the rest", "note": "failed: the time was up"}


def test_there_must_be_an_accelerator(monkeypatch, tmp_path):
  monkeypatch.setattr(
    accelerator,
    "run_apart",
    lambda *_, **__: iter([{"work": "device", "platform": "cpu"}]),
  )
  with pytest.raises(UserError, match="expected a GPU or TPU, found JAX with"):
    accelerator.measure(["device"], tmp_path / "out", 1.0, tiny=False)
  assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_the_command_without_an_accelerator(tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "experiments.bench.accelerator"),
      *(f"--output={tmp_path / 'out'}", "--parts", "device"),
    ],
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    timeout=runs.WHOLE_SECONDS,
  )
  assert done.returncode == 2 and not (tmp_path / "out").exists()
  assert done.stderr.startswith("error: expected a GPU or TPU, found")
  assert done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--parts", "step-4b"], "invalid choice: 'step-4b'"),
    (["--minutes=0"], "--minutes: expected more than 0, found 0.0"),
    (["--minute=5"], "expected a flag, found --minute"),
    (["now"], "unrecognized arguments: now"),
    ([], "--output: expected a folder without results, found results.json"),
  ],
)
def test_mistakes_are_one_line(
  arguments, message, monkeypatch, tmp_path, capsys
):
  (tmp_path / "results.json").touch()
  monkeypatch.setattr(sys, "argv", ["", f"--output={tmp_path}", *arguments])
  with pytest.raises(SystemExit) as stopped:
    accelerator.parse()
  error = capsys.readouterr().err
  assert stopped.value.code == 2
  assert error.startswith("error: ") and message in error
  assert error.count("\n") == 1
