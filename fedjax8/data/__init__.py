"""Data on the host: data sets, their split over clients, cohorts, measures of unequal splits.

Everything here is NumPy except `augment`, which runs on the device.
"""

from fedjax8.data.federated import Dataset, FederatedData, match_test_owners, sample_cohort

__all__ = ["Dataset", "FederatedData", "match_test_owners", "sample_cohort"]
