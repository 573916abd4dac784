"""What predictpool costs and saves, against what one would do without it, and what it withstands.

Run ``python -m benchmarks latency``, or any other that ``--help`` lists, in the repository's root.
``docs/explanation/benchmarks.md`` says what the numbers mean, and first what they cannot say.
"""
