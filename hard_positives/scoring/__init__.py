"""A model and rows become logits: every distinct image and caption once, cached and shared."""
