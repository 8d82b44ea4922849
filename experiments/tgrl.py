"""TGRL: trajectories of stronger models as further answers. arXiv 2603.26126.

  python -m mmrl.train --config experiments/tgrl.py:EXPERTS,runlocal \\
    --workdir RUN
  python -m mmrl.train --config experiments/tgrl.py:EXPERTS,DIR --workdir RUN

EXPERTS is a JSON Lines file of {"name", "text"}, the name of a question and a
whole answer to it; `python -m experiments.experts --output EXPERTS` writes one
for easy-VQA. `:EXPERTS,runlocal` is the quick start with this method; one seed:
82.5 % of the test questions after, 70.0 % before. `:EXPERTS,DIR` is
Qwen2.5-VL-7B on your questions (experiments/jsonl.py): 7 answers and 1 expert
to a group. It has not been run.

Reconstructed: of the paper only the abstract could be read. The expert term and
the shared group are LUFFY's (arXiv 2504.14945), the weight of a token (how much
its probability depends on the picture) and the filter are chosen here.
"""

from experiments import recipes
from mmrl import config as config_lib
from mmrl.errors import UserError


def get_config(arg: str = "experts.jsonl,data"):
  """The config.

  Args:
    arg: EXPERTS,runlocal or EXPERTS,DIR.
  """
  experts, _, base = arg.partition(",")
  if not experts or not base:
    raise UserError(f"tgrl.py:{arg}: expected EXPERTS,runlocal or EXPERTS,DIR")
  config = recipes.base(base)
  if not recipes.is_local(base):
    config.rollout.answers = 7
  recipes.drop_kl(config)
  config_lib.wrap_rollout(
    config,
    name="with_experts",
    path=experts,
    count=1,
    accuracy="accuracy",
    format="format",
    solved=0.5,
  )
  config.advantage = {"name": "expert_group_normalised", "scale": "group"}
  config.token_weights.visual = {"name": "expert_visual", "strength": 1.0}
  config.losses.policy = {
    "name": "expert_shaped",
    "weight": 1.0,
    "reduce": "token_mean",
    "shape": 0.1,
  }
  return config
