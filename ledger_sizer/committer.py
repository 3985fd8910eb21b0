"""Answering a batch: load, decide, commit; try again after a conflict or a lost connection; isolate what is refused."""

import logging
import random
import time
from collections.abc import Callable, Sequence

from ledger_sizer.batch import Group, Result, decide_batch, requests_of
from ledger_sizer.errors import Busy, InternalError, LedgerError, Unavailable
from ledger_sizer.leases import LeaseLost
from ledger_sizer.policy import Policy
from ledger_sizer.records import DecisionRecord
from ledger_sizer.store import FenceLost, StaleState, WriteStore, needs_of
from ledger_sizer.telemetry import get_logger
from ledger_sizer.writer import Answer

log = get_logger(__name__)
_stdlib_log = logging.getLogger(__name__)

Observe = Callable[[Sequence[DecisionRecord], float], None]
"""Told of every committed batch: the decisions it recorded, and the seconds from its first lock to its commit."""


class Committer:
    """What the writer does with a batch. One thread at a time uses it.

    now_us: the injected clock; it gives None where the database's own time is meant. retries_max: how often a batch
    is tried again before its callers are told that the database is contended or away.
    """

    def __init__(self, store: WriteStore, policy: Policy, now_us: Callable[[], int | None], retries_max: int) -> None:
        self.observe: Observe | None = None
        self._store = store
        self._policy = policy
        self._now_us = now_us
        self._retries_max = retries_max

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Answer a batch, one at a time. An interrupt (Ctrl-C) may leave it half done: its keys tell what happened."""
        try:
            return self._settle(groups)
        except BaseException:
            self._store.reset()
            raise

    def _settle(self, groups: Sequence[Group]) -> list[Answer]:
        """Try, try again after a conflict or a lost connection, isolate what the database refuses."""
        own_hashes: frozenset[str] = frozenset()
        attempt = 0
        while True:
            sealed: list[str] = []
            try:
                return list(self._commit(groups, own_hashes, sealed))
            except FenceLost:
                self._store.rollback()
                if len(groups) > 1:
                    return [self._settle([group])[0] for group in groups]  # so that the late one fails alone
                return [LeaseLost("the lease of this work has passed to another, or ended; nothing of it was written")]
            except Exception as error:  # noqa: BLE001 - the store sorts driver errors, the rest is a defect
                self._store.rollback()
                fault = "stale" if isinstance(error, StaleState) else self._store.fault(error)
                # A commit whose outcome is unknown may have happened: these hashes tell its decisions from a replay's.
                if fault == "lost":
                    own_hashes |= frozenset(sealed)
                if fault == "stale":
                    continue
                if fault == "refused":
                    return self._isolate(groups, error)
                if fault == "lost":
                    self._store.reset()
                attempt += 1
                log.warning("ledger.retry", fault=fault, attempt=attempt, error=str(error).strip())
                if attempt > self._retries_max:
                    return [_given_up(fault, error) for _ in groups]
                time.sleep(random.uniform(0.5, 1) * min(0.02 * 2**attempt, 1))

    def _commit(self, groups: Sequence[Group], own_hashes: frozenset[str], sealed: list[str]) -> list[list[Result]]:
        started = time.perf_counter()
        needs = needs_of(groups)
        states, now_us = self._store.begin(needs, self._now_us(), self._policy.new_portfolio_cap_e8)
        results = decide_batch(states, groups, now_us, self._policy, own_hashes)
        if self._store.from_memory and any(isinstance(result, LedgerError) for group in results for result in group):
            raise StaleState("a rule's error may be the replay of a key that was not looked up")
        recorded = [record for state in states.values() for record, _ in state.sealed]
        sealed += [record.hash for record in recorded]
        self._store.commit(states.values())
        if self.observe is not None:
            self.observe(recorded, time.perf_counter() - started)
        if _stdlib_log.isEnabledFor(logging.INFO):
            asked_by = requests_of(groups, results)
            for record in recorded:
                log.info("decision", **record.logged(), **asked_by.get(record.hash, {}))
        return results

    def _isolate(self, groups: Sequence[Group], error: Exception) -> list[Answer]:
        """The database refused the batch: answer its groups one by one, so that only the guilty one fails."""
        if len(groups) > 1:
            return [self._settle([group])[0] for group in groups]
        (group,) = groups
        if len(group.commands) > 1 and not group.atomic:
            results: list[Result] = []
            for command in group.commands:
                answer = self._settle([Group((command,), request_id=group.request_id)])[0]
                results += [answer] if isinstance(answer, LedgerError) else answer
            return [results]
        log.error("ledger.refused", error=str(error).strip())
        return [InternalError(f"the database refused the command, nothing was recorded: {str(error).strip()}")]


def _given_up(fault: str, error: Exception) -> LedgerError:
    what = str(error).strip()
    if fault == "conflict":
        return Busy(f"the database is contended: {what}; nothing was recorded, retry with the same key")
    return Unavailable(f"the database is away: {what}; retry with the same key, it settles what happened")
