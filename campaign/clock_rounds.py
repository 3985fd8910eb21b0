"""Rounds that turn the wall clock of the host that gives the ledger its time."""

from __future__ import annotations

import time

from campaign.auditor import LATE_SECONDS_MAX
from campaign.clocks import TurnableClock
from campaign.rounds import campaign_round
from campaign.stage import Stage

HOUR = 3600
JUMPS = {"an hour ahead": HOUR, "an hour behind": -HOUR, "ten years ahead": 3652 * 24 * HOUR}


@campaign_round()
def clock_sqlite(stage: Stage) -> None:
    """The clock of the service jumps, and is right again some seconds later"""
    clock = TurnableClock(stage.folder)
    url = stage.sqlite()
    service = stage.service(url, **clock.environment)
    stage.trade(service.port)
    _turn(stage, clock)
    stage.check(url)


@campaign_round()
def clock_postgresql(stage: Stage) -> None:
    """The clock of PostgreSQL, which is the ledger's there, jumps, and is right again some seconds later"""
    clock = TurnableClock(stage.folder)
    server = stage.postgresql(clock.environment)
    service = stage.service(server.url)
    stage.trade(service.port)
    _turn(stage, clock)
    stage.check(server.url)


def _turn(stage: Stage, clock: TurnableClock) -> None:
    for name, seconds in JUMPS.items():
        with stage.fault(f"the clock is {name}"):
            clock.turn(seconds)
            stage.rest(5)
            clock.turn(0)
        stage.rest(4)
    # A ledger whose time stands still would keep the holds of now for as long as the clock was wrong.
    time.sleep(LATE_SECONDS_MAX + 5)
