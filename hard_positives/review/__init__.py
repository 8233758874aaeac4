"""Rows that people judge -> judgments, agreement, human accuracies, accepted rows."""
