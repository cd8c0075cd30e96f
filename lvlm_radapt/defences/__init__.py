"""Defences, a folder or a file each."""
