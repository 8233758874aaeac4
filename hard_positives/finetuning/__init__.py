"""Training rows become a tuned model."""
