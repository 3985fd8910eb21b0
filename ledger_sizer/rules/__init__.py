"""The rules: pure functions from locked state and a command to a decision. No database, no log, no clock."""
