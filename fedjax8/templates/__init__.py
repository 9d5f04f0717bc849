"""Scripts for batch systems and TPU slices, printed by `fedjax8 template`."""
