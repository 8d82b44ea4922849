"""Attention of one layer: dense, block by block, and on each accelerator."""
