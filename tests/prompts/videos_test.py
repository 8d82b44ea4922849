"""Videos to frames, from files that are written here."""

from collections.abc import Sequence
import dataclasses
from fractions import Fraction
import io
import itertools

import av
from av.stream import Disposition
import numpy as np
from PIL import Image
import pytest
import small_models
from small_models import picture, user

from mmrl.errors import UserError
from mmrl.models.families import FAMILIES, VideoConfig
from mmrl.prompts import pictures, videos
from prompts.unusual import unusual

HEIGHT, WIDTH, FPS = 32, 48, 10
# Without loss, and kept as they are: pixels can be compared.
LOSSLESS = {"codec": "png", "pix_fmt": "rgb24"}
MKV = {"kind": "matroska", "codec": "ffv1", "pix_fmt": "bgr0"}
MOV = {"kind": "mov", **LOSSLESS}
LOSSY = {"codec": "mpeg4", "pix_fmt": "yuv420p"}


def frames_of(count: int) -> np.ndarray:
  return np.stack([picture(HEIGHT, WIDTH, seed) for seed in range(count)])


def write(
  file,
  frames: np.ndarray,
  kind: str,
  codec: str,
  pix_fmt: str,
  fps=FPS,
  matrix: Sequence[int] = (),
  times: Sequence[int] = (),
  **options,
) -> None:
  """A video file of these frames; `file` is a path or a buffer.

  Args:
    matrix: a, b, c, d of the display matrix.
    times: of the frames, in milliseconds.
    options: of the container.
  """
  with av.open(file, "w", format=kind, options=options) as container:
    stream = container.add_stream(codec, rate=fps)
    stream.width, stream.height = frames.shape[2], frames.shape[1]
    stream.pix_fmt = pix_fmt
    if matrix:
      a, b, c, d = (65536 * x for x in matrix)
      stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
    pictures = [av.VideoFrame.from_ndarray(f, format="rgb24") for f in frames]
    if times:
      stream.codec_context.time_base = Fraction(1, 1000)
      for frame, time in zip(pictures, times, strict=True):
        frame.pts, frame.time_base = time, Fraction(1, 1000)
    for packet in itertools.chain.from_iterable(
      stream.encode(frame) for frame in [*pictures, None]
    ):
      container.mux(packet)


def make(count: int, kind: str = "mov", **how) -> bytes:
  file = io.BytesIO()
  write(file, frames_of(count), kind, **(how or LOSSLESS))
  return file.getvalue()


def cut_short(whole: bytes) -> bytes:
  return whole[: len(whole) // 2]


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


TURNS = {
  "a quarter to the right": ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),
  "a quarter to the left": ((0, -1, 1, 0), np.rot90),
  "half": ((-1, 0, 0, -1), lambda f: np.rot90(f, 2)),
  "mirrored": ((-1, 0, 0, 1), np.fliplr),
  "upside down": ((1, 0, 0, -1), np.flipud),
  "mirrored at a diagonal": ((0, 1, 1, 0), lambda f: f.swapaxes(0, 1)),
  "not at all": ((1, 0, 0, 1), np.asarray),
}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_stand_upright(turn):
  """As telephones store what they film."""
  matrix, upright = TURNS[turn]
  clip = read(make(3, matrix=matrix, **LOSSLESS))
  wanted = [upright(frame) for frame in frames_of(3)]
  np.testing.assert_array_equal(clip.frames, wanted)


def test_frames_at_a_slant():
  """FFmpeg's player shows these so; no model's processor does."""
  slanted = make(3, matrix=(1, 1, -1, 1), **LOSSLESS)
  refused(slanted, "bytes .*turned by other than quarter turns")


@pytest.mark.parametrize("how", [MOV, MKV], ids=["mov", "mkv"])
def test_an_uneven_rate(how, capsys):
  """What is shown at even times: a frame that stays is taken again."""
  times = [0, 100, 200, 3000, 3100, 6000]
  uneven = make(6, times=times, **how)
  clip = read(uneven)
  np.testing.assert_allclose(clip.seconds, np.arange(6) * 1.2)
  assert clip.fps == pytest.approx(1 / 1.2)
  shown = [0, 2, 2, 4, 4, 5]  # at 0, 1.2, 2.4, 3.6, 4.8 and 6 seconds
  np.testing.assert_array_equal(clip.frames, frames_of(6)[shown])
  some = read(uneven, lambda total, fps: np.array([1, 3]))
  np.testing.assert_array_equal(some.frames, frames_of(6)[[2, 4]])
  assert not capsys.readouterr().err


@pytest.mark.parametrize("how", [MOV, MKV], ids=["mov", "mkv"])
def test_a_rate_that_wavers_is_even(how):
  """By less than a frame, as of clocks and roundings."""
  times = [0, 120, 190, 310, 390, 500]
  clip = read(make(6, times=times, **how))
  np.testing.assert_array_equal(clip.frames, frames_of(6))


@pytest.mark.parametrize("kind", ["mp4", "avi", "matroska"])
def test_a_file_that_breaks_off_is_named(kind, tmp_path, capsys):
  """What there is, is the video, and a line says so; not of a whole one."""
  path = tmp_path / f"a.{kind}"
  write(str(path), frames_of(40), kind, **LOSSY, movflags="faststart")
  assert len(read(path).frames) == 40
  assert not capsys.readouterr().err
  path.write_bytes(cut_short(path.read_bytes()))
  count = len(read(path).frames)
  assert 5 < count < 36
  assert capsys.readouterr().err == (
    f"sample 7: {path} breaks off or was trimmed: it is shorter than it says,"
    f" and the {count} frames that it has are used\n"
  )


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


@pytest.mark.parametrize("cover", [False, True])
def test_sound_only(cover, tmp_path):
  """With a picture of the record's cover, too."""
  path = tmp_path / "song.mp4"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("aac", rate=8000)
    picture = container.add_stream("png", rate=1) if cover else None
    if picture:
      picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "rgb24"
      picture.disposition = Disposition.attached_pic
    samples = np.zeros((1, 1024), np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.rate = 8000
    packets = [*stream.encode(frame), *stream.encode(None)]
    if picture:
      front = av.VideoFrame.from_ndarray(frames_of(1)[0], format="rgb24")
      packets += [*picture.encode(front), *picture.encode(None)]
    for packet in packets:
      container.mux(packet)
  refused(path, r"song\.mp4 \(no video stream\)")


@pytest.mark.parametrize(
  "kind, reason",
  [
    ("empty", "it is empty"),
    *[(kind, "Invalid data") for kind in ("page", "half")],
    ("none", "No such file"),
    *[(kind, "a folder, not a file") for kind in ("folder", "folder link")],
    *[(kind, "a pipe, socket or dev") for kind in ("fifo", "link", "device")],
  ],
)
def test_files_that_are_no_video_are_named(kind, reason, tmp_path):
  """What isn't a regular file isn't opened, which would wait for ever."""
  path = unusual(tmp_path, kind, cut_short(make(40, "mp4", **LOSSY)))
  refused(path, f"found {path} \\(.*{reason}.*\\); repair or remove")


@pytest.mark.parametrize(
  "source", [3, picture(4, 4), Image.fromarray(picture(4, 4))]
)
def test_sources_that_are_no_video(source):
  """A picture is one, but its rows aren't."""
  refused(source, "expected a video's path, bytes, pictures or an array")


def test_unreadable():
  """An .mp4 that breaks off has lost its index, which is at the end."""
  whole = make(40, "mp4", **LOSSY)
  for source in (b"", b"not a video", cut_short(whole)):
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


@pytest.mark.parametrize(
  "there, asked, taken",
  [(5, 8, 4), (7, 7, 6), (3, 100, 2), (2, 8, 2), (5, 1, 2)],
)
def test_a_video_shorter_than_asked_for(processor, there, asked, taken):
  """Its whole patches; Qwen3-VL, as in Transformers, shows frames twice."""
  processor = dataclasses.replace(
    processor, video=dataclasses.replace(processor.video, frames=asked)
  )
  if processor.config.family == "qwen3_vl":
    taken = asked + asked % 2
  (cut,) = processor.encode(video(make(there)), "x").cuts
  assert cut.grid[0] * 2 == taken


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_fewer_frames_than_a_patch_has(family, path):
  """The config is at fault, not the video."""
  config = small_models.small_config(family=family)
  one = small_models.make_processor(config)
  settings = dataclasses.replace(one.video, max_frames=1, min_frames=1)
  one = dataclasses.replace(one, video=settings)
  with pytest.raises(UserError, match=r"^q7: expected config\..*max_frames of"):
    one.encode(video(path), "q7")


def test_a_video_of_one_frame(processor):
  """It is shown twice, which a patch needs, from a file or not."""
  still = frames_of(1)
  twice = processor.encode(video(still[[0, 0]], fps=FPS), "x").cuts[0].pixels
  for source in (make(1), still, list(still)):
    (cut,) = processor.encode(video(source, fps=FPS), "x").cuts
    np.testing.assert_array_equal(cut.pixels, twice)
  for frames in (0, 8):
    settings = dataclasses.replace(processor.video, frames=frames)
    one = dataclasses.replace(processor, video=settings)
    assert one.encode(video(make(1)), "x").cuts[0].grid[0] == 1


@pytest.mark.parametrize("fps", [-1, "two", [2.0], np.nan, np.inf])
def test_rates_that_are_none(processor, path, fps):
  with pytest.raises(UserError, match="q7: .*'fps' as a number above 0, found"):
    processor.encode(video(path, fps=fps), "q7")


def test_thin_pictures_and_videos_are_named(processor, tmp_path):
  """By the file, not only by the question."""
  thin = frames_of(2)[:, :1].repeat(5, axis=2)[:, :, :201]
  path, clip = tmp_path / "a.png", tmp_path / "a.mov"
  Image.fromarray(thin[0]).save(path)
  write(str(clip), thin, "mov", **LOSSLESS)
  chats = {
    path: user({"type": "image", "image": path}, "?"),
    clip: video(clip),
    "2 frames": video(list(thin), fps=1),
  }
  for source, chat in chats.items():
    message = rf"q7: .*200, found \d+ x \d pixels in {source}; change the"
    with pytest.raises(UserError, match=message):
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


def test_frames_are_scaled_as_they_are_decoded(path):
  """The same pixels as when all frames are kept and scaled afterwards."""

  def fit(count, height, width):
    assert (count, height, width) == (12, *frames_of(1).shape[1:3])
    return height // 2, width

  kept = read(path)
  scaled = videos.read(path, "sample 7", every, 0.0, fit)
  height, width = kept.frames.shape[1:3]
  assert scaled.size == kept.size == (height, width)
  expected = [
    np.asarray(pictures.scale(Image.fromarray(frame), height // 2, width))
    for frame in kept.frames
  ]
  np.testing.assert_array_equal(scaled.frames, expected)


def test_frames_that_fit_no_budget_are_left_to_be_refused(path):
  def fit(*_):
    raise ValueError("too flat")

  scaled = videos.read(path, "sample 7", every, 0.0, fit)
  np.testing.assert_array_equal(scaled.frames, read(path).frames)
