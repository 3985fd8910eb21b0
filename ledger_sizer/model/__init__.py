"""The domain model: frozen types, without I/O but for the reading of settings.

units              Decimal <-> scaled integers, and all rounding of money
errors             the error tree
choices            words of choice: states, outcomes, kinds, roles
arguments          declares arguments: what each may be, its canonical text, JSON, help and option
names              names of portfolios and positions
times              datetimes, and the microseconds that are stored
market_names       names of markets, and the factor in the name of a multiplied coin
instruments        markets with their trading rules
legs               legs, the sides of a position: planned, ordered, filled
plans              what a reservation asks for, leg by leg: of one asset, in known units
fills              what the fills of a position add up to
tags               tags of a position, and the scopes they stand for
denials            reasons of a denial, with their titles and words
pools              guaranteed scopes: what each uses, and what is left to others
domain             positions, exposure, pages, history filters, verify reports
command_base       base classes of the commands, what declares a verb, kinds of argument of commands alone
position_commands  one type per verb about positions
commands           one type per verb, those of positions included
caps               the limits of a portfolio's scopes, and the commands that bring them from one state to another
scope_settings     what a scope may be set to
decisions          decisions, their stored records, and the hash chain
settings_sources   reads settings beside the variables of a bot
exchange_account   settings of one account at one exchange
account_activity   what happened in an account, and what it explains
reconciliation     drifts, findings, policies, runs
drift_words        what a drift means, and what to do next
drift_reports      one drift in full
drift_outcomes     what became of each drift in a decision about many
overview           the snapshot that the dashboard and `ledger-sizer top` show
"""
