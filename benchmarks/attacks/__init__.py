"""Attacks on the project, each a few lines; `../faults.py` runs them."""
