"""The JSON responses about chain heads, verification and health as pydantic models, for the OpenAPI document only."""

from typing import Any, Literal

from pydantic import Field

from ledger_sizer.api.response_models import _Form


class HeadForm(_Form):
    """The last decision of one portfolio's audit chain."""

    seq: int
    hash: str


class HeadsForm(_Form):
    """Chain heads by portfolio."""

    heads: dict[str, HeadForm]


class FindingOfVerify(_Form):
    """One error that a verification found."""

    portfolio: str
    seq: int | None = Field(description="The decision it concerns.")
    what: str


class VerifyForm(_Form):
    """What a verification read and found."""

    ok: bool
    decisions: int
    positions: int
    heads: dict[str, HeadForm]
    first: FindingOfVerify | None = Field(description="The first finding.")
    findings: list[FindingOfVerify]


class HealthForm(_Form):
    """Liveness and readiness."""

    status: Literal["ok", "restart", "ready", "not_ready"]
    checks: dict[str, Any] = Field({})
