"""The pages. Each module adds its views to the one blueprint; all use the same use cases as REST."""

from web.ui import access, cluster, forecast, overview, runs, session, task_form, tasks, week
from web.ui.pages import PART, register

__all__ = [
    "PART",
    "access",
    "cluster",
    "forecast",
    "overview",
    "register",
    "runs",
    "session",
    "task_form",
    "tasks",
    "week",
]
