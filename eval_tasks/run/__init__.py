"""One evaluation: chunks, scores, and the run folder that keeps them."""
