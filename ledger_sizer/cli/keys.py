"""`ledger-sizer keys`: the API keys of the service."""

from typing import TYPE_CHECKING, Annotated

import typer

from ledger_sizer.cli import output
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import DatabaseUrl, Json, tags
from ledger_sizer.cli.output import Column
from ledger_sizer.model.choices import Role

if TYPE_CHECKING:
    from ledger_sizer.service.api_keys import ApiKey

keys = typer.Typer(rich_markup_mode=None)

KEYS_HELP = help_epilog("keys create bot-1 --role trade --portfolio main", "keys list --json", exits=NEVER_DENIED)


@keys.callback(epilog=KEYS_HELP)
def group() -> None:
    """Make, list and revoke the API keys of the service.

    A key is shown once, when it is made; only its hash is kept. The desk's chain records who made
    it. With no key at all, `serve` listens to this machine only and asks nobody for one.
    """


@keys.command(
    "create",
    epilog=help_epilog(
        "keys create bot-1 --role trade",
        "keys create bot-1b --role trade --client bot-1",
        "keys create bot-2 --role trade --tag bot=a",
        exits=NEVER_DENIED,
    ),
)
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is; for listings and logs.")],
    role: Annotated[
        Role, typer.Option("--role", help="read: look; trade: reserve, confirm, release too; admin: everything.")
    ],
    portfolio: Annotated[
        list[str] | None, typer.Option("--portfolio", "-p", metavar="NAME", help="Only this one; repeatable.")
    ] = None,
    client: Annotated[
        str | None,
        typer.Option(
            "--client",
            metavar="NAME",
            help="Whose idempotency keys it uses; else its own. API keys of one client share them, so that a bot may "
            "get a new API key.",
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            metavar="NAME=VALUE",
            help="Bind it: what it reserves and adopts gets this tag, other values are forbidden, and it works only on "
            "positions that have it. Repeatable; a name given again has several values.",
        ),
    ] = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Make a key and show it, now or never.

    A key that is bound to tags reads whatever it could read without them.
    """
    from ledger_sizer.cli.ledger_session import engine_at, ledger_at
    from ledger_sizer.service.api_keys import create_key
    from ledger_sizer.service.desk_records import key_recorder

    with ledger_at(database_url, create=True) as ledger, engine_at(database_url) as engine:
        made = create_key(engine, name, role, portfolio or (), client, tags=tags(tag), record=key_recorder(ledger))
    if as_json:
        output.write_json({**_key_form(made.key), "token": made.token})
        return 0
    output.headline(f"made key {made.key.key_id} for {made.key.name}: {made.key.role}", "ok")
    output.details(
        [
            ("portfolios", _portfolios(made.key)),
            ("client", made.key.caller.client),
            ("tags", _tags(made.key)),
            ("token", made.token),
            ("note", "it is not shown again"),
        ]
    )
    return 0


@keys.command("list", epilog=help_epilog("keys list", exits=NEVER_DENIED))
def list_all(as_json: Json = False, database_url: DatabaseUrl = None) -> int:
    """Show all keys, revoked ones too, never their tokens."""
    from ledger_sizer.cli.ledger_session import ledger_engine_at
    from ledger_sizer.service.api_keys import list_keys

    with ledger_engine_at(database_url) as engine:
        found = list_keys(engine)
    if as_json:
        output.write_json_list((_key_form(key) for key in found), lambda: None)
        return 0
    output.table(
        [
            Column("key"),
            Column("name"),
            Column("role"),
            Column("portfolios"),
            Column("tags", priority=3),
            Column("client", priority=5),
            Column("created", priority=4),
            Column("revoked"),
        ],
        [
            (key.key_id, key.name, key.role, _portfolios(key), _tags(key), key.client, key.created_at, key.revoked_at)
            for key in found
        ],
        empty="no API keys",
    )
    return 0


@keys.command("revoke", epilog=help_epilog("keys revoke 0123456789ab", exits=NEVER_DENIED))
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="As `keys list` shows it.")],
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Revoke a key for good. Services that run notice within SERVICE_KEY_CACHE_SECONDS."""
    from ledger_sizer.cli.ledger_session import engine_at, ledger_at
    from ledger_sizer.service.api_keys import revoke_key
    from ledger_sizer.service.desk_records import key_recorder

    with ledger_at(database_url) as ledger, engine_at(database_url) as engine:
        key = revoke_key(engine, key_id, record=key_recorder(ledger))
    if as_json:
        output.write_json(_key_form(key))
        return 0
    output.headline(f"revoked key {key.key_id} of {key.name}", "ok")
    return 0


def _portfolios(key: "ApiKey") -> str:
    return "all" if key.portfolios is None else ", ".join(key.portfolios)


def _tags(key: "ApiKey") -> str | None:
    return " ".join(key.tags.scopes[1:]) or None


def _key_form(key: "ApiKey") -> dict[str, object]:
    from ledger_sizer.service.api_keys import ApiKey
    from ledger_sizer.wire.codec import Codec

    return Codec(ApiKey).to_json(key)
