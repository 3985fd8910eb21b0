"""The command that gives a position's coin another name."""

from decimal import Decimal
from typing import Annotated

from ledger_sizer.model.arguments import LABEL, NOTE, POSITIVE, Argument
from ledger_sizer.model.command_base import PositionCommand, verb
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.market_names import split_factor

TAG_FORMS = ("", "/USDT", "/USDC", "/USD", "/USDT:USDT", "/USDC:USDC", "/USD:USD")
"""Forms of a `symbol` tag that are kept when its coin is renamed: the scopes of these are loaded with the command."""


@verb(
    "rename", role="admin", call="POST /v1/positions/{position_id}/rename",
    examples=("rename main-18 --asset S --note 'FTM is S now'", "rename main-18 --asset NEW --ratio 24000"),
)  # fmt: skip
class Rename(PositionCommand):
    """Say that the coin of a live position has another name, or that there are more of it: a fact that no cap refuses.

    Its legs get the names of the new markets (`FTM/USDT:USDT` is `S/USDT:USDT`) and the value of its tag `symbol`
    follows. Quantities are multiplied by the ratio, prices divided. What it counts and cost, its other tags, its number
    and its age stay.
    """

    asset: Annotated[str, Argument(LABEL, "The new name of the coin.", examples=("S",))]
    ratio: Annotated[Decimal, Argument(POSITIVE, "New coins for one old coin.", metavar="COINS")] = Decimal(1)
    coin: Annotated[str | None, Argument(LABEL, "The old name, where its legs have several.", examples=("FTM",))] = None
    note: Annotated[str | None, Argument(NOTE, "Why; kept with the decision.")] = None

    def _check_together(self) -> None:
        PositionCommand._check_together(self)
        for name, coin in (("asset", self.asset), ("coin", self.coin)):
            if coin is not None:
                _check_coin(coin, name)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of the new name."""
        return tuple([f"symbol={self.asset}{form}" for form in TAG_FORMS])


def _check_coin(coin: str, field: str) -> None:
    """Raise `InvalidRequest` for the name of a market, or of many coins."""
    factor, one = split_factor(coin)
    if "/" in coin or ":" in coin:
        raise InvalidRequest(f"{field} is the name of a coin, such as BTC, not of a market, got {coin!r}", field=field)
    if factor != 1:
        raise InvalidRequest(
            f"{field} {coin!r} is {factor} {one} in one name, and no other coin: quantities are in {one} anyhow",
            field=field,
        )
