"""Tests of `ledger-sizer keys`: a key gives access to the service, is shown once, and can be revoked."""

from __future__ import annotations

import pytest

from tests.conftest import NewDatabase
from tests.support.command_line import CommandLine
from tests.support.services import serving


def test_make_key_when_used_and_revoked_then_the_service_opens_and_shuts(cli: CommandLine, database_url: str) -> None:
    made = cli.json("keys", "create", "bot-1", "--role", "trade", "--portfolio", "main")
    assert (made["name"], made["role"], made["portfolios"]) == ("bot-1", "trade", ["main"])
    with serving(database_url) as service:
        headers = {"Authorization": f"Bearer {made['token']}"}
        assert service.http.get("/v1/decisions", headers=headers).status_code == 200
        assert cli.json("keys", "revoke", made["key_id"])["revoked_at"] is not None
        assert service.http.get("/v1/decisions", headers=headers).status_code == 401
    (listed,) = cli.json("keys", "list")["items"]
    assert listed["key_id"] == made["key_id"]
    assert "token" not in listed
    records = cli.json("history", "--portfolio", "*")["items"]
    assert [(one["command"], one["actor"][:4], one["binding"]) for one in records] == [
        ("remark", "cli:", f"key-{made['key_id']}")
    ] * 2


def test_make_key_when_tags_are_given_then_it_is_bound_to_them_and_that_is_shown(
    cli: CommandLine, database_url: str
) -> None:
    made = cli.json(
        "keys", "create", "bot-a", "--role", "trade", "--tag", "bot=a", "--tag", "venue=okx", "--tag", "venue=bybit"
    )
    assert made["tags"] == {"bot": "a", "venue": ["bybit", "okx"]}
    free = cli.json("keys", "create", "desk", "--role", "trade")
    with serving(database_url) as service:
        statuses = [
            service.post("/v1/reservations", key, body, headers={"Authorization": f"Bearer {token}"}).status_code
            for key, body, token in (
                ("1", {"tags": {"bot": "b"}}, made["token"]), ("1", {"tags": {"venue": "okx"}}, made["token"]),
                ("2", {"tags": {"bot": "b"}}, free["token"]),
            )
        ]  # fmt: skip
        assert statuses == [403, 201, 201]
        assert service.ledger.position("main-1").tags == {"bot": "a", "venue": "okx"}
    assert [one["tags"] for one in cli.json("keys", "list")["items"]] == [made["tags"], {}]
    assert "bot=a venue=bybit venue=okx" in cli("keys", "list").out


def test_show_key_when_a_person_makes_it_then_the_token_is_there_once_and_never_listed(
    capsys: pytest.CaptureFixture[str], new_database: NewDatabase
) -> None:
    cli = CommandLine(capsys, new_database("sqlite"))
    shown = cli("keys", "create", "me", "--role", "admin")
    token = next(word for word in shown.out.split() if word.startswith("lsk_"))
    assert (shown.code, shown.err) == (0, "")
    listing = cli("keys", "list").out
    assert "me" in listing
    assert token not in listing
    assert token.rsplit("_", 1)[1] not in listing


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["keys", "create", "x", "--role", "root"], 2),
        (["keys", "create", "x"], 2),
        (["keys", "create", "x", "--role", "read", "--portfolio", "a b"], 2),
        (["keys", "create", "", "--role", "read"], 2),
        (["keys", "create", "x", "--role", "trade", "--tag", "bot"], 2),
        (["keys", "create", "x", "--role", "trade", "--tag", "Bot=a"], 2),
        (["keys", "create", "x", "--role", "trade", "--tag", "external=exchange"], 2),
        (["keys", "revoke", "nobody"], 1),
    ],
)
def test_make_key_when_input_is_bad_then_it_says_so(
    capsys: pytest.CaptureFixture[str], new_database: NewDatabase, arguments: list[str], code: int
) -> None:
    ran = CommandLine(capsys, new_database("sqlite"))(*arguments)
    assert ran.code == code
    assert ran.err.startswith("error: ")
    assert ran.out == ""
