"""Continuous batching: prompts take the place of answers that have ended."""

from mmrl.rollouts.continuous.stream import Decoded, answers, pays

__all__ = ["Decoded", "answers", "pays"]
