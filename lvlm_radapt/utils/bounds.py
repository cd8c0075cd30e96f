"""The largest numbers and texts that are taken from flags and files: far above what anybody measures with, and small
enough that nothing hangs or fills the memory before it is noticed."""

MOST = 1_000_000
"""Steps, restarts, samples, images, tokens."""
MOST_PIXELS = 50_000_000
"""Of one image."""
MOST_LETTERS = 20_000
"""Of one caption, question or answer."""
