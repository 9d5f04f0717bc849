"""Codecs: how a tree becomes a message and back. One file each; `chain` and `per_path` combine them."""
