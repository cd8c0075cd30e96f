"""Attacked images for one batch of a task."""
