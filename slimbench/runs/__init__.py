"""Sweeps: which cells to run, one run of a cell, and the record it leaves."""
