"""What ``predictpool serve`` serves in `serve`: the model that `held.told` named."""

from benchmarks.peers import held

census = held.model().predictor("generator")
