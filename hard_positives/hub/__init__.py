"""Datasets, tuned models, the metric and results go to the Hugging Face Hub."""
