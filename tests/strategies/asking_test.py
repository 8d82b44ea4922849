"""Local models that are asked in a run, on any mesh."""

import jax
import pytest
import small_models

from mmrl import hub
from mmrl.errors import UserError
from mmrl.strategies import user
from mmrl.strategies.asking import Asker, LocalModel

ASKED = [user(f"{i} and {i}?") for i in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("judge") / "model"
  model = small_models.make_model(small_models.small_config(tied=False))
  hub.save(model, path)
  return str(path)


def asker(folder, mesh, devices=1, **options):
  source = LocalModel(folder, mesh=mesh, **{"batch": 4, **options})
  found = Asker("judge", source, jax.devices()[:devices])
  found.open()
  return found


def sizes(data=1, fsdp=1, tensor=1):
  return {"data": data, "fsdp": fsdp, "tensor": tensor}


@pytest.mark.full
def test_replies_are_the_same_on_every_mesh(folder):
  alone = asker(folder, sizes())
  found = alone(ASKED, length=4)
  assert all(isinstance(text, str) for text in found)
  counts = alone.end_step()
  assert counts["asked/judge_requests"] == 3
  assert counts["asked/judge_completion_tokens"] > 0
  for mesh in (sizes(fsdp=4), sizes(data=2, tensor=2)):
    assert asker(folder, mesh, 4)(ASKED, length=4) == found


def test_a_mesh_that_does_not_fit_is_one_line(folder):
  with pytest.raises(
    UserError, match=r"config.models.judge.mesh: expected siz"
  ):
    asker(folder, sizes(fsdp=3), 4)
  with pytest.raises(
    UserError, match=r"judge.batch: expected a multiple of da"
  ):
    asker(folder, sizes(fsdp=8), 8)
  with pytest.raises(
    UserError, match=r"judge.mesh.tensor: expected a divisor "
  ):
    asker(folder, sizes(tensor=8), 8)
  with pytest.raises(
    UserError, match="config.models.judge: expected a model di"
  ):
    asker("nonesuch", sizes())


def test_what_fails_is_none(folder, capsys):
  assert asker(folder, sizes())(ASKED, nonesuch=4) == [None] * 3
  assert "3 of 3 requests have no reply" in capsys.readouterr().err
