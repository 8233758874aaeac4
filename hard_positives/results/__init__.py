"""Logits become numbers, tables, pages and comparisons."""
