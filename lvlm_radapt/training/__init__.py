"""Training: the learned anchor and adversarial fine-tuning. A leaf: it may import everything, only `cli` imports it."""
