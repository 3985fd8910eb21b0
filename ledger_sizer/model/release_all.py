"""The request to free many holds at once: what a dead bot held."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ledger_sizer.model.arguments import FLAG, NOTE, Argument, DeclaredArgument, check_arguments, declared
from ledger_sizer.model.command_base import KEY, PORTFOLIO, TAGS
from ledger_sizer.model.commands import Release
from ledger_sizer.model.derived_keys import derived_key
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.tags import GivenTags


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseAll:
    """Free the holds of all live positions that carry these tags. What is open stays open.

    Each is a decision of its own, a `release` with `held_only` under the key `<key>/<position_id>`. So it may be asked
    again with the same key after a crash: what was freed before stays as it is, and the others are freed. A hold that
    never ends by time is left alone, because an order of it may be live, unless `unknown` is set.
    """

    arguments: ClassVar[tuple[DeclaredArgument, ...]]

    key: Annotated[str, Argument(KEY, "One per intention; each decision's key begins with it.", sent=False)]
    portfolio: Annotated[str, Argument(PORTFOLIO, "The pot of capital.", flags=("-p",))] = "main"
    tags: Annotated[GivenTags, Argument(TAGS, "All must match; {} for every hold of the portfolio.")]
    held_only: Annotated[bool, Argument(FLAG, "Always true: nothing that is open is closed.")] = True
    unknown: Annotated[
        bool, Argument(FLAG, "Free also holds that never end by time: no order of them is live any more.")
    ] = False
    reference: Annotated[str | None, Argument(NOTE, "A text of your own; it is kept with each decision.")] = None

    def __post_init__(self) -> None:
        if self.tags is None:
            raise InvalidRequest(
                "tags is missing: name those of the bot, such as {'bot': 'a'}, or give {} for every hold of the "
                "portfolio",
                field="tags",
            )
        check_arguments(self)
        if not self.held_only:
            raise InvalidRequest(
                "held_only must be True: holds are freed and nothing is closed; close an open position with "
                "release(position_id=...), one by one",
                field="held_only",
            )

    def release_of(self, position_id: str) -> Release:
        """Return the command that frees the hold of one position."""
        key = derived_key(self.key, f"/{position_id}")
        return Release(key=key, position_id=position_id, held_only=True, reference=self.reference)
