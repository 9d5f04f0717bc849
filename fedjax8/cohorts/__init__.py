"""Ways to map a function over clients and sum what comes out. They know nothing about learning.

One file each; all give the same sums, up to the order of float32 summation.
"""
