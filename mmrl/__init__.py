"""mmrl: reinforcement learning for multimodal language models, in JAX.

The pipeline, one package per link:

  data           questions with pictures -> padded prompt batches [P]
  models         vision once per picture, prefill once per prompt, extend G
  rollout        G answers per prompt, in one compiled loop
  rewards        [P, G] on the host, from the text of an answer
  advantages     [P, G] relative to the other answers of the prompt
  probes         fields from passes without gradient: behaviour, reference
  token_weights  [P, G, R]
  losses         unreduced terms, and the one place that reduces them
  train          objective, updates, loop, checkpoints, metrics
  evaluate       accuracy on held-out questions, and where the model looks
  report         what a person reads when a run has ended

Beside it, `sharding` says where arrays lie, `parallel` and `processes` how
devices and machines work together, and `plan` what a run needs of them.
"""
