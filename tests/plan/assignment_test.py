"""Buffers are read from what XLA writes, once that is whole."""

import pytest

from mmrl.plan import assignment

BUFFERS = """\
BufferAssignment:
allocation 0: size 8, parameter 0, shape |f32[2]| at ShapeIndex {}, maybe-live-out:
 value: <1 p (size=8,offset=0): f32[2]>
allocation 1: size 32, parameter 1, shape |f32[8]| at ShapeIndex {}:
allocation 2: size 64, maybe-live-out:
allocation 3: size 128, preallocated-temp:
allocation 4: size 256, color 1, preallocated-temp:
allocation 5: size 512, constant:

Total bytes used: 744 (744B)
"""
PROGRAM = "HloModule jit_f\n\nENTRY %main () -> f32[] {\n}\n\n"
NAME = "module_0001.jit_f.after_optimizations_after_buffer_assignment"


@pytest.fixture
def folder(tmp_path):
  (tmp_path / f"{NAME}.txt").write_text(PROGRAM)
  (tmp_path / f"{NAME}-buffer-assignment.txt").write_text(BUFFERS)
  return tmp_path


def test_memory_is_the_chips_main_one(folder):
  """What is both argument and output counts in both, and is an alias."""
  found = assignment.read(str(folder))
  assert found == (
    {"arguments": 40, "temporaries": 128, "output": 72, "alias": 8},
    PROGRAM,
  )


@pytest.mark.parametrize("file", ["", "-buffer-assignment"])
def test_half_a_file_is_waited_for(folder, file):
  path = folder / f"{NAME}{file}.txt"
  whole = path.read_text()
  path.write_text(whole[: len(whole) // 2])
  assert assignment.read(str(folder)) is None
  path.unlink()
  assert assignment.read(str(folder)) is None
  path.write_text(whole)
  assert assignment.read(str(folder))
