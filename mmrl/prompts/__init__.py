"""Conversations to padded batches of tokens and patches."""
