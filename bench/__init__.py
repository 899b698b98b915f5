"""Benchmarks: every figure the project claims, both sides measured in one run.

``python -m bench --help`` says what there is; ``python -m pytest bench`` compares the two
cores with pytest-benchmark. What is measured is in ``cases``, who is compared in ``peers``
(pools on connections to nothing) and ``clients`` (on a real PostgreSQL), how in
``measure`` and ``load``.
"""
