"""Experiments that score many models alike: one engine, and `tune`, `compare`, `demo` and replacement curves on it."""
