"""`release_all`: frees what a dead bot held, in bounded groups of releases, each committed for itself."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ledger_sizer.model.caller import Caller
from ledger_sizer.model.commands import AnyCommand
from ledger_sizer.model.decisions import Decision, Result
from ledger_sizer.model.domain import Page, Position
from ledger_sizer.model.errors import Forbidden, LedgerError, WrongState
from ledger_sizer.model.release_all import ReleaseAll
from ledger_sizer.model.tags import GivenTags, tags_of
from ledger_sizer.rules.guards import bound_tags, carries
from ledger_sizer.views.hold_listing import read_holds
from ledger_sizer.views.queries import Queries

RELEASES_MAX = 1000
"""Most holds that one group frees."""


class ReleasedPage(NamedTuple):
    """The decisions of one group, and the cursor of the next; None after the last."""

    decisions: list[Decision]
    cursor: str | None


class ReleaseAllMethods:
    """`release_all` for `Ledger`."""

    @property
    def caller(self) -> Caller:
        """Who uses the ledger now."""
        raise NotImplementedError

    @property
    def _reads(self) -> Queries:
        raise NotImplementedError

    def submit(self, commands: Iterable[AnyCommand], *, atomic: bool = False) -> list[Result]:
        """Run commands."""
        raise NotImplementedError

    async def submit_async(self, commands: Iterable[AnyCommand], *, atomic: bool = False) -> list[Result]:
        """Run commands."""
        raise NotImplementedError

    def release_all(
        self,
        portfolio: str = "main",
        *,
        key: str,
        tags: GivenTags,
        held_only: bool = True,
        unknown: bool = False,
        reference: str | None = None,
    ) -> list[Decision]:
        """Free the holds of all live positions of the portfolio that carry all these tags; return the decisions.

        What is open stays open: `held_only=False` is refused. tags: `{}` for every hold of the portfolio. unknown: free
        also the holds that never end by time (`until_known`): only when no order of them is live any more. Each is a
        decision of its own under `<key>/<position_id>`. Asked again with the same key it frees what is left, and
        returns the decisions about that; it does no harm. Holds that end meanwhile are passed over.

        Raises `InvalidRequest`, `Forbidden`, `NotFound`, and `Busy` or `Unavailable` in the middle: then ask again with
        the same key.
        """
        request = ReleaseAll(
            key=key, portfolio=portfolio, tags=tags, held_only=held_only, unknown=unknown, reference=reference
        )
        return [decision for page in self.release_all_in_pages(request) for decision in page]

    async def release_all_async(
        self,
        portfolio: str = "main",
        *,
        key: str,
        tags: GivenTags,
        held_only: bool = True,
        unknown: bool = False,
        reference: str | None = None,
    ) -> list[Decision]:
        """Async `release_all`."""
        request = ReleaseAll(
            key=key, portfolio=portfolio, tags=tags, held_only=held_only, unknown=unknown, reference=reference
        )
        found, cursor = await self.next_released_page(request)
        while cursor is not None:
            more, cursor = await self.next_released_page(request, cursor)
            found += more
        return found

    def release_all_in_pages(self, request: ReleaseAll) -> Iterator[list[Decision]]:
        """Do what `release_all` does step by step: yield the decisions of each commit. Stop when you like."""
        cursor: str | None = None
        while True:
            page = self.holds_of(request, cursor)
            yield _decisions(self.submit(_releases(request, page)))
            cursor = page.cursor
            if cursor is None:
                return

    async def next_released_page(self, request: ReleaseAll, cursor: str | None = None) -> ReleasedPage:
        """Free the holds of one page, those that end first. cursor: of the page before."""
        page = await asyncio.to_thread(self.holds_of, request, cursor)
        return ReleasedPage(_decisions(await self.submit_async(_releases(request, page))), page.cursor)

    def holds_of(self, request: ReleaseAll, cursor: str | None = None, limit: int = RELEASES_MAX) -> Page[Position]:
        """Return a page of the positions whose holds the request would free, in the order in which these end.

        Where the caller's API key is bound to tags, only those that carry them. Raises `Forbidden` for other tags.
        """
        tags, bound = tags_of(request.tags), self.caller.tags
        # Of a tag to which a key is bound with several values, a position need have only one.
        tags = bound_tags(tags, self.caller, kept=[name for name in bound if bound.only(name) is None])
        page = read_holds(
            self._reads.engine, request.portfolio, tags, until_known=request.unknown, cursor=cursor, limit=limit
        )
        return Page(tuple([one for one in page if carries(one.tags, bound)]), page.cursor) if bound else page


def _releases(request: ReleaseAll, page: Page[Position]) -> list[AnyCommand]:
    return [request.release_of(position.position_id) for position in page]


def _decisions(results: Sequence[Result]) -> list[Decision]:
    """Return the decisions, without the holds that had ended, or got other tags, by then. Raises any other error."""
    found = []
    for result in results:
        if isinstance(result, LedgerError):
            if not isinstance(result, WrongState | Forbidden):
                raise result
        else:
            found.append(result)
    return found
