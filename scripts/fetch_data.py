#!/usr/bin/env python3
"""Gets data sets into a data directory, as `python -m fedjax8.fetch NAME... --data_dir=DIR`, which it stands for."""

from fedjax8 import cli
from fedjax8.fetch import define_flags, main

if __name__ == "__main__":
    define_flags()
    cli.run(main)
