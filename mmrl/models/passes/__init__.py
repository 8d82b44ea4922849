"""Passes of the decoder other than `prefill` and `extend`."""
