"""Tests of `ledger_sizer.service`."""
