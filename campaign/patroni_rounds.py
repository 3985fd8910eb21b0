"""Rounds on a pair of PostgreSQL servers that Patroni fails over by itself. Only in the long campaign."""

from __future__ import annotations

from collections.abc import Callable

from campaign.patroni import TTL_SECONDS, Etcd, Node, PatroniPair, install
from campaign.postgresql import PostgreSQL
from campaign.processes import frozen
from campaign.rounds import campaign_round
from campaign.stage import Fault, Stage

PROMOTION_SECONDS_MAX = 4.0 * TTL_SECONDS


@campaign_round()
def patroni_kill(stage: Stage) -> None:
    """Patroni pair: Patroni and PostgreSQL of the leader killed with -9; it comes back as the standby"""

    def lose(pair: PatroniPair, leader: Node, fault: Fault) -> None:
        leader.kill()
        fault.over(pair.wait_for_promotion(pair.other(leader), seconds=PROMOTION_SECONDS_MAX))
        leader.start()

    _fail_over(stage, "the leader's processes are killed", lose)


@campaign_round()
def patroni_freeze(stage: Stage) -> None:
    """Patroni pair: Patroni and PostgreSQL of the leader frozen until the other has granted, then continued"""

    def freeze(pair: PatroniPair, leader: Node, fault: Fault) -> None:
        with frozen(leader.processes):
            promoted = pair.wait_for_promotion(pair.other(leader), seconds=PROMOTION_SECONDS_MAX)
            fault.over(promoted)
            stage.wait_for_grant(promoted, "the promotion, with the old leader silent")

    _fail_over(stage, "the leader's Patroni and PostgreSQL are frozen", freeze)


@campaign_round()
def patroni_freeze_server(stage: Stage) -> None:
    """Patroni pair: only PostgreSQL of the leader frozen, for longer than Patroni's ttl, then continued"""

    def freeze(_pair: PatroniPair, leader: Node, _fault: Fault) -> None:
        with frozen(leader.server_processes):
            stage.rest(2 * TTL_SECONDS)

    _fail_over(stage, "the leader's PostgreSQL is frozen", freeze)


@campaign_round()
def patroni_switchover(stage: Stage) -> None:
    """Patroni pair: switchover to the other node under load"""

    def switch(pair: PatroniPair, leader: Node, fault: Fault) -> None:
        pair.switch_over(leader)
        fault.over(pair.wait_for_promotion(pair.other(leader), seconds=PROMOTION_SECONDS_MAX))

    _fail_over(stage, "switchover", switch)


def _fail_over(stage: Stage, what: str, inject: Callable[[PatroniPair, Node, Fault], None]) -> None:
    pair = _pair(stage)
    service = stage.service(pair.url)
    stage.trade(service.port)
    for _ in stage.times(1, 2):
        leader = pair.leader()
        with stage.fault(f"{what} ({leader.name} leads)") as fault:
            inject(pair, leader, fault)
        stage.rest(3)
    stage.check(PostgreSQL.url_at(pair.leader().port))


def _pair(stage: Stage) -> PatroniPair:
    patroni = install(stage.templates.folder / "patroni", stage.programs)
    etcd = Etcd(stage.folder / "etcd")
    stage.ends.callback(etcd.kill)
    etcd.start()
    nodes = tuple(Node(name, stage.folder / name, patroni, stage.programs, etcd) for name in ("node1", "node2"))
    for node in nodes:
        stage.ends.callback(node.end)
        node.start()
    pair = PatroniPair((nodes[0], nodes[1]))
    stage.say("waiting for Patroni's pair")
    stage.templates.prepare_new(pair.leader().port, pair.url)
    return pair
