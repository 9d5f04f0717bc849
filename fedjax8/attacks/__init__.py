"""Attacks of Byzantine clients, one file each; see `types.Attack`.

    sign_flip         send the negated update
    gaussian          send noise
    label_flip        send an honest update, trained on wrong labels
    inner_product     send the negated mean of the honest clients' updates (they collude)
    little_is_enough  send an update just within the honest clients' spread (they collude)

Attackers are a share of all registered clients, the same ones in every round: their number in a cohort varies, and is
in the log (`attackers`).
"""

from fedjax8.attacks._members import attacked
from fedjax8.attacks.gaussian import gaussian
from fedjax8.attacks.inner_product import inner_product
from fedjax8.attacks.label_flip import label_flip
from fedjax8.attacks.little_is_enough import little_is_enough
from fedjax8.attacks.none import none
from fedjax8.attacks.sign_flip import sign_flip

__all__ = ["attacked", "gaussian", "inner_product", "label_flip", "little_is_enough", "none", "sign_flip"]
