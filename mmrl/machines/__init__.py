"""Devices and processes: how arrays are shared out over them."""
