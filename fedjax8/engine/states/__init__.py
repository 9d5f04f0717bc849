"""What clients remember between rounds, on the device or on disk."""
