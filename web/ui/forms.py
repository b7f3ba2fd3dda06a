"""The form of a task: its fields, what the contract makes of them, and where an error belongs."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import flask
from flask_wtf import FlaskForm
from wtforms import (
    BooleanField,
    HiddenField,
    RadioField,
    SelectChoice,
    SelectField,
    SelectMultipleField,
    StringField,
    TextAreaField,
)

from app import errors
from app.fields import number
from app.models import Task
from app.schedules import zones
from app.signatures import Parameter
from app.states import Catchup, Overlap, Trouble
from web.ui import reading
from web.ui.pages import flat

KINDS = {
    "cron": "Cron",
    "interval": "Interval",
    "once": "Once",
    "rrule": "RRULE",
    "now": "Now",
}
TROUBLES = {str(each): str(each) for each in Trouble}
WHOM = {"default": "as the settings have it", "own": "as is said here", "nobody": "nobody"}
UNITS = {"1": "seconds", "60": "minutes", "3600": "hours", "86400": "days"}
ARGUMENT = "kw-"
"""What the names of fields for one argument begin with."""

WITHIN: dict[tuple[str, ...], str] = {
    ("catchup", "policy"): "catchup_policy",
    ("catchup", "window"): "catchup_window",
    ("retry", "max_attempts"): "max_attempts",
    ("retry", "backoff"): "backoff",
    ("retry", "backoff_max"): "backoff_max",
    ("retry", "jitter"): "backoff_jitter",
    ("notify", "on"): "notify_on",
    ("notify", "webhook"): "notify_webhook",
    ("notify", "email"): "notify_email",
}
"""Where the contract nests a field."""


def _choices(labels: Mapping[str, str]) -> list[SelectChoice]:
    return [SelectChoice(value, label) for value, label in labels.items()]


class TaskForm(FlaskForm):  # type: ignore[misc]
    """A task to register or to change."""

    name = StringField("Name")
    description = TextAreaField("Description")
    labels = TextAreaField("Labels")
    target = StringField("Target")
    args = TextAreaField("Positional arguments")
    kwargs = TextAreaField("Other arguments by name")
    kind = RadioField("Schedule", choices=_choices(KINDS), default="cron")
    timezone = StringField("Time zone", default="UTC")
    expression = StringField("Expression", default="0 9 * * MON-FRI")
    every = StringField("Every", default="15")
    unit = SelectField("Unit", choices=_choices(UNITS), default="60")
    anchor = StringField("Counted from")
    at = StringField("At")
    rule = StringField("Rule", default="FREQ=MONTHLY;BYDAY=-1FR")
    starts = StringField("First day and time")
    starts_at = StringField("Not before")
    ends_at = StringField("Not after")
    max_runs = StringField("Runs at most")
    jitter = StringField("Spread over", default="0")
    queue = StringField("Queue", default="default")
    priority = StringField("Priority", default="5")
    timeout = StringField("Time limit", default="300")
    overlap = SelectField(
        "While the last run goes on", choices=_choices({str(each): str(each) for each in Overlap}), default="skip"
    )
    catchup_policy = SelectField(
        "After an outage", choices=_choices({str(each): str(each) for each in Catchup}), default="latest"
    )
    catchup_window = StringField("Look back")
    max_attempts = StringField("Attempts", default="1")
    backoff = StringField("First pause", default="5")
    backoff_max = StringField("Longest pause", default="600")
    backoff_jitter = BooleanField("Draw the pause at random", default=True)
    pause_after_failures = StringField("Pause after failures in a row")
    notify = SelectField("Who is told of its incidents", choices=_choices(WHOM), default="default")
    notify_on = SelectMultipleField("Of which", choices=_choices(TROUBLES), default=list(TROUBLES))
    notify_webhook = StringField("Webhook")
    notify_email = TextAreaField("E-mail")
    version = HiddenField()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.typed_arguments: Mapping[str, str] = flask.request.form
        """The fields of single arguments, which are the target's and not the form's."""
        self.parameters: Sequence[Parameter] = ()
        """Those of the target that have a field each."""
        self.argument_problems: dict[str, list[str]] = {}
        self.other_problems: list[str] = []
        self.task: Task | None = None
        """The task that is being changed."""

    def given(self) -> dict[str, Any]:
        """What the form asks for, as a client would send it. Raises Invalid where a field cannot be read."""
        zone = self.text("timezone") or "UTC"
        return {
            "name": self.text("name") or (self.task.name if self.task else None),
            "description": self.text("description"),
            "labels": reading.labels(self.text("labels").splitlines()),
            "target": self.text("target"),
            "args": reading.parsed(self.text("args") or "[]", "args"),
            "kwargs": self.arguments(),
            "queue": self.text("queue") or "default",
            "priority": _number(self.text("priority"), 5),
            "schedule": self.schedule(),
            "starts_at": reading.instant(self.text("starts_at"), zone, "starts_at"),
            "ends_at": reading.instant(self.text("ends_at"), zone, "ends_at"),
            "max_runs": _number(self.text("max_runs"), None),
            "jitter": _number(self.text("jitter"), 0),
            "overlap": self.text("overlap"),
            "catchup": {
                "policy": self.text("catchup_policy"),
                "window": _number(self.text("catchup_window"), None),
            },
            "retry": {
                "max_attempts": _number(self.text("max_attempts"), 1),
                "backoff": _number(self.text("backoff"), 5),
                "backoff_max": _number(self.text("backoff_max"), 600),
                "jitter": bool(self.backoff_jitter.data),
            },
            "timeout": _number(self.text("timeout"), 300),
            "pause_after_failures": _number(self.text("pause_after_failures"), None),
            "notify": self.whom(),
        }

    def whom(self) -> dict[str, Any] | None:
        """Who is told of incidents. Raises Invalid."""
        match self.text("notify"):
            case "nobody":
                return {"on": []}
            case "own":
                return {
                    "on": self.notify_on.data,
                    "webhook": self.text("notify_webhook") or None,
                    "email": self.text("notify_email").replace(",", "\n").split(),
                }
            case _:
                return None

    def schedule(self) -> dict[str, Any]:
        """The schedule alone. Raises Invalid."""
        zone = self.text("timezone") or "UTC"
        reading.place(zone)
        match self.text("kind"):
            case "cron":
                return {"type": "cron", "expression": self.text("expression"), "timezone": zone}
            case "interval":
                every = _number(self.text("every"), None)
                anchor = reading.instant(self.text("anchor"), zone, "anchor")
                seconds = round(every * self._unit(), 3) if isinstance(every, int | float) else every
                return {"type": "interval", "every": seconds} | ({"anchor": anchor} if anchor else {})
            case "once":
                return {"type": "once", "at": reading.instant(self.text("at"), zone, "at")}
            case "rrule":
                starts = reading.instant(self.text("starts"), zone, "starts")
                return {"type": "rrule", "rule": self.text("rule"), "starts": starts, "timezone": zone}
            case "now":
                # one that is now already has had its time: naming it anew would run it once more
                was_now = self.task is not None and self.task.schedule["type"] == "now"
                return dict(self.task.schedule) if self.task and was_now else {"type": "now"}
            case _:
                raise errors.Invalid(errors={"kind": ["Choose one of them."]})

    def arguments(self) -> dict[str, Any]:
        """The arguments by name: each from its own field, the others from the JSON."""
        others = reading.parsed(self.text("kwargs") or "{}", "kwargs")
        if not isinstance(others, dict):
            raise errors.Invalid(errors={"kwargs": ["Must be an object."]})
        by_field = {
            each["name"]: reading.value(text, each["annotation"])
            for each in self.parameters
            if (text := self.typed(each["name"])).strip()
        }
        return others | by_field

    def typed(self, name: str) -> str:
        """What stands in the field of one argument."""
        return str(self.typed_arguments.get(ARGUMENT + name, ""))

    def text(self, name: str) -> str:
        """What stands in a field, without what a browser adds to it or takes away."""
        value = self[name].data
        if not isinstance(value, str):
            return ""
        lines = value.splitlines()
        return ("\n" if isinstance(self[name], TextAreaField) else "").join(lines).strip()

    def _unit(self) -> int:
        unit = self.text("unit")
        if unit not in UNITS:
            raise errors.Invalid(errors={"unit": ["Choose one of them."]})
        return int(unit)

    def blame(self, problems: errors.FieldErrors) -> None:
        """Puts each problem to its field; what belongs to none is said above the form."""
        shown = {each["name"] for each in self.parameters}
        for path, sentence in flat(problems):
            name = _field(path)
            if path[0] == "kwargs" and len(path) > 1 and path[1] in shown:
                self.argument_problems.setdefault(path[1], []).append(sentence)
            elif name in self:
                self[name].errors = [*self[name].errors, sentence]
            else:
                self.other_problems.append(f"{'.'.join(path)}: {sentence}")

    @property
    def has_problems(self) -> bool:
        return bool(self.errors or self.argument_problems or self.other_problems)


def filled(task: Task, parameters: Sequence[Parameter]) -> TaskForm:
    """The form as a task would have been typed."""
    schedule = task.schedule
    zone = schedule.get("timezone") or "UTC"
    zone = zone if zone in zones.names() else "UTC"  # one that is not known any more
    size, every = _every(schedule.get("every"))
    known = {each["name"]: each["annotation"] for each in parameters}
    own = {name: reading.typed(value, known[name]) for name, value in task.kwargs.items() if name in known}
    others = {name: value for name, value in task.kwargs.items() if not own.get(name)}
    form = TaskForm(
        formdata=None,  # whatever is being sent
        data={
            "name": task.name,
            "description": task.description,
            "labels": "\n".join(f"{key}: {value}" for key, value in task.labels.items()),
            "target": task.target,
            "args": json.dumps(task.args) if task.args else "",
            "kwargs": json.dumps(others, indent=2, ensure_ascii=False) if others else "",
            "kind": schedule["type"],
            "timezone": zone,
            "expression": schedule.get("expression", ""),
            "every": every,
            "unit": size,
            "anchor": _local(schedule.get("anchor"), zone),
            "at": _local(schedule.get("at"), zone),
            "rule": schedule.get("rule", ""),
            "starts": _local(schedule.get("starts"), zone),
            "starts_at": reading.local(task.starts_at, zone),
            "ends_at": reading.local(task.ends_at, zone),
            "max_runs": _text(task.max_runs),
            "jitter": _text(number(task.jitter)),
            "queue": task.queue,
            "priority": _text(task.priority),
            "timeout": _text(number(task.timeout)),
            "overlap": task.overlap,
            "catchup_policy": task.catchup_policy,
            "catchup_window": "" if task.catchup_window is None else _text(number(task.catchup_window)),
            "max_attempts": _text(task.max_attempts),
            "backoff": _text(number(task.backoff)),
            "backoff_max": _text(number(task.backoff_max)),
            "backoff_jitter": task.backoff_jitter,
            "pause_after_failures": _text(task.pause_after_failures),
            **_whom(task.notify),
            "version": _text(task.version),
        },
    )
    form.task = task
    form.parameters = parameters
    form.typed_arguments = {ARGUMENT + name: text for name, text in own.items()}
    return form


def _whom(notify: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields that say who is told of incidents."""
    if notify is None or notify == {"on": [], "webhook": None, "email": []}:
        return {"notify": "default" if notify is None else "nobody", "notify_on": list(TROUBLES)}
    return {
        "notify": "own",
        "notify_on": notify["on"],
        "notify_webhook": notify["webhook"] or "",
        "notify_email": "\n".join(notify["email"]),
    }


def _number(text: str, otherwise: float | None) -> Any:
    """A number where it is one; else the text, which the contract then refuses in its own words."""
    if not text:
        return otherwise
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _every(seconds: float | None) -> tuple[str, str]:
    """The largest unit that divides an interval, and how many of it that is."""
    if seconds is None:
        return "60", "15"
    size = next((each for each in reversed(UNITS) if seconds % int(each) == 0), "1")
    return size, _text(number(timedelta(seconds=seconds / int(size))))


def _local(instant: str | None, zone: str) -> str:
    return "" if instant is None else reading.local(datetime.fromisoformat(instant), zone)


def _text(value: float | None) -> str:
    return "" if value is None else str(value)


def _field(path: tuple[str, ...]) -> str:
    """The name of the field that a problem's path means."""
    if path[0] == "schedule":
        return path[1] if len(path) > 1 else "kind"
    return WITHIN.get(path[:2], path[0])
