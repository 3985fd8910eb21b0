"""Rounds that kill and freeze PostgreSQL: single sessions, and the whole server."""

from __future__ import annotations

import signal

from campaign.processes import frozen, send_signal
from campaign.rounds import campaign_round
from campaign.stage import Stage

FREEZE_SECONDS = 12.0


@campaign_round(short=True)
def kill_postgresql(stage: Stage) -> None:
    """kill -9 of the postmaster with all its processes, then a new start"""
    server = stage.postgresql()
    services = [stage.service(server.url), stage.service(server.url)]
    stage.trade(*[service.port for service in services])
    for _ in stage.times(1, 4):
        with stage.fault("kill -9 of all processes of PostgreSQL, then a new start") as fault:
            server.kill()
            stage.rest(1)
            fault.over()
            server.start()
        stage.rest(2)
    stage.check(server.url)


@campaign_round()
def kill_backends(stage: Stage) -> None:
    """Sessions of the service are cancelled, terminated, and killed with -9 (which restarts the server's sessions)"""
    server = stage.postgresql()
    service = stage.service(server.url)
    stage.trade(service.port)
    for _ in stage.times(1, 3):
        with stage.fault("statements are cancelled"):
            for _ in range(20):
                server.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = 'ledger' "
                           "AND pid <> pg_backend_pid()")  # fmt: skip
        stage.rest(1)
        with stage.fault("sessions are terminated"):
            send_signal(server.backends(), signal.SIGTERM)
        stage.rest(1)
        with stage.fault("a session's process is killed, so the server ends all sessions"):
            send_signal(server.backends()[:1], signal.SIGKILL)
            server.wait_until_answering()
        stage.rest(2)
    stage.check(server.url)


@campaign_round()
def freeze_backends(stage: Stage) -> None:
    """SIGSTOP of all sessions of two replicas, with whatever locks they hold"""
    server = stage.postgresql()
    services = [stage.service(server.url), stage.service(server.url)]
    stage.trade(*[service.port for service in services])
    for _ in stage.times(1, 3):
        with stage.fault("the sessions are frozen"), frozen(server.backends()):
            stage.rest(FREEZE_SECONDS)
        stage.rest(2)
    stage.check(server.url)


@campaign_round()
def freeze_postgresql(stage: Stage) -> None:
    """SIGSTOP of the postmaster with all its processes"""
    server = stage.postgresql()
    services = [stage.service(server.url), stage.service(server.url)]
    stage.trade(*[service.port for service in services])
    for _ in stage.times(1, 2):
        with stage.fault("all processes of PostgreSQL are frozen"), frozen(server.processes()):
            stage.rest(2 * FREEZE_SECONDS)
        stage.rest(2)
    stage.check(server.url)
