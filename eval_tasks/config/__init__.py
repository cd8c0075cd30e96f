"""Presets, protocols and tasks as typed files."""
