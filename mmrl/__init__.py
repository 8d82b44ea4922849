"""mmrl: reinforcement learning for multimodal language models, in JAX.

The pipeline, one package per link:

  config         every field of a run, its default and its meaning
  data           questions with pictures, in batches
  prompts        a conversation to padded tokens and packed patches [P]
  models         vision once per picture, prefill once per prompt, extend G
  rollouts       where G answers per prompt come from: sampled, given, ...
  probes         fields from passes without gradient: behaviour, reference
  rewards        [P, G], of texts on the host, of arrays on the devices
  advantages     [P, G] relative to the other answers of the prompt
  token_weights  [P, G, R]
  losses         unreduced terms, and the one place that reduces them
  train          method, objective, updates, loop
  workdir        checkpoints, metrics, lock, summary, report
  benchmarks     held-out questions, graded, with intervals; where a model looks

Beside it, `hub` reads and writes models as directories in the Hugging Face
layout, `machines` shares arrays out over devices and processes, `strategies`
answers in several calls of one or more models, and `plan` computes what a run
needs. `worlds` draws pictures and videos, `chains` writes and reads thoughts
about them. `names` lists the data that functions of the slots ask for by name.
`python -m mmrl` lists the commands.
"""
