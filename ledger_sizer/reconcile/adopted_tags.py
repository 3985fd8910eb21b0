"""The tags of a position that is adopted: those of its markets, and what a person adds."""

from collections.abc import Collection, Sequence

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.reconciliation import Market
from ledger_sizer.model.tags import EXTERNAL_TAG, Tags
from ledger_sizer.model.tags import tags_of as valid_tags
from ledger_sizer.reconcile.attribution import coin_of

FILLED_IN = ("venue", "account", "symbol")
"""Tags that follow from the markets."""


def adopted_tags(given: Tags, markets: Sequence[Market]) -> Tags:
    """Return the tags of a position in these markets.

    given: more tags, such as its strategy. Raises `InvalidRequest` where they say another venue, account or coin than
    the markets, or name the reconciliation's own tag.
    """
    values_of = ({one.venue for one in markets}, {one.account for one in markets}, {one.base for one in markets})
    own: dict[str, Collection[str]] = dict(zip(FILLED_IN, values_of, strict=True))
    if EXTERNAL_TAG in given:
        raise InvalidRequest(
            f"the tag {EXTERNAL_TAG!r} is the reconciliation's own, for what nobody has decided about; leave it out",
            field=f"tags.{EXTERNAL_TAG}",
        )
    for name, values in own.items():
        said = {coin_of(one) for one in given.values_of(name)} if name == "symbol" else set(given.values_of(name))
        if said and said != values:
            raise InvalidRequest(
                f"tags.{name} is {' and '.join(sorted(said))}, but what is adopted has {' and '.join(sorted(values))}; "
                "leave it out, it is filled in",
                field=f"tags.{name}",
            )
    return valid_tags({**given, **{name: sorted(values) for name, values in own.items()}})
