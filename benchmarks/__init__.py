"""What predictpool costs and saves, measured against what one would do without it.

Run ``python -m benchmarks latency``, ``budget`` or ``startup`` in the repository's root.
``docs/explanation/benchmarks.md`` says what the numbers mean, and first what they cannot say.
"""
