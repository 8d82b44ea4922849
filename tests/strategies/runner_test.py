"""Strategies with models whose replies are written down."""

import inspect
import random
import textwrap

import pytest

from mmrl import build, strategies
from mmrl.data import Example
from mmrl.errors import UserError
from mmrl.strategies import (
  Answer,
  Ask,
  Reply,
  Steps,
  Unanswered,
  run,
  user,
  written,
)
from mmrl.strategies.responders import Scripted


def example(name: str) -> Example:
  return Example(name, f"what is {name}?", user(name), "")


EXAMPLES = [example(name) for name in "abcde"]


def say(model: str, text: str) -> Ask:
  return Ask(model, user(text))


def chain(example: Example, *, looks: int = 2) -> Steps:
  """Plans, looks at things side by side, and answers."""
  plan = yield say("planner", f"plan {example.name}")
  seen = yield [say("eyes", f"{plan.text} {i}") for i in range(looks)]
  texts = [reply.text for reply in seen]
  reply = yield say("planner", " ".join(["answer", *texts]))
  return Answer(reply.text, {"seen": texts})


def chain_models(in_flight: int = 99) -> dict[str, Scripted]:
  def planner(ask):
    text = written(ask.messages)
    return text.replace("plan", "look at").replace("answer", "so it is")

  def eyes(ask):
    return written(ask.messages).removeprefix("look at ")

  return {
    "planner": Scripted(planner, in_flight=in_flight),
    "eyes": Scripted(eyes, in_flight=in_flight),
  }


class Clock:
  """Time passes only by waiting."""

  def __init__(self):
    self.now, self.slept = 100.0, []

  def monotonic(self):
    return self.now

  def sleep(self, seconds):
    self.slept.append(seconds)
    self.now += seconds


def failing(times: int, error: Exception, only: str = ""):
  """Echoes; the first `times` requests that contain `only` fail."""
  left = [times]

  def reply(ask):
    text = written(ask.messages)
    if only in text and left[0]:
      left[0] -= 1
      raise error
    return text

  return Scripted(reply)


def test_a_chain_of_two_models():
  models = chain_models()
  found = run(chain, EXAMPLES, models)
  assert [result.name for result in found.results] == list("abcde")
  first = found.results[0]
  assert first.answer == Answer("so it is a 0 a 1", {"seen": ["a 0", "a 1"]})
  assert first.failure is None
  asked = [(ask.model, written(ask.messages)) for ask, _ in first.trace]
  assert asked == [
    ("planner", "plan a"),
    ("eyes", "look at a 0"),
    ("eyes", "look at a 1"),
    ("planner", "answer a 0 a 1"),
  ]
  replied = [reply.text for _, reply in first.trace]
  assert replied == ["look at a", "a 0", "a 1", "so it is a 0 a 1"]
  # One call for each link of the chain.
  assert [len(call) for call in models["planner"].calls] == [5, 5]
  assert [len(call) for call in models["eyes"].calls] == [10]


def test_counts():
  """A token of the script is a word."""
  counts = run(chain, EXAMPLES, chain_models()).counts
  assert counts["eyes"] == strategies.Count(
    calls=1, requests=10, prompt_tokens=10 * 4, completion_tokens=10 * 2
  )
  assert counts["planner"] == strategies.Count(
    calls=2,
    requests=10,
    prompt_tokens=5 * 2 + 5 * 5,
    completion_tokens=5 * 3 + 5 * 7,
  )
  models = {"policy": Scripted(lambda ask: Reply("...", 7, 3, ended=False))}
  (count,) = run(strategies.direct, EXAMPLES, models).counts.values()
  assert (count.cut, count.prompt_tokens, count.completion_tokens) == (
    5,
    35,
    15,
  )


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("side_by_side", [1, 2, 99])
def test_how_requests_are_gathered_changes_nothing(in_flight, side_by_side):
  models = chain_models(in_flight)
  found = run(chain, EXAMPLES, models, side_by_side=side_by_side)
  assert found.results == run(chain, EXAMPLES, chain_models()).results
  for model in models.values():
    assert max(map(len, model.calls)) <= in_flight
    for call in model.calls:
      under_way = {name.partition(",")[0] for name in call}
      assert len(under_way) <= side_by_side


def test_the_order_of_questions_changes_no_result():
  shuffled = random.Random(0).sample([*EXAMPLES, *EXAMPLES], 10)
  models = chain_models()
  found = run(chain, shuffled, models)
  by_name = {result.name: result for result in found.results}
  for result in run(chain, [*EXAMPLES, *EXAMPLES], chain_models()).results:
    assert by_name[result.name] == result
  names = [name for call in models["planner"].calls for name in call]
  assert len(set(names)) == len(names)


def test_examples_are_read_when_there_is_room():
  read, models = [], chain_models()

  def source():
    for one in EXAMPLES:
      read.append((one.name, len(models["planner"].calls)))
      yield one

  run(chain, source(), models, side_by_side=2)
  assert read[:2] == [("a", 0), ("b", 0)]
  assert all(calls for _, calls in read[2:])


def test_what_fails_is_asked_again_after_a_while():
  clock = Clock()
  models = {"policy": failing(2, OSError("busy"), only="c")}
  found = run(strategies.direct, EXAMPLES, models, wait=0.5, clock=clock)
  assert [result.answer.text for result in found.results] == list("abcde")
  assert clock.slept == [0.5, 1.0]
  count = found.counts["policy"]
  assert (count.calls, count.requests) == (3, 7)
  assert (count.retries, count.failures) == (2, 0)


def test_a_failure_is_its_questions_and_named():
  clock = Clock()
  models = {"policy": failing(9, OSError("busy"), only="c")}
  found = run(strategies.direct, EXAMPLES, models, attempts=2, clock=clock)
  answered = [result.name for result in found.results if result.answer]
  assert answered == list("abde")
  failed = found.results[2]
  wanted = strategies.Failure("c", "policy", "OSError: busy", 2)
  assert failed.failure == wanted
  assert failed.trace == ((Ask("policy", EXAMPLES[2].messages), wanted),)
  assert str(wanted) == "c: asked model 'policy' 2 times: OSError: busy"
  assert found.counts["policy"].failures == 1


def test_a_users_mistake_is_not_repeated():
  models = {"policy": failing(1, UserError("too long"), only="c")}
  found = run(strategies.direct, EXAMPLES, models, clock=Clock())
  assert str(found.results[2].failure) == (
    "c: asked model 'policy' once: too long"
  )
  assert found.counts["policy"].requests == 5


def test_a_call_that_raises_fails_for_all_its_requests():
  class Down:
    in_flight = 3

    def __call__(self, requests):
      raise ConnectionError("no route")

  found = run(strategies.direct, EXAMPLES, {"policy": Down()}, clock=Clock())
  assert {result.failure.attempts for result in found.results} == {3}
  assert "no route" in found.results[4].failure.error


def test_a_strategy_may_go_on_without_a_reply():
  def careful(example: Example) -> Steps:
    try:
      yield [say("policy", text) for text in ("x", "y", "z")]
    except strategies.AskFailed as error:
      texts = [reply and reply.text for reply in error.replies]
      return Answer(f"{texts} for {error.failure.error}")
    raise AssertionError

  models = {"policy": failing(9, OSError("busy"), only="y")}
  found = run(careful, EXAMPLES[:1], models, attempts=1).results[0]
  assert found.answer.text == "['x', None, 'z'] for OSError: busy"
  assert found.failure is None


def test_a_strategy_may_give_up():
  def picky(example: Example) -> Steps:
    reply = yield say("policy", example.name)
    if reply.text == "b":
      raise Unanswered("found no plan in three replies")
    return Answer(reply.text)

  found = run(
    picky,
    EXAMPLES,
    {"policy": Scripted(dict.fromkeys("acde", "ok") | {"b": "b"})},
  )
  assert found.results[1].failure == strategies.Failure(
    "b", None, "found no plan in three replies", 0
  )
  assert [bool(result.answer) for result in found.results] == [1, 0, 1, 1, 1]


def test_nothing_to_ask():
  """An empty list, and a strategy that doesn't ask at all."""
  found = run(lambda e: chain(e, looks=0), EXAMPLES[:1], chain_models())
  assert found.results[0].answer == Answer("so it is", {"seen": []})

  def silent(example: Example) -> Steps:
    replies = yield []
    return Answer(str(replies))

  found = run(silent, EXAMPLES, {}, side_by_side=1)
  assert [result.answer.text for result in found.results] == ["[]"] * 5


def test_a_spec_names_a_strategy():
  spec = {"name": "direct", "model": "judge"}
  strategy = build.bind(strategies, spec, "strategy", provided=("example",))
  models = {"judge": Scripted(lambda ask: "fine")}
  found = run(strategy, EXAMPLES, models)
  assert found.results[0].answer.text == "fine"


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ({"name": "vote"}, "no 'vote'; valid names: best_of_n, chain"),
    (
      {"name": "direct", "g": 1},
      "direct has no option g; valid options: model",
    ),
    ({"name": "extrapolation", "gate": "x"}, "strategy.gate: expected one of"),
  ],
)
def test_a_spec_is_checked(spec, message):
  with pytest.raises(UserError, match=message):
    build.bind(strategies, spec, "strategy", provided=("example",))


def test_extrapolation_asks_both_models_as_one():
  spec = {"name": "extrapolation", "threshold": -0.3, "g": 0.1}
  strategy = build.bind(strategies, spec, "strategy", provided=("example",))
  models = {"policy_and_base": Scripted(lambda ask: f"{ask.options['g']}")}
  found = run(strategy, EXAMPLES, models).results[0]
  assert found.answer.text == "0.1"
  assert found.trace[0][0].options["threshold"] == -0.3
  strategy = build.bind(
    strategies, spec | {"threshold": 0.3}, "strategy", provided=("example",)
  )
  with pytest.raises(UserError, match="must be below 0, got 0.3"):
    run(strategy, EXAMPLES, models)


def test_the_packages_example():
  """The strategy of ten lines is one."""
  doc = inspect.getdoc(strategies)
  code = doc[doc.index("    def") : doc.index("\n\nA list")]
  names = {**vars(strategies), "Example": Example}
  exec(textwrap.dedent(code), names)
  look = "Describe in 10 words what helps to tell: what is a?"
  hint = "what is a? It was described so: red"
  models = {
    "eyes": Scripted({look: "red"}),
    "policy": Scripted({hint: "a red one"}),
  }
  found = run(names["look_twice"], EXAMPLES[:1], models).results[0]
  assert found.answer == Answer("a red one", {"seen": "red"})


def test_parts_of_a_conversation():
  picture = {"type": "image", "image": "a.png"}
  messages = [{"role": "system", "content": "look"}, *user("well", [picture])]
  assert strategies.shown(messages) == [picture]
  assert written(messages) == "look\nwell"


def test_a_script_without_the_question():
  models = {"policy": Scripted({"a": "1"})}
  found = run(strategies.direct, EXAMPLES[:2], models).results
  assert found[0].answer.text == "1"
  assert (
    "expected a question of the script, found 'b'" in found[1].failure.error
  )


# Mistakes.


def asks_nobody(example):
  yield say("judge", "?")


def yields_text(example):
  yield "what is it?"


def yields_texts(example):
  yield [say("policy", "?"), "what is it?"]


def returns_text(example):
  yield say("policy", "?")
  return "yes"


def is_plain(example):
  return Answer("yes")


@pytest.mark.parametrize(
  ("strategy", "error", "message"),
  [
    (asks_nobody, UserError, "a: expected a question to one of policy, found"),
    (yields_text, TypeError, "a: expected the strategy to yield an Ask"),
    (yields_texts, TypeError, "a: expected the strategy to yield an Ask"),
    (returns_text, TypeError, "a: expected the strategy to return an Answer"),
    (is_plain, TypeError, "expected a strategy to be a generator function"),
  ],
)
def test_a_wrong_strategy_is_refused(strategy, error, message):
  with pytest.raises(error, match=message):
    run(strategy, EXAMPLES, {"policy": Scripted(lambda ask: "yes")})


def test_a_bug_of_a_strategy_is_not_hidden():
  def buggy(example: Example) -> Steps:
    reply = yield say("policy", "?")
    return Answer(reply.text[99])

  with pytest.raises(IndexError):
    run(buggy, EXAMPLES, {"policy": Scripted(lambda ask: "yes")})


@pytest.mark.parametrize("replies", [[], [Reply("x"), "y"], None])
def test_a_wrong_model_is_refused(replies):
  class Model:
    in_flight = 2

    def __call__(self, requests):
      return replies

  with pytest.raises(TypeError, match="model 'policy' to return 2 replies"):
    run(strategies.direct, EXAMPLES, {"policy": Model()})


@pytest.mark.parametrize("messages", [[], [{"content": "x"}], ["hello"]])
def test_messages_are_a_conversation(messages):
  with pytest.raises(TypeError, match="messages"):
    Ask("policy", messages)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"attempts": 0}, "attempts of at least 1, found 0"),
    ({"side_by_side": 0}, "side_by_side of at least 1, found 0"),
    ({"wait": -1.0}, "wait of at least 0 seconds, found -1.0"),
  ],
)
def test_numbers_are_checked(options, message):
  with pytest.raises(UserError, match=message):
    run(strategies.direct, EXAMPLES, {}, **options)
  with pytest.raises(UserError, match="in_flight of 'policy' of at least 1"):
    run(strategies.direct, [], {"policy": Scripted({}, in_flight=0)})
