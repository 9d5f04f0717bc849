"""Readers of files: each gives the contents of one format, or a `UserError` that names the file and the problem."""
