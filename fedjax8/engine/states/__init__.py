"""Stores of clients' states between rounds, on the device or on disk."""
