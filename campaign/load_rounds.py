"""Rounds of many things at once: holds that end in the same second, and more callers than the queue takes."""

from __future__ import annotations

import time

from campaign.clients import Clients, Connection, decision_of, told_of
from campaign.processes import CampaignError
from campaign.rounds import campaign_round
from campaign.stage import Stage

BATCH = 500
LOAD_PER_SECOND = 1_000
"""Holds per second that even a slow machine makes."""
NEIGHBOUR_SECONDS_MAX = 8.0
"""Longest wait of a caller of another portfolio while the holds of one end."""
FREED_SECONDS_MAX = 90.0
CROWD = 24


@campaign_round(short=True)
def mass_expiry_sqlite(stage: Stage) -> None:
    """Thousands of holds of one portfolio end in the same second; the callers of others are answered meanwhile"""
    url = stage.sqlite()
    _mass_expiry(stage, url, 2_000 if stage.short else 20_000)


@campaign_round()
def mass_expiry_postgresql(stage: Stage) -> None:
    """Tens of thousands of holds of one portfolio end in the same second on PostgreSQL"""
    _mass_expiry(stage, stage.postgresql().url, 3_000 if stage.short else 50_000)


@campaign_round(short=True)
def overload(stage: Stage) -> None:
    """More callers than the queue takes: the rest are told so, and ask again"""
    url = stage.sqlite()
    service = stage.service(url, LEDGER_QUEUE_SIZE_MAX=4, LEDGER_BATCH_SIZE_MAX=2)
    stage.trade(service.port, threads=4)
    with stage.fault(f"{CROWD} more callers"):
        crowd = stage.group(service.port, threads=CROWD, tag="crowd")
        stage.rest(8)
        crowd.stop()
    if not any("503" in name for name in crowd.errors):
        stage.problem("the queue was never full, so this round showed nothing")
    stage.check(url)


def _mass_expiry(stage: Stage, url: str, count: int) -> None:
    service = stage.service(url)
    clients = stage.trade(service.port, threads=3)
    connection = Connection(service.port)
    end = time.monotonic() + count / LOAD_PER_SECOND + 3
    for first in range(0, count, BATCH):
        _hold_until(end, connection, clients, range(first, min(first + BATCH, count)))
    stage.say(f"{count} holds made, {end - time.monotonic():.1f} s before their end")
    clients.forget_waits()
    with stage.fault(f"{count} holds end at once"):
        time.sleep(max(0.0, end - time.monotonic()))
    begun = time.monotonic()
    while _held(connection) > 0:
        if time.monotonic() - begun > FREED_SECONDS_MAX:
            stage.problem(f"{_held(connection)} USD of the holds are not freed {FREED_SECONDS_MAX:g} s after their end")
            break
        time.sleep(0.2)
    stage.say(f"all were freed {time.monotonic() - begun:.1f} s after their end")
    if clients.slowest > NEIGHBOUR_SECONDS_MAX:
        stage.problem(f"a caller of another portfolio waited {clients.slowest:.1f} s")
    stage.check(url)


def _hold_until(end: float, connection: Connection, clients: Clients, numbers: range) -> None:
    """Make holds of one cent that end at this moment of the monotonic clock."""
    sent = time.monotonic()
    life = f"{max(1.0, end - sent):.3f}"
    commands = [
        {
            "command": "reserve",
            "key": f"mass-{number}",
            "portfolio": "mass",
            "ttl_seconds": life,
            "available_balance": "0.01",
            "tags": {"symbol": f"S{number % 50}"},
        }
        for number in numbers
    ]
    status, form = connection.call("POST", "/v1/batch", {"commands": commands})
    if status != 200:
        raise CampaignError(f"a batch of holds was answered {status}: {str(form)[:300]}")
    decisions = [decision_of(201, result.get("decision", result)) for result in form["results"]]
    if not all(decision is not None and decision["granted"] for decision in decisions):
        raise CampaignError(f"not every hold of a batch was granted: {str(form)[:300]}")
    for decision in decisions:
        assert decision is not None
        clients.add(told_of(decision, sent, sent))


def _held(connection: Connection) -> float:
    """Return what portfolio `mass` holds, USD, or infinity while that is not answered."""
    try:
        status, form = connection.call("GET", "/v1/portfolios/mass/exposure")
    except OSError:
        return float("inf")
    return float(form["held"]) if status == 200 else float("inf")
