"""Devices and processes, and how arrays are sharded over them."""
