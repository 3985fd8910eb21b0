"""The dashboard over HTTP: who gets in, what its forms demand, what its pages say. The browser has tests of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, ClassVar

import httpx
import pytest

from ledger_sizer.api.sessions import COOKIE
from ledger_sizer.dashboard.files import ASSETS, asset_url
from ledger_sizer.database import make_engine
from ledger_sizer.keys import ROLES, create_key, revoke_key
from ledger_sizer.reconcile import drifts
from tests.accounts import Desk, short
from tests.clocks import FakeClock
from tests.conftest import NewDatabase
from tests.service import Running, serving


class Keyed:
    """A service with a key of each role, and with one of the role admin for the portfolio `other` only."""

    def __init__(self, service: Running, url: str) -> None:
        self.service = service
        self.engine = make_engine(url)
        self.keys = {role: create_key(self.engine, f"{role} at the desk", role) for role in ROLES}
        self.keys["bound"] = create_key(self.engine, "bound", "admin", ["other"])

    def browser(self) -> Browser:
        """A new browser, not signed in."""
        return Browser(self.service.url)

    def signed_in(self, name: str) -> Browser:
        """A browser that this key is signed in with."""
        browser = self.browser()
        answer = browser.submit("/login", {"key": self.keys[name].token}, page="/login")
        assert (answer.status_code, answer.headers["location"]) == (303, "/"), answer.text
        return browser


class Browser:
    """What a browser does with forms and cookies, without its window."""

    opened: ClassVar[list[httpx.Client]] = []

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=30, headers={"Sec-Fetch-Site": "same-origin"})
        self.opened.append(self.http)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.http.get(path, **more)

    def token(self, page: str) -> str:
        found = re.search(r'name="form_token" value="([0-9a-f]{64})"', self.get(page).text)
        assert found, f"{page} has no form"
        return found[1]

    def submit(self, path: str, fields: dict[str, str], *, page: str, headers: Any = None) -> httpx.Response:
        """Send the form of `page`."""
        return self.http.post(path, data={"form_token": self.token(page), **fields}, headers=headers or {})


@pytest.fixture(autouse=True)
def _close_browsers() -> Iterator[None]:
    yield
    while Browser.opened:
        Browser.opened.pop().close()


@pytest.fixture(scope="module")
def keyed(_databases_of: Any) -> Iterator[Keyed]:
    databases = _databases_of("sqlite")
    url = databases.create(migrated=True)
    with serving(url) as service:
        made = Keyed(service, url)
        for portfolio in ("main", "other"):
            service.ledger.reserve(key="first", portfolio=portfolio, tags={"venue": "bybit"})
        yield made
        made.engine.dispose()
    databases.drop(url)


STEER = "/steer/main?action=halt"


def halt(key: str, **more: str) -> dict[str, str]:
    return {"action": "halt", "scope": "portfolio", "mode": "halted", "key": key, **more}


# Who gets in.


@pytest.mark.parametrize("path", ["/", "/explain/main/1", STEER])
def test_open_page_when_nobody_is_signed_in_then_it_leads_to_the_login(keyed: Keyed, path: str) -> None:
    answer = keyed.browser().get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert "main" not in answer.text


def test_sign_in_when_key_is_right_then_the_cookie_is_strict_and_the_desk_opens(keyed: Keyed) -> None:
    browser = keyed.browser()
    answer = browser.submit("/login", {"key": f" {keyed.keys['read'].token}\n"}, page="/login")
    cookie = answer.headers["set-cookie"].lower()
    for word in (f"{COOKIE}=", "httponly", "samesite=strict", "path=/", "max-age=43200"):
        assert word in cookie
    assert "secure" not in cookie, "a browser would not send it back over plain HTTP"
    page = browser.get("/")
    assert page.status_code == 200
    assert "read at the desk" in page.text
    assert browser.get("/login").status_code == 303, "who is signed in is not asked again"


def test_sign_in_when_it_came_over_tls_then_the_cookie_goes_over_tls_only(keyed: Keyed) -> None:
    browser = keyed.browser()
    answer = browser.submit(
        "/login",
        {"key": keyed.keys["read"].token},
        page="/login",
        headers={"Origin": "https://ledger.example", "Host": "ledger.example"},
    )
    assert answer.status_code == 303
    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize("key", ["", "lsk_", "lsk_000000000000_" + "0" * 64, "\u2603"])
def test_sign_in_when_key_is_wrong_then_401_says_so_and_shows_no_figure(keyed: Keyed, key: str) -> None:
    browser = keyed.browser()
    answer = browser.submit("/login", {"key": key}, page="/login")
    assert answer.status_code == 401
    assert "not known, or it was revoked" in answer.text
    assert browser.get("/").status_code == 303


def test_revoke_key_when_it_is_signed_in_then_the_session_ends_at_once(new_database: NewDatabase) -> None:
    url = new_database("sqlite")
    with serving(url) as service:
        keyed = Keyed(service, url)
        browser = keyed.signed_in("admin")
        assert browser.get("/").status_code == 200
        revoke_key(keyed.engine, keyed.keys["admin"].key.key_id)
        assert browser.get("/").status_code == 303
        assert browser.get("/v1/events").status_code == 401
        keyed.engine.dispose()


def test_sign_out_when_signed_in_then_the_cookie_is_gone(keyed: Keyed) -> None:
    browser = keyed.signed_in("read")
    answer = browser.submit("/logout", {}, page="/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert browser.get("/").status_code == 303


def test_open_page_when_there_is_no_key_at_all_then_it_opens_on_loopback_only(new_database: NewDatabase) -> None:
    with serving(new_database("sqlite")) as service:
        browser = Browser(service.url)
        assert "No portfolio yet" in browser.get("/").text
        assert browser.get("/", headers={"Host": "evil.example"}).status_code == 403
        service.ledger.reserve(key="a")
        assert browser.submit("/steer/main", halt("k"), page=STEER).status_code == 303
        assert service.ledger.exposure().status == "halted"


# Where the cookie counts.


def test_read_api_when_signed_in_then_the_cookie_opens_it_for_looking_only(keyed: Keyed) -> None:
    browser = keyed.signed_in("admin")
    assert browser.get("/v1/portfolios").json()["items"] == ["main", "other"]
    answer = browser.http.post("/v1/portfolios/main/halt", json={}, headers={"Idempotency-Key": "x"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_read_when_another_site_causes_it_then_the_cookie_counts_for_nothing(keyed: Keyed, site: str) -> None:
    browser = keyed.signed_in("admin")
    for path, status in (("/v1/portfolios", 401), ("/v1/events", 401), ("/", 303)):
        assert browser.get(path, headers={"Sec-Fetch-Site": site}).status_code == status


def test_read_when_a_bearer_key_is_sent_too_then_the_bearer_decides(keyed: Keyed) -> None:
    browser = keyed.signed_in("admin")
    assert browser.get("/v1/portfolios", headers={"Authorization": "Bearer lsk_nonsense"}).status_code == 401


# What forms demand.


@pytest.mark.parametrize("name", ["read", "trade", "bound"])
def test_halt_when_key_is_not_admin_of_the_portfolio_then_403_and_nothing_happens(keyed: Keyed, name: str) -> None:
    browser = keyed.signed_in(name)
    assert browser.get(STEER).status_code == 403
    seq = keyed.service.ledger.exposure("main").seq
    answer = browser.submit("/steer/main", halt(f"no-{name}"), page="/")
    assert answer.status_code == 403
    assert keyed.service.ledger.exposure("main").seq == seq


def test_open_desk_when_key_is_bound_then_it_sees_its_own_portfolio_only(keyed: Keyed) -> None:
    browser = keyed.signed_in("bound")
    page = browser.get("/").text
    assert "main" not in re.sub(r"<[^>]*>", "", page)
    assert browser.get("/?portfolio=main").status_code == 403
    assert browser.get("/explain/main/1").status_code == 403


def test_open_desk_when_role_is_read_then_no_action_is_offered(keyed: Keyed) -> None:
    assert "/steer/" not in keyed.signed_in("read").get("/").text
    assert "/steer/main" in keyed.signed_in("admin").get("/").text


def test_halt_and_resume_when_confirmed_then_it_is_done_once_and_signed(keyed: Keyed) -> None:
    browser = keyed.signed_in("admin")
    seq = keyed.service.ledger.exposure("main").seq
    key = re.search(r'name="key" value="(dashboard-[0-9a-f]+)"', browser.get(STEER).text)
    assert key
    for _ in range(2):
        fields = halt(key[1], note="venue down", mode="reducing")
        assert browser.submit("/steer/main", fields, page=STEER).status_code == 303
    exposure = keyed.service.ledger.exposure("main")
    assert (exposure.status, exposure.seq) == ("reducing", seq + 1)
    page = browser.get("/").text
    assert "venue down (dashboard, admin at the desk)" in page
    assert "action=resume" in page
    done = browser.submit("/steer/main", {**halt("r"), "action": "resume"}, page="/steer/main?action=resume")
    assert done.headers["location"] == "/?portfolio=main"
    assert keyed.service.ledger.exposure("main").status == "active"


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, None),
        ({"Sec-Fetch-Site": "same-site"}, None),
        ({"Sec-Fetch-Site": "none"}, None),
        ({"Origin": "https://evil.example"}, None),
        ({"Origin": "null"}, None),
        ({}, None),
        ({"Sec-Fetch-Site": "same-origin"}, "0" * 64),
        ({"Sec-Fetch-Site": "same-origin"}, ""),
    ],
)
@pytest.mark.parametrize("path", ["/steer/main", "/login", "/logout"])
def test_post_form_when_it_is_not_the_dashboards_own_then_403_and_nothing_happens(
    keyed: Keyed, path: str, headers: dict[str, str], token: str | None
) -> None:
    browser = keyed.signed_in("admin")
    right = browser.token("/")
    del browser.http.headers["Sec-Fetch-Site"]
    seq = keyed.service.ledger.exposure("main").seq
    fields = {**halt("forged"), "form_token": right if token is None else token}
    answer = browser.http.post(path, data=fields, headers=headers)
    assert answer.status_code == 403
    assert "nothing was done" in answer.text or "of this session" in answer.text
    assert keyed.service.ledger.exposure("main").seq == seq
    assert browser.http.cookies.get(COOKIE), "it did not sign out either"


def test_post_form_when_only_the_origin_names_it_then_it_must_be_this_host(keyed: Keyed) -> None:
    browser = keyed.signed_in("admin")
    token = browser.token("/")
    del browser.http.headers["Sec-Fetch-Site"]
    fields = {**halt("by-origin"), "action": "resume", "form_token": token}
    answer = browser.http.post("/steer/main", data=fields, headers={"Origin": keyed.service.url})
    assert answer.status_code == 303


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"action": "explode"}, 422),
        ({"mode": "sideways"}, 422),
        ({"scope": "nonsense"}, 422),
        ({"key": ""}, 422),
        ({"note": "x" * 600}, 422),
        ({"note": "\x00"}, 422),
    ],
)
def test_post_form_when_a_field_is_wrong_then_the_page_says_which(
    keyed: Keyed, fields: dict[str, str], status: int
) -> None:
    answer = keyed.signed_in("admin").submit("/steer/main", {**halt("wrong"), **fields}, page=STEER)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert next(iter(fields)) in answer.text


def test_post_form_when_it_is_json_then_415(keyed: Keyed) -> None:
    assert keyed.signed_in("admin").http.post("/steer/main", json={}).status_code == 415


@pytest.fixture
def drifting(new_database: NewDatabase, clock: FakeClock) -> Iterator[Keyed]:
    """An exchange that shows one position of `main` that the ledger does not know, without a price."""
    url = new_database("sqlite")
    desk = Desk(url, clock)
    desk.ledger.set_cap(key="cap", portfolio="main", cap=Decimal(50_000))
    desk.account.shows(short("1", "ETH/USDT:USDT", None))
    desk.run(2)
    desk.close()
    with serving(url) as service:
        made = Keyed(service, url)
        yield made
        made.engine.dispose()


@pytest.mark.parametrize("action", ["adopt", "ignore", "close"])
@pytest.mark.parametrize("name", ["read", "trade", "bound"])
def test_decide_drift_when_key_is_not_admin_of_its_portfolio_then_403_and_it_stays(
    drifting: Keyed, action: str, name: str
) -> None:
    browser = drifting.signed_in(name)
    assert browser.get(f"/drifts/1/{action}").status_code == 403
    assert browser.submit(f"/drifts/1/{action}", {"note": "x", "price": "1"}, page="/").status_code == 403
    assert drifts.get(drifting.engine, 1).state == "confirmed"
    assert "/drifts/1" not in browser.get("/").text


@pytest.mark.parametrize(
    ("path", "fields", "status", "said"),
    [
        ("/drifts/1/adopt", {"note": "", "price": "1"}, 422, "reason"),
        ("/drifts/1/adopt", {"note": "x"}, 422, "names no price"),
        ("/drifts/1/adopt", {"note": "x", "price": "much"}, 422, "price"),
        ("/drifts/1/adopt", {"note": "x", "price": "-1"}, 422, "price"),
        ("/drifts/1/adopt", {"note": "x", "price": "NaN"}, 422, "price"),
        ("/drifts/1/explode", {"note": "x"}, 404, "there is no"),
        ("/drifts/99/ignore", {"note": "x"}, 404, "no drift 99"),
        ("/drifts/x/ignore", {"note": "x"}, 404, "there is no"),
    ],
)
def test_decide_drift_when_something_is_wrong_then_the_page_says_what(
    drifting: Keyed, path: str, fields: dict[str, str], status: int, said: str
) -> None:
    answer = drifting.signed_in("admin").submit(path, fields, page="/")
    assert answer.status_code == status
    assert said in answer.text
    assert drifts.get(drifting.engine, 1).state == "confirmed"


def test_decide_drift_when_it_is_over_already_then_the_page_says_who_did_it(drifting: Keyed) -> None:
    browser = drifting.signed_in("admin")
    for status in (303, 409):
        answer = browser.submit("/drifts/1/adopt", {"note": "mine", "price": "10"}, page="/")
        assert answer.status_code == status
    assert "resolved already" in answer.text
    assert drifting.service.ledger.exposure("main").open == 10


# What pages say and forbid.


@pytest.mark.parametrize("path", ["/", "/login", "/explain/main/1", STEER, "/explain/main/999", "/?rows=0"])
def test_open_page_when_it_is_any_then_its_headers_shut_everything_else_out(keyed: Keyed, path: str) -> None:
    answer = keyed.signed_in("admin").get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"<style|\sstyle=|<script>|\son[a-z]+=|https?://", answer.text)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/?portfolio=nobody", 404),
        ("/?portfolio=%20", 422),
        ("/?rows=0", 422),
        ("/?hours=x", 422),
        ("/?open_cursor=x", 422),
        ("/?unknown=1", 422),
        ("/explain/main/0", 404),
        ("/explain/main/x", 404),
        ("/explain/main/99999999999999999999", 404),
        ("/assets/other.js", 404),
    ],
)
def test_open_page_when_what_it_names_is_not_there_then_it_says_so_in_words(
    keyed: Keyed, path: str, status: int
) -> None:
    answer = keyed.signed_in("admin").get(path)
    assert answer.status_code == status
    assert 'role="alert"' in answer.text


def test_show_tags_when_they_hold_markup_then_it_is_shown_and_not_run(new_database: NewDatabase) -> None:
    with serving(new_database("sqlite")) as service:
        service.ledger.reserve(key="<img src=x>", tags={"venue": "<script>alert(1)</script>"})
        page = Browser(service.url).get("/").text
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "&lt;img src=x&gt;" in Browser(service.url).get("/explain/main/1").text


def test_fetch_asset_when_its_name_carries_the_digest_then_it_may_be_kept_for_good(keyed: Keyed) -> None:
    page = keyed.browser().get("/login").text
    for name, asset in ASSETS.items():
        if name != "icon.svg":
            assert asset_url(name) in page
        answer = keyed.browser().get(asset_url(name))
        assert (answer.content, "immutable" in answer.headers["cache-control"]) == (asset.content, True)


def test_open_desk_when_the_ledger_is_large_then_every_list_comes_in_pages(new_database: NewDatabase) -> None:
    with serving(new_database("sqlite"), ledger={"hold_ttl_seconds": 600}) as service:
        ledger = service.ledger
        ledger.set_cap(key="cap", portfolio="main", cap=Decimal(10**6))
        for number in range(60):
            ledger.adopt(key=f"a{number}", quantity=Decimal(1), price=Decimal(100), tags={"symbol": f"S{number}"})
            ledger.reserve(key=f"r{number}", tags={"symbol": f"S{number}"}, ttl_seconds=Decimal(600 + number))
        browser = Browser(service.url)
        home = {"positions": "positions", "reservations": "holds", "decisions": "decisions"}
        for what, count in (("positions", 60), ("reservations", 60), ("decisions", 121)):
            seen: list[str] = []
            path: str | None = "/"
            while path is not None:
                text = browser.get(path).text
                section = text.split(f'id="{home[what]}"')[1].split("</section>")[0]
                seen += re.findall(r'<th scope="row"[^>]*><a href="/explain/main/(\d+)"', section)
                following = re.search(rf'id="next-{what}" href="([^"]+)"', section)
                path = following[1].replace("&amp;", "&") if following else None
            assert len(seen) == len(set(seen)) == count, what
