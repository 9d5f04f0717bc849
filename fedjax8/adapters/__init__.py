"""Adapters change what is trained, or how it is seen, from outside the model: each maps a `Model` to a `Model`."""
