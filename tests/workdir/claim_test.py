"""A working directory belongs to one config."""

from etils import epath
import pytest
import small_models
from storage_test import store  # noqa: F401 (a fixture)

from mmrl import config as config_lib
from mmrl import storage
from mmrl.errors import UserError
from mmrl.workdir.claim import claim


@pytest.mark.parametrize("place", small_models.first("local", "gs://b/run"))
def test_workdir_of_another_config(tmp_path, store, place):  # noqa: F811
  path = storage.path(tmp_path / "run" if place == "local" else place)
  config = config_lib.get_config()
  claim(path, config)
  claim(epath.Path(path), config)
  before = storage.read_text(path / "config.json")
  # A run may go on on another mesh, and keep its programs elsewhere.
  config.mesh.tensor = 2
  config.compilation_cache = ""
  claim(path, config)
  assert storage.read_text(path / "config.json") == before
  config.train.steps = 7
  with pytest.raises(
    UserError, match='belongs to .*another config.*"steps": 7'
  ):
    claim(path, config)
  assert storage.names(path) == {"config.json"}


def test_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="writable --workdir"):
    claim(tmp_path / "file", config_lib.get_config())
