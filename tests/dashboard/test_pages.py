"""Tests of the dashboard over HTTP: sign-in, the session cookie, the pages. `test_forms` tests the forms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

import pytest

from ledger_sizer.api.sessions import COOKIE
from ledger_sizer.dashboard.assets import ASSETS, asset_url
from ledger_sizer.service.api_keys import revoke_key
from tests.conftest import NewDatabase
from tests.support.services import serving
from tests.support.visitors import STEER, Browser, Keyed, close_browsers, halt, keyed_service


@pytest.fixture(autouse=True)
def _close_browsers() -> Iterator[None]:
    yield
    close_browsers()


@pytest.fixture(scope="module")
def keyed(module_database: NewDatabase) -> Iterator[Keyed]:
    with keyed_service(module_database("sqlite")) as made:
        for portfolio in ("main", "other"):
            made.service.ledger.reserve(key="first", portfolio=portfolio, tags={"venue": "bybit"})
        yield made


def test_open_desk_when_an_orders_fate_is_not_known_then_its_hold_counts_no_time_down(
    new_database: NewDatabase,
) -> None:
    with keyed_service(new_database("sqlite")) as keyed:
        keyed.service.ledger.reserve(key="1", ttl_seconds=600)
        keyed.service.ledger.reserve(key="2", until_known=True)
        page = keyed.signed_in("read").get("/").text
    assert page.count("data-left=") == 1
    assert '<td class="n">until known</td>' in page


# Sign-in.


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
    with keyed_service(url) as keyed:
        browser = keyed.signed_in("admin")
        assert browser.get("/").status_code == 200
        revoke_key(keyed.engine, keyed.keys["admin"].key.key_id)
        assert browser.get("/").status_code == 303
        assert browser.get("/v1/events").status_code == 401


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


# The session cookie.


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


# Pages and their headers.


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
