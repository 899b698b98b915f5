"""Benchmarks: every figure the project claims, both sides measured in one run.

``python -m bench figures`` judges them, ``python -m bench quick`` only sees that all of
it runs, ``python -m pytest bench`` compares the two cores.
"""
