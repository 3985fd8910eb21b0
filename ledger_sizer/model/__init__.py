"""The domain model: frozen types, without I/O.

units            Decimal <-> scaled integers, and all rounding of money
errors           the error tree
choices          words of choice: states, outcomes, kinds, roles
instruments      markets with their trading rules, and legs
tags             tags of a position, and the scopes they stand for
denials          reasons of a denial, with their titles and words
domain           positions, exposure, pages, history filters, verify reports
command_base     base classes of the commands, and the canonical request text
commands         one type per verb
scope_settings   what a scope may be set to
decisions        decisions, their stored records, and the hash chain
reconciliation   drifts, findings, policies, runs
overview         the snapshot that the dashboard and `ledger-sizer top` show
"""
