"""What other people's programs import of us by entry points. Nothing of ours imports it."""
