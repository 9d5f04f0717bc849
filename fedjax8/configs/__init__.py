"""Configs of experiments: `--config=NAME` or `--config=NAME:argument`; the docstring of each says what it runs."""
