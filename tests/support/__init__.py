"""What several rooms of tests share: databases, clocks, ledgers, services, accounts, browsers, processes."""
