"""What runs in a worker: the protocol, and the predictors that come with predictpool."""
