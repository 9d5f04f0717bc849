"""Configs of experiments, chosen by `--config=NAME` or `--config=NAME:argument`; each file's docstring says what it runs."""
