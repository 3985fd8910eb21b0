"""Answers a batch: decides it, stores it, retries after a conflict or a lost connection, isolates a refused command.

A batch is decided on state loaded under the database's lock or, where that is enough, on cached state. Cached state
needs no database, so a batch can be decided while the previous one is still being stored: a `Draft`. A draft depends on
the batches before it. When one of them is not stored as it was decided, the draft is discarded and its batch decided
again.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from ledger_sizer.ledger.writer import Answer
from ledger_sizer.model.decisions import DecisionRecord, Result
from ledger_sizer.model.errors import Busy, InternalError, LedgerError, Unavailable
from ledger_sizer.model.names import DESK
from ledger_sizer.rules.batch import Group, States, decide_batch, log_fields_by_hash
from ledger_sizer.rules.policy import Policy
from ledger_sizer.rules.repeats import BatchDenials, DenialMemory
from ledger_sizer.storage.clock import ClockJumped
from ledger_sizer.storage.leases import LeaseLost
from ledger_sizer.storage.state_cache import StateCache
from ledger_sizer.storage.write_store import (
    FenceLost,
    PortfolioChanges,
    PortfolioNeed,
    StaleState,
    WriteStore,
    changes_of,
    needs_of,
)
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)
_stdlib_log = logging.getLogger(__name__)

_LEASE_LOST = "the lease of this work has passed to another, or ended; nothing more of it is written"

_SLOW_ATTEMPT_SECONDS = 5

Observe = Callable[[Sequence[DecisionRecord], float], None]
"""Called after every commit: the decisions recorded, and the seconds from the start of deciding to the commit."""


class Draft(NamedTuple):
    """A decided batch that is not stored yet.

    locked: decided on loaded state, in a transaction that is still open. denials: what is to be remembered of it, once
    it is stored. generation: the cache's when decided.
    """

    groups: Sequence[Group]
    results: Sequence[list[Result]]
    changes: Sequence[PortfolioChanges]
    denials: BatchDenials
    locked: bool
    generation: int
    started: float

    @property
    def recorded(self) -> list[DecisionRecord]:
        """Records of its decisions."""
        return [record for change in self.changes for record, _ in change.decisions]


class Committer:
    """Decides and stores the writer's batches. One thread may draft while another stores; other calls are exclusive.

    now_us: the injected clock; returns None to use the database's clock. retries_max, retry_seconds_max: retries of a
    batch, and the time in which they begin, before its callers get `Busy` or `Unavailable`. denial_repeat_seconds: see
    `DenialMemory`. closing: set when nothing is to be retried any more. denials_repeated: number of commands that got a
    denial which was recorded before.
    """

    def __init__(
        self,
        store: WriteStore,
        policy: Policy,
        now_us: Callable[[], int | None],
        *,
        retries_max: int,
        retry_seconds_max: float,
        denial_repeat_seconds: int,
    ) -> None:
        self.denials_repeated = 0
        self.observe: Observe | None = None
        self.closing = False
        self._write_failed = False
        self._store = store
        self._policy = policy
        self._now_us = now_us
        self._retries_max = retries_max
        self._retry_seconds_max = retry_seconds_max
        self._attempt_began: float | None = None
        self._cache = StateCache()
        self._denials = DenialMemory(denial_repeat_seconds)
        self._decide_lock = threading.RLock()
        """Guards the cache."""

    @property
    def attempt_seconds(self) -> float:
        """How long the present attempt to store a batch has taken; 0 while there is none. Each attempt has an end."""
        began = self._attempt_began
        return 0 if began is None else time.monotonic() - began

    @property
    def writes_failed(self) -> bool:
        """Whether the last write failed for the database's sake or waits for it. It may work again since."""
        return self._write_failed or self.attempt_seconds > _SLOW_ATTEMPT_SECONDS

    def forget_failure(self) -> None:
        """Note that the database takes writes again."""
        self._write_failed = False

    def draft(self, groups: Sequence[Group]) -> Draft | None:
        """Decide a batch on cached state. None where that is not enough: call `answer` when all before is stored."""
        try:
            with self._decide_lock:
                return self._decide_from_cache(groups, needs_of(groups), frozenset())
        except Exception:  # noqa: BLE001 - `answer` meets the same error and reports it
            return None

    def answer(self, groups: Sequence[Group], draft: Draft | None = None) -> list[Answer]:
        """Store a draft of these groups, or decide and store them. After an interrupt (Ctrl-C) the outcome is unknown:
        a retry with the same keys gets it.
        """
        self._attempt_began = time.monotonic()
        try:
            return self._answer_batch(groups, draft)
        except BaseException:
            self._cache.clear()
            self._store.reset()
            raise
        finally:
            self._attempt_began = None

    def _answer_batch(self, groups: Sequence[Group], draft: Draft | None) -> list[Answer]:
        """Store the draft; without one, or where that fails, decide, store and retry.

        A group about the desk gets a batch of its own: it waits for all other writes, which may wait for this one. So
        does a settle: what is loaded for it is what its book is about.
        """
        if draft is None:
            if len(groups) > 1 and any(map(_stands_alone, groups)):
                apart = [list(part) for _, part in groupby(groups, lambda one: _stands_alone(one) and id(one))]
                return [answer for part in apart for answer in self._answer_batch(part, None)]
            with self._decide_lock:
                return self._answer_with_retries(groups, None, None)
        try:
            if draft.generation != self._cache.generation:
                raise StaleState("what the draft was decided on was not stored")
            self._save(draft)
            return list(draft.results)
        except Exception as error:  # noqa: BLE001 - classified below
            with self._decide_lock:
                answers = self._answer_with_retries(groups, draft, error)
                self._cache.clear()  # drafts behind this one are invalid, and no new draft may depend on them
            return answers

    def _answer_with_retries(
        self, groups: Sequence[Group], draft: Draft | None, error: Exception | None
    ) -> list[Answer]:
        own_hashes: frozenset[str] = frozenset()
        attempt = 0
        retries_end = time.monotonic() + self._retry_seconds_max
        while True:
            if error is not None:
                fault = self._roll_back(draft, error)
                # A commit of unknown outcome may have happened: these hashes tell its decisions from replays.
                if fault == "lost" and draft is not None:
                    own_hashes |= {record.hash for record in draft.recorded}
                if fault in ("refused", "fenced") and len(groups) > 1:
                    return [self._answer_batch([group], None)[0] for group in groups]  # only those at fault fail
                if fault == "refused":
                    return [self._isolate(groups[0], error, may_be_stored=bool(own_hashes))]
                if fault == "fenced":
                    return [LeaseLost(_LEASE_LOST)]
                if fault in ("closed", "damaged", "clock"):
                    return [_out_of_order(error) for _ in groups]
                if fault in ("conflict", "lost"):
                    attempt += 1
                    log.warning("ledger.retry", fault=fault, attempt=attempt, error=str(error).strip())
                    if attempt > self._retries_max or self.closing or time.monotonic() > retries_end:
                        return [_busy_or_unavailable("lost" if own_hashes else fault, error) for _ in groups]
                    time.sleep(random.uniform(0.5, 1) * min(0.02 * 2**attempt, 1))
            draft = None
            self._attempt_began = time.monotonic()
            try:
                draft = self._decide(groups, own_hashes)
                self._save(draft)
                return list(draft.results)
            except Exception as failure:  # noqa: BLE001 - the store classifies driver errors, the rest is a defect
                error = failure

    def _roll_back(self, draft: Draft | None, error: Exception) -> str:
        """Discard what was decided and not stored. Return the kind of failure."""
        self._cache.clear()
        self._store.rollback()
        if isinstance(error, StaleState | FenceLost):
            return "stale" if isinstance(error, StaleState) else "fenced"
        if isinstance(error, ClockJumped):
            return "clock"
        fault = self._store.classify_error(error, locked=draft is None or draft.locked)
        self._write_failed = fault != "moved"
        if fault == "moved" and draft is not None:
            self._cache.mark_contended(change.portfolio for change in draft.changes)
        if fault in ("lost", "damaged"):
            self._store.reset()
        return fault

    def _decide(self, groups: Sequence[Group], own_hashes: frozenset[str]) -> Draft:
        needs = needs_of(groups)
        draft = self._decide_from_cache(groups, needs, own_hashes)
        if draft is not None:
            return draft
        started = time.perf_counter()
        self._cache.add_cached_scopes(needs)
        states, now_us = self._store.begin(needs, self._now_us(), self._policy.new_portfolio_cap_e8)
        denials = BatchDenials(self._denials, locked=True)
        results = decide_batch(states, groups, now_us, self._policy, own_hashes, denials)
        _log_defects(results)
        return self._make_draft(groups, results, states, denials, started, locked=True)

    def _decide_from_cache(
        self, groups: Sequence[Group], needs: dict[str, PortfolioNeed], own_hashes: frozenset[str]
    ) -> Draft | None:
        started = time.perf_counter()
        now_us = self._now_us()
        if now_us is None:
            now_us = self._store.clock_us()
        if now_us is None or self._may_repeat_denials(groups, now_us):
            return None
        states = self._cache.take(needs, now_us)
        if states is None:
            return None
        denials = BatchDenials(self._denials, locked=False)
        results = decide_batch(states, groups, now_us, self._policy, own_hashes, denials)
        for answers in results:
            for result in answers:
                if isinstance(result, LedgerError):
                    raise StaleState("a rule's error may be the replay of a key that was not looked up")
        return self._make_draft(groups, results, states, denials, started, locked=False)

    def _may_repeat_denials(self, groups: Sequence[Group], now_us: int) -> bool:
        if self._denials.idle(now_us):
            return False
        single = [group for group in groups if not group.atomic]
        commands = ((command, group.caller) for group in single for command in group.commands)
        return self._denials.may_repeat(commands, now_us)

    def _make_draft(
        self,
        groups: Sequence[Group],
        results: Sequence[list[Result]],
        states: States,
        denials: BatchDenials,
        started: float,
        *,
        locked: bool,
    ) -> Draft:
        changes = [changes_of(state) for state in states.values() if state.new_decisions]
        for state in states.values():
            if state.new_decisions or not state.begins:  # a portfolio that nothing was decided about is not stored
                self._cache.put(state)
        return Draft(groups, results, changes, denials, locked, self._cache.generation, started)

    def _save(self, draft: Draft) -> None:
        self._store.write(draft.changes, locked=draft.locked)
        self._write_failed = False
        if draft.denials.any:
            self._remember(draft.denials)
        if self.observe is not None:
            try:
                self.observe(draft.recorded, time.perf_counter() - draft.started)
            except Exception:
                log.warning("ledger.observer_failed", exc_info=True)
        if _stdlib_log.isEnabledFor(logging.INFO):
            extra_fields = log_fields_by_hash(draft.groups, draft.results)
            for record in draft.recorded:
                log.info("decision", **record.logged(), **extra_fields.get(record.hash, {}))

    def _remember(self, denials: BatchDenials) -> None:
        """Remember the denials of a batch that is stored, and count those that were given again."""
        self._denials.keep(denials)
        self.denials_repeated += len(denials.keys)
        for _, answer in denials.keys.values():
            log.debug("ledger.denial_repeated", **answer.logged())

    def _isolate(self, group: Group, error: Exception, *, may_be_stored: bool) -> Answer:
        """Answer a refused group: an atomic one with the error, else one command at a time.

        may_be_stored: a commit's outcome is unknown; then only a retry with the same key can tell it.
        """
        if len(group.commands) > 1 and not group.atomic:
            results: list[Result] = []
            for command in group.commands:
                answer = self._answer_batch([group._replace(commands=(command,))], None)[0]
                results += [answer] if isinstance(answer, LedgerError) else answer
            return results
        if may_be_stored:
            return _busy_or_unavailable("lost", error)
        log.error("ledger.refused", error=str(error).strip())
        told = "the command could not be stored, nothing was recorded"
        return InternalError(f"{told}: {str(error).strip()}", told=f"{told}; the log says why")


def _stands_alone(group: Group) -> bool:
    return group.settle is not None or any(command.portfolio == DESK for command in group.commands)


def _log_defects(results: Sequence[Sequence[Result]]) -> None:
    # An atomic group answers all its commands with the error of one.
    defects = {id(result): result for answers in results for result in answers if isinstance(result, InternalError)}
    for defect in defects.values():
        log.error("ledger.command_failed", **defect.log_fields, exc_info=defect.__cause__)


def _out_of_order(error: Exception) -> LedgerError:
    """Return the answer where no retry helps until a person has acted. Each caller gets an exception of its own."""
    what = str(error).strip()
    if isinstance(error, Unavailable):
        return type(error)(what, told=error.told)
    log.error("ledger.damaged", error=what)
    rest = "stop the service, restore a backup, verify it, start again"
    return Unavailable(f"the database is damaged: {what}; {rest}", told=f"the database is damaged; {rest}")


def _busy_or_unavailable(fault: str, error: Exception) -> LedgerError:
    what = str(error).strip()
    if fault == "conflict":
        rest = "nothing was recorded, retry with the same key"
        return Busy(f"the database is contended: {what}; {rest}", told=f"the database is contended; {rest}")
    return Unavailable(f"the database is away: {what}; retry with the same key, it settles what happened")
