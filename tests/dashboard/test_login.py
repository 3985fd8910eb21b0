"""Tests that logins are bounded: tries of one client, tries of all, size of the form."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from ledger_sizer.api.throttle import CLIENT_FAILURES_MAX, FAILURES_MAX, LoginThrottle
from ledger_sizer.wire.problems import TooManyRequests
from tests.conftest import NewDatabase
from tests.support.visitors import Browser, Keyed, close_browsers, keyed_service


@pytest.fixture
def keyed(new_database: NewDatabase) -> Iterator[Keyed]:
    with keyed_service(new_database("sqlite")) as made:
        yield made
    close_browsers()


def _log_in(browser: Browser, key: str) -> httpx.Response:
    return browser.submit("/login", {"key": key}, page="/login")


def test_log_in_when_a_client_failed_too_often_then_it_must_wait_and_others_need_not(keyed: Keyed) -> None:
    browser, right = keyed.browser(), keyed.keys["admin"].token
    for _ in range(CLIENT_FAILURES_MAX):
        assert _log_in(browser, "lsk_wrong").status_code == 401
    for key in ("lsk_wrong", right):
        refused = _log_in(browser, key)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 61
        assert "too many logins failed" in refused.text
    other = keyed.browser()
    other.http = httpx.Client(
        base_url=keyed.service.url,
        headers={"Sec-Fetch-Site": "same-origin"},
        transport=httpx.HTTPTransport(local_address="127.0.0.2"),
    )
    Browser.opened.append(other.http)
    assert _log_in(other, right).status_code == 303
    bearer = {"Authorization": f"Bearer {right}"}
    assert keyed.service.http.get("/v1/portfolios", headers=bearer).status_code == 200, "bots are not concerned"


def test_log_in_when_it_succeeds_then_it_does_not_count(keyed: Keyed) -> None:
    for _ in range(CLIENT_FAILURES_MAX + 2):
        keyed.signed_in("read")


def test_log_in_when_form_is_large_then_413_and_it_is_not_read(keyed: Keyed) -> None:
    assert _log_in(keyed.browser(), "x" * 5000).status_code == 413
    assert keyed.signed_in("admin").submit("/logout", {"x": "x" * 5000}, page="/").status_code == 413


def test_count_failures_when_many_clients_fail_then_all_wait_until_the_minute_is_over() -> None:
    now = 0.0
    throttle = LoginThrottle(lambda: now)
    for number in range(FAILURES_MAX):
        throttle.check(f"client {number}")
        throttle.count_failure(f"client {number}")
    with pytest.raises(TooManyRequests) as refused:
        throttle.check("another")
    assert 1 <= refused.value.retry_after <= 61
    now = 61.0
    throttle.check("another")
