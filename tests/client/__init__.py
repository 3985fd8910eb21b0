"""Tests of `ledger_sizer.client`."""
