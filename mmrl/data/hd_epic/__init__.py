"""Questions of HD-EPIC (arXiv 2502.04144), in the form of its own files."""

from mmrl.data.hd_epic.questions import HdEpic

__all__ = ["HdEpic"]
