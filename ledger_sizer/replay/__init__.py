"""Replay of market history through the ledger's own code, with a simulated clock.

report = replay(file_source(Path("funding.csv.gz")), Plan(), "sqlite:///replay.db", timer=time.perf_counter)
"""

from ledger_sizer.replay.run import Plan, Report, replay, usual_venue_cap
from ledger_sizer.replay.source import Source, file_source, generated_source

__all__ = ["Plan", "Report", "Source", "file_source", "generated_source", "replay", "usual_venue_cap"]
