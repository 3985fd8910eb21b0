"""Tests of `ledger_sizer.storage`."""
