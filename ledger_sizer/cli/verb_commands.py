"""Makes a command of the command line from the declaration of a verb: its arguments, options, help and examples."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import typer

from ledger_sizer.cli import options
from ledger_sizer.cli.options import DatabaseUrl, Json
from ledger_sizer.model.arguments import FLAG, NOT_GIVEN, DeclaredArgument, Kind
from ledger_sizer.model.command_base import LEG_PLANS, LEGS, MOMENT, SECONDS, TAGS
from ledger_sizer.model.commands import AnyCommand
from ledger_sizer.model.details import DETAILS
from ledger_sizer.model.legs import INSTRUMENT

Parse = Callable[[Any, str], Any]
"""Converts the text of an option to a value, given the argument's name."""


class _Form(NamedTuple):
    """How a kind of argument is written on a command line. more: what its help adds. flag: instead of the name."""

    parse: Parse
    more: str = ""
    flag: str = ""
    type: Any = str


_FORMS: Mapping[Kind, _Form] = {
    SECONDS: _Form(options.decimal),
    MOMENT: _Form(options.timestamp),
    FLAG: _Form(lambda value, _: value, type=bool),
    TAGS: _Form(
        lambda texts, _: options.tags(texts), "Repeatable; a name given again has several values.", "--tag", list[str]
    ),
    DETAILS: _Form(lambda texts, _: options.details(texts), "Repeatable.", "--detail", list[str]),
    LEGS: _Form(
        lambda texts, _: options.legs(texts),
        "One side as VENUE,SYMBOL,spot|swap|future,buy|sell,QUANTITY[,PRICE] or as a JSON object; repeatable. "
        "Quantity in coins, price in USD.",
        "--leg",
        list[str],
    ),
    LEG_PLANS: _Form(
        lambda texts, _: options.leg_plans(texts),
        "One leg as MARKET,buy|sell[,PRICE[,FEE_RATE[,ASSET[,ACCOUNT]]]] or as a JSON object; repeatable.",
        "--leg",
        list[str],
    ),
    INSTRUMENT: _Form(
        options.instrument,
        "As SYMBOL,min_qty,max_qty,qty_step[,min_notional[,tick_size[,contract_size]]], a JSON object of these (and "
        "kind, base, quote, settle, venue, multiplier, max_notional, buys_by_cost), or a name from `instruments list`, "
        "like bybit:BTC/USDT.",
    ),
}
_TEXT = _Form(lambda value, _: value)
_NUMBER = _Form(options.decimal)


def _form_of(kind: Kind) -> _Form:
    if kind in _FORMS:
        return _FORMS[kind]
    # Whatever is a decimal in JSON is written as a number.
    return _TEXT if kind.from_json is None else _NUMBER


def verb_command(
    command: type[AnyCommand],
    *,
    positional: tuple[str, ...] | None = None,
    fixed: Mapping[str, Any] | None = None,
    help_text: str | None = None,
) -> Callable[..., int]:
    """Return the function of a verb's command, as typer takes it.

    positional: names of the arguments without an option; else a position that must be given is one. fixed: values that
    the command line does not ask for; such a command never begins a ledger. help_text: instead of the verb's own.
    """
    fixed = fixed or {}
    if positional is None:
        positional = tuple([one.name for one in command.arguments if one.name == "position_id" and one.required])
    asked = [one for one in command.arguments if one.name not in fixed and one.name != "key"]
    asked.sort(key=lambda one: positional.index(one.name) if one.name in positional else len(positional))

    def run(*, key: str | None = None, as_json: bool = False, database_url: str | None = None, **given: Any) -> int:
        from ledger_sizer.cli.ledger_session import new_key, run_verb

        values: dict[str, Any] = {
            one.name: None if _removes(one, value) else _form_of(one.kind).parse(value, one.name)
            for one in asked
            if (value := given[one.name]) is not None
        }
        made = command(key=new_key() if key is None else key, **fixed, **values)
        return run_verb(made, url=database_url, as_json=as_json, create=command.creates and not fixed)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [_parameter(one, one.name in positional) for one in asked]
    parameters += [
        inspect.Parameter("key", keyword, default=None, annotation=_key_option(command)),
        inspect.Parameter("as_json", keyword, default=False, annotation=Json),
        inspect.Parameter("database_url", keyword, default=None, annotation=DatabaseUrl),
    ]
    run.__doc__ = help_text or inspect.getdoc(command)
    run.__name__ = command.verb
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _removes(argument: DeclaredArgument, text: object) -> bool:
    """Whether the text of an option removes the setting."""
    return argument.default is NOT_GIVEN and text == "none"


def _parameter(argument: DeclaredArgument, positional: bool) -> inspect.Parameter:
    """Return an argument as a parameter of the function: its type with its `typer.Option` or `typer.Argument`."""
    kind, declared = argument.kind, argument.declared
    form = _form_of(kind)
    of: Any = Literal[kind.choices] if kind.choices else form.type
    setting = argument.default is NOT_GIVEN
    help_text = f"{declared.help} {form.more} {'`none` removes it.' if setting else ''}".strip()
    default: Any = inspect.Parameter.empty if argument.required or (positional and not setting) else None
    info: Any
    if positional:
        info = typer.Argument(metavar=argument.name.upper(), help=help_text)
    else:
        names = (form.flag or f"--{argument.name.replace('_', '-')}", *declared.flags)
        # A choice shows its words, and a flag has no value.
        metavar = None if kind.choices or kind is FLAG else declared.metavar or kind.metavar
        info = typer.Option(*names, metavar=metavar, help=help_text)
        if isinstance(argument.default, str | bool):
            default = argument.default
    annotation: Any = Annotated[of | None, info] if default is None else Annotated[of, info]
    return inspect.Parameter(argument.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _key_option(command: type[AnyCommand]) -> Any:
    (key,) = [one for one in command.arguments if one.name == "key"]
    return Annotated[
        str | None,
        typer.Option(
            "--key", metavar=key.kind.metavar, help=f"{key.declared.help} Generated and printed when not given."
        ),
    ]
