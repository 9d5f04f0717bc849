"""Federated algorithms, one file each, written like the papers they come from."""
