"""Reads the folders of runs and compares them: curves, gains, tables, figures, the page. Imports no JAX."""
