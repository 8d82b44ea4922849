"""Benchmarks whose questions have few possible answers."""
