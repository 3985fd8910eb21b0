"""How far an event stream has got, and the event ids that say so.

An id lists the last seq sent of every watched portfolio, `alt:3,main:17`, while that is short. Of many portfolios it is

    ~WATCH~DONE_US~ROUND_US~PORTFOLIO~SEQ~SUMS

and says: of PORTFOLIO everything up to SEQ was sent; of portfolios before it by name, which had their turn in this
round, what was decided up to ROUND_US; of the others what was decided up to DONE_US. SUMS says, for each of 64 groups
of portfolios, how many decisions that is. A decision that was committed late is in the ledger up to such a time but was
not sent. The sums tell how many of these a group has, and each of its portfolios is resumed so many decisions earlier:
none is lost, and only then are some sent again. Any replica can resume any id: it needs nothing but the ledger.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from zlib import crc32

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.names import portfolio_or_desk
from ledger_sizer.service.api_keys import ApiKey

ALL = "all"
"""The watch of a key that may see every portfolio."""

_LISTED_CHARACTERS_MAX = 2000
_SEQ_DIGITS_MAX = 18
_GROUPS = 64


def watch_of(caller: ApiKey) -> str:
    """Return what stands in an id for the portfolios that the key may see."""
    if caller.portfolios is None:
        return ALL
    return sha256(",".join(sorted(caller.portfolios)).encode()).hexdigest()[:16]


def _group(name: str) -> int:
    return crc32(name.encode()) % _GROUPS


class EventCursor:
    """The last seq sent of every watched portfolio.

    A stream goes round the portfolios in the order of their names: `advance` for each decision it sends, `end_round`
    after the last portfolio. done_us: no decision sent so far was decided later. at: the portfolio whose turn it is;
    empty between rounds. marks: by portfolio the last seq to send in this round, so that its times part what was sent
    from what was not; empty until they are known.
    """

    def __init__(self, watch: str, seqs: Mapping[str, int], done_us: int) -> None:
        self.at = ""
        self.marks: dict[str, int] = {}
        self._watch = watch
        self._seqs = dict(seqs)
        self._done_us = self._round_us = done_us
        self._listed_size = sum(map(_listed_size, self._seqs))
        self._sums = [0] * _GROUPS
        for name, seq in self._seqs.items():
            self._sums[_group(name)] += seq

    def resume_round(self, round_us: int, at: str, marks: Mapping[str, int]) -> None:
        """Go on in a round that was broken off. round_us: no decision sent in it was decided later."""
        self._round_us, self.at, self.marks = round_us, at, dict(marks)

    def sent(self, name: str) -> int:
        """Return the last seq sent of a portfolio, 0 for none."""
        return self._seqs.get(name, 0)

    def advance(self, name: str, seq: int, decided_us: int) -> None:
        """Note that a decision of a portfolio was sent."""
        if name not in self._seqs:
            self._listed_size += _listed_size(name)
        self._sums[_group(name)] += seq - self.sent(name)
        self._seqs[name] = seq
        self._round_us = max(self._round_us, decided_us)
        self.at = name

    def end_round(self) -> None:
        """Note that every watched portfolio had its turn."""
        self._done_us = self._round_us
        self.at = ""
        self.marks = {}

    @property
    def event_id(self) -> str:
        """The id to resume after what was sent; empty while there is no portfolio."""
        if self._listed_size <= _LISTED_CHARACTERS_MAX:
            return ",".join(f"{name}:{seq}" for name, seq in sorted(self._seqs.items()))
        sums = ".".join(f"{number:x}" for number in self._sums)
        return f"~{self._watch}~{self._done_us}~{self._round_us}~{self.at}~{self.sent(self.at)}~{sums}"


def _listed_size(name: str) -> int:
    return len(name) + 2 + _SEQ_DIGITS_MAX


@dataclass(frozen=True, slots=True)
class ShortId:
    """A parsed id of many portfolios."""

    watch: str
    done_us: int
    round_us: int
    at: str
    seq: int
    sums: tuple[int, ...]

    def positions(self, until_done: Mapping[str, int], until_round: Mapping[str, int]) -> dict[str, int]:
        """Return by portfolio the last seq that was surely sent.

        until_done, until_round: by portfolio of the id's watch, the last seq decided up to `done_us`, `round_us`; or a
        later one. Raises `InvalidRequest` where the ledger has fewer decisions than were sent.
        """
        found = {name: until_round[name] if name < self.at else seq for name, seq in until_done.items()}
        if self.at:
            found[self.at] = self.seq
        unsent = [-number for number in self.sums]
        for name, seq in found.items():
            unsent[_group(name)] += seq
        if min(unsent) < 0:
            raise InvalidRequest(
                "Last-Event-ID is of a ledger with more decisions than this one has; begin anew without it",
                field="Last-Event-ID",
            )
        return {name: seq if name == self.at else max(seq - unsent[_group(name)], 0) for name, seq in found.items()}


def require_reached(seqs: Mapping[str, int], heads: Mapping[str, int]) -> None:
    """Raise `InvalidRequest` for a seq that an id says was sent and its portfolio has not reached.

    Such a stream would be silent until the portfolio has as many decisions, and lose those up to there. heads: the
    last seq of every portfolio.
    """
    for name, seq in seqs.items():
        head = heads.get(name, 0)
        if seq > head:
            has = f"the head of {name} is seq {head}" if name in heads else f"there is no portfolio {name!r}"
            raise InvalidRequest(
                f"Last-Event-ID says {name}:{seq}, and {has}: it is of another ledger, or this one was restored from a "
                "backup; begin anew without it, or with an earlier seq",
                field="Last-Event-ID",
            )


def parse_event_id(text: str) -> dict[str, int] | ShortId:
    """Parse an event id; one that lists its portfolios to their seqs. Raises `InvalidRequest`."""
    try:
        if text.startswith("~"):
            _, watch, done, round_, at, seq, sums = text.split("~")
            groups = tuple(int(number, 16) for number in sums.split("."))
            if len(groups) == _GROUPS and all(map(_is_number, (done, round_, seq))):
                return ShortId(watch, int(done), int(round_), at and portfolio_or_desk(at), int(seq), groups)
        else:
            parts = [part.strip().rpartition(":") for part in text.split(",")]
            if all(colon and _is_number(seq) for _, colon, seq in parts):
                return {portfolio_or_desk(name): int(seq) for name, _, seq in parts}
    except InvalidRequest as error:
        raise InvalidRequest(str(error), field="Last-Event-ID") from None
    except ValueError:
        pass
    raise InvalidRequest(f"Last-Event-ID must be like main:17, got {text!r:.100}", field="Last-Event-ID")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _SEQ_DIGITS_MAX
