"""Model directories: what either library writes, the other one reads."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors
import small_models

torch = pytest.importorskip("torch")

import transformers
from transformers.video_utils import VideoMetadata

from mmrl import hub
from mmrl.hub import tensors as tensors_lib
from mmrl.models.families import FAMILIES, VideoConfig
from mmrl.prompts.pictures import PictureConfig
from parity import oracle

pytestmark = pytest.mark.parity

# Bytes of a file: all in one, or many.
SHARDS = {"one file": 10**9, "shards": 20_000}


@pytest.fixture(params=FAMILIES)
def family(request):
  return request.param


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def config(request, family):
  return small_models.small_config(tied=request.param, family=family)


@pytest.fixture
def ours(config):
  return small_models.make_model(config)


@pytest.fixture
def theirs(config):
  return oracle.make_torch(config)


@pytest.fixture(
  params=[
    ("float32", "one file"),
    ("float32", "shards"),
    ("bfloat16", "one file"),
  ],
  ids=lambda param: "-".join(param),
)
def stored(request):
  """Type and files of the weights."""
  return request.param


def cast(model: hub.Model, dtype: str) -> hub.Model:
  params = jax.tree.map(lambda x: x.astype(dtype), model.params)
  return dataclasses.replace(model, params=params)


def names(path) -> set[str]:
  """Of all tensors of a directory, and of its index."""
  found = set()
  for file in path.glob("*.safetensors"):
    with safetensors.safe_open(file, "numpy") as tensors:
      found |= set(tensors.keys())
  index = path / tensors_lib.INDEX
  if index.exists():
    assert set(json.loads(index.read_text())["weight_map"]) == found
  return found


def check_files(path, shards: str) -> None:
  several = shards == "shards"
  assert (len(list(path.glob("*.safetensors"))) > 3) == several
  assert (path / tensors_lib.INDEX).exists() == several


def equal(found, wanted) -> None:
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
  ):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)


def test_saved_here_loads_there(ours, theirs, stored, tmp_path):
  dtype, shards = stored
  hub.save(cast(ours, dtype), tmp_path, max_shard_bytes=SHARDS[shards])
  check_files(tmp_path, shards)
  loaded, info = transformers.AutoModelForImageTextToText.from_pretrained(
    tmp_path, dtype="auto", output_loading_info=True
  )
  assert type(loaded) is type(theirs)
  assert set(info) >= {"missing_keys", "unexpected_keys", "mismatched_keys"}
  assert not any(info.values()), info
  wanted = theirs.to(getattr(torch, dtype)).state_dict()
  state = loaded.state_dict()
  assert set(state) == set(wanted)
  for name, tensor in wanted.items():
    assert state[name].dtype == tensor.dtype, name
    assert torch.equal(state[name], tensor), name


def test_saved_there_loads_here(ours, theirs, stored, tmp_path):
  dtype, shards = stored
  theirs.to(getattr(torch, dtype)).save_pretrained(
    tmp_path / "theirs", max_shard_size=SHARDS[shards]
  )
  check_files(tmp_path / "theirs", shards)
  ours.processor.save(tmp_path / "theirs")
  wanted = cast(ours, dtype)
  loaded = hub.load(tmp_path / "theirs", dtype=dtype)
  assert loaded.config == ours.config
  equal(loaded.params, wanted.params)
  # Under the very names that are written here.
  hub.save(wanted, tmp_path / "ours", max_shard_bytes=SHARDS[shards])
  assert names(tmp_path / "ours") == names(tmp_path / "theirs")


PICTURE = PictureConfig(
  min_pixels=128,
  max_pixels=2560,
  mean=(0.4, 0.5, 0.6),
  std=(0.3, 0.2, 0.1),
)
VIDEOS = {
  "fps": VideoConfig(
    min_pixels=192, max_pixels=4096, fps=1.5, min_frames=2, max_frames=6
  ),
  "frames": VideoConfig(min_pixels=192, max_pixels=4096, frames=6),
}


def check_settings(found, ours, settings) -> None:
  tower = ours.config.vision
  assert found.size["shortest_edge"] == settings.min_pixels
  assert found.size["longest_edge"] == settings.max_pixels
  assert found.patch_size == tower.patch_size
  assert found.temporal_patch_size == tower.temporal_patch_size
  assert found.merge_size == tower.spatial_merge_size
  assert tuple(found.image_mean) == PICTURE.mean
  assert tuple(found.image_std) == PICTURE.std


@pytest.mark.parametrize("video", VIDEOS)
def test_processors(ours, video, tmp_path):
  settings = VIDEOS[video]
  processor = dataclasses.replace(
    ours.processor, picture=PICTURE, video=settings
  )
  processor.save(tmp_path)
  loaded = transformers.AutoImageProcessor.from_pretrained(tmp_path)
  check_settings(loaded, ours, PICTURE)
  picture = small_models.picture(50, 90)
  found = loaded(picture, return_tensors="np")
  cut = processor.encode(small_models.user(picture), "a chat").cuts[0]
  assert list(cut.grid) == found["image_grid_thw"][0].tolist()
  np.testing.assert_array_equal(cut.pixels, found["pixel_values"])

  cls = type(oracle.video_processor(processor))
  assert cls.__name__ == FAMILIES[ours.config.family].video_processor
  loaded = cls.from_pretrained(tmp_path)
  check_settings(loaded, ours, settings)
  assert loaded.min_frames == settings.min_frames
  assert loaded.max_frames == settings.max_frames
  # Called as with a file: it takes the frames that we take.
  clip = torch.from_numpy(small_models.picture(80, 24)).reshape(20, 3, 8, 12)
  metadata = VideoMetadata(total_num_frames=20, fps=5.0)
  found = loaded(
    clip,
    video_metadata=[metadata],
    do_sample_frames=True,
    return_metadata=True,
  )
  taken = FAMILIES[ours.config.family].sample_frames(20, 5.0, settings, 2)
  assert len(taken) == 6
  np.testing.assert_array_equal(
    found["video_metadata"][0].frames_indices, taken
  )
