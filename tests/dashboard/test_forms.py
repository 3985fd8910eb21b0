"""Tests of the dashboard's forms: proof of origin, the roles that may send them, and that they act once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

import pytest

from ledger_sizer.api.sessions import COOKIE
from ledger_sizer.reconcile import drifts
from tests.conftest import NewDatabase
from tests.support.accounts import Desk, short
from tests.support.clock import FakeClock
from tests.support.visitors import STEER, Keyed, close_browsers, halt, keyed_service


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
    with keyed_service(url) as made:
        yield made


@pytest.mark.parametrize("action", ["adopt", "ignore", "close"])
@pytest.mark.parametrize("name", ["read", "trade", "bound"])
def test_decide_drift_when_key_is_not_admin_of_its_portfolio_then_403_and_it_stays(
    drifting: Keyed, action: str, name: str
) -> None:
    browser = drifting.signed_in(name)
    assert browser.get(f"/drifts/1/{action}").status_code == 403
    assert browser.submit(f"/drifts/1/{action}", {"note": "x", "price": "1"}, page="/").status_code == 403
    assert drifts.get_drift(drifting.engine, 1).state == "confirmed"
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
    assert drifts.get_drift(drifting.engine, 1).state == "confirmed"


def test_decide_drift_when_it_is_over_already_then_the_page_says_who_did_it(drifting: Keyed) -> None:
    browser = drifting.signed_in("admin")
    for note, status in (("mine", 303), ("mine", 303), ("yours", 409)):
        answer = browser.submit("/drifts/1/adopt", {"note": note, "price": "10"}, page="/")
        assert answer.status_code == status
    assert "resolved already" in answer.text
    who = f"api:{drifting.keys['admin'].key.key_id}:admin at the desk"
    assert who in answer.text.replace("&#39;", "'")
    ledger = drifting.service.ledger
    (adopted, *_) = ledger.history("main", command="adopt")
    assert (adopted.actor, adopted.client) == (who, "reconcile")
    assert [one.actor for one in ledger.history("*")] == [who]
    assert drifting.service.ledger.exposure("main").open == 10


# --- the desk ------------------------------------------------------------------------------------


def test_halt_desk_when_key_is_bound_or_no_admin_then_it_is_not_offered_and_refused(keyed: Keyed) -> None:
    for name in ("bound", "trade", "read"):
        browser = keyed.signed_in(name)
        assert "halt-desk" not in browser.get("/").text, name
        assert browser.get("/steer/*?action=halt").status_code == 403
        answer = browser.submit("/steer/*", halt(f"no-{name}"), page="/")
        assert answer.status_code == 403, name
    assert keyed.service.ledger.desk_status() == "active"


def test_halt_desk_when_it_is_halted_then_a_bound_key_sees_that_and_not_who_or_why(keyed: Keyed) -> None:
    admin, bound = keyed.signed_in("admin"), keyed.signed_in("bound")
    answer = admin.submit("/steer/*", halt("stop", note="a secret reason"), page="/steer/*?action=halt")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    try:
        assert "a secret reason" in admin.get("/").text
        assert "resume-desk" in admin.get("/").text
        seen = bound.get("/").text
        assert "The desk is halted" in seen
        assert "a secret reason" not in seen
        assert "resume-desk" not in seen
        (decision, *_) = keyed.service.ledger.history("*")
        page = admin.get(f"/explain/*/{decision.seq}")
        assert page.status_code == 200
        assert "of the desk" in page.text
        assert bound.get(f"/explain/*/{decision.seq}").status_code == 403
    finally:
        admin.submit("/steer/*", {"action": "resume", "key": "go on"}, page="/steer/*?action=resume")
    assert keyed.service.ledger.desk_status() == "active"
