"""One line of the audit trail, written in the transaction of what it tells."""

from __future__ import annotations

from coordinator.state.models import AuditRow


def audit_row(now: float, event: str, subject: str, detail: str) -> AuditRow:
    return AuditRow(time=now, event=event, subject=subject, detail=detail)
