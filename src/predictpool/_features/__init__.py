"""What a model takes, and how the features of a request become just that.

`_spec` is one feature and `_notation` how users declare it; `_signature` is all of them.
`_conversion` checks the values of one feature, with `_values` and `_refusals`; `_encoder`
makes a payload of those of a request.
"""
