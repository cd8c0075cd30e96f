"""Checkpoints of every layout, opened as one of `lvlm_radapt.models`."""
