"""What tells a robust encoder from its standard twin: similarity of layers, parts replaced one by one, spectra of
kernels and perturbations, and where the first block looks (arXiv 2603.12799, the analysis behind R-Adapt)."""
