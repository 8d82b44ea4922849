"""One-page HTML report of a training run."""

from mmrl.report.report import Answer, Example, overlay, write

__all__ = ["Answer", "Example", "overlay", "write"]
