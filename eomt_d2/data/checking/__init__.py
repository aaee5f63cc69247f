"""Checking data sets before a training: all faults at once, found by the training's own readers."""

from eomt_d2.data.checking.check import DatasetCheck, check_dataset
from eomt_d2.data.checking.table import faults_table

__all__ = ["DatasetCheck", "check_dataset", "faults_table"]
