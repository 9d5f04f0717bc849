"""A run on disk and on a terminal: the loop over calls, checkpoints, files, console, writers, forecast."""
