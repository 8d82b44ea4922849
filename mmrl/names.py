"""python -m mmrl.names prints docs/names.md

Names by which the functions of the slots take their data: one table.

A function asks for data by the names of its positional arguments (see
`mmrl.build`). What isn't in this table can't be asked for, but for fields that
probes from one's own files add. The run gives some
names always; others are fields of a batch, which exist where something adds
them: the place where answers come from (`mmrl.rollouts`); or a probe, or the
host (`mmrl.train.collect`), by which a run computes what one of its functions
names.
"""

from collections.abc import Iterable
from typing import NamedTuple

from mmrl import commands

PROBES, REWARDS, ADVANTAGES = "probes", "rewards", "advantages"
WEIGHTS, LOSSES, TEXTS = "token weights", "losses", "rewards of texts"
_LATER = (REWARDS, ADVANTAGES, WEIGHTS, LOSSES)
_ALL = (PROBES, *_LATER)
_CURRENT = (WEIGHTS, LOSSES)
_PARAMS = (PROBES, REWARDS, LOSSES)

# Fields that the scorer computes under the current parameters.
SCORES = ("logprobs", "entropies", "attention", "logits")
# Computed from other names, where these are there.
DERIVED = {"attention_moved": ("attention", "attention_old")}


class Name(NamedTuple):
  """Entry of the table: content of a name, slots that may ask, its source."""

  shape: str
  meaning: str
  slots: tuple[str, ...]
  source: str = "run"


NAMES = {
  "text": Name("P lists of G", "the answers, as written", (TEXTS,)),
  "answer": Name("P", "a right answer to each question", (TEXTS,)),
  "example": Name("P", "the questions (`mmrl.data.Example`)", (TEXTS,)),
  "ask_MODEL": Name(
    *("function", "conversations to replies of a model", (TEXTS,)), "models"
  ),
  "length": Name("P G", "number of an answer's tokens", (TEXTS, *_ALL)),
  "ended": Name(
    *("P G", "whether an answer has its end of sequence", (TEXTS, *_ALL)),
    "rollouts",
  ),
  "prompt": Name("`Prompt`", "the prompts", _ALL),
  "tokens": Name("P G R", "token ids of the answers", _ALL),
  "mask": Name("P G R", "True on the tokens of the batch's answers", _ALL),
  "sampled": Name(
    *("P G", "True on answers of the policy, in mixed groups", _ALL),
    "rollouts",
  ),
  "chosen": Name(
    "P G",
    "True on the preferred answer of a pair (`given_pairs`, `sampled_pairs`)",
    _ALL,
    "rollouts",
  ),
  "twin": Name(
    "P",
    "whether a prompt is the one before, about another picture (`given_pairs`)",
    _ALL,
    "rollouts",
  ),
  "span": Name(
    *("P G R", "0 padding, 1 reasoning, 2 answer, 3 other", _LATER),
    "host",
  ),
  "draw": Name(
    *("P", "random, of the question and the pass over the data", _LATER), "host"
  ),
  "epoch": Name("P", "pass over the data, from 1 on", _LATER, "host"),
  "tagged": Name(
    *("P G R", "True on tokens between a tag and its end", _ALL), "rollouts"
  ),
  "environment": Name(
    *("P G R", "True on tokens of replies to the policy", _ALL), "rollouts"
  ),
  "segment_pictures": Name(
    "P G R",
    "number of the prompt's picture that a latent segment opened here is about,"
    " -1 elsewhere (`given`)",
    _ALL,
    "rollouts",
  ),
  "logprobs_sampler": Name(
    "P G R", "as the sampler computed them", _ALL, "rollouts"
  ),
  "visual": Name(
    "B N E", "visual tokens, packed like patches", (PROBES, LOSSES)
  ),
  "scorer": Name("`Scorer`", "scores answers with parameters", (PROBES,)),
  "scorer_MODEL": Name("`Scorer`", "a named model's", (PROBES,), "models"),
  "params": Name("tree", "the policy's parameters", _PARAMS),
  "params_MODEL": Name("tree", "a named model's", _PARAMS, "models"),
  "scores_old": Name("`Scores`", "under the behaviour policy", (PROBES,)),
  "logprobs_old": Name("P G R", "under the behaviour policy", _LATER, "probes"),
  "entropies_old": Name(
    "P G R", "of the behaviour policy, nats", _LATER, "probes"
  ),
  "attention_old": Name(
    "`Attention`", "of the behaviour policy", _LATER, "probes"
  ),
  "attention_target": Name(
    *("`Attention`", "that RAL's term stays near, if not the behaviour's"),
    *(_LATER, "probes"),
  ),
  "logprobs_ref": Name("P G R", "under the reference", _LATER, "probes"),
  "logits_teacher": Name("`Logits`", "of the teacher", _LATER, "probes"),
  "attention_teacher": Name("`Attention`", "of the teacher", _LATER, "probes"),
  "nucleus_entropies_old": Name(
    "P G R", "of top-p nuclei, nats", _LATER, "probes"
  ),
  "logprobs_blind": Name("P G R", "without the pictures", _LATER, "probes"),
  "pictured": Name("P", "whether a prompt has a picture", _LATER, "probes"),
  "logprobs_average": Name(
    "P G R", "under the average of the policy", _LATER, "probes"
  ),
  "visual_cosines_old": Name(
    *("P L", "mean cosine of visual tokens in each layer", _LATER), "probes"
  ),
  "visual_entropy": Name("P", "of the pictures' spectra", _LATER, "probes"),
  "on_region_old": Name("P G R", "attention on the region", _LATER, "probes"),
  "on_visual_old": Name("P G R", "attention on pictures", _LATER, "probes"),
  "attention_shares_old": Name(
    *("P G R 3", "on picture, question and answer, mean over layers", _LATER),
    "probes",
  ),
  "visual_attention_old": Name(
    "P G R", "on a visual token that is no sink", _LATER, "probes"
  ),
  "sink_ratio_old": Name(
    "P G R", "attention on a sink over any visual token", _LATER, "probes"
  ),
  "reward_NAME": Name(
    *("P G", "a reward of texts, by its name in the config", (REWARDS,)),
    "rewards",
  ),
  "rewards": Name("P G", "the total reward", (ADVANTAGES, *_CURRENT)),
  "key": Name("key", "random, of the rollout batch", (ADVANTAGES, WEIGHTS)),
  "advantages": Name("P G or P G R", "the advantages", _CURRENT),
  "token_weights": Name("P G R", "product of the token weights", (LOSSES,)),
  "logprobs": Name("P G R", "under the current policy", _CURRENT),
  "entropies": Name("P G R", "of the current policy, nats", _CURRENT),
  "attention": Name("`Attention`", "of the current policy", _CURRENT),
  "logits": Name("`Logits`", "of the current policy", _CURRENT),
  "minibatch": Name("`Minibatch`", "sums over all of it", (WEIGHTS,)),
  "attention_moved": Name(
    *("P G R", "divergence of attention from attention_old, nats", (LOSSES,)),
    "derived",
  ),
  "forward": Name("`Forward`", "the model as it is now", (LOSSES,)),
  "hidden": Name(
    "dict", "outputs [P, G, R, D] of decoder layers that it asks for", (LOSSES,)
  ),
  "learned": Name("tree", "a term's own parameters", (LOSSES,), "state"),
  "running": Name("tree", "a term's running values", (LOSSES,), "state"),
}


def given(slot: str) -> list[str]:
  """Returns the names that every run gives to the functions of a slot."""
  return [
    name
    for name, one in NAMES.items()
    if slot in one.slots and one.source in ("run", "host")
  ]


def allowed(slot: str, fields: Iterable[str]) -> list[str]:
  """Returns those of a batch's fields that functions of a slot may name.

  A field that isn't in the table is of a probe or a source of answers from
  one's own file: what comes after it may name it.
  """
  return [
    f for f in fields if slot in (NAMES[f].slots if f in NAMES else _LATER)
  ]


def page() -> str:
  """Formats the table in Markdown."""
  lines = [
    "# Names of data",
    "",
    "Functions of the slots take their data by name. `python -m mmrl.names`",
    "prints this page; letters of shapes are those of `mmrl/types.py`.",
    "",
    "| name | shape | holds | may be named by | added by |",
    "|---|---|---|---|---|",
  ]
  lines += [
    f"| `{name}` | {one.shape} | {one.meaning} | {', '.join(one.slots)} |"
    f" {one.source} |"
    for name, one in NAMES.items()
  ]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  commands.parse(__doc__)
  print(page(), end="")
