"""Figures drawn from plain data onto matplotlib axes, a file a topic."""
