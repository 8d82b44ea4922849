"""Causal-HalBench: answers before and after one object is replaced."""
