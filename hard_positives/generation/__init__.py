"""Captions become hard positives and hard negatives to train with."""
