"""What the adapter of lmms-eval refuses, in one line each."""

import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lmms_eval")

from mmrl.errors import UserError
from mmrl.harnesses.manifest import manifest

with warnings.catch_warnings():
  warnings.simplefilter("ignore")  # What lmms-eval imports is deprecated.
  from lmms_eval.api.instance import Instance

  from mmrl.harnesses import lmms

pytestmark = [
  pytest.mark.parity,
  pytest.mark.filterwarnings("ignore"),
]


def request_of(*arguments):
  """A request of a task with one row."""
  about = {"task": "t", "doc_id": 0, "repeats": 1}
  return Instance("generate_until", arguments, 0, about)


@pytest.fixture(scope="module")
def simple():
  found = lmms.Simple("tiny", batch_size=1)
  found.task_dict = {"t": {"test": [{}]}}
  return found


def test_the_entry_point_names_both_kinds():
  from lmms_eval.models.registry_v2 import ModelRegistryV2

  registry = ModelRegistryV2()
  registry.register_manifest(manifest())
  assert registry.get_model_class("mmrl") is lmms.Chat
  assert registry.get_model_class("mmrl", force_simple=True) is lmms.Simple


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"device": "cuda:0"}, "expected no device, found one"),
    ({"max_batch_size": 8}, "expected no max_batch_size"),
    ({"batch_size": "auto"}, "--batch_size: expected a number .*'auto'"),
    ({"max_frame": 8}, "found 'max_frame'; the nearest is max_frames"),
    ({"pretrained": "none"}, "expected a model directory, found none at none"),
  ],
)
def test_arguments_are_refused(settings, message):
  with pytest.raises(UserError, match=message):
    lmms.Simple(**({"pretrained": "tiny"} | settings))


def test_several_processes_are_refused(monkeypatch):
  monkeypatch.setenv("WORLD_SIZE", "2")
  with pytest.raises(UserError, match="expected one process, .* WORLD_SIZE 2"):
    lmms.Simple("tiny")


@pytest.mark.parametrize(
  ("options", "shown", "message"),
  [
    ({"num_beams": 2}, [], "t/0/0: expected num_beams 1, found 2"),
    ({"penalty": 2}, [], "t/0/0: expected options of decoding among .*penalty"),
    ({}, [3], "t/0/0: expected pictures, or files .* found int"),
    ({}, ["none.png"], "t/0/0: .*none.png"),
  ],
)
def test_requests_are_refused(simple, options, shown, message):
  request = request_of("what?", options, lambda _: shown, 0, "t", "test")
  with pytest.raises(UserError, match=message):
    simple.generate_until([request])


def test_other_kinds_of_requests_are_refused(simple):
  with pytest.raises(UserError, match="tasks of one round"):
    simple.generate_until_multi_round([])
  with pytest.raises(UserError, match="found 2 arguments; metrics such as"):
    simple.loglikelihood([request_of("", "red")])
