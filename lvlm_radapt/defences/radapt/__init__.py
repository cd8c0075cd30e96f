"""R-Adapt (arXiv 2603.12799): a low-pass filter on the input, and an anchor in the first attention's output."""
