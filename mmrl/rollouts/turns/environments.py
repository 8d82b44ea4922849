"""What answers a policy that asks in the midst of its answer.

A function of the question and of what is asked, as text, returns the reply.
"""

import re

from mmrl.data import Example
from mmrl.worlds.scenes import sentences

__all__ = ["scene_eye"]


def scene_eye(
  example: Example, asked: str, *, error: float = 0.0, seed: int = 0
) -> str:
  """Looks at the first picture of a question of the source `Scenes`.

  Args:
    example: the question.
    asked: a simple question; a single word is a shape whose colour is asked.
    error: probability of a wrong reply; see `worlds.scenes.sentences.oracle`.
    seed: another seed errs elsewhere.
  """
  if re.fullmatch(r"\w+", asked.strip()):
    asked = f"What colour is the {asked.strip()}?"
  scene = example.extra["scenes"][0]
  return sentences.oracle(scene, asked, error=error, seed=seed)
