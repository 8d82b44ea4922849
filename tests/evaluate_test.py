"""A strategy on a benchmark: its items, killed runs, servers, and mistakes."""

import json
import pathlib
import sys

import pytest
from servers import completion, serve

from mmrl import evaluate, strategies
from mmrl.errors import UserError
from mmrl.strategies.evaluating import items as items_lib
from mmrl.strategies.evaluating.models import Decoding, assign

BENCHMARK = {
  "name": "questions",
  "data": {"name": "Scenes", "split": "test", "count": 20, "kinds": ["exists"]},
  "scores": {"accuracy": {"name": "exact_answer"}},
}
REPLIES = """
from mmrl.strategies import shown, written

def planner(ask):
  assert not shown(ask.messages)
  return "" if "star" in written(ask.messages) else "Look.\\nAnswer."

def eyes(ask):
  assert shown(ask.messages)
  return "<answer>yes</answer>"
"""
VIC = {"name": "vic", "strict_upstream": True}


@pytest.fixture
def models(tmp_path):
  file = tmp_path / "replies.py"
  file.write_text(REPLIES)
  return [f"planner={file}:planner,eyes={file}:eyes"]


def run(models, folder, strategy=VIC, benchmark=BENCHMARK, **decoding):
  return evaluate.run_strategy(
    strategy, benchmark, models, str(folder), Decoding(**decoding)
  )


def test_scores_that_ask_a_model_are_refused(models, tmp_path):
  scores = {"facts": {"name": "judged_facts"}}
  message = "--benchmark: expected scores that ask no model, .* reads ask_judge"
  with pytest.raises(UserError, match=message):
    run(models, tmp_path, benchmark=BENCHMARK | {"scores": scores})


def lines(folder):
  found = (folder / "items.jsonl").read_text().splitlines()
  return sorted(found, key=lambda line: json.loads(line)["index"])


def test_items_and_summary(models, tmp_path, capsys):
  folder = tmp_path / "run"
  found = run(models, folder)
  assert json.loads((folder / "summary.json").read_text()) == found
  rows = [json.loads(line) for line in lines(folder)]
  assert [row["index"] for row in rows] == [*range(20)]
  failed = [row for row in rows if row["answer"] is None]
  assert 0 < len(failed) == found["failed"] < 20
  assert found["failures"] == {"found no plan in 3 replies": len(failed)}
  answered = 20 - len(failed)
  planner, eyes = found["models"]["planner"], found["models"]["eyes"]
  assert planner["calls"] == answered + 3 * len(failed)
  assert (eyes["items"], eyes["calls"]) == (answered, 2 * answered)
  assert eyes["completion_tokens"] == 2 * answered
  assert found["numbers"]["accuracy"]["value"] <= answered / 20
  assert found["baseline"]["accuracy"]["value"] >= 0.5
  assert rows[0]["trace"][0]["model"] == "planner"
  before = lines(folder)
  assert run(models, folder) == found and lines(folder) == before
  assert "20 of 20" not in capsys.readouterr().out


def test_a_killed_run_goes_on(models, tmp_path, monkeypatch, capsys):
  whole = run(models, tmp_path / "whole")
  add, folder = items_lib.Items.add, tmp_path / "killed"

  def dies(self, one):
    add(self, one)
    if len(self.found) % 8 == 0:
      raise KeyboardInterrupt

  monkeypatch.setattr(items_lib.Items, "add", dies)
  monkeypatch.setattr(evaluate, "_SIDE_BY_SIDE", 4)
  for done in (8, 16):
    with pytest.raises(KeyboardInterrupt):
      run(models, folder)
    with open(folder / "items.jsonl", "ab") as file:
      file.write(b'{"index": 3, "na')
    assert (folder / "items.jsonl").read_bytes().count(b"\n") == done
  assert run(models, folder) == whole
  assert lines(folder) == lines(tmp_path / "whole")
  assert "16 of 20 questions are answered already" in capsys.readouterr().err


@pytest.mark.full
def test_a_server_that_fails_half_of_its_calls(tmp_path, monkeypatch):
  pytest.importorskip("openai")
  monkeypatch.setattr(evaluate, "_WAIT", 0.01)

  def sometimes(body, count):
    if count % 2:
      return 500, {"error": {"message": "busy"}}
    text = body["messages"][-1]["content"]
    text = text if isinstance(text, str) else text[-1]["text"]
    return 200, completion(f"<answer>{len(text) % 2}</answer>")

  with serve(sometimes) as server:
    monkeypatch.setenv("HERE", server.address)
    folder = tmp_path / "run"
    while True:
      found = run(["endpoint:m@HERE"], folder, {"name": "direct"})
      if not found["failed"]:
        break
    # What failed for good was asked again.
    assert found["models"]["policy"]["retries"] > 0
    assert found["items"] == len(lines(folder)[:20]) == 20
    calls = len(server.bodies)
  assert run(["endpoint:m@HERE"], folder, {"name": "direct"}) == found
  assert len(server.bodies) == calls


@pytest.mark.full
def test_a_server_that_is_away_loses_nothing(tmp_path, monkeypatch):
  pytest.importorskip("openai")
  monkeypatch.setattr(evaluate, "_WAIT", 0.0)
  monkeypatch.setattr(evaluate, "_SIDE_BY_SIDE", 4)
  gone = []

  def once(body, count):
    return 200, completion("<answer>yes</answer>")

  folder = tmp_path / "run"
  with serve(once) as server:
    monkeypatch.setenv("OPENAI_BASE_URL", server.address)
  gone.append(server.address)
  message = f"'policy' to be there, found: {gone[0]} can't be reached.* 0 of 20"
  with pytest.raises(UserError, match=message):
    run(["endpoint:m"], folder, {"name": "direct"})
  with serve(once) as server:
    monkeypatch.setenv("OPENAI_BASE_URL", server.address)
    found = run(["endpoint:m"], folder, {"name": "direct"})
  assert found["failed"] == 0


@pytest.mark.full
def test_answers_are_of_the_seed_whatever_is_decoded_together(
  tmp_path, monkeypatch
):
  """A sampled vote by a model on this machine, in other batches."""
  strategy = {"name": "self_consistency", "n": 2, "temperature": 1.0}
  data = {"name": "EasyVQA", "split": "test"}
  benchmark = {**BENCHMARK, "data": data, "questions": 4}

  def answers(folder, **decoding):
    run(["tiny"], tmp_path / folder, strategy, benchmark, length=8, **decoding)
    return [json.loads(line)["trace"] for line in lines(tmp_path / folder)]

  found = answers("a", batch=8)
  monkeypatch.setattr(evaluate, "_SIDE_BY_SIDE", 1)
  assert answers("b", batch=3) == found
  assert answers("c", batch=3, seed=1) != found


# Mistakes.


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (["eyes=a"], "found none for planner; add planner=SOURCE"),
    (["planer=a,eyes=b"], "found one for 'planer'; the nearest is planner"),
    (["planner=a", "planner=b,eyes=c"], "one model for role 'planner', found"),
    (["a,b"], "one model for all other roles, found two"),
    (["planner=a,eyes=b,c"], "found 'c' besides them; leave it out"),
    (["planner="], "expected ROLE=SOURCE"),
    ([""], "expected ROLE=SOURCE"),
  ],
)
def test_models_fit_the_roles(given, message):
  with pytest.raises(UserError, match=f"--models: .*{message}"):
    assign(given, ("planner", "eyes"), "vic")


def test_every_strategy_says_which_roles_it_asks():
  for name in strategies.__all__:
    asks = getattr(strategies, name).asks
    roles = asks() if callable(asks) else asks
    assert roles and all(isinstance(role, str) for role in roles), name


def test_one_model_for_several_roles():
  found = assign(["a", "eyes=dir=1"], ("planner", "eyes"), "vic")
  assert found == {"planner": "a", "eyes": "dir=1"}
  assert assign(["x=a"], None, "mine") == {"x": "a"}
  with pytest.raises(UserError, match="doesn't say which roles"):
    assign(["a"], None, "mine")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"strategy": {"name": "vik"}}, "--strategy: .* no 'vik'; valid names: "),
    ({"strategy": {"name": "vic", "steps": 1}}, "no option steps; valid opt"),
    ({"strategy": {"name": "vic", "mode": "x"}}, "--strategy.mode: expected"),
    ({"strategy": {"name": "vic", "attempts": 0}}, "attempts of at least 1"),
    ({"benchmark": {"name": "nonesuch"}}, "--benchmark: .* no 'nonesuch'"),
    ({"benchmark": {"name": "questions"}}, "--benchmark: questions needs data"),
    ({"models": ["nonesuch"]}, "--models: planner: expected a model directory"),
    ({"models": ["x.json"]}, "--models: planner: expected a table of replies"),
    ({"models": ["x.py:f"]}, "planner: expected a file of Python with"),
    ({"models": ["endpoint:m@NO_SUCH"]}, "environment variable NO_SUCH, found"),
  ],
)
def test_mistakes_are_one_line(changes, message, models, tmp_path):
  given = {"models": models, "strategy": VIC, "benchmark": BENCHMARK, **changes}
  with pytest.raises(UserError, match=message) as found:
    run(folder=tmp_path / "run", **given)
  assert "\n" not in str(found.value)


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"answer": "a"}, 'rows.jsonl: .* found keys answer; .*{"question": COL'),
    ({"question": "?", "answer": "a", "answr": "b"}, "rows.jsonl:1: .*answr"),
    ({"question": "?"}, "rows.jsonl:1: .*answer"),
  ],
)
def test_a_benchmark_of_another_form_names_the_field(
  row, message, models, tmp_path
):
  path = tmp_path / "rows.jsonl"
  path.write_text(json.dumps(row) + "\n")
  data = {"name": "Files", "path": str(path)}
  with pytest.raises(UserError, match=message) as found:
    run(models, tmp_path / "run", benchmark=BENCHMARK | {"data": data})
  assert "\n" not in str(found.value)


def test_results_of_another_run_are_refused(models, tmp_path):
  folder = tmp_path / "run"
  run(models, folder)
  before = lines(folder)
  other = {**BENCHMARK, "questions": 4}
  for changes, flag in (
    ({"strategy": {"name": "vic"}}, "strategy"),
    ({"benchmark": other}, "benchmark"),
    ({"length": 7}, "length"),
    ({"seed": 7}, "seed"),
  ):
    with pytest.raises(UserError, match=f"--{flag}: expected .*another --work"):
      run(models, folder, **changes)
  run(models, folder, batch=3)
  assert lines(folder) == before
  (folder / "items.jsonl").write_text("{}\n")
  with pytest.raises(UserError, match=r"items.jsonl:1: expected an item"):
    run(models, folder)
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "config.json").write_text("{}")
  with pytest.raises(UserError, match="of its own for a strategy, found confi"):
    run(models, tmp_path / "full")


def test_specs(tmp_path):
  file = tmp_path / "spec.json"
  file.write_text('{"name": "vic", "mode": "multi"}')
  wanted = {"name": "vic", "mode": "multi"}
  assert evaluate.read_spec(str(file), "--strategy") == wanted
  assert evaluate.read_spec(file.read_text(), "--strategy") == wanted
  assert evaluate.read_spec("vic", "--strategy") == {"name": "vic"}
  for text in ("{", '{"mode": 1}', "none.json", '{"name": 1}'):
    with pytest.raises(UserError, match="--strategy.*: expected a JSON obj"):
      evaluate.read_spec(text, "--strategy")


@pytest.mark.full
@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--workdir=w"], "expected --config or --strategy, found neither"),
    (["--workdir=w", "--models=a"], "--models: expected --strategy with it"),
    (["--strategy=vic"], "expected --workdir, found none"),
    (["--workdir=w", "--strategy=vic"], "expected --models with --strategy"),
    (
      ["--workdir=w", "--strategy=vic", "--models=a"],
      "expected --benchmark with --strategy",
    ),
    (["--workdir=w", "--stratgy=vic"], "the nearest is --strategy"),
  ],
)
def test_flags(arguments, message, tmp_path):
  import subprocess

  root = pathlib.Path(__file__).parents[1]
  program = [sys.executable, "-m", "mmrl.evaluate", *arguments]
  done = subprocess.run(program, cwd=root, capture_output=True, text=True)
  assert done.returncode == 2 and message in done.stderr
  assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
