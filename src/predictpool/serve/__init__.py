"""``predictpool serve``: one predictor behind HTTP, for clients that others wrote.

Private, like all modules with an underscore: `predictpool.serve` has no names of its own.
"""
