"""Tokens with a meaning of their own: ends, latent segments, punctuation."""
