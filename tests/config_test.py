"""Fields that were renamed are refused, with their new name."""

import operator

import pytest

from mmrl import config as config_lib
from mmrl import evaluate
from mmrl.errors import UserError
from mmrl.plan import plan
from mmrl.train import run as run_lib


def outdated(old: str):
  """A config that a file of before the change has made."""
  config = config_lib.get_config()
  *path, last = old.split(".")
  place = operator.attrgetter(".".join(path))(config) if path else config
  place[last] = 1
  return config


@pytest.mark.parametrize(("old", "new"), config_lib.MOVED.items())
def test_a_field_that_moved_is_refused(old, new):
  with pytest.raises(UserError) as error:
    config_lib.check_fields(outdated(old))
  message = str(error.value)
  assert message.startswith(f"config.{old}: expected it as config.{new},")
  assert "\n" not in message


@pytest.mark.parametrize("new", config_lib.MOVED.values())
def test_there_is_the_new_field(new):
  field, _, _ = new.partition(",")
  operator.attrgetter(field)(config_lib.get_config())


def test_a_config_of_now_is_fine():
  config_lib.check_fields(config_lib.get_config())


@pytest.mark.parametrize(
  "start",
  [
    run_lib.build_run,
    lambda config: evaluate.run(config, "nowhere"),
    lambda config: plan.run(config, topology=None, as_json=True),
  ],
)
def test_every_command_says_so(start):
  with pytest.raises(UserError, match="config.data.test: expected it as"):
    start(outdated("data.test"))
