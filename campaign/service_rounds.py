"""Rounds that kill and freeze services."""

from __future__ import annotations

from campaign.processes import frozen
from campaign.rounds import campaign_round
from campaign.services import Service
from campaign.stage import Stage

LEASE_SECONDS = 3


@campaign_round(short=True)
def kill_service_sqlite(stage: Stage) -> None:
    """kill -9 of the only service on a SQLite file"""
    url = stage.sqlite()
    service = stage.service(url)
    stage.trade(service.port)
    for _ in stage.times(1, 5):
        _kill_and_start(stage, service)
    stage.check(url)


@campaign_round()
def kill_one_of_two_sqlite(stage: Stage) -> None:
    """kill -9 of one of two services on one SQLite file"""
    url = stage.sqlite()
    services = [stage.service(url), stage.service(url)]
    stage.trade(*[service.port for service in services])
    for number in stage.times(2, 4):
        _kill_and_start(stage, services[number % 2])
    stage.check(url)


@campaign_round(short=True)
def kill_replica_postgresql(stage: Stage) -> None:
    """kill -9 of one of two replicas on PostgreSQL, then of both"""
    server = stage.postgresql()
    services = [stage.service(server.url), stage.service(server.url)]
    stage.trade(*[service.port for service in services])
    for number in stage.times(1, 4):
        _kill_and_start(stage, services[number % 2])
    _kill_and_start(stage, *services)
    stage.check(server.url)


@campaign_round()
def freeze_service_sqlite(stage: Stage) -> None:
    """SIGSTOP of one of two services on one SQLite file, for longer than its lease and the holds"""
    _freeze(stage, stage.sqlite())


@campaign_round()
def freeze_replica_postgresql(stage: Stage) -> None:
    """SIGSTOP of one of two replicas on PostgreSQL, for longer than its lease and the holds"""
    _freeze(stage, stage.postgresql().url)


def _kill_and_start(stage: Stage, *services: Service) -> None:
    with stage.fault(f"kill -9 of {' and '.join(service.name for service in services)}, then a new start") as fault:
        for service in services:
            service.kill()
        fault.over()
        for service in services:
            service.start()
    stage.rest(2)


def _freeze(stage: Stage, url: str) -> None:
    services = [stage.service(url, SERVICE_LEASE_SECONDS=LEASE_SECONDS) for _ in range(2)]
    stage.trade(*[service.port for service in services])
    for number in stage.times(1, 3):
        service = services[number % 2]
        with stage.fault(f"{service.name} is frozen"), frozen([service.pid]):
            stage.rest(4 * LEASE_SECONDS)
        stage.rest(2)
    stage.check(url)
