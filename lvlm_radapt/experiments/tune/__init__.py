"""Choosing filter and anchor settings on a calibration set."""
