"""A working directory belongs to one config."""

from etils import epath
import pytest

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.workdir.claim import claim


def test_workdir_of_another_config(tmp_path):
  config = config_lib.get_config()
  claim(tmp_path, config)
  claim(epath.Path(tmp_path), config)
  config.train.steps = 7
  with pytest.raises(
    UserError, match='belongs to .*another config.*"steps": 7'
  ):
    claim(tmp_path, config)


def test_a_run_may_go_on_on_another_mesh(tmp_path):
  config = config_lib.get_config()
  claim(tmp_path, config)
  before = (tmp_path / "config.json").read_text()
  config.mesh.tensor = 2
  claim(tmp_path, config)
  assert (tmp_path / "config.json").read_text() == before


def test_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="writable --workdir"):
    claim(tmp_path / "file", config_lib.get_config())
