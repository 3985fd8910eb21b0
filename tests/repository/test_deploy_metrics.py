"""Tests that the Grafana dashboard and the alert rules use metrics and labels that the service has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ledger_sizer import Ledger
from ledger_sizer.model.choices import DRIFT_KINDS, DriftPolicy
from tests.conftest import NewDatabase
from tests.support.accounts import Desk, short
from tests.support.clock import FakeClock
from tests.support.services import eventually, serving

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
OUTAGE = ("fetch_failed", "confirmed")
OF_PROMETHEUS = {"job", "instance"}
"""Labels that the scraper adds."""


def _expressions_of_dashboard(path: Path) -> Iterator[str]:
    dashboard = json.loads(path.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def _expressions_of_alerts() -> Iterator[str]:
    """Yield each `expr:` with its indented lines, without a YAML library."""
    for found in re.finditer(r"^( +)expr: (?:>-\n)?((?:.*\n)(?:\1  .*\n)*)", ALERTS.read_text(), re.MULTILINE):
        yield " ".join(found[2].split())


EXPRESSIONS = [
    *[(path.name, expression) for path in DASHBOARDS for expression in _expressions_of_dashboard(path)],
    *[(ALERTS.name, expression) for expression in _expressions_of_alerts()],
]


@pytest.fixture(scope="module")
def real(module_database: NewDatabase) -> dict[str, set[str]]:
    """Labels by sample name, of a service with grants, denials, a pool, an expiry and a reconciliation."""
    url = module_database("sqlite")
    desk = Desk(url, FakeClock())
    desk.ledger.set_cap(key="first", portfolio="main", cap=Decimal(50_000))
    desk.account.shows(short("1"))
    desk.run()
    desk.account.positions = None
    desk.run(2)
    desk.close()
    with Ledger.open(url, clock=FakeClock(datetime.now(UTC) + timedelta(days=1))) as ahead:
        ahead.reserve(key="ahead", portfolio="ahead")
    with serving(url, jobs=True) as service:
        ledger = service.ledger
        ledger.set_cap(key="cap", portfolio="main", cap=Decimal(100))
        ledger.reserve(key="a", tags={"venue": "bybit"})
        ledger.reserve(key="b")
        ledger.reserve(key="held", portfolio="other", ttl_seconds=Decimal(600))
        ledger.reserve(key="unknown", portfolio="other", until_known=True)
        ledger.set_cap(key="pool", portfolio="other", scope="bot=a", guarantee=Decimal(1))
        ledger.reserve(key="c", portfolio="other", ttl_seconds=Decimal("0.05"))
        eventually(lambda: "ledger_expiries_total 1.0" in service.http.get("/metrics").text)
        families = list(text_string_to_metric_families(service.http.get("/metrics").text))
    labels: dict[str, set[str]] = {}
    for sample in [sample for family in families for sample in family.samples]:
        labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def _with_scraped(labels: set[str]) -> set[str]:
    """Return the labels as Prometheus stores them: it renames labels that it sets itself."""
    return {f"exported_{label}" if label in OF_PROMETHEUS else label for label in labels} | OF_PROMETHEUS


def test_read_files_when_they_are_deployed_then_there_is_something_in_each() -> None:
    assert len(DASHBOARDS) == 1
    assert sum(name == ALERTS.name for name, _ in EXPRESSIONS) == ALERTS.read_text().count("- alert:") > 10
    assert len(EXPRESSIONS) > 40


@pytest.mark.parametrize(("file", "expression"), EXPRESSIONS)
def test_read_expression_when_it_names_metrics_and_labels_then_the_service_has_them(
    real: dict[str, set[str]], file: str, expression: str
) -> None:
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\bledger_\w+", bare))
    assert names or bare.startswith("up{"), "it speaks of no metric"
    known: set[str] = set()
    for name in names:
        assert name in real, f"{file}: {name} is in no scrape"
        known |= _with_scraped(real[name])
    for name, matchers in re.findall(r"\b(ledger_\w+)\{([^}]*)\}", bare):
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
            assert label in _with_scraped(real[name]), f"{file}: {name} has no label {label}"
    for grouped in re.findall(r"\bby \(([^)]*)\)", bare):
        for label in grouped.replace(" ", "").split(","):
            assert label in known, f"{file}: nothing in {expression} has the label {label}"


def test_read_dashboard_when_legends_name_labels_then_the_expression_keeps_them() -> None:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                kept = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", target["expr"]))))
                assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]


def test_read_dashboard_when_panels_are_placed_then_none_lies_on_another() -> None:
    for path in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        panels = json.loads(path.read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        for panel in panels:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            assert max(x for x, _ in cells) < 24
            taken |= cells


def _severities(kind: str, policy: str, state: str) -> set[str]:
    """Return the severities of the rules whose expression begins with a selector of such a drift."""
    found = set()
    for rule in ALERTS.read_text().split("- alert: ")[1:]:
        metric = re.search(r"ledger_(drifts|account_unreadable_seconds)\{([^}]*)\}", rule.partition("unless")[0])
        severity = re.search(r"severity: (\w+)", rule)
        if metric is None or severity is None or (metric[1] != "drifts" and (kind, state) != OUTAGE):
            continue
        labels = {"kind": kind, "policy": policy, "state": state}
        tests = {
            "=": lambda value, given: value == given,
            "!=": lambda value, given: value != given,
            "=~": lambda value, given: re.fullmatch(given, value) is not None,
        }
        matchers = re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', metric[2])
        if all(tests[operator](labels[name], given) for name, operator, given in matchers):
            found.add(severity[1])
    return found


@pytest.mark.parametrize("kind", DRIFT_KINDS)
@pytest.mark.parametrize("policy", get_args(DriftPolicy))
def test_check_alerts_when_a_drift_is_of_a_policy_then_this_says_who_is_told(kind: str, policy: str) -> None:
    wanted = {"record": set(), "alert": {"warning"}}.get(policy, {"page"})
    assert _severities(kind, policy, "confirmed") == wanted
    for state in ("open", "acknowledged"):
        assert _severities(kind, policy, state) == set()


@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_check_alerts_when_promtool_is_there_then_it_finds_nothing(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here (Debian's package prometheus has it): names and labels were checked without it")
    ran = subprocess.run(
        [promtool, *arguments], cwd=ALERTS.parent, capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
