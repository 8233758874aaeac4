"""Benchmarks and datasets: where rows come from, and what they must look like."""
