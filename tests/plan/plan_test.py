"""What a plan says is what the compiler says."""

import dataclasses
import json
import operator
import re

import jax
import pytest
import rows

from mmrl import config as config_lib
from mmrl.errors import UserError
from mmrl.hub import config_json, directory
from mmrl.machines import sharding
from mmrl.models import vlm
from mmrl.plan import chips, figures, flops, hlo, plan, programs
from mmrl.train import walk
from mmrl.types import Prefix

HLO = """\
HloModule jit_f

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %gathered = f32[4,8]{1,0} all-gather(%x), dimensions={0}
  %sum = bf16[16]{0} all-reduce(%y), to_apply=%add
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %one = s32[]{:T(128)} constant(1)
  %three = s32[]{:T(128)} constant(3)
  %less = pred[] compare(%a, %three), direction=LT
}

%by_two (p: (f32[8], u32[])) -> (f32[8], u32[]) {
  %step = u32[]{:T(128)} constant(2)
  %count = u32[]{:T(128)} get-tuple-element(%p), index=1
  %moved = f32[8]{0} collective-permute(%x), channel_id=1
  %next = u32[]{:T(128)} add(%count, %step), metadata={}
  ROOT %both = (f32[8]{0}, u32[]{:T(128)}) tuple(%moved, /*index=1*/%next)
}

%below_seven (p: (f32[8], u32[])) -> pred[] {
  %seven = u32[]{:T(128)} constant(7)
  %counted = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %less.2 = pred[] compare(%counted, %seven), direction=LT
}

%begin (p: f32[8]) -> f32[8] {
  %a = f32[8]{0} all-to-all(%p), channel_id=2
}

%meanwhile (p: f32[8]) -> f32[8] {
  %b = f32[8]{0} all-to-all(%p), channel_id=2
}

%turn (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %part.1 = f32[8]{0} fusion(%a), kind=kCustom, calls=%meanwhile
}

%data (p: (s32[], f32[8])) -> pred[] {
  %less.1 = pred[] compare(%a, %b), direction=LT
}

%fused (p: f32[8]) -> f32[2] {
  %part = f32[2]{0} reduce-scatter(%p), dimensions={0}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %known = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %unknown = (s32[], f32[8]) while(%t), condition=%data, body=%body
  %windowed = (f32[8], u32[]) while(%t), condition=%below_seven, body=%by_two
  %begun = f32[8]{0} fusion(%a), kind=kCustom, calls=%begin
  %parts = (s32[], f32[8]) while(%t), condition=%condition, body=%turn
  %call = f32[2]{0} fusion(%a), kind=kLoop, calls=%fused
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%a), dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  %name = f32[8]{0} add(%all-gather.1, %a)
}
"""


def test_collectives_are_counted_as_often_as_they_run():
  """3 turns of one loop, 1 of another: 4 x 128 and 4 x 32 bytes.

  Counting by two there are 4 turns below 7. What is begun once and goes on in
  each of three turns is one collective.
  """
  assert hlo.collectives(HLO) == {
    "all-gather": {"count": 4 + 1, "bytes": 4 * 4 * 8 * 4 + 32 * 4},
    "all-reduce": {"count": 4, "bytes": 4 * 16 * 2},
    "reduce-scatter": {"count": 1, "bytes": 2 * 4},
    "all-to-all": {"count": 1, "bytes": 8 * 4},
    "collective-permute": {"count": 4, "bytes": 4 * 8 * 4},
  }


def test_a_compiled_gather_is_found():
  layout = sharding.Layout(
    sharding.make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
  )
  x = jax.ShapeDtypeStruct((16, 4), "float32", sharding=layout.prompts)
  compiled = layout.jit(lambda x: sharding.whole(2 * x)).lower(x).compile()
  found = hlo.collectives(compiled.as_text())
  assert found == {"all-gather": {"count": 1, "bytes": 16 * 4 * 4}}


def make_config():
  config = config_lib.add_ral(config_lib.get_config())
  config.mesh.update({"data": 1, "fsdp": 8})
  config.rollout.prompts = 32
  config.rollout.answers = 2
  config.shares.every = 0
  config.evaluation.batch = 8
  return config


@pytest.fixture(autouse=True, scope="module")
def layers_one_by_one():
  """As a run compiles the small model, whose memory is asked for."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(vlm, "_UNROLLED_BYTES", 2**28)
    yield


@pytest.fixture(scope="module")
def printed():
  """The plan of a run on eight CPU devices, as JSON."""
  lines = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("builtins.print", lambda text, **_: lines.append(text))
    assert plan.run(make_config(), topology=None, as_json=True)
  (line,) = lines
  return json.loads(line)


def test_no_evaluation_without_benchmarks(monkeypatch):
  config = make_config()
  config.evaluation.benchmarks = {}
  compiler = programs.Compiler(config, jax.devices())
  monkeypatch.setattr(compiler, "compile", lambda call: (call.name, None))
  assert next(compiler.programs()) == "rollout"


def test_results_are_laid_out_by_prompts_and_heads():
  """Keys of prompts lead with their layers, and numbers with nothing."""
  mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
  layout = sharding.Layout(mesh)
  shapes = {"keys": (28, 8, 16, 2, 4), "mask": (8, 16), "mean": ()}
  keys, mask, mean = (
    jax.ShapeDtypeStruct(x, "float32") for x in shapes.values()
  )
  prefix = Prefix(keys, keys, mask, mask, mask)
  found = walk.laid(layout, {"prefix": prefix, "mean": mean})
  prefix, shards = found["prefix"], programs.shard_bytes(found)
  for x in (prefix.keys, prefix.values):
    assert shards[id(x)] == 28 * 2 * 16 * 1 * 4 * 4
  assert shards[id(prefix.mask)] == 2 * 16 * 4
  assert shards[id(found["mean"])] == 4


@pytest.mark.full
def test_a_plan_has_every_program(printed):
  names = [program["name"] for program in printed["programs"]]
  assert names == ["evaluate", "rollout", "probe", "prepare", "update"]
  assert printed["fits"] and printed["change"] is None
  sizes = printed["sizes"]
  assert sizes["devices"] == sizes["fsdp"] == 8
  assert sizes["tokens_per_step"] == 32 * (40 + 2 * 10)
  assert sizes["prompts_per_shard_and_update"] == 2
  # Questions of unequal length, in rows of 40.
  assert 0 < sizes["padding_share"] < 0.3


@pytest.mark.full
def test_memory_is_the_compilers(printed):
  """Parameters and moments, float32, in eight parts or nearly."""
  update = printed["programs"][-1]
  memory = update["memory"]
  compiler = programs.Compiler(make_config(), jax.devices())
  state = jax.tree.leaves(compiler.state)
  eighth = sum(x.size * x.dtype.itemsize for x in state) / 8
  assert eighth < memory["arguments"] < 4 * eighth + 2**20
  assert eighth * 0.9 < memory["alias"] <= memory["output"]
  assert memory["resident"] > 0
  assert update["total"] == (
    memory["arguments"]
    + memory["temporaries"]
    + memory["output"]
    + memory["resident"]
    - memory["alias"]
  )
  assert update["collectives"]["all-gather"]["bytes"] > 0


@pytest.mark.full
def test_flops_are_the_formulas(printed):
  """One update's; a frozen tower is not run in it."""
  config = make_config()
  model = programs.read_architecture(config.models.policy.path)
  work = flops.step(
    model,
    grids=[(1, 8, 8)] * 32,
    lengths=[40] * 32,
    answers=2,
    count=10,
    rows_trained=1,
    trains=("layers", "head"),
  )
  found = {p["name"]: p["flops"] for p in printed["programs"]}
  assert found["rollout"] == work["rollout"]
  assert found["update"] == work["update"] // 2


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
  """Of a run with a teacher, experts and groups drawn again, what is compiled.

  Returns:
    (compiler, program by name, arguments by name).
  """
  path = tmp_path_factory.mktemp("teacher")
  model = config_json.read(directory.tiny_path())
  text = dataclasses.replace(model.text, num_hidden_layers=6)
  model = dataclasses.replace(model, text=text)
  config_json.write(model, path, "float32")
  config = make_config()
  config_lib.wrap_rollout(config, name="refilled", rounds=1, reward="accuracy")
  config_lib.wrap_rollout(
    config, name="with_experts", path="experts.jsonl", accuracy="accuracy"
  )
  config.advantage = {"name": "expert_group_normalised", "scale": "group"}
  config.models.teacher = {
    "name": "Directory",
    "path": str(path),
    "param_dtype": "bfloat16",
    "mesh": {"data": 1, "fsdp": 4, "tensor": 2},
  }
  for name in ("distillation_kl", "attention_distillation"):
    config.losses[name] = {"name": name, "weight": 1.0, "reduce": "token_mean"}
  compiler, given = programs.Compiler(config, jax.devices()), {}
  compile_one = compiler.compile

  def spy(call):
    given[call.name] = call.arguments
    return compile_one(call)

  compiler.compile = spy
  found = {program.name: program for program in compiler.programs()}
  return compiler, found, given


@pytest.mark.full
def test_a_teacher_is_planned(taught):
  """On its own mesh, and beside every other program."""
  compiler, found, _ = taught
  assert list(found) == [
    *("evaluate", "rollout", "exchange", "probe", "teacher", "prepare"),
    "update",
  ]
  leaves = jax.tree.leaves(compiler.fixed["teacher"])
  assert {str(x.dtype) for x in leaves} == {"bfloat16"}
  state = compiler.state
  # Nothing but an update reads moments; the reference shares what is frozen.
  unread = state.step, state.optimizer
  teacher, reference, unread, state = (
    sum(programs.shard_bytes(x).values())
    for x in (*map(compiler.fixed.get, ("teacher", "reference")), unread, state)
  )
  eighth = sum(x.size for x in leaves) * 2 / 8
  assert eighth <= teacher < 1.2 * eighth
  assert found["update"].memory["resident"] == reference + teacher
  assert found["probe"].memory["resident"] == teacher + unread
  teach = found["teacher"].memory
  assert teach["arguments"] > teacher
  # The rollout and what the probes found stay, in another layout.
  kept = teach["resident"] - reference - state
  assert kept > found["rollout"].memory["output"] / 2
  assert found["teacher"].total == sum(teach.values()) - 2 * teach["alias"]
  assert found["teacher"].collectives["all-gather"]["bytes"] > 0


@pytest.mark.parametrize(
  "text, wanted",
  [
    ("Ran out of memory. Used 20.50G of 15.75G hbm. Exceeded", 20.5 * 2**30),
    (
      "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory"
      " required for HLO temporaries (20.22G) exceeds available HBM (15.75G).",
      round(20.22 * 2**30) + 7,
    ),
    ("INTERNAL: something else", None),
  ],
)
def test_what_is_refused_is_read(text, wanted):
  assert figures.refused_bytes(text, 7) == wanted


def test_memory_of_an_adapter_is_that_of_its_pairs():
  """Beside it a reference takes none; it would take what trains otherwise."""
  config = make_config()
  config.mesh.fsdp = 1
  compilers = [programs.Compiler(config, jax.devices()[:1])]
  config.models.policy.lora = {
    "rank": 4,
    "alpha": 8,
    "targets": "text/layers/q",
  }
  compilers.append(programs.Compiler(config, jax.devices()[:1]))
  whole, lora = map(plan._trained, compilers)
  text = compilers[0].parts.model_config.text
  layers, width = text.num_hidden_layers, text.hidden_size
  pairs = layers * 4 * (width + text.num_attention_heads * text.head_dim)
  assert lora["parameters_trained"] == pairs
  assert lora["parameters"] == whole["parameters"] + pairs + layers
  assert lora["others_bytes"] == 0
  assert whole["others_bytes"] == 4 * whole["parameters_trained"]
  # Two moments, and the counts of AdamW and its schedule.
  assert lora["optimizer_bytes"] == 4 * 2 * pairs + 8
  assert "LoRA of rank 4 on 1 kinds" in plan._trained_line(compilers[1])


@pytest.mark.full
def test_flops_of_a_teacher(taught):
  """Those of a reference, whose logits are computed in the update."""
  compiler, found, _ = taught
  sizes = {"grids": [(1, 8, 8)] * 32, "lengths": [40] * 32}
  sizes |= {"answers": 2, "others": 1, "count": 10}
  teacher = compiler.parts.method.models["teacher"].config
  one, other = (
    flops.step(teacher, **sizes, reference=reference)["probe"]
    for reference in (True, False)
  )
  head = flops.forward(flops.head(teacher, 32 * 3 * 10))
  rows = flops.forward(*(flops.rows(teacher, 40, 3, 10, 1),) * 32)
  assert found["teacher"].flops == one - other - head + rows
  update = flops.step(
    compiler.parts.model_config,
    **sizes,
    rows_trained=1,
    trains=("layers", "head"),
  )["update"]
  assert found["update"].flops == (update + head) // 2


@pytest.mark.full
def test_drawing_again_is_planned(taught):
  """Two batches of answers at a time; no group leaves its device."""
  _, found, given = taught
  exchange, rollout = found["exchange"], found["rollout"].memory
  assert exchange.collectives == {} and exchange.flops == 0
  drawn, again, _ = (
    sum(programs.shard_bytes(x).values()) for x in given["exchange"]
  )
  # An output has a table of its arrays besides.
  assert 0.999 * rollout["output"] < drawn == again <= rollout["output"]
  assert exchange.memory["arguments"] > 2 * drawn
  assert rollout["resident"] > found["probe"].memory["resident"]


@pytest.mark.full
def test_experts_are_planned(taught):
  """Two answers are sampled, three scored and learnt from."""
  compiler, found, given = taught
  drawn, again, _ = given["exchange"]
  assert drawn.tokens.shape == again.tokens.shape == (32, 2, 10)
  *_, batch, _ = given["update"]
  assert batch.tokens.shape == (32, 3, 10)
  assert batch.fields["sampled"].shape == (32, 3)
  assert batch.fields["rewards"].shape == (32, 3)
  model = compiler.parts.model_config
  sizes = {"grids": [(1, 8, 8)] * 32, "lengths": [40] * 32, "count": 10}
  two, three = (flops.step(model, answers=n, **sizes) for n in (2, 3))
  assert found["rollout"].flops == two["rollout"]
  assert found["probe"].flops == three["probe"]


@pytest.mark.full
def test_the_first_change_that_fits_is_named(monkeypatch, capsys):
  """An update that fits where its minibatch is computed in four parts."""

  def made_up(self):
    fits = self.config.train.accumulate == 4
    memory = dict.fromkeys(("arguments", "temporaries", "output", "alias"), 0)
    yield figures.Program(
      name="update",
      memory=memory | {"resident": 0},
      total=2**30 if fits else 2**35,
      fits=fits,
      collectives={},
      flops=0,
      seconds=0.0,
      compile_seconds=0.0,
    )

  monkeypatch.setattr(programs.Compiler, "programs", made_up)
  monkeypatch.setitem(chips.CHIPS, "cpu", chips.Chip(1e12, 2**34))
  config = make_config()
  config.rollout.prompts = 64
  assert not plan.run(config, topology=None, as_json=False)
  said = capsys.readouterr().out
  assert "does not fit: update takes 32.0 of 16.0 GiB; it does with" in said
  assert said.strip().endswith("--config.train.accumulate=4")
  assert not plan.run(config, topology=None, as_json=True)
  found = json.loads(capsys.readouterr().out)
  assert not found["fits"]
  assert found["change"] == "--config.train.accumulate=4"
  config.train.accumulate = 4
  assert plan.run(config, topology=None, as_json=False)
  assert "fits: update takes most, 6% of a device" in capsys.readouterr().out


@pytest.mark.parametrize(
  "change, text",
  [
    (
      {"rollout.prompts": 8},
      "--config.rollout.prompts=8 --config.train.minibatches=1",
    ),
    ({"rollout.prompts": 32}, "--config.rollout.prompts=32"),
    # Neither divides 8 devices.
    ({"rollout.prompts": 4}, None),
    ({"train.accumulate": 2}, None),
  ],
)
def test_a_change_is_tried_if_its_batch_divides(change, text):
  config = make_config()
  # An odd number isn't shared out.
  config.rollout.prompts, config.rollout.answers = 16, 3
  found = plan._fitted(config, change, jax.devices())
  assert (found and found[1]) == text
  if found:
    flags = dict(re.findall(r"--config\.(\S+)=(\d+)", text))
    for name, value in flags.items():
      assert str(operator.attrgetter(name)(found[0])) == value
    assert config.train.minibatches == 2


@pytest.mark.full
def test_what_does_not_fit_is_said_with_a_change_that_does(
  monkeypatch, capsys, printed
):
  """A device that has room for all but the update."""
  totals = {p["name"]: p["total"] for p in printed["programs"]}
  others = max(v for k, v in totals.items() if k != "update")
  assert totals["update"] > others
  chip = chips.Chip(1e12, totals["update"] - 1)
  monkeypatch.setitem(chips.CHIPS, "cpu", chip)
  assert not plan.run(make_config(), topology=None, as_json=False)
  said = capsys.readouterr().out
  assert re.search(r"does not fit: update takes .* GiB; it does with --", said)
  changes = re.findall(r"--config\.(\S+)=(\S+)", said)
  config = make_config()
  config.update_from_flattened_dict(
    {name: type_of(config, name, value) for name, value in changes}
  )
  compiler = programs.Compiler(config, jax.devices())
  assert all(program.fits for program in compiler.programs())


def type_of(config, name: str, value: str):
  """`value` in the type of a config's field."""
  for part in name.split("."):
    config = config[part]
  return type(config)(value)


def test_published_models_need_no_hub():
  config = make_config()
  config.models.policy.path = "Qwen/Qwen2.5-VL-7B-Instruct@main"
  config.models.policy.dtype = "bfloat16"
  model = programs.Compiler(config, jax.devices()).parts.model_config
  assert model.text.hidden_size == 3584
  assert model.dtype == "bfloat16"


def test_a_plan_without_the_models_files_wants_sizes():
  config = make_config()
  config.models.policy.path = "Qwen/Qwen2.5-VL-7B-Instruct@main"
  config.data.lengths = ()
  with pytest.raises(UserError, match="config.data.lengths: expected the"):
    programs.Compiler(config, jax.devices())


def test_a_plan_says_which_sizes_come_from_the_data(tmp_path, capsys):
  config = make_config()
  config.data.lengths = config.data.patches = ()
  found = rows.good(tmp_path, 40)
  path = rows.write(tmp_path / "a.jsonl", found)
  config.data.train = {"name": "Files", "path": path}
  config.evaluation.benchmarks = {}
  compiler = programs.Compiler(config, jax.devices())
  assert compiler.config.data.lengths == (32,)
  assert compiler.config.data.patches == (64,)
  assert "padded to 32 tokens and 64 patches" in capsys.readouterr().out
  assert config.data.lengths == ()


def test_a_question_that_fits_no_bucket_is_found():
  config = make_config()
  config.data.lengths = (16,)
  with pytest.raises(UserError, match="lengths: expected at least .* found 16"):
    plan.run(config, topology=None, as_json=False)


def test_a_topology_that_does_not_exist():
  """Or, where it isn't installed, what libtpu is needed for."""
  with pytest.raises(UserError, match="--topology.*(package libtpu|a TPU)"):
    chips.topology("v5p:banana")


@pytest.mark.full
def test_a_pod_config_fits_its_pod(monkeypatch):
  """RAL's update on the 3B model for 16 chips, with the TPU's own kernel."""
  pytest.importorskip("libtpu")
  from experiments import ral_qwen2_5_vl_3b

  texts = []
  monkeypatch.setattr(
    figures.hlo, "collectives", lambda text: texts.append(text) or {}
  )
  config = ral_qwen2_5_vl_3b.get_config()
  compiler = programs.Compiler(config, chips.topology("v5e:4x4"))
  found = {program.name: program for program in compiler.programs()}
  assert all(program.fits for program in found.values()), found
  assert "tpu_custom_call" in texts[list(found).index("update")]
