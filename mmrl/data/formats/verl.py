"""Rows of verl (verl/utils/dataset/rl_dataset.py)."""

from typing import Any

from mmrl.data import lines
from mmrl.data.formats import fields
from mmrl.errors import UserError

USED = {
  "prompt": "messages, with <image> or <video> once for each",
  "images": "list of pictures",
  "videos": "list of videos; of their sampling options `fps` is obeyed",
  "audios": "refused, unless empty",
  "reward_model": "its `ground_truth` is the right answer",
}
UNUSED = ("data_source", "ability", "extra_info", "agent_name", "id")


def claims(row: dict[str, Any]) -> bool:
  """Tells whether a row looks like one of this format."""
  return "reward_model" in row


def row(raw: dict[str, Any]) -> dict[str, Any]:
  """Returns a row of our own format."""
  fields.refuse(raw, ["audios"], "models here don't hear")
  pictures = fields.media(
    images=fields.shown(raw, "images"), videos=fields.shown(raw, "videos")
  )
  found = fields.asked(fields.messages(raw.get("prompt"), "prompt"), pictures)
  reward = raw.get("reward_model")
  if not isinstance(reward, dict) or "ground_truth" not in reward:
    raise UserError(
      f"expected 'reward_model' with 'ground_truth', found {reward!r:.80}"
    )
  lines.check_keys(reward, ("style", "ground_truth"), "a 'reward_model'")
  return found | {"answer": fields.answer(reward["ground_truth"])}
