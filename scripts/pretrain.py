#!/usr/bin/env python3
"""Front of `python -m fedjax8.pretrain`, which takes the same flags."""

import runpy

if __name__ == "__main__":
    runpy.run_module("fedjax8.pretrain", run_name="__main__", alter_sys=True)
