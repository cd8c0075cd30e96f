"""How the embedded models are built, trained and scored; run as `python -m tools.embedded.train` from the root."""
