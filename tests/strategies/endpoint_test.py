"""A model at an address, against a small server here: slow, failing, mad."""

import base64
import io
import time
import types

import av
import jax
import numpy as np
from PIL import Image
import pytest
from servers import completion, said, serve

from mmrl import rewards
from mmrl.errors import UserError
from mmrl.strategies import Ask, Request, asking, user
from mmrl.strategies.asking import Asker, Endpoint
from mmrl.strategies.responders import endpoint

pytest.importorskip("openai")
KEY = "sk-very-secret"


def asker(server, monkeypatch, **options):
  address = server if isinstance(server, str) else server.address
  monkeypatch.setenv("OPENAI_BASE_URL", address)
  monkeypatch.setenv("OPENAI_API_KEY", KEY)
  source = Endpoint("judge", **{"wait": 0.01, **options})
  found = Asker("judge", source, jax.devices())
  found.open()
  return found


def conversations(count):
  return [user(f"question {i}") for i in range(count)]


def test_conversations_and_options_arrive(monkeypatch, capsys):
  with serve(said) as server:
    ask = asker(server, monkeypatch, in_flight=4)
    system = {"role": "system", "content": "judge"}
    asked = [[system, *one] for one in conversations(10)]
    found = ask(asked, length=9, temperature=0.0)
    again = ask(asked[::-1], length=9, temperature=0.0)
  assert found == [f"question {i}" for i in range(10)]
  assert again == found[::-1]
  assert len(server.bodies) == 10 and server.most <= 4
  body = min(server.bodies, key=lambda x: x["messages"][1]["content"])
  assert body["messages"] == [
    system,
    {"role": "user", "content": "question 0"},
  ]
  assert (body["model"], body["max_tokens"], body["temperature"]) == (
    "judge",
    9,
    0.0,
  )
  assert set(server.keys) == {f"Bearer {KEY}"}
  counts = ask.end_step()
  assert counts["asked/judge_requests"] == 10
  assert counts["asked/judge_prompt_tokens"] == 70
  assert counts["asked/judge_completion_tokens"] == 30
  assert counts["asked/judge_failures"] == 0
  assert set(ask.end_step().values()) == {0}
  assert capsys.readouterr() == ("", "")


def test_equal_conversations_are_asked_once(monkeypatch):
  with serve(said) as server:
    found = asker(server, monkeypatch)(conversations(1) * 5)
  assert found == ["question 0"] * 5
  assert len(server.bodies) == 1


def test_what_fails_is_asked_again(monkeypatch, capsys):
  def sometimes(body, count):
    if count < 3:
      return (500, 429, 200)[count], {"error": {"message": "busy"}}
    return said(body)

  with serve(sometimes) as server:
    ask = asker(server, monkeypatch)
    found = ask(conversations(4))
  assert found == [f"question {i}" for i in range(4)]
  counts = ask.end_step()
  assert counts["asked/judge_retries"] == 3
  assert counts["asked/judge_failures"] == 0
  assert capsys.readouterr().err == ""


NONSENSE = [
  b"no JSON",
  b"",
  {},
  {"choices": []},
  {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]},
  {"choices": [{"message": {"content": [1]}, "finish_reason": "stop"}]},
  [1, 2],
  {"choices": "many"},
]


def test_nonsense_is_no_reply_and_counted(monkeypatch, capsys):
  def mad(body, count):
    number = int(body["messages"][-1]["content"].split()[-1])
    if number < len(NONSENSE):
      return 200, NONSENSE[number]
    return said(body)

  with serve(mad) as server:
    ask = asker(server, monkeypatch, attempts=2)
    found = ask(conversations(len(NONSENSE) + 1))
  assert found == [None] * len(NONSENSE) + [f"question {len(NONSENSE)}"]
  counts = ask.end_step()
  assert counts["asked/judge_failures"] == len(NONSENSE)
  assert counts["asked/judge_retries"] == len(NONSENSE)
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(
    f"config.models.judge: {len(NONSENSE)} of {len(NONSENSE) + 1} requests have"
    " no reply and count as none; the last:"
  )


def test_slow_requests_end_in_time(monkeypatch, capsys):
  def slow(body, count):
    late = body["messages"][-1]["content"] == "question 1"
    return (200, None) if late else said(body)

  began = time.monotonic()
  with serve(slow) as server:
    ask = asker(server, monkeypatch, attempts=2, timeout=0.5)
    assert ask(conversations(3)) == ["question 0", None, "question 2"]
  assert time.monotonic() - began < 15  # the server would take 20 s
  assert "no reply of http://127.0.0.1" in capsys.readouterr().err


def test_a_server_that_is_away(monkeypatch, capsys):
  with serve(said) as server:
    address = server.address
  ask = asker(address, monkeypatch, attempts=2)
  assert ask(conversations(2)) == [None, None]
  first, last = capsys.readouterr().err.splitlines()
  assert f"{address} can't be reached" in first
  assert "it is asked again after a while" in first
  assert "2 of 2 requests have no reply" in last
  assert ask.end_step()["asked/judge_failures"] == 2


def test_a_wrong_key_is_asked_once_and_never_shown(monkeypatch, capsys):
  def refuse(body, count):
    return 401, {"error": {"message": f"no such key {KEY}, Bearer {KEY}"}}

  with serve(refuse) as server:
    secret = server.address.replace("http://", "http://me:hidden@")
    ask = asker(f"{secret}?token=hidden", monkeypatch)
    assert ask(conversations(2)) == [None, None]
  assert len(server.bodies) == 2
  shown = capsys.readouterr()
  assert server.address in shown.err and shown.out == ""
  assert KEY not in shown.err and "hidden" not in shown.err


def test_facts_are_judged_by_a_server(monkeypatch, capsys):
  """Failures are 0, and the others stand."""

  def judge(body, count):
    text = body["messages"][-1]["content"].partition("Response: ")[2]
    if "fail" in text:
      return 500, {"error": {"message": "out of memory"}}
    verdict = int("star" in text)
    return 200, completion(f"<info1>{verdict}</info1>")

  example = types.SimpleNamespace(name="a:1", extra={"facts": ("A star.",)})
  texts = [["a star", "a ring", "fail"]]
  with serve(judge) as server:
    ask = asker(server, monkeypatch)
    found = rewards.judged_facts(texts, [example], ask)
    share = rewards.judged_share(texts, [example], ask)
  assert found.round(5).tolist() == [[1, 0, 0]]
  assert share.tolist() == [[1, 1, 0]]
  # Three times what fails, and the others once; the second reward asks nothing.
  assert len(server.bodies) == 5
  assert capsys.readouterr().err.count("1 of ") == 1


def opened(part):
  """The pixels of a picture as a server gets it."""
  assert part["type"] == "image_url"
  head, _, data = part["image_url"]["url"].partition(",")
  assert head == "data:image/png;base64"
  with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as found:
    assert found.format == "PNG" and found.mode == "RGB"
    return np.asarray(found)


def send(messages, **options):
  """What a server gets of a conversation's only message."""
  with serve(lambda *_: (200, completion("a dot"))) as server:
    ask = endpoint.Endpoint("eyes", address=server.address, **options)
    replies = ask([Request(n, Ask("eyes", messages)) for n in ("a", "b")])
  assert [reply.text for reply in replies] == ["a dot", "a dot"]
  bodies = [body["messages"][0]["content"] for body in server.bodies]
  assert bodies[0] == bodies[1]
  return server, bodies[0]


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_pictures_are_sent(tmp_path):
  """As arrays, files and bytes, each pixel as it is."""
  pixels = noise(2, 3, 3)
  path = tmp_path / "a.png"
  Image.fromarray(pixels).save(path)
  given = (pixels, str(path), path.read_bytes(), Image.fromarray(pixels))
  shown = [{"type": "image", "image": one} for one in given]
  server, (*sent, text) = send(user("what is it?", shown), seed=3)
  assert text == {"type": "text", "text": "what is it?"}
  assert len(sent) == 4
  for one in sent:
    np.testing.assert_array_equal(opened(one), pixels)
  # Of the request, so that one that is asked again is drawn alike.
  assert len({body["seed"] for body in server.bodies}) == 2


@pytest.mark.parametrize(("frames", "wanted"), [(3, [0, 1, 3]), (9, range(5))])
def test_frames_of_a_video_are_sent_as_pictures(frames, wanted, tmp_path):
  """Of frames, and of a file whose frames are PNG, which loses nothing."""
  clip = noise(5, 16, 32, 3)
  path = tmp_path / "a.mov"
  with av.open(path, "w") as container:
    stream = container.add_stream("png", rate=4, pix_fmt="rgb24")
    stream.width, stream.height = 32, 16
    for one in clip:
      frame = av.VideoFrame.from_ndarray(one, format="rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  for video in (clip, str(path)):
    part = {"type": "video", "video": video}
    _, (*sent, text) = send(user("what is it?", [part]), frames=frames)
    assert text["text"] == "what is it?" and len(sent) == len(wanted)
    for one, index in zip(sent, wanted, strict=True):
      np.testing.assert_array_equal(opened(one), clip[index])


def test_two_pictures_are_two_questions(monkeypatch):
  """They are told apart by content: large arrays are printed alike."""
  large = np.zeros((40, 50, 3), np.uint8)
  other = large.copy()
  other[20, 25] = 1
  assert str(large) == str(other)
  given = [large, other, large.copy(), large.tobytes(), Image.fromarray(other)]
  asked = [user("?", [{"type": "image", "image": one}]) for one in given[:3]]
  with serve(lambda body, n: (200, completion(str(n)))) as server:
    first, second, third = asker(server, monkeypatch)(asked)
  assert first == third != second and len(server.bodies) == 2
  found = [asking._content(one) for one in given]
  assert found[1] == found[4] and len({*found}) == 3


def test_videos_and_unknown_options_are_refused():
  server = endpoint.Endpoint("judge", address="http://127.0.0.1:9/v1")
  part = {"type": "video", "video": "a.mp4"}
  (found,) = server([Request("a", Ask("judge", user("?", [part])))])
  assert isinstance(found, UserError)
  assert "one with video; set `frames` to the most" in str(found)
  some = endpoint.Endpoint("judge", address="http://127.0.0.1:9/v1", frames=2)
  (found,) = some([Request("a", Ask("judge", user("?", [part])))])
  assert isinstance(found, UserError) and "a.mp4" in str(found)
  part = {"type": "audio", "audio": "a.wav"}
  (found,) = some([Request("a", Ask("judge", user("?", [part])))])
  assert isinstance(found, UserError) and "parts of type 'text'" in str(found)
  part = {"type": "image", "image": "nonesuch.png"}
  (found,) = server([Request("a", Ask("judge", user("?", [part])))])
  assert isinstance(found, UserError) and "nonesuch.png" in str(found)
  (found,) = server([Request("a", Ask("judge", user("?"), {"top_k": 3}))])
  assert isinstance(found, UserError) and "found top_k" in str(found)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"attempts": 0}, "config.models.judge.attempts: expected at least 1"),
    ({"in_flight": 0}, "config.models.judge.in_flight: expected at least 1"),
    ({"frames": -1}, "config.models.judge: expected frames of at least 0"),
    ({"timeout": 0.0}, "config.models.judge: expected timeout above 0, found"),
    ({"address_from": "NO_SUCH"}, "environment variable NO_SUCH, found none"),
  ],
)
def test_settings_are_checked(changes, message, monkeypatch):
  with pytest.raises(UserError, match=message):
    asker("http://127.0.0.1:9/v1", monkeypatch, **changes)


@pytest.mark.parametrize("address", ["localhost:8000", "http://", "ftp://a/v1"])
def test_addresses_are_checked(address, monkeypatch):
  with pytest.raises(
    UserError, match="config.models.judge: expected the addre"
  ):
    asker(address, monkeypatch)
