"""Qwen-VL models as pure functions over a parameter tree."""

from mmrl.models.decoding import decode
from mmrl.models.parameters import init
from mmrl.models.policy import lazy_logits, score, token_logprobs
from mmrl.models.rows import attention_policy, attention_rows, map_rows
from mmrl.models.tower import vision
from mmrl.models.vlm import apply, embed, extend, logits, prefill

__all__ = [
  "apply",
  "attention_policy",
  "attention_rows",
  "decode",
  "embed",
  "extend",
  "init",
  "lazy_logits",
  "logits",
  "map_rows",
  "prefill",
  "score",
  "token_logprobs",
  "vision",
]
