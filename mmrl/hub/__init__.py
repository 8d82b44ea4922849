"""Models as directories in the Hugging Face layout: loaded, saved, checked."""

from mmrl.hub.directory import Model, load, save

__all__ = ["Model", "load", "save"]
