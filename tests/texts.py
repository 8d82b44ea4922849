"""Random texts, of what parsers look for."""

import random

_PIECES = [
  *"<>/{}[]()|:;.,\"'\\$%+-*=^_\n\t 019aBé",
  *("<think>", "</think>", "<answer>", "</answer>", "<back>", "</back>"),
  *(
    "<think>\n",
    "\n</think>\n",
    "<info1>",
    "</info1>",
    "<TIME 00:03:1.8 video",
  ),
  *("<BBOX 1 2", "\\boxed{", "\\frac{1}{", "Count:", "Move: ", "from sink to "),
  *('{"labels": [', '"score": 3}', "{'EXPERT name':", "'Question': ", "null"),
  *("nan", "inf", "1e999", "True", "True or False", "equal", "yes", "no"),
  *(
    "B. red",
    "the answer is C",
    "3 o'clock",
    "0:43",
    "1/0",
    "٣",
    "½",
    "\ud800",
  ),
  *(
    "9" * 400,
    "9" * 5000,
    "(" * 200,
    "[" * 200,
    "\x00",
    "\u2028",
    "<|im_end|>",
  ),
]


def random_texts(count: int = 1000, seed: int = 0) -> list[str]:
  """Makes texts of up to 30 pieces; the first is empty, every third formed."""
  draw = random.Random(seed)

  def text():
    return "".join(draw.choices(_PIECES, k=draw.randrange(30)))

  def formed():
    return (
      f"<think>\n{text()}\nEvent: 0:0{text()}</think><answer>{text()}</answer>"
    )

  return ["", *(text() if i % 3 else formed() for i in range(1, count))]
