"""Helpers shared by the tests: databases, clocks, ledgers, services, accounts, browsers, processes."""
