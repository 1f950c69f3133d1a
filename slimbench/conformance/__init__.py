"""One suite for every reducer, ours or a stranger's: does it keep what it promises?

slimbench check reducer cropr               prints, per promise, kept or broken, with the smallest input
slimbench check reducer mine.py:Mine        that breaks it

class TestMine(ReducerConformance):         the same as tests: one per promise
    reducer = Mine
"""

from slimbench.conformance.promises import PROMISES
from slimbench.conformance.suite import Promise, ReducerConformance, check_reducer

__all__ = ["PROMISES", "Promise", "ReducerConformance", "check_reducer"]
