"""Authorization of every route. The routes are read from the app, so that no new one can be forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from ledger_sizer import InvalidRequest
from ledger_sizer.service.api_keys import ROLES, create_key, list_keys, revoke_key
from ledger_sizer.service.bootstrap import running_components
from ledger_sizer.storage.database import make_engine
from tests.conftest import NewDatabase
from tests.support.services import Running, eventually, serving, settings_for

OPEN_TO_ALL = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/healthz", "/readyz"}
PAGES = {
    ("GET", "/"),
    ("GET", "/explain/{portfolio}/{seq}"),
    ("GET", "/login"),
    ("POST", "/login"),
    ("POST", "/logout"),
    ("GET", "/steer/{portfolio}"),
    ("POST", "/steer/{portfolio}"),
    ("GET", "/drifts/{drift_id}/{action}"),
    ("POST", "/drifts/{drift_id}/{action}"),
    ("GET", "/assets/{name}"),
}
"""The dashboard's routes; tests/dashboard tests them."""

REQUIRED_ROLE = {
    ("GET", "/v1/portfolios"): "read",
    ("GET", "/v1/heads"): "read",
    ("GET", "/v1/desk"): "read",
    ("GET", "/v1/portfolios/{portfolio}/exposure"): "read",
    ("GET", "/v1/overview"): "read",
    ("GET", "/v1/portfolios/{portfolio}/net"): "read",
    ("GET", "/v1/positions"): "read",
    ("GET", "/v1/positions/{position_id}"): "read",
    ("GET", "/v1/decisions"): "read",
    ("GET", "/v1/decisions/{portfolio}/{seq}"): "read",
    ("GET", "/v1/decisions/{portfolio}/{seq}/explanation"): "read",
    ("GET", "/v1/positions/{position_id}/explanation"): "read",
    ("GET", "/v1/events"): "read",
    ("POST", "/v1/verify"): "read",
    ("POST", "/v1/sweep"): "trade",
    ("POST", "/v1/portfolios/{portfolio}/settle"): "trade",
    ("POST", "/v1/portfolios/{portfolio}/release_all"): "trade",
    ("GET", "/v1/reconciliations"): "read",
    ("GET", "/v1/drifts"): "read",
    ("GET", "/v1/drifts/{drift_id}"): "read",
    ("POST", "/v1/drifts/adopt"): "admin",
    ("POST", "/v1/drifts/ignore"): "admin",
    ("POST", "/v1/drifts/close"): "admin",
    ("POST", "/v1/reconciliations"): "admin",
    ("GET", "/v1/drifts/{drift_id}/activity"): "admin",
    ("POST", "/v1/drifts/{drift_id}/adopt"): "admin",
    ("POST", "/v1/drifts/{drift_id}/ignore"): "admin",
    ("POST", "/v1/drifts/{drift_id}/close"): "admin",
    ("POST", "/v1/drifts/rename"): "admin",
    ("GET", "/v1/asset-policies"): "read",
    ("POST", "/v1/asset-policies/{policy_id}/take-back"): "admin",
    ("GET", "/metrics"): "read",
    ("POST", "/v1/reservations"): "trade",
    ("POST", "/v1/positions/{position_id}/confirm"): "trade",
    ("POST", "/v1/positions/{position_id}/fill"): "trade",
    ("POST", "/v1/positions/{position_id}/release"): "trade",
    ("POST", "/v1/positions/{position_id}/retag"): "admin",
    ("POST", "/v1/positions/{position_id}/reprice"): "admin",
    ("POST", "/v1/positions/{position_id}/rename"): "admin",
    ("POST", "/v1/positions/{position_id}/extend"): "trade",
    ("POST", "/v1/batch"): "trade",
    ("POST", "/v1/positions"): "trade",
    ("PUT", "/v1/portfolios/{portfolio}/caps"): "admin",
    ("POST", "/v1/portfolios/{portfolio}/halt"): "admin",
    ("POST", "/v1/portfolios/{portfolio}/resume"): "admin",
    ("POST", "/v1/portfolios/{portfolio}/freeze"): "admin",
    ("POST", "/v1/portfolios/{portfolio}/thaw"): "admin",
    ("POST", "/v1/portfolios/{portfolio}/reconciled"): "admin",
    ("POST", "/v1/portfolios/{portfolio}/remarks"): "admin",
    ("POST", "/v1/portfolios/{portfolio}/accounts"): "admin",
    ("POST", "/v1/portfolios/{portfolio}/equity"): "admin",
}
AUTHORIZED = {200, 201, 404, 409, 422}


class Keyed:
    """A service with two keys of each role: one for all portfolios, one for the portfolio `other` only."""

    def __init__(self, service: Running, url: str) -> None:
        self.service = service
        self.engine = make_engine(url)
        self.tokens = {role: create_key(self.engine, role, role).token for role in ROLES}
        self.bound = {role: create_key(self.engine, f"{role}-other", role, ["other"]).token for role in ROLES}

    def status(self, method: str, path: str, token: str | None, portfolio: str = "main") -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with self.service.http.stream(
            method,
            path.format(portfolio=portfolio, position_id=f"{portfolio}-1", seq=1, drift_id=1, policy_id=1),
            headers={**headers, "Idempotency-Key": f"{method}{path}{token}"[:200]},
            **_body(method, path, portfolio),
        ) as answer:
            return answer.status_code


def _body(method: str, path: str, portfolio: str) -> dict[str, Any]:
    if method == "GET":
        in_query = path in (
            "/v1/overview", "/v1/positions", "/v1/decisions", "/v1/events", "/v1/reconciliations", "/v1/drifts",
            "/v1/asset-policies",
        )  # fmt: skip
        return {"params": {"portfolio": portfolio}} if in_query else {}
    if path == "/v1/batch":
        return {"json": {"commands": [{"command": "reserve", "key": "k", "portfolio": portfolio}]}}
    if path in ("/v1/verify", "/v1/sweep"):
        return {"json": {"portfolio": portfolio}}
    if path == "/v1/positions":
        return {"json": {"portfolio": portfolio, "quantity": "1", "price": "1"}}
    if path == "/v1/reservations":
        return {"json": {"portfolio": portfolio}}
    if path.endswith("/confirm"):
        return {"json": {"quantity": "1", "price": "1"}}
    last = path.rpartition("/")[2]
    needed = {
        "fill": {"filled_quantity": "1", "price": "1"}, "retag": {"tags": {}}, "reprice": {"price": "1"},
        "rename": {"asset": "S"},
        "release_all": {"tags": {}}, "settle": {"tags": {"bot": "a"}, "book": {}},
        "caps": {"cap": "1"}, "reconciled": {"fresh_until": None},
        "remarks": {"about": "x", "event": "y"}, "accounts": {"scope": "account=okx/main"}, "equity": {"equity": "1"},
    }  # fmt: skip
    if path == "/v1/drifts/rename":
        return {"json": {"coin": "FTM", "asset": "S", "reason": "known", "portfolio": portfolio}}
    if "/drifts/" in path or path.endswith("/take-back"):
        return {"json": {"reason": "known", **({} if "{" in path else {"ids": [1]})}}
    return {"json": needed.get(last, {})}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def keyed(request: pytest.FixtureRequest, module_database: NewDatabase) -> Iterator[Keyed]:
    url = module_database(request.param)
    with serving(url) as service:
        made = Keyed(service, url)
        for portfolio in ("main", "other"):
            service.ledger.reserve(key="first", portfolio=portfolio)
        yield made
        made.engine.dispose()


def test_list_routes_when_app_is_made_then_each_is_in_the_matrix_or_open_on_purpose(keyed: Keyed) -> None:
    found = set()
    for route in keyed.service.app.routes:
        assert isinstance(route, Route), f"{route} hides routes from this test"
        if route.path not in OPEN_TO_ALL:
            found |= {
                (method, getattr(route, "path_format", route.path)) for method in (route.methods or set()) - {"HEAD"}
            }
    assert found == set(REQUIRED_ROLE) | PAGES


def test_read_openapi_when_routes_need_roles_then_it_says_so(keyed: Keyed) -> None:
    document = keyed.service.http.get("/openapi.json").json()
    told = {
        (method.upper(), path): operation["x-role"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "x-role" in operation
    }
    assert told == REQUIRED_ROLE


@pytest.mark.parametrize(("method", "path"), REQUIRED_ROLE, ids=[f"{method} {path}" for method, path in REQUIRED_ROLE])
def test_call_route_when_role_is_too_low_then_401_or_403_and_else_it_is_served(
    keyed: Keyed, method: str, path: str
) -> None:
    needed = ROLES.index(REQUIRED_ROLE[method, path])  # type: ignore[arg-type]
    assert keyed.status(method, path, None) == 401
    assert keyed.status(method, path, "lsk_000000000000_" + "0" * 64) == 401
    for rank, role in enumerate(ROLES):
        status = keyed.status(method, path, keyed.tokens[role])
        assert (status in AUTHORIZED) if rank >= needed else (status == 403), (role, status)
    # A run without accounts concerns no portfolio, and there is no drift 1 and no policy 1.
    about_all = ("/v1/portfolios", "/v1/heads", "/v1/desk", "/metrics", "/v1/reconciliations")
    names_portfolio = path not in about_all and "/drifts/" not in path and not path.endswith("/take-back")
    if names_portfolio:
        assert keyed.status(method, path, keyed.bound["admin"], "main") == 403
    assert keyed.status(method, path, keyed.bound["admin"], "other") in AUTHORIZED


@pytest.mark.parametrize("path", sorted(OPEN_TO_ALL))
def test_call_open_route_when_no_key_is_sent_then_it_answers(keyed: Keyed, path: str) -> None:
    assert keyed.service.http.get(path).status_code in (200, 307)


@pytest.mark.parametrize("verb", ["set_cap", "halt", "resume", "freeze"])
def test_send_batch_when_one_command_needs_admin_then_nothing_of_it_is_done(keyed: Keyed, verb: str) -> None:
    more = {"set_cap": {"cap": "1"}}.get(verb, {})
    seq = keyed.service.ledger.exposure("main").seq
    answer = keyed.service.http.post(
        "/v1/batch",
        json={"commands": [{"command": "reserve", "key": "x"}, {"command": verb, "key": "y", **more}]},
        headers={"Authorization": f"Bearer {keyed.tokens['trade']}"},
    )
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert keyed.service.ledger.exposure("main").seq == seq


def test_list_when_key_is_bound_then_only_its_portfolios_show(keyed: Keyed) -> None:
    headers = {"Authorization": f"Bearer {keyed.bound['read']}"}
    assert keyed.service.http.get("/v1/portfolios", headers=headers).json()["items"] == ["other"]
    shown = keyed.service.http.get("/v1/positions", headers=headers).json()["items"]
    assert {position["portfolio"] for position in shown} == {"other"}


@pytest.mark.parametrize(
    "sent",
    ["", "Bearer", "Basic abc", "bearer x", "Bearer lsk_", "Bearer \xff", "lsk_{id}", "Bearer {truncated}"],
)
def test_call_when_credentials_are_malformed_then_401_that_tells_how(keyed: Keyed, sent: str) -> None:
    token = keyed.tokens["admin"]
    value = sent.replace("{id}", token).replace("{truncated}", token[:-1])
    answer = keyed.service.http.get("/v1/portfolios", headers={"Authorization": value.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert token not in answer.text


def test_revoke_key_when_service_runs_then_it_is_refused_soon_and_the_door_stays_shut(
    new_database: NewDatabase,
) -> None:
    url = new_database("sqlite")
    engine = make_engine(url)
    made = create_key(engine, "only one", "read")
    with serving(url, key_cache_seconds=1) as service:
        headers = {"Authorization": f"Bearer {made.token}"}
        assert service.http.get("/v1/portfolios", headers=headers).status_code == 200
        revoke_key(engine, made.key.key_id)
        eventually(lambda: service.http.get("/v1/portfolios", headers=headers).status_code == 401)
        assert service.http.get("/v1/portfolios").status_code == 401, "no living key is not the same as no key ever"
    engine.dispose()


def test_make_key_when_service_runs_without_any_then_it_asks_for_keys_from_then_on(database_url: str) -> None:
    engine = make_engine(database_url)
    with serving(database_url) as service:
        assert service.http.get("/v1/portfolios").status_code == 200
        token = create_key(engine, "first", "read").token
        assert service.http.get("/v1/portfolios").status_code == 401
        assert service.http.get("/v1/portfolios", headers={"Authorization": f"bearer {token}"}).status_code == 200
    engine.dispose()


def test_call_without_keys_when_host_is_not_loopback_then_it_is_refused(new_database: NewDatabase) -> None:
    with serving(new_database("sqlite")) as service:
        for host, status in [("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 403)]:
            assert service.http.get("/v1/portfolios", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "ledger.example"])
def test_start_when_address_is_open_and_no_key_exists_then_it_refuses_and_says_what_to_do(
    host: str, new_database: NewDatabase
) -> None:
    with (
        pytest.raises(InvalidRequest, match="keys create"),
        running_components(settings_for(new_database("sqlite"), host=host)),
    ):
        pass


def test_start_when_address_is_open_and_a_key_exists_then_it_serves_only_with_it(new_database: NewDatabase) -> None:
    url = new_database("sqlite")
    engine = make_engine(url)
    token = create_key(engine, "bot", "trade").token
    engine.dispose()
    with serving(url, host="0.0.0.0") as service:
        local = service.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{local}/v1/portfolios").status_code == 401
        assert httpx.get(f"{local}/v1/portfolios", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_make_key_when_it_is_stored_then_its_token_is_nowhere_in_the_database(database_url: str) -> None:
    engine = make_engine(database_url)
    made = create_key(engine, "bot", "trade", ["main"])
    secret = made.token.rsplit("_", 1)[1]
    with engine.begin() as connection:
        row = connection.exec_driver_sql("SELECT * FROM api_keys").mappings().one()
    assert secret not in json.dumps(dict(row), default=str)
    assert secret not in repr(made)
    assert [key.portfolios for key in list_keys(engine)] == [("main",)]
    engine.dispose()
