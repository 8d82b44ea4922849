"""Rewards, [P, G], computed by functions that a config names.

A reward with an argument `text` (P lists of G answers as the model wrote them),
`answer` (P right answers) or `example` (P questions) runs on the host. It is
called once for a whole batch, and may also have arguments `length` and `ended`.
A reward with array arguments only runs on the devices. It may read `length`
[P, G] (number of sampled tokens), `ended` [P, G] (whether the answer ends),
`mask`, `tokens`, `prompt`, and the fields that the run's probes add, such as
`attention_old`; and values of a reward of texts, as `reward_NAME` by its name
in the config. Those on the host are also what benchmarks score answers by.

A function may carry a `check` of its options and a `hint`, which is printed if
it is 0 for all of a run's first batch; see `mmrl.marks`.

Rewards that compare answers read the last closed `<answer>` block after the
thought, of a text and of a right answer that has one. Pairs, right and given,
that are equal to them:

| reward | beside equal texts | extra |
|---|---|---|
| `exact_answer` | none | |
| `lenient_answer` | red, Red; red, "red."; 3, \\boxed{3}; 3, $3$ | |
| `choice` | B, b; B, (B); B, B.; B, Answer: B; B, B) red; (B), B. red | |
| `first_option` | of the first block: B, B. red; B, B) red; B, B: red | |
| `inferred_choice` | B, B; B, the answer is B; B, the text of B's line | |
| `number` | 3, 3.0; 1,000, 1000; 0.5, 1/2; 50%, 0.5; 12, 12 cm; x=3, 3 | |
| `math_answer` | those of `number`; 50%, 50; (x+1)^2, x^2+2x+1 | `math` |
| `closeness` | in part: numbers that are near | |
| `box_iou` | in part: boxes that overlap | |
| `word_error_rate` | in part: texts with the same words in order | |
| `rouge` | in part: texts with the same words | `rouge` |
| `meteor` | in part: texts with the same words in order | `meteor` |
| `accuracy` | those of the reward for its question's kind | as that one |
"""

from mmrl.rewards.answer import answer_format, exact_answer
from mmrl.rewards.boxes import box_iou
from mmrl.rewards.choices import choice, first_option, inferred_choice
from mmrl.rewards.facts.lines import (
  first_math_answer,
  lined_format,
  repeated_ngrams,
)
from mmrl.rewards.facts.stated import judged_facts, judged_share, stated_facts
from mmrl.rewards.frames.preference import pair_preference
from mmrl.rewards.frames.reply import frame_format, label_attribution
from mmrl.rewards.kinds import accuracy
from mmrl.rewards.length import length_window, soft_overlong
from mmrl.rewards.lenient import lenient_answer
from mmrl.rewards.looks.back import (
  attention_share,
  back_format,
  back_segment,
  boxed_accuracy,
  refocus_gain,
)
from mmrl.rewards.looks.cosine import visual_cosine
from mmrl.rewards.looks.evenness import sink_suppression, visual_evenness
from mmrl.rewards.looks.region import region_attention, target_attention
from mmrl.rewards.mathematics import math_answer
from mmrl.rewards.numbers import closeness, number
from mmrl.rewards.thoughts.chains import (
  chain_part,
  chain_steps,
  chain_structure,
)
from mmrl.rewards.thoughts.consistency import consistency_bonus
from mmrl.rewards.words import meteor, rouge, word_error_rate

__all__ = [
  "accuracy",
  "answer_format",
  "attention_share",
  "back_format",
  "back_segment",
  "box_iou",
  "boxed_accuracy",
  "chain_part",
  "chain_steps",
  "chain_structure",
  "choice",
  "closeness",
  "consistency_bonus",
  "exact_answer",
  "first_math_answer",
  "first_option",
  "frame_format",
  "inferred_choice",
  "judged_facts",
  "judged_share",
  "label_attribution",
  "length_window",
  "lenient_answer",
  "lined_format",
  "math_answer",
  "meteor",
  "number",
  "pair_preference",
  "refocus_gain",
  "region_attention",
  "repeated_ngrams",
  "rouge",
  "sink_suppression",
  "soft_overlong",
  "stated_facts",
  "target_attention",
  "visual_cosine",
  "visual_evenness",
  "word_error_rate",
]
