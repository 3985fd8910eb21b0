"""Runs all checks of schemathesis on the whole OpenAPI document: the service does what the document promises.

Two checks are adapted to this API. A schema cannot exclude every value that makes no sense (a reserve with one
instrument, closing more than is open), so 422 is allowed for valid data. An independent batch answers 200 with one
status for each command, so our check `wrong_batches_say_so`, which reads those, replaces schemathesis's for the batch.
`/v1/events` is left out, because schemathesis would wait for the end of the stream; `test_reads` tests it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ledger_sizer.service.api_keys import create_key
from ledger_sizer.storage.database import make_engine
from tests.conftest import NewDatabase
from tests.support.services import serving

EXAMPLES = 10
SECONDS_MAX = 400

CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 401, 403, 404, 409, 422]

[[operations]]
include-path = "/v1/batch"
checks.negative_data_rejection.enabled = false
"""

HOOKS = '''
import uuid
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    """Give every valid request its own key: with a shared key, all but the first would be a reuse."""
    if "Idempotency-Key" in case.headers and case.meta is not None and case.meta.generation.mode.is_positive:
        case.headers["Idempotency-Key"] = uuid.uuid4().hex

@schemathesis.check
def wrong_batches_say_so(context, response, case):
    """Check that a wrong batch is refused, or has an error among its results."""
    wrong = case.meta is not None and case.meta.generation.mode.is_negative
    if case.path == "/v1/batch" and wrong and response.status_code == 200:
        assert any(one["status"] >= 400 for one in response.json()["results"]), "all is well with a wrong batch"
'''


@pytest.mark.slow
@pytest.mark.timeout(SECONDS_MAX + 60)
@pytest.mark.parametrize(
    ("kind", "phases"),
    [
        ("sqlite", "examples,coverage"),
        pytest.param("sqlite", "fuzzing,stateful", marks=pytest.mark.extended),
        pytest.param("postgresql", "examples,fuzzing,stateful", marks=pytest.mark.extended),
    ],
)
def test_call_every_operation_when_schemathesis_makes_the_requests_then_no_check_fails(
    kind: str, phases: str, new_database: NewDatabase, tmp_path: Path
) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    (tmp_path / "hooks.py").write_text(HOOKS)
    url = new_database(kind)
    engine = make_engine(url)
    key = create_key(engine, "schemathesis", "admin").token
    engine.dispose()
    authorization = {"Authorization": f"Bearer {key}"}
    with serving(url, key_cache_seconds=5) as service:
        for number in range(3):
            assert service.post("/v1/reservations", f"seed-{number}", headers=authorization).status_code == 201
        ran = subprocess.run(
            [
                *(Path(sys.executable).parent / "schemathesis", "run", f"{service.url}/openapi.json"),
                *("--phases", phases, "--max-examples", str(EXAMPLES), "--seed", "7", "--request-timeout", "20"),
                *("--exclude-path", "/v1/events"),
                *("--header", f"Authorization: Bearer {key}", "--no-color", "--generation-database", "none"),
            ],
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            check=False,
            text=True,
            timeout=SECONDS_MAX,
        )
        assert ran.returncode == 0, ran.stdout[-9000:] + ran.stderr[-2000:]
        counted = service.parts.metrics.requests.collect()[0].samples
        failed = {sample.labels["route"]: sample.value for sample in counted if sample.labels["status"] == "500"}
        assert not failed
        assert service.ledger.verify().ok
