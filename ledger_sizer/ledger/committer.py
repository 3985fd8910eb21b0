"""Answering a batch: decide, store; try again after a conflict or a lost connection; isolate what is refused.

A batch is decided on what the database has, loaded under its lock, or, where that is enough, on what is remembered.
The second needs no database, so it can be done while the batch before is still being stored: a `Draft`. It stands on
the batches before it; when one of them is not stored as it was decided, the draft is thrown away and its batch is
decided again.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ledger_sizer.ledger.writer import Answer
from ledger_sizer.model.decisions import DecisionRecord, Result
from ledger_sizer.model.errors import Busy, InternalError, LedgerError, Unavailable
from ledger_sizer.rules.batch import Group, States, decide_batch, log_fields_by_hash
from ledger_sizer.rules.policy import Policy
from ledger_sizer.storage.leases import LeaseLost
from ledger_sizer.storage.state_cache import StateCache
from ledger_sizer.storage.write_store import Changes, FenceLost, StaleState, WriteStore, changes_of, needs_of
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)
_stdlib_log = logging.getLogger(__name__)

Observe = Callable[[Sequence[DecisionRecord], float], None]
"""Told of every committed batch: the decisions it recorded, and the seconds from its first look to its commit."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A decided batch that is not stored yet.

    locked: it was decided on loaded state, in a transaction that is still open. failures: of the memory it stands on.
    """

    groups: Sequence[Group]
    results: Sequence[list[Result]]
    changes: Sequence[Changes]
    locked: bool
    failures: int
    started: float

    @property
    def recorded(self) -> list[DecisionRecord]:
        """The decisions it made."""
        return [record for change in self.changes for record, _ in change.decisions]


class Committer:
    """What the writer does with a batch. One thread drafts while another stores; any other call is made alone.

    now_us: the injected clock; it gives None where the database's own time is meant. retries_max: how often a batch
    is tried again before its callers are told that the database is contended or away.
    """

    def __init__(self, store: WriteStore, policy: Policy, now_us: Callable[[], int | None], retries_max: int) -> None:
        self.observe: Observe | None = None
        self._store = store
        self._policy = policy
        self._now_us = now_us
        self._retries_max = retries_max
        self._memory = StateCache()
        self._deciding = threading.RLock()
        """Held by whoever uses the memory."""

    def draft(self, groups: Sequence[Group]) -> Draft | None:
        """Decide a batch on what is remembered. None where that does not do: `answer` it when all before is stored."""
        try:
            with self._deciding:
                return self._decided_from_memory(groups, frozenset())
        except Exception:  # noqa: BLE001 - `answer` meets the same again and says what is wrong
            return None

    def answer(self, groups: Sequence[Group], draft: Draft | None = None) -> list[Answer]:
        """Store a draft of these groups, or answer them from the start. An interrupt (Ctrl-C) may leave that half done:
        their keys tell what happened.
        """
        try:
            return self._settle(groups, draft)
        except BaseException:
            self._memory.fail()
            self._store.reset()
            raise

    def _settle(self, groups: Sequence[Group], draft: Draft | None) -> list[Answer]:
        """Try, try again after a conflict or a lost connection, isolate what the database refuses."""
        if draft is None:
            with self._deciding:
                return self._settle_again(groups, None, None)
        try:
            if draft.failures != self._memory.failures:
                raise StaleState("what the draft was decided on was not stored")
            self._save(draft)
            return list(draft.results)
        except Exception as error:  # noqa: BLE001 - told apart below
            with self._deciding:
                answers = self._settle_again(groups, draft, error)
                self._memory.fail()  # drafts that wait behind this one stand on nothing; none must be added to them
            return answers

    def _settle_again(self, groups: Sequence[Group], draft: Draft | None, error: Exception | None) -> list[Answer]:
        own_hashes: frozenset[str] = frozenset()
        attempt = 0
        while True:
            if error is not None:
                fault = self._failed(draft, error)
                # A commit whose outcome is unknown may have happened: these hashes tell its decisions from a replay's.
                if fault == "lost" and draft is not None:
                    own_hashes |= {record.hash for record in draft.recorded}
                if fault == "refused":
                    return self._isolate(groups, error, may_be_stored=bool(own_hashes))
                if fault == "fenced":
                    return self._late(groups)
                if fault in ("conflict", "lost"):
                    attempt += 1
                    log.warning("ledger.retry", fault=fault, attempt=attempt, error=str(error).strip())
                    if attempt > self._retries_max:
                        return [_given_up("lost" if own_hashes else fault, error) for _ in groups]
                    time.sleep(random.uniform(0.5, 1) * min(0.02 * 2**attempt, 1))
            draft = None
            try:
                draft = self._decide(groups, own_hashes)
                self._save(draft)
                return list(draft.results)
            except Exception as failure:  # noqa: BLE001 - the store sorts driver errors, the rest is a defect
                error = failure

    def _failed(self, draft: Draft | None, error: Exception) -> str:
        """Forget what was decided and not stored, and say what kind of failure it was."""
        self._memory.fail()
        self._store.rollback()
        if isinstance(error, StaleState | FenceLost):
            return "stale" if isinstance(error, StaleState) else "fenced"
        fault = self._store.fault(error, locked=draft is None or draft.locked)
        if fault == "moved" and draft is not None:
            self._memory.doubt(change.portfolio for change in draft.changes)
        if fault == "lost":
            self._store.reset()
        return fault

    def _decide(self, groups: Sequence[Group], own_hashes: frozenset[str]) -> Draft:
        draft = self._decided_from_memory(groups, own_hashes)
        if draft is not None:
            return draft
        started = time.perf_counter()
        needs = needs_of(groups)
        self._memory.foresee(needs)
        states, now_us = self._store.begin(needs, self._now_us(), self._policy.new_portfolio_cap_e8)
        results = decide_batch(states, groups, now_us, self._policy, own_hashes)
        _log_defects(results)
        return self._drafted(groups, results, states, started, locked=True)

    def _decided_from_memory(self, groups: Sequence[Group], own_hashes: frozenset[str]) -> Draft | None:
        started = time.perf_counter()
        now_us = self._now_us()
        if now_us is None:
            now_us = self._store.clock_us()
        states = self._memory.recall(needs_of(groups), now_us)
        if states is None:
            return None
        results = decide_batch(states, groups, now_us, self._policy, own_hashes)
        if any(isinstance(result, LedgerError) for group in results for result in group):
            raise StaleState("a rule's error may be the replay of a key that was not looked up")
        return self._drafted(groups, results, states, started, locked=False)

    def _drafted(
        self, groups: Sequence[Group], results: Sequence[list[Result]], states: States, started: float, *, locked: bool
    ) -> Draft:
        changes = [changes_of(state) for state in states.values() if state.new_decisions]
        for state in states.values():
            self._memory.keep(state)
        return Draft(groups, results, changes, locked, self._memory.failures, started)

    def _save(self, draft: Draft) -> None:
        self._store.write(draft.changes, locked=draft.locked)
        recorded = draft.recorded
        if self.observe is not None:
            try:
                self.observe(recorded, time.perf_counter() - draft.started)
            except Exception:
                log.warning("ledger.observer_failed", exc_info=True)
        if _stdlib_log.isEnabledFor(logging.INFO):
            asked_by = log_fields_by_hash(draft.groups, draft.results)
            for record in recorded:
                log.info("decision", **record.logged(), **asked_by.get(record.hash, {}))

    def _late(self, groups: Sequence[Group]) -> list[Answer]:
        """A lease that some group was sent under is held by another now: that one fails, alone."""
        if len(groups) > 1:
            return [self._settle([group], None)[0] for group in groups]
        return [LeaseLost("the lease of this work has passed to another, or ended; nothing more of it is written")]

    def _isolate(self, groups: Sequence[Group], error: Exception, *, may_be_stored: bool) -> list[Answer]:
        """The database refused the batch: answer its groups one by one, so that only the guilty one fails.

        may_be_stored: after a commit of unknown outcome; then its key has to tell whether it was recorded.
        """
        if len(groups) > 1:
            return [self._settle([group], None)[0] for group in groups]
        (group,) = groups
        if len(group.commands) > 1 and not group.atomic:
            results: list[Result] = []
            for command in group.commands:
                answer = self._settle([group._replace(commands=(command,))], None)[0]
                results += [answer] if isinstance(answer, LedgerError) else answer
            return [results]
        if may_be_stored:
            return [_given_up("lost", error)]
        log.error("ledger.refused", error=str(error).strip())
        return [InternalError(f"the command could not be stored, nothing was recorded: {str(error).strip()}")]


def _log_defects(results: Sequence[Sequence[Result]]) -> None:
    # An atomic group answers all its commands with the error of one.
    defects = {id(result): result for answers in results for result in answers if isinstance(result, InternalError)}
    for defect in defects.values():
        log.error("ledger.command_failed", error=str(defect), exc_info=defect.__cause__)


def _given_up(fault: str, error: Exception) -> LedgerError:
    what = str(error).strip()
    if fault == "conflict":
        return Busy(f"the database is contended: {what}; nothing was recorded, retry with the same key")
    return Unavailable(f"the database is away: {what}; retry with the same key, it settles what happened")
