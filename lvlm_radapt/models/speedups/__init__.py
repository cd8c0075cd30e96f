"""The same numbers for less work."""
