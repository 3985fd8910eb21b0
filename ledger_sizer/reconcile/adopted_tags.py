"""The tags of a position that is taken over: those of its legs, and what a person adds."""

from collections.abc import Collection, Sequence

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.market_names import coin_of
from ledger_sizer.model.tags import EXTERNAL_TAG, Tags
from ledger_sizer.model.tags import tags_of as valid_tags

FILLED_IN = ("venue", "account", "symbol")
"""Tags that follow from the legs."""


def adopted_tags(given: Tags, legs: Sequence[Leg], account: str | None = None) -> Tags:
    """Return the tags of a position with these legs.

    given: more tags, such as its strategy. account: of a leg that names none. Raises `InvalidRequest` where they say
    another venue, account or coin than the legs, or name the reconciliation's own tag.
    """
    accounts = {leg.account or account for leg in legs}
    own: dict[str, Collection[str]] = {
        "venue": {leg.venue for leg in legs},
        "account": {one for one in accounts if one is not None},
        "symbol": {coin_of(leg.symbol) for leg in legs},
    }
    if EXTERNAL_TAG in given:
        raise InvalidRequest(
            f"the tag {EXTERNAL_TAG!r} is the reconciliation's own, for what nobody has decided about; leave it out",
            field=f"tags.{EXTERNAL_TAG}",
        )
    for name, values in own.items():
        said = {coin_of(one) for one in given.values_of(name)} if name == "symbol" else set(given.values_of(name))
        if said and values and said != values:
            raise InvalidRequest(
                f"tags.{name} is {' and '.join(sorted(said))}, but what is taken over has "
                f"{' and '.join(sorted(values))}; leave it out, it is filled in",
                field=f"tags.{name}",
            )
    return valid_tags({**given, **{name: sorted(values) for name, values in own.items() if values}})
