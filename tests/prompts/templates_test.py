"""Chat templates that a directory holds."""

import pathlib
import shutil

import pytest

from mmrl.errors import UserError
from mmrl.hub import config_json, directory
from mmrl.prompts import templates
from mmrl.prompts.processor import Processor

# 10^7 rounds of nothing, about a second.
LONG = (
  "{% for x in range(10000) %}{% for y in range(1000) %}"
  "{% endfor %}{% endfor %}"
)


def test_a_template_that_does_not_end_is_refused(tmp_path, monkeypatch):
  shutil.copytree(pathlib.Path(str(directory.tiny_path())), tmp_path / "model")
  (tmp_path / "model/chat_template.jinja").write_text(LONG)
  monkeypatch.setattr(templates, "_SECONDS", 0.1)
  with pytest.raises(
    UserError, match=r"chat_template.jinja: .* at once, found"
  ):
    Processor.load(tmp_path / "model", config_json.read(tmp_path / "model"))
