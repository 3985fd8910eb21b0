"""Tests of `ledger_sizer.ledger`."""
