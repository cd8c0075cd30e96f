"""A protected model on disk: adapter, export, folded or plain weights."""
