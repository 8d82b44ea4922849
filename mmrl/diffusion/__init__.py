"""Diffusion with a control branch, and caches that save its work (HGC)."""
