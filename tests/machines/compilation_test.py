"""Programs kept from one run to the next."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from mmrl.machines import compilation

ROOT = pathlib.Path(__file__).parents[2]
CODE = """
import sys
import jax
from mmrl.machines import compilation
compilation.keep_programs(sys.argv[1])
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
jax.jit(lambda x: x * 2 + 1)(jax.numpy.ones(3)).block_until_ready()
print(any(event.endswith("/cache_hits") for event in seen))
"""


@pytest.fixture
def unset():
  """JAX without a folder for programs, which tests set for all of them."""
  before = jax.config.jax_compilation_cache_dir
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_compilation_cache_dir", None)
  yield
  jax.config.update("jax_compilation_cache_dir", before)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


@pytest.mark.full
def test_the_next_process_finds_them(tmp_path):
  hits = []
  for _ in range(2):
    environment = {
      name: value
      for name, value in os.environ.items()
      if name != "JAX_COMPILATION_CACHE_DIR"
    }
    done = subprocess.run(
      [sys.executable, "-c", CODE, str(tmp_path / "kept")],
      capture_output=True,
      text=True,
      cwd=ROOT,
      env=environment,
      check=True,
    )
    hits.append(done.stdout.strip())
  assert hits == ["False", "True"]
  assert [p.name for p in (tmp_path / "kept").iterdir()] == [
    compilation.machine()
  ]


def test_jax_has_its_own_setting(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  assert before
  compilation.keep_programs(str(tmp_path / "kept"))
  assert jax.config.jax_compilation_cache_dir == before
  assert not (tmp_path / "kept").exists()


def test_none_are_kept_without_a_folder(unset):
  compilation.keep_programs("")
  assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_written_is_said(unset, tmp_path, capsys):
  (tmp_path / "file").touch()
  compilation.keep_programs(str(tmp_path / "file"))
  assert jax.config.jax_compilation_cache_dir is None
  error = capsys.readouterr().err
  assert error.startswith("compiled programs aren't kept") and "file" in error
  assert error.count("\n") == 1


def test_another_processor_has_another_folder(tmp_path, monkeypatch):
  """As has another jaxlib: a program may use what this one lacks."""

  def name(text):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(compilation, "_CPU", tmp_path / "cpuinfo")
    return compilation.machine()

  one = "processor: 0\nmodel name: A\nflags: avx avx2\ncpu MHz: 1.5\n"
  assert name(one) == name(one.replace("1.5", "2") + one)
  assert name(one) != name(one.replace("avx2", "avx2 avx512f"))
  assert name(one) != name(one.replace("name: A", "name: B"))
  before = name(one)
  monkeypatch.setattr(compilation.version, "__version__", "9.9.9")
  assert name(one) != before and "9.9.9" in name(one)


def test_what_was_used_longest_ago_goes_first(tmp_path):
  (tmp_path / "in").mkdir()
  for i, name in enumerate(["b", "in/a", "c"]):
    (tmp_path / name).write_bytes(b"x" * 10)
    os.utime(tmp_path / name, (1000 + i, 1000 + i))
  compilation.prune(tmp_path, 30)
  assert (tmp_path / "b").exists()
  compilation.prune(tmp_path, 15)
  assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["c"]
