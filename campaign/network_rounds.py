"""Rounds that break the network: between clients and service, and between service and database."""

from __future__ import annotations

import time
from collections.abc import Callable

from campaign.proxy import Proxy
from campaign.rounds import campaign_round
from campaign.stage import Stage

CLIENT_SECONDS_MAX = 3.0
"""How long a client waits where the network may swallow its request: it then asks again with the same key."""
DELAY_SECONDS = 0.3


@campaign_round(short=True)
def network_of_clients(stage: Stage) -> None:
    """Connections of clients are cut, reset, swallowed, delayed, truncated, refused"""
    url = stage.sqlite()
    service = stage.service(url)
    proxy = stage.proxy(service.port)
    stage.trade(proxy.port, seconds_max=CLIENT_SECONDS_MAX)
    for _ in stage.times(1, 3):
        _break_network(stage, proxy, silent_seconds=3)
    stage.check(url)


@campaign_round()
def network_of_database(stage: Stage) -> None:
    """Connections of the service to PostgreSQL are cut, reset, swallowed, delayed, truncated, refused"""
    server = stage.postgresql()
    proxy = stage.proxy(server.port)
    service = stage.service(server.url_at(proxy.port))
    stage.trade(service.port)
    for _ in stage.times(1, 2):
        _break_network(stage, proxy, silent_seconds=8)
    stage.check(server.url)


@campaign_round(short=True)
def silent_database(stage: Stage) -> None:
    """Open connections to PostgreSQL swallow everything and stay open; new ones work"""
    server = stage.postgresql()
    proxy = stage.proxy(server.port)
    service = stage.service(server.url_at(proxy.port))
    stage.trade(service.port)
    for _ in stage.times(1, 3):
        # Nothing ends this fault but the service itself, so recovery is counted from its beginning.
        with stage.fault("every open connection to PostgreSQL goes silent"):
            proxy.swallow()
        stage.rest(2)
    stage.check(server.url)


def _break_network(stage: Stage, proxy: Proxy, *, silent_seconds: float) -> None:
    def refuse() -> None:
        target, proxy.target = proxy.target, None
        proxy.reset()
        stage.rest(3)
        proxy.target = target

    def delay() -> None:
        proxy.delay = DELAY_SECONDS
        stage.rest(3)
        proxy.delay = 0

    def swallow() -> None:
        proxy.swallow_new = True
        proxy.swallow()
        stage.rest(silent_seconds)
        proxy.swallow_new = False
        proxy.reset()

    def truncate() -> None:
        for _ in range(3):
            proxy.truncate = True
            time.sleep(0.2)

    faults: dict[str, Callable[[], None]] = {
        "cut": proxy.cut,
        "reset": proxy.reset,
        "truncated": truncate,
        "delayed": delay,
        "refused": refuse,
        "silent, then reset": swallow,
    }
    for name, inject in faults.items():
        with stage.fault(f"connections are {name}"):
            inject()
        stage.rest(1)
