"""Errors: one tree with stable codes, and no error reads as a grant; and the names that the package exports."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import ledger_sizer
from ledger_sizer import Decision, Denied, InvalidRequest, KeyReused, LedgerError
from ledger_sizer.model import errors
from ledger_sizer.model.commands import COMMANDS
from ledger_sizer.model.decisions import GENESIS_HASH, DecisionRecord
from ledger_sizer.model.denials import DENIAL_REASONS
from ledger_sizer.model.times import from_us

CODES = {
    "LedgerError": ("error", False),
    "InvalidRequest": ("invalid_request", False),
    "KeyReused": ("idempotency_key_reused", False),
    "NotFound": ("not_found", False),
    "WrongState": ("wrong_state", False),
    "Denied": ("denied", False),
    "Forbidden": ("forbidden", False),
    "Busy": ("busy", True),
    "Unavailable": ("unavailable", True),
    "Closed": ("closed", False),
    "SchemaOutdated": ("schema_outdated", False),
    "InternalError": ("internal_error", False),
}
"""Code of each error, and whether the same key may be sent again. Clients rely on them: add, but never change one."""

EXPORTED = re.findall(
    r"\w+",
    """
Adopt AppSettings Busy Closed Confirm Decision Denied DynamicSizer DynamicSizingSettings ExchangeSettings Explanation
Exposure Extend Finding Forbidden Freeze Halt InstrumentInfo InternalError InvalidRequest KeyReused Ledger LedgerError
LedgerSettings Leg NotFound Page Position PositionSizer ReconcileSettings Reconciled Release Remark Reserve Resume
SchemaOutdated ScopeExposure ServiceSettings SetCap Sizing Thaw TradingSettings Unavailable VerifyReport WrongState
round_to_step
    """,
)
"""Names that users import from `ledger_sizer`. More may be added; none may be removed."""


def error_types() -> list[type[LedgerError]]:
    found = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, LedgerError)]
    return sorted(found, key=lambda kind: kind.__name__)


def denial(reason: str = "cap_exceeded") -> Decision:
    return Decision(
        DecisionRecord(
            "main", 7, "reserve", "k", "denied", reason, None, "{}", None, None, "1", "1000", 0, 0, 0, 0, "portfolio",
            None, 0, "{}", "{}", GENESIS_HASH,
        )
    )  # fmt: skip


def example(kind: type[LedgerError]) -> LedgerError:
    if kind is Denied:
        return Denied(denial())
    return kind("what went wrong")


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def test_list_errors_when_one_is_added_then_its_code_is_written_down() -> None:
    assert {kind.__name__: (kind.code, kind.retryable) for kind in error_types()} == CODES


def test_list_codes_when_compared_then_each_is_its_own() -> None:
    codes = [kind.code for kind in error_types()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)
    assert not set(codes) & set(DENIAL_REASONS), "a code must not read like the reason of a denial"


@pytest.mark.parametrize("kind", error_types())
def test_look_at_error_when_it_stands_where_a_decision_would_then_it_is_never_a_grant(kind: type[LedgerError]) -> None:
    error = example(kind)
    assert error.granted is False
    assert error.outcome == "error"
    assert error.reason == ("cap_exceeded" if kind is Denied else kind.code)
    with pytest.raises(kind) as raised:
        error.raise_for_denial()
    assert raised.value is error


@pytest.mark.parametrize("kind", error_types())
def test_catch_error_when_the_base_is_named_then_every_one_is_caught(kind: type[LedgerError]) -> None:
    assert issubclass(kind, LedgerError)
    assert issubclass(kind, Exception)
    assert kind.__doc__


@pytest.mark.parametrize(
    ("kind", "builtin"), [(InvalidRequest, ValueError), (KeyReused, ValueError), (errors.NotFound, LookupError)]
)
def test_catch_error_when_pythons_own_kind_fits_then_that_catches_it_too(
    kind: type[LedgerError], builtin: type[Exception]
) -> None:
    assert issubclass(kind, builtin)


@pytest.mark.parametrize("kind", error_types())
@pytest.mark.parametrize("way", [pickled, copy.copy, copy.deepcopy])
def test_send_error_when_it_crosses_a_process_then_it_arrives_whole(
    kind: type[LedgerError], way: Callable[[LedgerError], LedgerError]
) -> None:
    """A pool of worker processes hangs or breaks on an exception that cannot be read back."""
    error = InvalidRequest("price must be above 0", field="price") if kind is InvalidRequest else example(kind)
    arrived = way(error)
    assert type(arrived) is kind
    assert (str(arrived), arrived.reason) == (str(error), error.reason)
    assert getattr(arrived, "field", None) == getattr(error, "field", None)
    assert getattr(arrived, "decision", None) == getattr(error, "decision", None)


def test_send_decision_when_it_crosses_a_process_then_it_arrives_whole() -> None:
    for decision in (denial(), Decision(denial().record, replayed=True)):
        assert pickled(decision) == decision
        assert copy.deepcopy(decision) == decision


@pytest.mark.parametrize("reason", DENIAL_REASONS)
def test_raise_for_denial_when_denied_then_the_error_carries_the_decision(reason: str) -> None:
    decision = denial(reason)
    by = "denied by" if reason == "group_denied" else "bound by"
    with pytest.raises(Denied, match=f"reserve 'k' denied: {reason} .{by} portfolio.") as denied:
        decision.raise_for_denial()
    assert (denied.value.decision, denied.value.reason, denied.value.code) == (decision, reason, "denied")


def test_make_decision_when_only_a_grant_counts_then_applied_and_denied_are_none() -> None:
    record = denial().record
    outcomes = {
        outcome: Decision(record._replace(outcome=outcome)).granted for outcome in ("granted", "denied", "applied")
    }
    assert outcomes == {"granted": True, "denied": False, "applied": False}
    assert denial().decided_at == from_us(0)


def test_read_docstring_when_errors_are_drawn_as_a_tree_then_it_is_the_tree() -> None:
    drawn = re.findall(r"^\s+[│ ]*[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE)
    assert sorted(["LedgerError", *drawn]) == sorted(CODES)


# --- what the package exports ------------------------------------------------------------------------------------


def test_list_exports_when_compared_then_nothing_users_rely_on_is_gone() -> None:
    missing = set(EXPORTED) - set(ledger_sizer.__all__)
    assert not missing
    assert set(ledger_sizer.__all__) <= set(dir(ledger_sizer))
    assert sorted(ledger_sizer.__all__) == ledger_sizer.__all__


@pytest.mark.parametrize("name", ledger_sizer.__all__)
def test_import_name_when_it_is_exported_then_it_is_the_one_of_its_module(name: str) -> None:
    value = getattr(ledger_sizer, name)
    assert value.__doc__
    assert value.__name__ == name
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_import_name_when_there_is_none_then_it_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ledger_sizer' has no attribute 'Nonsense'"):
        _ = ledger_sizer.Nonsense


def test_list_exports_when_a_type_checker_reads_them_then_they_are_the_same_names() -> None:
    """The names are imported lazily at run time, so the block for type checkers has to list the same."""
    tree = ast.parse(inspect.getsource(ledger_sizer))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    declared = [alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    commands = [command.__name__ for command in COMMANDS.values()]
    assert sorted([*commands, *(name for name in declared if name)]) == ledger_sizer.__all__


def test_import_package_when_nothing_is_used_then_neither_database_nor_settings_are_loaded() -> None:
    heavy = "{'sqlalchemy', 'pydantic', 'pydantic_settings', 'alembic', 'psycopg', 'ccxt', 'fastapi', 'structlog'}"
    code = f"import sys, ledger_sizer; print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"
