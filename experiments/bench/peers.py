"""The same work by TRL and Transformers on torch. Prints one JSON line.

  pip install -e '.[examples,peers]'
  python -m experiments.bench.peers step | generate | attention

`step` is `experiments.bench.step` by TRL's GRPOTrainer, `generate` is
`experiments.bench.generate` by Transformers, and `attention` is
`experiments.bench.attention` by Transformers: `--maps eager` holds the maps of
all layers, `--maps rows` computes the rows of the answer tokens in the last
layer, and nothing else of them, beside torch's fused attention. Same weights,
same pictures, same flags. Memory is the most that the process holds; for
`attention` it is what running adds.
"""

import argparse
import json
import multiprocessing
import pathlib
import statistics
import tempfile
import time

from PIL import Image
import torch
import transformers
from transformers import masking_utils
from transformers.integrations import sdpa_attention

from experiments.bench import clock, random_model, step
from mmrl import hub


class PictureProcessor(transformers.Qwen2_5_VLProcessor):
  """Qwen2.5-VL's without its video part, which needs torchvision."""

  def check_argument_for_proper_class(self, argument_name, argument):
    if argument_name != "video_processor":
      return super().check_argument_for_proper_class(argument_name, argument)
    return type(None)

  @property
  def model_input_names(self):
    names = self.tokenizer.model_input_names
    names += self.image_processor.model_input_names
    return [*dict.fromkeys(names), "mm_token_type_ids"]


def _write_weights(flags: argparse.Namespace, folder: pathlib.Path) -> None:
  hub.save(random_model.build(flags), folder)


def build(flags: argparse.Namespace, folder: pathlib.Path, attention="sdpa"):
  """(model, processor) of Transformers, with the weights of the benches.

  Another process makes them, so that this one holds no arrays of JAX.
  """
  path = folder / "model"
  other = multiprocessing.get_context("spawn").Process(
    target=_write_weights, args=(flags, path)
  )
  other.start()
  other.join()
  model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
    path, attn_implementation=attention, dtype=getattr(torch, flags.dtype)
  ).to(flags.device)
  tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  model.generation_config.eos_token_id = tokenizer.eos_token_id
  model.generation_config.pad_token_id = tokenizer.pad_token_id
  tokenizer.padding_side = "left"
  processor = PictureProcessor(
    image_processor=transformers.Qwen2VLImageProcessorPil.from_pretrained(path),
    tokenizer=tokenizer,
    video_processor=None,
    chat_template=tokenizer.chat_template,
  )
  return model, processor


def read_questions(flags: argparse.Namespace, folder: pathlib.Path):
  """The questions of `experiments.bench.step`, with pictures' paths."""
  path = pathlib.Path(step.write_questions(folder, flags))
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return [row | {"image": str(folder / row["images"][0])} for row in rows]


def run_step(flags: argparse.Namespace, folder: pathlib.Path) -> dict:
  """Median times of GRPO steps by TRL."""
  import datasets
  import trl

  model, processor = build(flags, folder)
  rows = read_questions(flags, folder)
  chats = [[{"role": "user", "content": row["question"]}] for row in rows]
  dataset = datasets.Dataset.from_dict(
    {
      "prompt": chats,
      "image": [row["image"] for row in rows],
      "answer": [row["answer"] for row in rows],
    }
  ).cast_column("image", datasets.Image())

  def reward(completions, answer, **_):
    texts = (completion[0]["content"] for completion in completions)
    return [
      sum(letter in text for letter in wanted) / len(wanted)
      for text, wanted in zip(texts, answer, strict=True)
    ]

  began, seconds = [], []

  class Clock(transformers.TrainerCallback):
    def on_step_begin(self, *_, **__):
      began.append(time.perf_counter())

    def on_step_end(self, *_, **__):
      seconds.append(time.perf_counter() - began[-1])

  answers = flags.prompts * flags.group
  settings = trl.GRPOConfig(
    output_dir=str(folder / "out"),
    per_device_train_batch_size=(flags.micro or flags.prompts) * flags.group,
    gradient_accumulation_steps=flags.prompts // (flags.micro or flags.prompts),
    generation_batch_size=answers,
    num_generations=flags.group,
    max_completion_length=flags.new_tokens,
    max_steps=flags.steps,
    learning_rate=flags.lr,
    lr_scheduler_type="constant",
    beta=0.0,
    temperature=1.0,
    top_k=0,
    use_cpu=flags.device == "cpu",
    bf16=False,  # the model has its type already
    gradient_checkpointing=flags.grad_ckpt,
    report_to=[],
    save_strategy="no",
    disable_tqdm=True,
    logging_strategy="no",
    generation_kwargs={"min_new_tokens": flags.new_tokens},
    dataloader_pin_memory=False,
  )
  trainer = trl.GRPOTrainer(
    model=model,
    processing_class=processor,
    reward_funcs=[reward],
    args=settings,
    train_dataset=dataset,
    callbacks=[Clock()],
  )
  trainer.remove_callback(transformers.PrinterCallback)
  with clock.Peak() as peak:
    trainer.train()
  spent = statistics.median(seconds[flags.warmup :])
  return {"step_s": round(spent, 4), "peak_rss_mib": peak.most // 2**20}


def _inputs(processor, rows):
  """Questions as Transformers' model reads them."""
  texts = [
    processor.apply_chat_template(
      random_model.question(row["image"]),
      add_generation_prompt=True,
      tokenize=False,
    )
    for row in rows
  ]
  images = [[Image.open(row["image"])] for row in rows]
  return processor(text=texts, images=images, padding=True, return_tensors="pt")


def _synchronise(flags: argparse.Namespace) -> None:
  """Waits for what was sent to a GPU."""
  if flags.device == "cuda":
    torch.cuda.synchronize()


def run_generate(flags: argparse.Namespace, folder: pathlib.Path) -> dict:
  """Median time of sampling by Transformers."""
  model, processor = build(flags, folder)
  rows = read_questions(flags, folder)[: flags.prompts]
  rows = [row for row in rows for _ in range(flags.group)]
  inputs = _inputs(processor, rows).to(flags.device)
  count = flags.new_tokens
  options = {"max_new_tokens": count, "min_new_tokens": count}
  options |= {"do_sample": True, "temperature": 1.0, "top_k": 0}
  seconds = []
  with torch.no_grad():
    for _ in range(flags.steps):
      began = time.perf_counter()
      model.generate(**inputs, **options)
      _synchronise(flags)
      seconds.append(time.perf_counter() - began)
  return {"generate_s": round(statistics.median(seconds[flags.warmup :]), 4)}


def _rows_of_last_layer(flags: argparse.Namespace, kept: dict):
  """Torch's fused attention; the last layer also keeps its answer rows."""

  def attend(module, query, key, value, mask, **options):
    # The tower's layers have no number.
    number = getattr(module, "layer_idx", None)
    if number is not None and number == module.config.num_hidden_layers - 1:
      keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
      scores = query[:, :, -flags.answer :] @ keys.transpose(-1, -2)
      place = torch.arange(flags.length, device=query.device)
      later = place > place[-flags.answer :, None]
      scores = scores * query.shape[-1] ** -0.5
      scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
      kept["rows"] = scores.softmax(-1).mean(1)
    return sdpa_attention.sdpa_attention_forward(
      module, query, key, value, mask, **options
    )

  return attend


def run_attention(flags: argparse.Namespace, folder: pathlib.Path) -> dict:
  """Median time of a loss on attention, with its gradient."""
  eager, kept = flags.maps == "eager", {}
  transformers.AttentionInterface.register(
    "rows", _rows_of_last_layer(flags, kept)
  )
  masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.register(
    "rows", masking_utils.sdpa_mask
  )
  model, processor = build(flags, folder, "eager" if eager else "sdpa")
  if not eager:
    model.set_attn_implementation({"text_config": "rows"})
  inputs = _inputs(processor, read_questions(flags, folder)[:1])
  inputs = inputs.to(flags.device)
  count = flags.length - inputs["input_ids"].shape[1]
  more = torch.randint(0, 200, (1, count), device=flags.device)
  inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
  inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
  inputs["mm_token_type_ids"] = torch.cat(
    [inputs["mm_token_type_ids"], torch.zeros_like(more)], 1
  )

  def once():
    output = model(
      **inputs,
      logits_to_keep=flags.answer + 1,
      use_cache=False,
      output_attentions=eager,
    )
    rows = (
      output.attentions[-1][:, :, -flags.answer :].mean(1)
      if eager
      else kept["rows"]
    )
    (rows * torch.log(rows + 1e-9)).sum(-1).mean().backward()
    model.zero_grad(set_to_none=True)

  seconds = []
  with clock.Peak() as peak:
    for _ in range(flags.steps):
      began = time.perf_counter()
      once()
      _synchronise(flags)
      seconds.append(time.perf_counter() - began)
  return {
    "seconds": round(statistics.median(seconds[flags.warmup :]), 4),
    "over_start_mib": round(peak.over_start / 2**20, 1),
  }


WORKS = {
  "step": run_step,
  "generate": run_generate,
  "attention": run_attention,
}


def make_parser(description: str) -> argparse.ArgumentParser:
  """The flags of `experiments.bench.step`, and a peer's own."""
  parser = step.make_parser(description)
  parser.add_argument("work", choices=WORKS)
  parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
  parser.add_argument("--maps", default="rows", choices=["rows", "eager"])
  parser.add_argument("--length", type=int, default=4096)
  parser.add_argument("--answer", type=int, default=64)
  parser.add_argument("--threads", type=int, default=2, help="of torch")
  return parser


def measure(flags: argparse.Namespace) -> dict:
  """Runs one of the works; returns the line."""
  torch.set_num_threads(flags.threads)
  with tempfile.TemporaryDirectory() as name:
    found = WORKS[flags.work](flags, pathlib.Path(name))
  if flags.device == "cuda":
    found["peak_device_mib"] = torch.cuda.max_memory_allocated() // 2**20
  versions = {"torch": torch.__version__}
  versions["transformers"] = transformers.__version__
  line = {"bench": f"peers {flags.work}"} | found
  return line | {"config": vars(flags), "versions": versions}


if __name__ == "__main__":
  print(json.dumps(measure(make_parser(__doc__).parse_args())))
