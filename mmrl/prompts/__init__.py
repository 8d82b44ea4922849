"""Conversations to padded batches of tokens and patches."""

import logging

# Transformers warns when it is imported without PyTorch. Only its tokenizers
# are used, which need none; whatever else it says is shown. Processes that
# read pictures import this package first, too.
logging.getLogger("transformers").addFilter(
  lambda record: "Models won't be available" not in str(record.msg)
)
