"""Addresses of the project's pages, in one place."""

# docs/runbooks/<AlertName>.md; the alert rules' runbook_url is the same.
RUNBOOKS = "https://github.com/headroom-exporter/headroom-exporter/blob/main/docs/runbooks"


def runbook(alert: str) -> str:
    """The address of an alert's runbook."""
    return f"{RUNBOOKS}/{alert}.md"
