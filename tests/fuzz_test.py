"""What people bring, damaged: used, or refused by one line."""

import pytest

from tests import fuzz


# Pillow warns of what it finds in damaged files, and reads on.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.full
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damaged_inputs_are_used_or_refused(kind):
  # A template is compiled anew, for each 0.3 s.
  fuzz.check(kind, count=100 if kind == "chat_templates" else 300, seed=0)
