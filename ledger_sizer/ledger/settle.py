"""`settle`: brings what the ledger has under a bot's tags in line with the bot's book, in one locked batch."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from ledger_sizer.ledger.inline_writer import InlineWriter
from ledger_sizer.ledger.writer import Writer
from ledger_sizer.model.caller import Caller
from ledger_sizer.model.decisions import Decision, Result
from ledger_sizer.model.errors import InvalidRequest, LedgerError
from ledger_sizer.model.settle import GivenBook, Settle
from ledger_sizer.model.tags import GivenTags
from ledger_sizer.rules.batch import Group
from ledger_sizer.rules.guards import bound_tags
from ledger_sizer.rules.policy import Policy
from ledger_sizer.rules.settling import SettleTask
from ledger_sizer.telemetry import request_id_var


class SettleMethods:
    """`settle` for `Ledger`."""

    _policy: Policy
    _writer: Writer[Any] | InlineWriter

    @property
    def caller(self) -> Caller:
        """Who uses the ledger now."""
        raise NotImplementedError

    def settle(
        self,
        tags: GivenTags,
        book: GivenBook,
        resting: Collection[str] = (),
        portfolio: str = "main",
        *,
        as_of: datetime | None = None,
        reference: str | None = None,
    ) -> list[Decision]:
        """Bring what the ledger has under these tags in line with the bot's book; return the decisions about it.

        book: what is open, `{market or position id: (quantity, price)}`: coins, unsigned, and their average entry price
        in USD per coin; a side (`sell`) as third says which way the leg goes that the ledger records. What is not in
        the book is flat. resting: where entry orders rest. A position's market is the symbol of its one leg, or its
        `symbol` tag where it has no legs; positions of several legs are named by their ids.

        What the book has more fills the market's holds, the oldest first, and the rest is adopted with these tags. What
        it has less is closed, the oldest first. Where orders rest the holds never end by time; the others are freed,
        unless they were granted after `as_of` (a moment by the ledger's clock; else the default life of a hold ago).
        What is equal changes nothing: it may be asked as often as one likes, without a key.

        Raises `InvalidRequest`, `Forbidden`, `NotFound`, `Busy`, `Unavailable`. An error about one market does not keep
        the others from being settled; it is raised after them.
        """
        return _decisions(
            self._writer.answer(self._settle_group(Settle(tags, book, resting, portfolio, as_of, reference)))
        )

    async def settle_async(
        self,
        tags: GivenTags,
        book: GivenBook,
        resting: Collection[str] = (),
        portfolio: str = "main",
        *,
        as_of: datetime | None = None,
        reference: str | None = None,
    ) -> list[Decision]:
        """Async `settle`."""
        request = Settle(tags, book, resting, portfolio, as_of, reference)
        return _decisions(await self._writer.submit_async(self._settle_group(request)))

    def _settle_group(self, request: Settle) -> Group:
        tags = bound_tags(request.own_tags, self.caller)
        if not tags:
            raise InvalidRequest(
                "tags is empty: name those of the bot, such as {'bot': 'a'}; what has other tags is left alone",
                field="tags",
            )
        task = SettleTask(request, tags, self._policy.hold_ttl_us)
        return Group((), settle=task, request_id=request_id_var.get(), caller=self.caller)


def _decisions(results: list[Result]) -> list[Decision]:
    """Return the decisions. Raises the first error."""
    failed = next((result for result in results if isinstance(result, LedgerError)), None)
    if failed is not None:
        raise failed
    return [result for result in results if isinstance(result, Decision)]
