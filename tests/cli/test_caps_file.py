"""Caps as one file: exported, applied, shown before, and never at the cost of somebody else's change unseen."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from ledger_sizer import Ledger
from ledger_sizer.ledger.ledger import Ledger as LedgerClass
from tests.support.command_line import CommandLine

D = Decimal
FILE = """
[portfolios.main]
cap = "4000"

[portfolios.main.scopes]
"bot=a" = { cap = "900", guarantee = "500" }
"team=x" = { max_position_usd = "70" }
"venue=*" = { cap = "1000" }

[portfolios.new]
cap = "10"
"""


@pytest.fixture
def desk(cli: CommandLine) -> CommandLine:
    """Portfolios main, with a pool and caps, and other."""
    with Ledger.open(cli.url) as ledger:
        ledger.set_cap(key="1", cap=D(5000))
        ledger.set_cap(key="2", scope="bot=a", guarantee=D(1500), max_position_usd=D("300.5"))
        ledger.set_cap(key="3", scope="venue=okx", cap=D(2000))
        ledger.set_cap(key="4", portfolio="other", cap=D(7))
        ledger.halt(key="5", scope="venue=okx")
    return cli


def _settings(desk: CommandLine) -> dict[str, tuple[str | None, ...]]:
    rows = desk.json("caps")["items"]
    return {
        f"{row['portfolio']} {row['scope']}": (row["cap"], row["guarantee"], row["max_position_usd"]) for row in rows
    }


def test_apply_when_a_file_names_portfolios_then_they_are_as_it_says_and_others_stay(desk: CommandLine) -> None:
    Path("caps.toml").write_text(FILE, encoding="utf-8")
    before = desk.json("history", "-p", "main")
    dry = desk("caps", "apply", "caps.toml", "--dry-run")
    assert (dry.code, [line.split() for line in dry.out.splitlines()]) == (0, [
        ["portfolio", "scope", "setting", "before_USD", "after_USD"],
        ["main", "portfolio", "cap", "5000.00", "4000.00"],
        ["main", "bot=a", "cap", "-", "900.00"],
        ["main", "bot=a", "guarantee", "1500.00", "500.00"],
        ["main", "bot=a", "max_position_usd", "300.50", "-"],
        ["main", "team=x", "max_position_usd", "-", "70.00"],
        ["main", "venue=*", "cap", "-", "1000.00"],
        ["main", "venue=okx", "cap", "2000.00", "-"],
        ["new", "portfolio", "cap", "-", "10.00"],
        ["8", "changes:", "a", "dry", "run,", "nothing", "is", "changed"],
    ])  # fmt: skip
    assert desk.json("history", "-p", "main") == before
    done = desk.json("caps", "apply", "caps.toml", "--key", "week 3", "--note", "less for a")
    assert [(one["portfolio"], one["scope"]) for one in done["decisions"]] == [
        ("main", "bot=a"), ("main", "portfolio"), ("main", "team=x"), ("main", "venue=*"), ("main", "venue=okx"),
        ("new", "portfolio"),
    ]  # fmt: skip
    assert (done["overwritten"], done["left"], len(done["changes"])) == ([], [], 8)
    assert _settings(desk) == {
        "main portfolio": ("4000", None, None), "main bot=a": ("900", "500", None), "main team=x": (None, None, "70"),
        "main venue=*": ("1000", None, None), "new portfolio": ("10", None, None), "other portfolio": ("7", None, None),
    }  # fmt: skip
    newest = desk.json("history", "--limit", "1")["items"][0]
    assert (newest["key"], newest["request"]["note"]) == (
        "week 3/venue=okx", f"less for a (caps.toml sha256:{done['sha256']})",
    )  # fmt: skip
    assert desk("reserve", "--tag", "venue=okx").code == 3, "a halt is no business of the file"
    again = desk("caps", "apply", "caps.toml", "--key", "week 3")
    assert (again.code, again.out) == (0, "nothing to change: all is as the file says\n")
    assert desk.json("history", "--command", "set_cap", "--limit", "1")["items"][0]["seq"] == newest["seq"]


def test_export_when_applied_elsewhere_then_both_ledgers_export_the_same(desk: CommandLine, tmp_path: Path) -> None:
    assert desk("caps", "export", "all.toml").code == 0
    text = Path("all.toml").read_text(encoding="utf-8")
    assert desk("caps", "export").out == text
    assert "portfolios.main" not in desk("caps", "export", "-p", "other").out
    copy = CommandLine(desk._capsys, f"sqlite:///{tmp_path / 'copy.db'}")
    assert copy("caps", "apply", "all.toml").code == 0
    assert copy("caps", "export").out == text
    assert copy("caps", "apply", "all.toml").out == "nothing to change: all is as the file says\n"
    missing = desk("caps", "export", "-p", "nobody", "none.toml")
    assert (missing.code, Path("none.toml").exists()) == (1, False)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ('cap = "5"', "cap: is not known here"),
        ("[portfolios.main]\ncap = 5.5", "portfolios.main.cap: must be an amount in quotes, got the number 5.5"),
        ('[portfolios.new]\ncap = "5"\n[portfolios.main]', "portfolios.main.cap: is missing"),
        ('[portfolios.main]\ncap = "5"\nscopes."bot=a".guarantee = "6"', "portfolios.main.cap: 5 is below the sum"),
        (None, "file 'caps.toml' cannot be read: No such file"),
    ],
)  # fmt: skip
def test_apply_when_the_file_is_wrong_then_nothing_is_applied(desk: CommandLine, file: str | None, says: str) -> None:
    if file is not None:
        Path("caps.toml").write_text(file, encoding="utf-8")
    before = _settings(desk)
    for options in ((), ("--dry-run",)):
        ran = desk("caps", "apply", "caps.toml", *options)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith(f"error: {says}")
    assert _settings(desk) == before


@pytest.mark.one_engine
def test_apply_when_somebody_else_changes_the_same_meanwhile_then_it_is_told(
    desk: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("caps.toml").write_text(FILE, encoding="utf-8")
    submit = LedgerClass.submit

    def late(ledger: Ledger, commands: object, *, atomic: bool = False) -> object:
        """Another caller changes one cap that the file changes and one that it leaves, after it was read."""
        ledger.set_cap(key="late 1", scope="venue=okx", cap=D(1))
        ledger.set_cap(key="late 2", scope="symbol=BTC", cap=D(2))
        return submit(ledger, commands, atomic=atomic)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(LedgerClass, "submit", late)
        ran = desk("caps", "apply", "caps.toml", "--key", "k")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "overwritten: cap of venue=okx in main was 1 by then; now not set",
        "error: cap of symbol=BTC in main is 2, by the file not set, somebody else changed it, apply the file again",
    ]
    assert desk("caps", "apply", "caps.toml").code == 0
    desk("caps", "set", "main", "3000")
    used = desk("caps", "apply", "caps.toml", "--key", "k", "--json")
    assert (used.code, used.json["decisions"][0]["replayed"], used.json["left"][0]["before"]) == (1, True, "3000")
    assert "the key was used before, give a new --key" in used.err


def test_apply_when_a_cap_follows_the_equity_then_the_file_says_its_share_and_not_the_cap(desk: CommandLine) -> None:
    text = '[portfolios.main]\nshare_of_equity = "0.8"\n\n[portfolios.main.scopes]\n"bot=a" = { guarantee = "500" }\n'
    Path("caps.toml").write_text(text, encoding="utf-8")
    assert desk("caps", "apply", "caps.toml").code == 0
    with Ledger.open(desk.url) as ledger:
        assert ledger.exposure().cap == D(0), "nobody has seen the equity yet"
        ledger.equity_seen(key="equity", equity=D(1000))
        assert (ledger.exposure().cap, ledger.exposure().share_of_equity) == (D(800), D("0.8"))
    exported = desk("caps", "export", "-p", "main")
    assert 'share_of_equity = "0.8"' in exported.out
    assert "\ncap = " not in exported.out
    Path("again.toml").write_text(exported.out, encoding="utf-8")
    assert "nothing" in desk("caps", "apply", "again.toml", "--dry-run").out
    Path("back.toml").write_text('[portfolios.main]\ncap = "4000"\n', encoding="utf-8")
    assert desk("caps", "apply", "back.toml").code == 0
    with Ledger.open(desk.url) as ledger:
        assert (ledger.exposure().cap, ledger.exposure().share_of_equity) == (D(4000), None)
