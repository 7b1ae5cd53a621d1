"""Schedules of faults against the real command, real workers and a real Redis.

Shared by `benchmarks/chaos` (thousands of schedules) and `tests/chaos` (a few, in CI).
"""
