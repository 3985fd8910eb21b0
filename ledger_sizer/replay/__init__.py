"""Replays market history through the ledger's own code, with a simulated clock.

report = replay(file_source(Path("funding.csv.gz")), Plan(), "sqlite:///replay.db", timer=time.perf_counter)

run               `replay`: the plan, both portfolios, the final verification
cycle             the commands of one bar, in time order
source            where bars come from: a file or the synthetic market
bars              the CSV format of market history
synthetic_market  a generated market
strategy          scores and entry/exit signals of the bots
order_outcomes    outcome and price of each simulated order
random_numbers    reproducible random numbers
accounting        holds, positions and earnings of one portfolio, kept apart from the ledger to check it
statistics        figures derived from a report
summary           the report as text
report_json       the report as JSON
"""

from ledger_sizer.replay.run import Plan, Report, default_venue_cap, replay
from ledger_sizer.replay.source import Source, file_source, generated_source

__all__ = ["Plan", "Report", "Source", "default_venue_cap", "file_source", "generated_source", "replay"]
