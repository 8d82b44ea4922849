"""Videos to frames, from files that are written here."""

import dataclasses
import io
import itertools

import av
import numpy as np
from PIL import Image
import pytest
import small_models
from small_models import picture, user

from mmrl.errors import UserError
from mmrl.models.families import FAMILIES, VideoConfig
from mmrl.prompts import videos

HEIGHT, WIDTH, FPS = 32, 48, 10
# Without loss, and kept as they are: pixels can be compared.
LOSSLESS = {"codec": "png", "pix_fmt": "rgb24"}
LOSSY = {"codec": "mpeg4", "pix_fmt": "yuv420p"}


def frames_of(count: int) -> np.ndarray:
  return np.stack([picture(HEIGHT, WIDTH, seed) for seed in range(count)])


def write(
  file, frames: np.ndarray, kind: str, codec: str, pix_fmt: str, fps=FPS
) -> None:
  """A video file of these frames; `file` is a path or a buffer."""
  with av.open(file, "w", format=kind) as container:
    stream = container.add_stream(codec, rate=fps)
    stream.width, stream.height = frames.shape[2], frames.shape[1]
    stream.pix_fmt = pix_fmt
    pictures = (av.VideoFrame.from_ndarray(f, format="rgb24") for f in frames)
    for packet in itertools.chain.from_iterable(
      stream.encode(frame) for frame in [*pictures, None]
    ):
      container.mux(packet)


def make(count: int, kind: str = "mov", **how) -> bytes:
  file = io.BytesIO()
  write(file, frames_of(count), kind, **(how or LOSSLESS))
  return file.getvalue()


def every(total, fps):
  """All frames."""
  return np.arange(total)


def read(source, sample=every, fps=0.0):
  return videos.read(source, "sample 7", sample, fps)


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "a.mov"
  path.write_bytes(make(12))
  return path


def test_frames_times_and_rate(path):
  """Of a path, its text, and the bytes of the file."""
  for source in (path, str(path), path.read_bytes()):
    clip = read(source)
    np.testing.assert_array_equal(clip.frames, frames_of(12))
    np.testing.assert_allclose(clip.seconds, np.arange(12) / FPS)
    assert clip.fps == FPS


def test_a_sample_of_the_frames(path):
  def sample(total, fps):
    assert (total, fps) == (12, FPS)
    return np.array([0, 4, 9, 9])

  clip = read(path, sample)
  np.testing.assert_array_equal(clip.frames, frames_of(12)[[0, 4, 9, 9]])
  np.testing.assert_allclose(clip.seconds, [0, 0.4, 0.9, 0.9])
  # Four frames, one of them twice, for 1.2 seconds.
  np.testing.assert_allclose(clip.fps, 4 / 1.2)


def test_frames_taken_already(tmp_path):
  """An array, or a list of anything that is a picture."""
  frames = frames_of(3)
  file = tmp_path / "2.png"
  Image.fromarray(frames[2]).save(file)
  mixed = [frames[0], Image.fromarray(frames[1]), file]
  for source in (frames, list(frames), mixed):
    clip = read(source, fps=2.0)
    np.testing.assert_array_equal(clip.frames, frames)
    np.testing.assert_array_equal(clip.seconds, [0, 0.5, 1])
    assert clip.fps == 2


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi", "mpegts", "ivf"])
def test_containers(kind):
  """Not all of them say how many frames there are, or how fast they go."""
  how = LOSSY | ({"codec": "libvpx"} if kind == "ivf" else {})
  clip = read(make(20, kind, **how))
  assert clip.frames.shape == (20, HEIGHT, WIDTH, 3)
  np.testing.assert_allclose(clip.fps, FPS, rtol=1e-6)


def test_a_file_that_breaks_off():
  """What there is, is the video: its header promises more."""
  whole = make(40, "matroska", **LOSSY)
  clip = read(whole[: len(whole) * 2 // 3])
  assert 10 < len(clip.frames) < 40
  np.testing.assert_allclose(clip.fps, FPS, rtol=1e-6)
  intact = read(whole).frames
  np.testing.assert_array_equal(clip.frames[:10], intact[:10])


def refused(source, message, **options):
  with pytest.raises(UserError, match=f"sample 7: .*{message}"):
    read(source, **options)


def test_no_timestamps():
  """A bare stream of pictures, as from a camera."""
  raw = make(10, "h264", codec="libx264", pix_fmt="yuv420p")
  refused(raw, "with timestamps, found bytes without")


def test_no_frames_in_the_file(tmp_path):
  """A header, and nothing after it."""
  path = tmp_path / "empty.avi"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=FPS)
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    container.start_encoding()
  refused(path, r"empty\.avi with no frame that can be decoded")


def test_frames_that_are_all_broken():
  """The container is whole; what it holds isn't."""
  whole = bytearray(make(4))
  start = whole.find(b"\x89PNG")
  assert start > 0
  end = whole.find(b"moov")
  whole[start : end - 4] = bytes(end - 4 - start)
  refused(bytes(whole), "found bytes with no frame that can be")


def test_sound_only():
  file = io.BytesIO()
  with av.open(file, "w", format="wav") as container:
    stream = container.add_stream("pcm_s16le", rate=8000)
    samples = np.zeros((1, 800), np.int16)
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
    frame.rate = 8000
    for packet in [*stream.encode(frame), *stream.encode(None)]:
      container.mux(packet)
  refused(file.getvalue(), r" \(no video stream\)")


def test_unreadable():
  """An .mp4 that breaks off has lost its index, which is at the end."""
  whole = make(40, "mp4", **LOSSY)
  half = whole[: len(whole) // 2]
  for source in (b"", b"not a video", "no/such/file.mp4", ".", half):
    refused(source, "expected a readable video")


@pytest.mark.parametrize(
  "frames, fps, message",
  [
    ([], 1.0, "frames, found none"),
    (frames_of(2), 0.0, 'give the part "fps"'),
    (frames_of(2), -2.0, 'give the part "fps"'),
    (
      *([picture(4, 8), picture(4, 4)], 1.0),
      r"of one size, found .*\(4, 4\), \(4, 8\)",
    ),
  ],
)
def test_frames_that_are_no_video(frames, fps, message):
  refused(frames, message, fps=fps)


@pytest.fixture(params=FAMILIES)
def processor(request):
  config = small_models.small_config(family=request.param)
  return small_models.make_processor(config)


def video(source, **more):
  return user({"type": "video", "video": source, **more}, "what moves?")


def test_a_file_in_a_prompt_is_its_frames_in_a_prompt(processor, path):
  """Decoded here or by the user: the same prompt, whatever the family."""
  processor = dataclasses.replace(
    processor, video=VideoConfig(64, 4096, frames=12)
  )
  one = processor([video(path)])
  other = processor([video(frames_of(12), fps=FPS)])
  for name in ("tokens", "positions", "visual_index"):
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
  np.testing.assert_array_equal(one.patches.pixels, other.patches.pixels)
  assert (one.patches.frame[..., 1] > 0).sum() >= 6


def test_fps_of_a_part_decides_how_many_frames(processor, path):
  """1.2 seconds: 6 frames at 5 a second, and 4 at least."""

  def frames(**part):
    (cut,) = processor.encode(video(path, **part), "x").cuts
    return cut.grid[0] * 2

  assert frames(fps=5) == 6
  assert frames(fps=0.5) == 4
  processor = dataclasses.replace(
    processor, video=dataclasses.replace(processor.video, frames=8)
  )
  assert frames() == 8
  assert frames(fps=5) == 6


def test_a_video_shorter_than_asked_for(processor):
  """Qwen2-VL's two refuse; Qwen3-VL shows frames twice."""
  processor = dataclasses.replace(
    processor, video=dataclasses.replace(processor.video, frames=8)
  )
  chat = video(make(5))
  if processor.config.family == "qwen3_vl":
    assert processor.encode(chat, "q7").cuts[0].grid[0] == 4
    return
  with pytest.raises(UserError, match="q7: .* at least 8 frames, found 5"):
    processor.encode(chat, "q7")


def test_a_video_over_its_budget_is_shrunk(processor, path):
  def shrunk(pixels):
    settings = dataclasses.replace(processor.video, max_pixels=pixels)
    one = dataclasses.replace(processor, video=settings)
    return one.encode(video(path), "x").shrunk

  assert [shrunk(512), shrunk(10**6)] == [1, 0]


def test_unreadable_video_in_a_prompt_is_named(processor):
  with pytest.raises(UserError, match=r"q7: expected a readable vi.*none\.mp4"):
    processor.encode(video("none.mp4"), "q7")
