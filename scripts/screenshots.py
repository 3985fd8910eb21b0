#!/usr/bin/env python3
"""Take pictures of the dashboard on a ledger with a day of trading: `make screenshots`.

    scripts/screenshots.py [FOLDER]      FOLDER defaults to docs/images, which gets dashboard.png only

With a folder of your own it also takes the dark theme, a phone, the login and the confirmation.
"""

import random
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ledger_sizer import AppSettings, DynamicSizingSettings, InstrumentInfo, Ledger  # noqa: E402
from ledger_sizer.reconcile.inspection import LocalInspector  # noqa: E402
from ledger_sizer.reconcile.run import Reconciler  # noqa: E402
from ledger_sizer.storage.database import make_engine  # noqa: E402
from tests.support.accounts import WrittenAccount, short  # noqa: E402
from tests.support.browser import chromium  # noqa: E402
from tests.support.services import served  # noqa: E402

MARKETS = {"BTC": Decimal(67_420), "ETH": Decimal(3_512), "SOL": Decimal(148), "XRP": Decimal("0.532")}
STEPS = {"BTC": Decimal("0.0001"), "ETH": Decimal("0.001"), "SOL": Decimal("0.01"), "XRP": Decimal(1)}
VENUES = ("bybit", "okx", "binance")
SETTINGS = AppSettings(sizing=DynamicSizingSettings(enabled=True, max_portfolio_exposure=Decimal(20_000)))


class ManualClock:
    """A clock that stands still until `now` is set."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now


def trade_a_day(url: str, until: datetime) -> None:
    """Fill a ledger with the trades of the 24 hours before `until`."""
    rng = random.Random(7)
    clock = ManualClock(until - timedelta(hours=24))
    with Ledger.open(url, settings=SETTINGS, clock=clock) as ledger:
        ledger.set_cap(key="cap", portfolio="main", cap=Decimal(12_000))
        for venue, cap in (("bybit", 5_000), ("okx", 4_000), ("binance", 4_000)):
            ledger.set_cap(key=f"cap/{venue}", portfolio="main", scope=f"venue={venue}", cap=Decimal(cap))
        ledger.set_cap(key="cap/btc", portfolio="main", scope="symbol=BTC", cap=Decimal(5_000))
        ledger.set_cap(key="cap/symbols", portfolio="main", scope="symbol=*", cap=Decimal(4_000))
        for strategy, guarantee in (("funding", 5_000), ("basis", 3_000), ("pairs", 1_500)):
            scope = f"strategy={strategy}"
            ledger.set_cap(key=scope, portfolio="main", scope=scope, guarantee=Decimal(guarantee))
        ledger.set_cap(key="cap/paper", portfolio="research", cap=Decimal(2_000))
        open_ids: list[str] = []
        cycle = 0
        while clock.now < until - timedelta(seconds=25):
            clock.now += timedelta(seconds=rng.randint(60, 420))
            clock.now = min(clock.now, until - timedelta(seconds=25))
            cycle += 1
            exit_probability = 0.5 + 0.3 * (1 if cycle // 60 % 2 else -1)
            if open_ids and rng.random() < exit_probability:
                ledger.release(key=f"exit-{cycle}", position_id=open_ids.pop(rng.randrange(len(open_ids))))
            else:
                open_ids += enter(ledger, rng, f"cycle-{cycle}", fill=rng.random() < 0.85)
        ledger.reserve(key="paper", portfolio="research", tags={"strategy": "pairs"}, signal_score=Decimal("0.4"))
        ledger.halt(key="halt/okx", portfolio="main", scope="venue=okx", note="maintenance until 22:00")
        for number in range(4):
            clock.now += timedelta(seconds=3)
            enter(ledger, rng, f"late-{number}", fill=False)


def compare_with_exchanges(url: str, now: datetime) -> None:
    """Run the reconciliation once, on accounts that show what the ledger has and one position more."""
    clock = ManualClock(now)
    with Ledger.open(url, settings=SETTINGS, clock=clock) as ledger:
        accounts = {venue: WrittenAccount(venue) for venue in VENUES}
        shorts: Counter[tuple[str, str]] = Counter()
        for position in ledger.positions("main", state="open", limit=1000):
            for leg in position.legs:
                shorts[leg.venue, leg.symbol] += leg.quantity  # type: ignore[assignment]  # a Decimal counts too
        for venue, account in accounts.items():
            legs = {symbol: str(many) for (at, symbol), many in shorts.items() if at == venue}
            shown = [short(many, symbol) for symbol, many in legs.items() if ":" in symbol]
            assets = {symbol.partition("/")[0]: many for symbol, many in legs.items() if ":" not in symbol}
            extra = [short("12", "AVAX/USDT:USDT", "27.4")] if venue == "okx" else []
            account.shows(*shown, *extra, **assets)
        engine = make_engine(url)
        inspector = LocalInspector(engine, list(accounts.values()), SETTINGS, clock=clock)
        Reconciler(ledger, engine, inspector, SETTINGS, clock=clock).run()
        engine.dispose()


def enter(ledger: Ledger, rng: random.Random, key: str, *, fill: bool) -> list[str]:
    """Act on one signal: reserve, and confirm if `fill`. Returns the ids of the positions opened: one or none."""
    symbol, venue = rng.choice(list(MARKETS)), rng.choice(VENUES)
    price = MARKETS[symbol] * (1 + Decimal(rng.randint(-200, 200)) / 10_000)
    step = STEPS[symbol]
    spot = InstrumentInfo(f"{symbol}/USDT", step, Decimal(10**6), step)
    perp = InstrumentInfo(f"{symbol}/USDT:USDT", step, Decimal(10**6), step)
    decision = ledger.reserve(
        key=key,
        tags={"venue": venue, "symbol": symbol, "strategy": rng.choice(("funding", "basis"))},
        signal_score=Decimal(rng.randint(20, 95)) / 100,
        price=price,
        spot_instrument=spot,
        perp_instrument=perp,
        ttl_seconds=Decimal(rng.randint(45, 240)),
    )
    if not (decision.granted and fill and decision.position_id):
        return []
    ledger.confirm(
        key=f"{key}/fill", position_id=decision.position_id, quantity=decision.quantity, price=price, spot_price=price
    )
    return [decision.position_id]


def main() -> None:
    """Trade, serve, and take the pictures."""
    custom_folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    folder = custom_folder or ROOT / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ledger-screenshots-") as temporary:
        url = f"sqlite:///{temporary}/ledger.db"
        trade_a_day(url, datetime.now(UTC))
        compare_with_exchanges(url, datetime.now(UTC))
        with served(url, settings=SETTINGS) as service, chromium() as browser:
            views = {"dashboard": (1440, 1360, "light", "/")}
            if custom_folder:
                views |= {
                    "dark": (1440, 1360, "dark", "/"),
                    "phone": (390, 844, "light", "/"),
                    "phone-dark": (390, 844, "dark", "/"),
                    "tablet": (900, 1100, "light", "/"),
                    "halt": (1440, 700, "light", "/steer/main?action=halt"),
                    "explanation": (1440, 700, "light", "/explain/main/40"),
                }
            for name, (width, height, scheme, path) in views.items():
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto(service.url + path)
                if path == "/":
                    page.wait_for_selector('#feed[data-state="live"]')
                page.screenshot(path=folder / f"{name}.png", full_page=bool(custom_folder))
                page.close()


if __name__ == "__main__":
    main()
