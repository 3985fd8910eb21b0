"""Rounds that lose a primary for good and promote its synchronous standby."""

from __future__ import annotations

import time
from dataclasses import dataclass

from campaign.postgresql import PostgreSQL
from campaign.processes import frozen, wait_until
from campaign.proxy import Proxy
from campaign.rounds import campaign_round
from campaign.stage import Stage

STANDBY_SECONDS_MAX = 30.0


@dataclass
class _Pair:
    """A primary and the standby that its commits wait for."""

    stage: Stage
    primary: PostgreSQL
    standby: PostgreSQL

    @property
    def url(self) -> str:
        """URL that names the present two servers, and leads to the one that takes writes."""
        return PostgreSQL.url_at(self.primary.port, self.standby.port)

    def promote(self) -> float:
        """Promote the standby, which then waits for nobody. Returns the moment at which it was a primary."""
        promoted = self.standby.promote()
        self.stage.say("the standby was promoted")
        self.primary, self.standby = self.standby, self.primary
        return promoted

    def follow_anew(self) -> None:
        """Make a new standby of the present primary, in place of the server that was lost."""
        lost = self.standby
        self.standby = self.stage.server(port=lost.port).create_standby_of(self.primary).start(wait=False)
        self.wait_for_commits_to_wait()

    def wait_for_commits_to_wait(self) -> None:
        """Make every commit of the primary wait for the standby."""
        self.primary.reload(synchronous_standby_names="*")
        wait_until(self._is_synchronous, "the standby follows synchronously", seconds=STANDBY_SECONDS_MAX)
        # Sessions wait only once the checkpointer has read the new setting, which takes seconds where it is busy.
        # It reads settings before it begins a checkpoint.
        self.primary.sql("CHECKPOINT")

    def _is_synchronous(self) -> bool:
        states = self.primary.sql("SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'")
        return ("sync",) in states


@campaign_round(short=True)
def failover(stage: Stage) -> None:
    """Primary lost under load, synchronous standby promoted; two replicas, whose URL names both servers"""
    pair = _pair(stage)
    services = [stage.service(pair.url), stage.service(pair.url)]
    stage.trade(*[service.port for service in services])
    with stage.fault("the primary is lost, and the standby promoted") as fault:
        pair.primary.kill()
        stage.rest(1)
        fault.over(pair.promote())
    stage.rest(3)
    stage.check(pair.primary.url)


@campaign_round()
def failover_address(stage: Stage) -> None:
    """Primary lost and standby promoted, again and again; one address follows the primary"""
    pair = _pair(stage)
    proxy = stage.proxy(pair.primary.port)
    service = stage.service(PostgreSQL.url_at(proxy.port))
    stage.trade(service.port)
    for _ in stage.times(1, 3):
        _lose_behind(stage, pair, proxy)
        pair.follow_anew()
        stage.rest(2)
    stage.check(pair.primary.url)


@campaign_round()
def failover_frozen(stage: Stage) -> None:
    """Primary frozen, not dead: its connections say nothing any more; synchronous standby promoted"""
    pair = _pair(stage)
    services = [stage.service(pair.url), stage.service(pair.url)]
    stage.trade(*[service.port for service in services])
    with stage.fault("the primary freezes, and the standby is promoted") as fault, frozen(pair.primary.processes()):
        old = pair.primary
        stage.rest(5)
        promoted = pair.promote()
        fault.over(promoted)
        stage.wait_for_grant(promoted, "the promotion, with the old primary silent")
        old.kill()
    stage.rest(3)
    stage.check(pair.primary.url)


@campaign_round(short=True)
def failover_after_crash(stage: Stage) -> None:
    """Standby away, commits wait, primary crashes and restarts, client asks again; then the standby is promoted"""
    pair = _pair(stage)
    service = stage.service(pair.url)
    # A lone client, and no hold that ends meanwhile: its retry is then all that a batch contains, and nothing new
    # makes that batch wait for the standby.
    stage.trade(service.port, threads=1, ttls=(60,))
    for number in stage.times(1, 3):
        if number:
            pair.follow_anew()
        with stage.fault("the standby is away, the primary crashes and comes back, then it is lost for good") as fault:
            pair.standby.kill()
            stage.rest(2)
            pair.primary.kill()
            pair.primary.start()
            # Rows whose commit never reached the standby are visible now, and the client asks with their keys.
            time.sleep(6)
            _lose_for_good(pair)
            fault.over(pair.promote())
        stage.rest(2)
    stage.check(pair.primary.url)


@campaign_round()
def failover_after_cancel(stage: Stage) -> None:
    """Standby away, waiting commits are cancelled and terminated; then the standby is promoted"""
    pair = _pair(stage)
    service = stage.service(pair.url)
    stage.trade(service.port)
    with stage.fault("the standby is away, waiting commits are ended, then the primary is lost") as fault:
        pair.standby.kill()
        for function in ("pg_cancel_backend", "pg_terminate_backend") * 2:
            time.sleep(1.5)
            pair.primary.sql(f"SELECT {function}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        time.sleep(1.5)
        _lose_for_good(pair)
        fault.over(pair.promote())
    stage.rest(2)
    stage.check(pair.primary.url)


def _pair(stage: Stage) -> _Pair:
    primary = stage.postgresql()
    pair = _Pair(stage, primary, stage.server().create_standby_of(primary).start(wait=False))
    pair.wait_for_commits_to_wait()
    return pair


def _lose_for_good(pair: _Pair) -> None:
    pair.primary.kill()
    pair.standby.start()


def _lose_behind(stage: Stage, pair: _Pair, proxy: Proxy) -> None:
    with stage.fault("the primary is lost, the standby promoted, and the address led to it") as fault:
        pair.primary.kill()
        proxy.target = None
        stage.rest(1)
        promoted = pair.promote()
        proxy.target = pair.primary.port
        fault.over(promoted)
