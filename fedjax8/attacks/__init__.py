"""What clients do that work against the server, one file each; see `types.Attack`.

    sign_flip         send their change turned round
    gaussian          send noise
    label_flip        train on wrong labels, and send what they learned
    inner_product     send the honest clients' mean turned round (they collude)
    little_is_enough  send what is just within the honest clients' spread (they collude)

Attackers are a share of all registered clients, the same ones in every round: how many of them a cohort has varies, and
the log says it (`attackers`).
"""

from fedjax8.attacks._members import attacked
from fedjax8.attacks.gaussian import gaussian
from fedjax8.attacks.inner_product import inner_product
from fedjax8.attacks.label_flip import label_flip
from fedjax8.attacks.little_is_enough import little_is_enough
from fedjax8.attacks.none import none
from fedjax8.attacks.sign_flip import sign_flip

__all__ = ["attacked", "gaussian", "inner_product", "label_flip", "little_is_enough", "none", "sign_flip"]
