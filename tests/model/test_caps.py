"""The plan of a change of caps: what differs, in which order, and which states cannot be."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger_sizer import InvalidRequest
from ledger_sizer.model.caps import Change, Limits, changes_between, commands_between, require_guarantees
from ledger_sizer.model.domain import ScopeExposure
from ledger_sizer.model.pools import Pool, left_to_all, pools_of
from ledger_sizer.model.scope_settings import ScopeSettings
from ledger_sizer.rules.guarantees import require_guarantees_fit
from ledger_sizer.rules.scope_state import ScopeState
from ledger_sizer.rules.state import PortfolioState

D = Decimal


def test_plan_when_guarantees_move_to_another_tag_and_the_cap_sinks_then_what_frees_comes_first() -> None:
    before = {
        "portfolio": Limits(D(5000)), "bot=a": Limits(D(900), D(1500)), "bot=b": Limits(guarantee=D(1000)),
        "venue=*": Limits(D(100)), "z=1": Limits(D(1)),
    }  # fmt: skip
    after = {
        "portfolio": Limits(D(2000)), "bot=a": Limits(D(800)), "team=x": Limits(guarantee=D(2000)),
        "z=1": Limits(D("1.00"), max_position_usd=D(5)),
    }  # fmt: skip
    assert changes_between(before, after) == [
        Change("portfolio", "cap", D(5000), D(2000)), Change("bot=a", "cap", D(900), D(800)),
        Change("bot=a", "guarantee", D(1500), None), Change("bot=b", "guarantee", D(1000), None),
        Change("team=x", "guarantee", None, D(2000)), Change("venue=*", "cap", D(100), None),
        Change("z=1", "max_position_usd", None, D(5)),
    ]  # fmt: skip
    commands = commands_between("main", before, after, key="k", note="n")
    assert [(one.scope, one.changes()) for one in commands] == [
        ("bot=a", {"cap_e8": 800 * 10**8, "guarantee_e8": None}), ("bot=b", {"guarantee_e8": None}),
        ("portfolio", {"cap_e8": 2000 * 10**8}), ("venue=*", {"cap_e8": None}), ("z=1", {"max_position_e8": 5 * 10**8}),
        ("team=x", {"guarantee_e8": 2000 * 10**8}),
    ]  # fmt: skip
    assert {one.key for one in commands} == {f"k/{one.scope}" for one in commands}
    assert changes_between(after, after) == commands_between("main", after, after, key="k", note="n") == []


def test_plan_when_a_scope_or_a_key_is_long_then_every_key_is_one_and_is_its_own() -> None:
    after = {f"bot={'x' * 127}{n}": Limits(D(1)) for n in range(9)}
    commands = commands_between("main", {}, after, key="k" * 200, note="n")
    assert len({one.key for one in commands}) == 9
    with pytest.raises(InvalidRequest, match="1001 scopes of portfolio 'main' change"):
        commands_between("main", {}, {f"bot={n}": Limits(D(1)) for n in range(1001)}, key="k", note="n")


_AMOUNTS = st.one_of(st.none(), st.integers(0, 9).map(D))
_STATES = st.tuples(
    st.integers(0, 40).map(D), st.sampled_from(["bot", "team"]), st.dictionaries(st.sampled_from("abcd"), _AMOUNTS)
).map(
    lambda made: {
        "portfolio": Limits(made[0]),
        **{f"{made[1]}={name}": Limits(D(1), amount) for name, amount in made[2].items()},
    }
)


@settings(max_examples=200, deadline=None)
@given(before=_STATES, after=_STATES)
def test_plan_when_both_states_may_be_then_no_step_between_is_refused(
    before: dict[str, Limits], after: dict[str, Limits]
) -> None:
    """Each command is checked by the ledger's own rule, on the state that the commands before it left."""
    for caps in (before, after):
        try:
            require_guarantees(caps)
        except InvalidRequest:
            return
    state = PortfolioState(1, "main", 0, "", 0)
    for scope, limits in before.items():
        state.add_scope(ScopeState(scope, _settings(limits)))
    for command in commands_between("main", before, after, key="k", note="n"):
        scope = state.scope(command.scope)
        changed = ScopeState(scope.name, command.settings_after(scope.settings, 1))
        require_guarantees_fit(state, changed)
        state.add_scope(changed)
    left = {name: scope.settings for name, scope in state.scopes.items() if scope.settings != ScopeSettings()}
    assert left == {name: _settings(limits) for name, limits in after.items()}


def _settings(limits: Limits) -> ScopeSettings:
    cap, guarantee, most, share = [None if one is None else int(one * 10**8) for one in limits]
    return ScopeSettings(cap_e8=cap, guarantee_e8=guarantee, max_position_e8=most, share_e8=share)


@pytest.mark.parametrize(
    ("caps", "field"),
    [
        ({"bot=a": Limits(guarantee=D(60)), "bot=b": Limits(guarantee=D("40.00000001"))}, "cap"),
        ({"bot=a": Limits(guarantee=D(1)), "team=a": Limits(guarantee=D(1))}, "team=a.guarantee"),
    ],
)
def test_require_guarantees_when_they_do_not_fit_then_the_place_is_named(caps: dict[str, Limits], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        require_guarantees({"portfolio": Limits(D(100)), **caps})
    assert refused.value.field == field
    require_guarantees(
        {"portfolio": Limits(D(100)), "bot=a": Limits(guarantee=D(100)), "team=b": Limits(guarantee=D(0))}
    )


def test_pools_when_facts_took_what_is_guaranteed_then_each_pool_tells_what_it_lacks() -> None:
    """With cap 100 and 70 used outside, a may have 30 - 20 of its 50, b 0 of its 20, and c uses more than it has."""
    rows = [
        ScopeExposure("bot=a", None, D(0), D(0), "active", guarantee=D(50)),
        ScopeExposure("bot=b", None, D(5), D(0), "active", guarantee=D(25)),
        ScopeExposure("bot=c", None, D(0), D(9), "active", guarantee=D(4)),
        ScopeExposure("bot=d", D(9), D(0), D(9), "active"),
    ]
    assert pools_of(D(30), rows) == (
        Pool("bot=a", D(50), D(0), D(50), D(40)), Pool("bot=b", D(25), D(5), D(20), D(20)),
        Pool("bot=c", D(4), D(9), D(0), D(0)),
    )  # fmt: skip
    assert [pool.lent_out for pool in pools_of(D(70), rows)] == [0, 0, 0]
    assert [pool.lent_out for pool in pools_of(D(0), rows)] == [50, 20, 0]
    pools = pools_of(D(75), rows)
    assert (left_to_all(D(75), pools), left_to_all(D(30), pools), left_to_all(None, pools)) == (5, 0, None)
