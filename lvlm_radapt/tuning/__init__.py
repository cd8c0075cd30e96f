"""Choosing filter and anchor settings on a calibration set: a leaf, which only the command line imports."""
