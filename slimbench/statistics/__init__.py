"""Metrics, intervals, paired tests and ranks: pure functions of arrays."""
