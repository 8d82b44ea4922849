"""Rows of our own format."""

from typing import Any

USED = {
  "question": "text of the user; or instead of it",
  "messages": "conversation, as chat templates take it, the user's last",
  "images": "list of pictures",
  "videos": "list of videos",
  "answer": "right answer, or a list of them",
  "answers": "list of whole texts to learn from",
  "kind": "group of questions",
  "region": "boxes in the first picture",
  "focus_area": "visual tokens of the first picture, as SAYO has them",
  "facts": "list of visual facts, a sentence each",
  "labels": "list of what is wrong with a generated frame; none if it is empty",
  "compared": "images and labels of the frame that it is compared with",
  "preference": "which one is better: A, the row's own, B, or tie",
  "looks": "number of the picture, from 0, of each latent segment of a text",
  "rejected_images": "pictures that a pair has in the place of its own",
}
UNUSED = ()
# Names that other projects' files have for these.
MEANT = {
  **dict.fromkeys(("problem", "prompt", "query", "instruction"), "question"),
  **dict.fromkeys(("conversations", "conversation"), "messages"),
  **dict.fromkeys(("image", "img", "imgs", "image_path"), "images"),
  **dict.fromkeys(("picture", "pictures", "image_paths"), "images"),
  **dict.fromkeys(("video", "video_path", "video_paths"), "videos"),
  **dict.fromkeys(("solution", "label", "target", "ground_truth"), "answer"),
  **dict.fromkeys(("response", "responses", "completions"), "answers"),
  **dict.fromkeys(("category", "problem_type", "type", "group"), "kind"),
  **dict.fromkeys(("bbox", "box"), "region"),
  **dict.fromkeys(("fact", "visual_facts", "visual_key_info"), "facts"),
  **dict.fromkeys(("rejected_image", "images_rejected"), "rejected_images"),
}


def claims(row: dict[str, Any]) -> bool:
  """Tells whether a row looks like one of this format."""
  if "question" in row:
    return "index" not in row
  return "messages" in row and bool(row.keys() & {"answer", "answers"})


def row(raw: dict[str, Any]) -> dict[str, Any]:
  """Returns the row, which is read as it is."""
  return raw
