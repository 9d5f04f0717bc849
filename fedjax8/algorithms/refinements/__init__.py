"""Refinements: a server's own step on the averaged model before it is sent again, one file each; see
`base.Refinement`."""

from fedjax8.algorithms.refinements.none import none
from fedjax8.algorithms.refinements.uq_plus import uq_plus

__all__ = ["none", "uq_plus"]
