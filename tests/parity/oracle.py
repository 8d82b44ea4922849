"""Transformers' models and processors, for the models of `small_models`.

Its video processors are written on torchvision. What it calls there is
stood in for by `_normalize` and `_resize` (by PIL: another
resampling is another picture), so that everything else is Transformers' own
code: sampling, sizes, patches, timestamps, text, positions, model.
"""

import contextlib
import importlib
import pathlib
import sys
import tempfile
import types
from unittest import mock

import numpy as np
from PIL import Image
import small_models
import torch
import transformers
from transformers import image_processing_backends, video_processing_utils
from transformers.processing_utils import ProcessorMixin
from transformers.video_utils import VideoMetadata, load_video

from mmrl.hub import config_json
from mmrl.models.config import ModelConfig
from mmrl.models.families import FAMILIES
from mmrl.prompts.packing import Encoded
from mmrl.prompts.processor import Processor

Torch = transformers.PreTrainedModel
# The models are so small that threads would only wait for each other.
torch.set_num_threads(1)


def _normalize(frames, mean, std, inplace=False):
  mean, std = (torch.as_tensor(x)[:, None, None] for x in (mean, std))
  return (frames - mean) / std


def _resize(frames, size, interpolation=None, antialias=True):
  if tuple(frames.shape[-2:]) == tuple(size):
    return frames
  flat = frames.reshape(-1, *frames.shape[-3:])
  scaled = [
    np.asarray(
      Image.fromarray(frame.permute(1, 2, 0).numpy()).resize(
        tuple(size)[::-1], Image.Resampling.BICUBIC
      )
    )
    for frame in flat
  ]
  stacked = torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2)
  return stacked.reshape(*frames.shape[:-2], *size)


_FUNCTIONAL = types.ModuleType("torchvision.transforms.v2.functional")
_FUNCTIONAL.normalize = _normalize
_FUNCTIONAL.resize = _resize
_FUNCTIONAL.grayscale_to_rgb = lambda frames: frames
_FUNCTIONAL.InterpolationMode = mock.MagicMock()


@contextlib.contextmanager
def _torchvision():
  """While this lasts, `torchvision` is the stand-in."""
  names = ["torchvision", "torchvision.transforms", "torchvision.transforms.v2"]
  modules = {name: types.ModuleType(name) for name in names}
  modules[names[-1]].functional = _FUNCTIONAL
  modules[_FUNCTIONAL.__name__] = _FUNCTIONAL
  with mock.patch.dict(sys.modules, modules):
    yield


def _video_processor(name: str) -> type:
  module = {"Qwen2VLVideoProcessor": "qwen2_vl"}.get(name, "qwen3_vl")
  with _torchvision():
    found = importlib.import_module(
      f"transformers.models.{module}.video_processing_{module}"
    )
  return getattr(found, name)


for _module in (video_processing_utils, image_processing_backends):
  _module.tvF = _FUNCTIONAL
image_processing_backends.pil_torch_interpolation_mapping = {
  Image.Resampling.BICUBIC: "bicubic"
}


def video_processor(ours: Processor):
  """Its processor of videos, with our settings."""
  tower, video = ours.config.vision, ours.video
  return _video_processor(FAMILIES[ours.config.family].video_processor)(
    size={
      "shortest_edge": video.min_pixels,
      "longest_edge": video.max_pixels,
    },
    image_mean=list(ours.picture.mean),
    image_std=list(ours.picture.std),
    patch_size=tower.patch_size,
    merge_size=tower.spatial_merge_size,
    temporal_patch_size=tower.temporal_patch_size,
    cap_pixels_per_frame=False,
    fps=None if video.frames else video.fps,
    num_frames=video.frames or None,
    min_frames=video.min_frames,
    max_frames=video.max_frames,
  )


def smart_resize(name: str):
  """The function by which that processor of videos chooses sizes."""
  return _video_processor(name).patchify.__globals__["smart_resize"]


def make_processor(ours: Processor) -> ProcessorMixin:
  """Its processor of conversations, with our tokenizer and settings."""
  tower, picture = ours.config.vision, ours.picture
  pictures = transformers.Qwen2VLImageProcessorPil(
    patch_size=tower.patch_size,
    merge_size=tower.spatial_merge_size,
    temporal_patch_size=tower.temporal_patch_size,
    image_mean=list(picture.mean),
    image_std=list(picture.std),
    min_pixels=picture.min_pixels,
    max_pixels=picture.max_pixels,
  )
  cls = getattr(transformers, FAMILIES[ours.config.family].processor)
  # Its check of classes looks for torchvision.
  with mock.patch.object(cls, "check_argument_for_proper_class"):
    return cls(
      image_processor=pictures,
      tokenizer=ours.tokenizer,
      video_processor=video_processor(ours),
      chat_template=ours.tokenizer.chat_template,
    )


def make_inputs(ours: Processor, conversations: list) -> dict:
  """What its processor makes of conversations with arrays in them."""
  processor = make_processor(ours)
  parts = [
    part
    for conversation in conversations
    for message in conversation
    if not isinstance(message["content"], str)
    for part in message["content"]
  ]
  images = [p["image"] for p in parts if p["type"] == "image"]
  clips = [p for p in parts if p["type"] == "video"]
  media = {}
  if images:
    media["images"] = [Image.fromarray(image) for image in images]
  if clips:
    media["videos"] = [
      torch.from_numpy(clip["video"]).permute(0, 3, 1, 2) for clip in clips
    ]
    media["video_metadata"] = [
      VideoMetadata(
        total_num_frames=len(clip["video"]),
        fps=clip["fps"],
        frames_indices=list(range(len(clip["video"]))),
      )
      for clip in clips
    ]
    media["do_sample_frames"] = False
  texts = [
    ours.tokenizer.apply_chat_template(
      conversation,
      tokenize=False,
      add_generation_prompt=conversation[-1]["role"] != "assistant",
    )
    for conversation in conversations
  ]
  found = processor(text=texts, padding=True, return_tensors="pt", **media)
  return {k: v for k, v in found.items() if k != "video_metadata"}


def _fetch(paths: list, sample_indices_fn) -> list:
  """Files by its PyAV reader; its first choice, torchcodec, isn't here."""
  read = [
    load_video(path, backend="pyav", sample_indices_fn=sample_indices_fn)
    for path in paths
  ]
  return list(zip(*read, strict=True))


def read_inputs(ours: Processor, conversation: list, **kwargs) -> dict:
  """What its processor makes of a conversation with files in it.

  It reads them itself, renders the template and samples with our settings.
  `kwargs` go to its `apply_chat_template`.
  """
  processor = make_processor(ours)
  processor.video_processor.fetch_videos = _fetch
  return processor.apply_chat_template(
    [conversation],
    add_generation_prompt=conversation[-1]["role"] != "assistant",
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
    processor_kwargs={"do_sample_frames": True},
    **kwargs,
  )


def make_torch(config: ModelConfig) -> Torch:
  """The model, its weights set by name: our loader has no part in it."""
  with tempfile.TemporaryDirectory() as name:
    config_json.write(config, pathlib.Path(name), "float32")
    hf_config = transformers.AutoConfig.from_pretrained(name)
  hf_config._attn_implementation = "eager"
  cls = getattr(transformers, FAMILIES[config.family].architecture)
  model = cls(hf_config).eval()
  with torch.no_grad():
    for tensor_name, tensor in model.named_parameters():
      values = small_models.weight(tensor_name, tuple(tensor.shape))
      tensor.copy_(torch.from_numpy(values))
  return model


_ROPE = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def positions(model: Torch, inputs: dict) -> tuple[np.ndarray, np.ndarray]:
  """Rotary positions [P, S, 3], and how far on each prompt goes [P]."""
  found, deltas = model.model.get_rope_index(
    inputs["input_ids"],
    mm_token_type_ids=inputs["mm_token_type_ids"],
    attention_mask=inputs["attention_mask"],
    **{name: inputs[name] for name in _ROPE if name in inputs},
  )
  return found.permute(1, 2, 0).numpy(), deltas[:, 0].numpy()


def check(encoded: Encoded, inputs: dict, model: Torch) -> None:
  """One conversation, prepared by either library, to the last bit."""
  np.testing.assert_array_equal(encoded.tokens, inputs["input_ids"][0])
  for kind, grids, pixels in (
    ("image", "image_grid_thw", "pixel_values"),
    ("video", "video_grid_thw", "pixel_values_videos"),
  ):
    cuts = [cut for cut in encoded.cuts if cut.kind == kind]
    assert (grids in inputs) == bool(cuts)
    if cuts:
      assert [list(cut.grid) for cut in cuts] == inputs[grids].tolist()
      np.testing.assert_array_equal(
        np.concatenate([cut.pixels for cut in cuts]), inputs[pixels]
      )
  found, _ = positions(model, inputs)
  np.testing.assert_array_equal(encoded.positions, found[0])


def outputs(model: Torch, inputs: dict) -> tuple[np.ndarray, np.ndarray]:
  """Logits [P, S, V] and attention [L, P, H, S, S]."""
  with torch.no_grad():
    found = model(**inputs, output_attentions=True)
  maps = np.stack([layer.numpy() for layer in found.attentions])
  return found.logits.numpy(), maps
