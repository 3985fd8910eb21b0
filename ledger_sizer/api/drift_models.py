"""The JSON responses about single drifts as pydantic models, for the OpenAPI document only; see `response_models`."""

from ledger_sizer.api.response_models import form_of
from ledger_sizer.model.account_activity import AccountEvent, DriftActivity
from ledger_sizer.model.drift_outcomes import DriftOutcome, DriftOutcomes
from ledger_sizer.model.drift_reports import DriftEvent, DriftPosition, DriftReport
from ledger_sizer.model.drift_words import Step
from ledger_sizer.wire import activity, reconciliation

StepForm = form_of(Step, "One thing that can be done next.", reconciliation.STEP)
DriftPositionForm = form_of(DriftPosition, "A position that a drift is about.", reconciliation.DRIFT_POSITION)
DriftEventForm = form_of(DriftEvent, "One decision about a drift.", reconciliation.DRIFT_EVENT)
DriftReportForm = form_of(DriftReport, "One drift in full.", reconciliation.DRIFT_REPORT)
DriftOutcomeForm = form_of(DriftOutcome, "What became of one drift.", reconciliation.OUTCOME)
DriftOutcomesForm = form_of(DriftOutcomes, "What became of each drift.", reconciliation.OUTCOMES)
AccountEventForm = form_of(AccountEvent, "One thing that happened in an account.", activity.ACCOUNT_EVENT)
DriftActivityForm = form_of(
    DriftActivity, "What happened at the exchange that explains a drift, oldest first.", activity.DRIFT_ACTIVITY
)
