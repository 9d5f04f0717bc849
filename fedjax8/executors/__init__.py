"""Executors: a function mapped over clients, and its results summed. They know nothing about learning.

One file each; all give the same sums, up to the order of float32 summation.
"""

from fedjax8.executors._scan import at_once, groups, padded
from fedjax8.executors.auto import auto
from fedjax8.executors.chunked import chunked
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.executors.vmap import vmap

__all__ = ["at_once", "auto", "chunked", "groups", "loop", "padded", "pmap", "vmap"]
