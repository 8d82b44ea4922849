"""Models as directories in the Hugging Face layout: loaded, saved, checked."""

from mmrl.hub.directory import Model, is_tiny, load, save

__all__ = ["Model", "is_tiny", "load", "save"]
