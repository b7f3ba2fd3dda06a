"""The pages as a browser without JavaScript has them: who gets in, what is shown, what each form does."""

import base64
import html
import json
import os
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from uuid import UUID

import pytest
from sqlalchemy import insert

from app import db, forecast, incidents, messages, queries, runs, system
from app.models import Duration, Node, Run, Target
from app.states import Role, RunState, Trigger, Trouble
from web import auth

KEY = "punctual-test-key"
HOSTILE = "<script>alert('x')</script>\"'&</td></pre>"
PAGES = ("/", "/tasks", "/tasks/new", "/runs", "/week", "/forecast", "/cluster", "/keys", "/audit")
FOR_SOME = ("/tasks/new", "/keys", "/audit")
"""Those that a viewer may not see."""
FORM = {"target": "debug.echo", "kind": "interval", "every": "1", "unit": "3600", "timezone": "UTC", "save": "yes"}


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def token(text):
    return re.search(r'name="csrf_token" value="([^"]+)"', text)[1]


@pytest.fixture
def browser(app, database):
    """A browser that is signed in with the administrator's key."""
    made = app.test_client()
    page = made.get("/sign-in").text
    answer = made.post("/sign-in", data={"csrf_token": token(page), "key": KEY})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    return made


@pytest.fixture
def send(browser):
    """Sends a form as a page of this session does."""

    def call(address, **data):
        return browser.post(address, data=data | {"csrf_token": token(browser.get("/tasks/new").text)})

    return call


@pytest.fixture
def visitor(app, client):
    """Signs a browser of its own in, with a new key that has this role."""

    def enter(role, **bounds):
        made = client.post("/api/v1/keys", json={"name": f"a {role}", "role": role} | bounds).json
        browser = app.test_client()
        page = browser.get("/sign-in").text
        assert browser.post("/sign-in", data={"key": made["key"], "csrf_token": token(page)}).status_code == 303
        return browser

    return enter


@pytest.fixture
def viewer(visitor):
    """A browser whose key only reads."""
    return visitor("viewer")


def record(session, now, task_id, count, state=RunState.SUCCEEDED):
    """Past runs of a task, all in one state."""
    task = queries.task(session, task_id)
    slots = [now - timedelta(minutes=n + 1) for n in range(count)]
    new = [runs.NewRun(id=runs.identify(task.id, at), task=task, slot=at, trigger=Trigger.SCHEDULE) for at in slots]
    runs.record(session, now, new)
    values = {"state": state, "started_at": now, "attempt_started_at": now, "finished_at": now}
    session.query(Run).filter(Run.task_id == task_id).update(values)


def fail_all(**values):
    """Has every run failed just now."""
    with db.transaction() as session:
        at = db.now(session)
        ended = {"state": "failed", "reason": "error", "started_at": at, "attempt_started_at": at, "finished_at": at}
        session.query(Run).update(ended | values)


def test_a_stranger_is_led_to_the_way_in_and_back(app, database):
    stranger = app.test_client()
    for address in PAGES:
        answer = stranger.get(address)
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/sign-in?back={address}"), address
    page = stranger.get("/sign-in?back=/week").text
    answer = stranger.post("/sign-in", data={"csrf_token": token(page), "key": KEY, "back": "/week"})
    assert answer.headers["Location"] == "/week"


@pytest.mark.parametrize("back", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_signing_in_leads_to_no_other_host(app, database, back):
    stranger = app.test_client()
    page = stranger.get("/sign-in", query_string={"back": back}).text
    answer = stranger.post("/sign-in", data={"csrf_token": token(page), "key": KEY, "back": back})
    assert answer.headers["Location"] == "/"


def test_a_wrong_key_opens_nothing(app, database):
    stranger = app.test_client()
    page = stranger.get("/sign-in").text
    answer = stranger.post("/sign-in", data={"csrf_token": token(page), "key": "punc_wrong"})
    assert answer.status_code == 401
    assert "no key of this Punctual" in answer.text
    assert stranger.get("/tasks").status_code == 303


def test_the_sessions_cookie_is_kept_from_scripts_and_other_sites(app, database):
    stranger = app.test_client()
    answer = stranger.post("/sign-in", data={"csrf_token": token(stranger.get("/sign-in").text), "key": KEY})
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert KEY not in cookie


@pytest.fixture
def restart(browser, configure):
    """Lets the browser go on with a web that was started with other settings."""
    from web import main  # noqa: PLC0415 - only after the environment stands

    def call(**given):
        configure(**given)
        browser.application = main.create_app()

    return call


@pytest.mark.parametrize("name", ["PUNCTUAL_ADMIN_KEY", "SECRET_KEY"])
def test_another_key_in_the_settings_ends_the_session(browser, restart, name):
    restart()
    assert browser.get("/tasks").status_code == 200
    restart(**{name: "another"})
    assert browser.get("/tasks").status_code == 303


@pytest.mark.parametrize("name", ["PUNCTUAL_ADMIN_KEY", "SECRET_KEY"])
def test_while_two_keys_stand_in_the_settings_what_the_first_one_opened_goes_on(app, browser, restart, name):
    form = token(browser.get("/tasks/new").text)
    calendar = re.search(r'href="(http[^"]+\.ics)"', browser.get("/week").text)[1]
    before = os.environ[name]
    for first, second in ((before, "another"), ("another", before)):
        restart(**{name: first, f"{name}_SECOND": second})
        assert browser.get("/tasks").status_code == 200
        assert browser.post("/tasks/new", data=FORM | {"csrf_token": form}).status_code == 303
        assert browser.get(calendar).status_code == 200
    key = "another" if name == "PUNCTUAL_ADMIN_KEY" else KEY
    browser.post("/sign-out", data={"csrf_token": form})
    page = browser.get("/sign-in").text
    assert browser.post("/sign-in", data={"csrf_token": token(page), "key": key}).status_code == 303
    restart(**{f"{name}_SECOND": ""})
    assert browser.get("/tasks").status_code == 200, "it was opened by what is left"
    assert browser.get(calendar).status_code == 404


def test_a_session_ends_with_the_administrators_key_that_opened_it_not_with_the_other(browser, restart):
    restart(PUNCTUAL_ADMIN_KEY="another", PUNCTUAL_ADMIN_KEY_SECOND=KEY)
    page = browser.get("/tasks").text
    browser.post("/sign-out", data={"csrf_token": token(page)})
    page = browser.get("/sign-in").text
    assert browser.post("/sign-in", data={"csrf_token": token(page), "key": KEY}).status_code == 303
    assert browser.get("/tasks").status_code == 200
    restart(PUNCTUAL_ADMIN_KEY_SECOND="")
    assert browser.get("/tasks").status_code == 303


def test_a_web_that_knows_the_coming_key_signs_with_the_one_that_all_know(app, browser, restart):
    restart(SECRET_KEY_SECOND="coming")
    page = browser.get("/tasks").text
    browser.post("/sign-out", data={"csrf_token": token(page)})
    page = browser.get("/sign-in").text
    browser.post("/sign-in", data={"csrf_token": token(page), "key": KEY})
    restart(SECRET_KEY_SECOND="")  # another web, which was not restarted yet
    assert browser.get("/tasks").status_code == 200


def test_signing_out_ends_the_session(browser, send):
    assert send("/sign-out").status_code == 303
    assert browser.get("/tasks").status_code == 303


def test_a_session_opens_no_door_of_the_api_and_a_key_none_of_the_pages(browser, client):
    assert browser.get("/api/v1/tasks").status_code == 401
    assert client.get("/tasks").status_code == 303


def test_a_form_without_this_sessions_token_changes_nothing(app, browser, task):
    own = {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("ui.") and "POST" in rule.methods}
    assert len(own) >= 12
    for rule in own:
        address = re.sub(r"<uuid:\w+>", task["id"], rule)
        answer = browser.post(address, data={"key": KEY, "action": "delete", "task": task["id"]})
        assert answer.status_code == 400, rule
        assert "form" in answer.text
    with db.transaction() as session:
        assert queries.task(session, UUID(task["id"])).version == 1


def test_a_viewer_is_offered_no_change_and_refused_it(app, viewer, send, task, run):
    for address in (*PAGES, f"/tasks/{task['id']}", f"/runs/{run['id']}"):
        if address not in FOR_SOME:
            tags = Tags(viewer.get(address).text).found
            sent = {attrs.get("action") for tag, attrs in tags if tag == "form" and attrs.get("method") == "post"}
            assert sent | {attrs["formaction"] for _, attrs in tags if "formaction" in attrs} <= {
                "/sign-out",
                "/tasks/selection",
            }, address
    page = viewer.get("/tasks").text
    own = {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("ui.") and "POST" in rule.methods}
    for rule in own - {"/sign-in", "/sign-out"}:
        address = rule.replace("<uuid:task_id>", task["id"]).replace("<uuid:run_id>", run["id"])
        address = address.replace("<string:key_id>", "any")
        answer = viewer.post(address, data={"csrf_token": token(page), "action": "pause", "task": task["id"]})
        assert answer.status_code == 403, rule
        assert "takes the role" in answer.text
    for address in FOR_SOME:
        assert viewer.get(address).status_code == 403
        assert f'href="{address}"' not in viewer.get("/").text


def test_every_page_lets_a_browser_load_nothing_but_ours(browser, task, run):
    for address in (*PAGES, f"/tasks/{task['id']}", f"/tasks/{task['id']}/edit", f"/runs/{run['id']}", "/sign-in"):
        answer = browser.get(address)
        assert answer.status_code == 200, address
        policy = answer.headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy.split("; "))
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        for tag, attrs in Tags(answer.text).found:
            assert "style" not in attrs, (address, tag)
            assert not [name for name in attrs if name.startswith("on")], (address, tag)
            assert tag != "style", address
            assert tag != "script" or attrs["src"].startswith("/ui/"), address
            for name in ("src", "href", "action"):
                told = attrs.get(name) or ""
                # links to calendars and to Flower are whole addresses, and load nothing
                assert not told.startswith(("http:", "//")) or (tag == "a" and told.startswith("http://localhost"))


def test_what_a_user_gave_is_text_wherever_it_is_shown(client, browser, register):
    task = register(
        name=HOSTILE, description=HOSTILE, labels={"</td>": HOSTILE}, kwargs={HOSTILE: HOSTILE}, target="debug.echo"
    )
    client.post(f"/api/v1/tasks/{task['id']}/pause", json={"note": HOSTILE})
    run = client.post(f"/api/v1/tasks/{task['id']}/run", json={"kwargs": {"x": HOSTILE}}).json
    error = {"type": HOSTILE, "message": HOSTILE, "traceback": HOSTILE}
    fail_all(error=error, result={"x": HOSTILE}, worker=HOSTILE)
    with db.transaction() as session:
        sign = incidents.Sign(task_id=task["id"], run_id=run["id"], slot=db.now(session), note=HOSTILE)
        incidents.report(session, Trouble.PAUSED, [sign])
    for address in (
        "/",
        "/tasks",
        "/runs",
        "/week",
        "/cluster",
        f"/tasks/{task['id']}",
        f"/tasks/{task['id']}/edit",
        f"/tasks/new?like={task['id']}",
        f"/runs/{run['id']}",
        f"/tasks?q={HOSTILE}&label=a:{HOSTILE}",
        f"/runs?since={HOSTILE}&target={HOSTILE}",
    ):
        answer = browser.get(address)
        assert answer.status_code == 200, address
        tags = Tags(answer.text).found
        assert [tag for tag, _ in tags].count("script") == 1, address
        # what breaks out of an attribute becomes one
        assert {name for _, attrs in tags for name in attrs} <= KNOWN, address


def test_the_part_of_a_page_is_what_its_script_asks_for_and_costs_nothing_where_nothing_changed(browser, task):
    whole = browser.get(f"/tasks/{task['id']}").text
    part = browser.get(f"/tasks/{task['id']}", headers={"X-Part": "live"})
    assert part.text.strip() in whole
    assert "<html" not in part.text
    again = browser.get(f"/tasks/{task['id']}", headers={"X-Part": "live", "If-None-Match": part.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_what_is_not_well_is_shown_on_the_overview_and_on_the_page_of_its_task(browser, client, register):
    own = {"on": ["failed", "late"], "webhook": "https://hooks.example.com/T0KEN", "email": []}
    task, other = register(name="ill", notify=own), register(name="well")
    assert "Not well" not in browser.get("/").text
    with db.transaction() as session:
        incidents.report(session, Trouble.FAILED, [incidents.Sign(task_id=task["id"], slot=db.now(session), count=3)])
    assert "<h2>Not well</h2>\n  <p>1 failed</p>" in browser.get("/").text
    page = browser.get(f"/tasks/{task['id']}").text
    assert "<h2>Incidents</h2>" in page
    assert "it lasts" in page
    assert "failed, late: to hooks.example.com by webhook" in page
    assert "T0KEN" not in page
    assert "<h2>Incidents</h2>" not in browser.get(f"/tasks/{other['id']}").text


def test_pages_with_buttons_stay_the_same_too_while_nothing_changes(client, browser, task, run):
    fail_all(error={"type": "E", "message": "", "traceback": None})
    for address in ("/tasks", "/runs", f"/runs/{run['id']}"):
        first = browser.get(address, headers={"X-Part": "live"})
        assert "formaction" in first.text or address == "/runs"
        assert "csrf" not in first.text
        again = browser.get(address, headers={"X-Part": "live", "If-None-Match": first.headers["ETag"]})
        assert again.status_code == 304, address


def test_only_what_a_person_does_renews_the_session(browser):
    assert "Set-Cookie" in browser.get("/tasks").headers
    assert "Set-Cookie" not in browser.get("/tasks", headers={"X-Part": "live"}).headers
    with browser.get("/ui/punctual.css") as file:
        assert "Set-Cookie" not in file.headers


def test_errors_on_pages_are_as_closed_as_pages(browser):
    for answer in (
        browser.get("/nothing", headers={"Accept": "text/html"}),
        browser.delete("/tasks", headers={"Accept": "text/html"}),
        browser.get(f"/tasks/{UUID(int=1)}"),
    ):
        assert answer.status_code in {404, 405}
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-cache, private"


def test_a_list_by_name_goes_on_behind_any_name(browser, register, monkeypatch):
    monkeypatch.setattr("web.ui.tasks.LIMIT", 1)
    names = ["a" * 200, "\N{CYRILLIC SMALL LETTER ZHE}" * 200, "\N{GRINNING FACE}" * 190]
    for name in names:
        register(name=name)
    seen, address = [], "/tasks?order=name"
    while address and len(seen) < 9:
        page = browser.get(address).text
        seen += [html.unescape(found) for found in re.findall(r'href="/tasks/[-\w]{36}">([^<]+)</a>', page)]
        following = [attrs["href"] for _, attrs in Tags(page).found if attrs.get("rel") == "next"]
        address = following[0] if following else None
    assert sorted(seen) == sorted(names)


@pytest.mark.parametrize("address", ["/", "/tasks", "/runs", "/cluster", "/week", "/forecast"])
def test_the_statements_of_a_page_do_not_grow_with_what_it_shows(browser, register, statements, address):
    def count():
        with statements() as seen:
            assert browser.get(address).status_code == 200
        return len(seen)

    register()
    few = count()
    for number in range(30):
        task = register(name=f"task-{number}")
        with db.transaction() as session:
            record(session, db.now(session), UUID(task["id"]), 3)
    assert count() == few
    assert few < 20


PARIS = {"timezone": "Europe/Paris"}
CRON = {"expression": "0 9 * * MON-FRI"} | PARIS
RULE = {"rule": "FREQ=MONTHLY;BYDAY=-1FR"} | PARIS
KNOWN = {
    "action", "alt", "aria-busy", "aria-current", "aria-describedby", "aria-hidden", "aria-invalid", "aria-label",
    "aria-live", "autocomplete", "autofocus", "charset", "checked", "class", "content", "cx", "cy", "d", "data-all",
    "data-arguments", "data-as", "data-ask", "data-bs-theme", "data-draft", "data-every", "data-label", "data-now",
    "data-part", "data-put", "data-value", "datetime", "fill-rule", "for", "form", "formaction", "height", "hidden",
    "href", "id", "lang", "list", "maxlength", "method", "name", "novalidate", "open", "placeholder", "r", "rel",
    "required", "role", "rows", "scope", "selected", "src", "step", "tabindex", "title", "type", "value", "viewbox",
    "width", "x", "x1", "x2", "y", "y1", "y2",
}  # fmt: skip
"""Every attribute that our templates use."""

KINDS = [
    ({"kind": "now"}, {"type": "now"}),
    ({"kind": "once", "at": "2090-12-24T18:00"} | PARIS, {"type": "once", "at": "2090-12-24T17:00:00.000Z"}),
    ({"kind": "cron"} | CRON, {"type": "cron"} | CRON),
    (
        {"kind": "interval", "every": "1.5", "unit": "60", "anchor": "2026-01-01T00:00"},
        {"type": "interval", "every": 90, "anchor": "2026-01-01T00:00:00.000Z"},
    ),
    (
        {"kind": "rrule", "starts": "2026-01-01T09:00"} | RULE,
        {"type": "rrule", "starts": "2026-01-01T08:00:00.000Z"} | RULE,
    ),
]


def comparable(value):
    """A time however it is written."""
    return datetime.fromisoformat(value) if re.match(r"\d{4}-", str(value)) else value


def typed(page):
    """What the fields of the task's form hold, as a browser would send it."""
    form = {}
    for tag, attrs in Tags(page).found:
        if tag == "input" and attrs.get("name") and attrs.get("type") not in {"radio", "checkbox"}:
            form[attrs["name"]] = "".join((attrs.get("value") or "").splitlines())
        if tag == "input" and "checked" in attrs:
            several = attrs["type"] == "checkbox"
            form[attrs["name"]] = [*form.get(attrs["name"], []), attrs["value"]] if several else attrs["value"]
    for name, content in re.findall(r'<textarea[^>]*name="(\w+)"[^>]*>(.*?)</textarea>', page, re.DOTALL):
        form[name] = html.unescape(content).replace("\n", "\r\n")
    for name, content in re.findall(r'<select[^>]*name="([\w-]+)"[^>]*>(.*?)</select>', page, re.DOTALL):
        chosen = re.search(r'<option (?:selected value="([^"]*)"|selected>([^<]*)<)', content)
        form[name] = (chosen[1] or chosen[2] or "") if chosen else ""
    return form


@pytest.mark.parametrize(("given", "schedule"), KINDS)
def test_each_kind_of_schedule_is_registered_by_the_form_and_comes_back_in_it(client, send, browser, given, schedule):
    answer = send("/tasks/new", **FORM | given)
    assert answer.status_code == 303, answer.text
    address = answer.headers["Location"]
    made = client.get(f"/api/v1{address}").json["schedule"]
    assert {name: comparable(made[name]) for name in schedule} == {
        name: comparable(value) for name, value in schedule.items()
    }
    assert browser.get(address).status_code == 200
    form = browser.get(f"{address}/edit").text
    assert "Adds" not in form
    assert "Takes away" not in form
    before = client.get(f"/api/v1{address}").json
    assert send(f"{address}/edit", **typed(form) | {"save": "yes"}).status_code == 303
    assert client.get(f"/api/v1{address}").json == before


def test_every_field_of_the_form_reaches_the_task_and_saving_it_again_changes_nothing(client, send, browser):
    given = FORM | {
        "name": "all of it", "description": "What it does.", "labels": "team: billing\nregion: eu", "args": "[1]",
        "kwargs": '{"deep": [true]}', "queue": "reports", "priority": "9", "starts_at": "2090-01-01T00:00",
        "ends_at": "2091-01-01T00:00", "max_runs": "5", "jitter": "2.5", "timeout": "30", "overlap": "allow",
        "catchup_policy": "all", "catchup_window": "60", "max_attempts": "3", "backoff": "0.5", "backoff_max": "60",
        "pause_after_failures": "4", "timezone": "Europe/Paris", "notify": "own", "notify_on": ["failed", "late"],
        "notify_webhook": "https://example.com/hook",
    }  # fmt: skip
    address = send("/tasks/new", **given).headers["Location"]
    made = client.get(f"/api/v1{address}").json
    expected = {
        "name": "all of it", "description": "What it does.", "labels": {"team": "billing", "region": "eu"},
        "args": [1], "kwargs": {"deep": [True]}, "queue": "reports", "priority": 9, "max_runs": 5, "jitter": 2.5,
        "starts_at": "2089-12-31T23:00:00.000Z", "ends_at": "2090-12-31T23:00:00.000Z", "timeout": 30,
        "overlap": "allow", "catchup": {"policy": "all", "window": 60}, "pause_after_failures": 4,
        "notify": {"on": ["failed", "late"], "webhook": "https://example.com/hook", "email": []},
        "retry": {"max_attempts": 3, "backoff": 0.5, "backoff_max": 60, "jitter": False},
    }  # fmt: skip
    assert {name: made[name] for name in expected} == expected
    assert send(f"{address}/edit", **typed(browser.get(f"{address}/edit").text) | {"save": "yes"}).status_code == 303
    assert client.get(f"/api/v1{address}").json == made


ODD = [
    {"description": "two\nlines, and a blank at the end "},
    {"labels": {"a": " padded", "b": "two\nlines"}},
    {"args": [1, True, None, 1.0, "é", {"__": [0.1]}], "kwargs": {"url": "two\nlines", "n": 1, "flag": None}},
    {"kwargs": {"flag": True, "url": "", "n": "1", "name": "x", "target": 5, "kind": {"a": 1}}},
    {"kwargs": {"flag": 1, "url": 5, "n": [1], "kw-url": "y"}},
    {"schedule": {"type": "once", "at": "2026-01-01T00:00:00.123456Z"}},
    {"schedule": {"type": "interval", "every": 1.001, "anchor": "2026-01-01T00:00:00.000001Z"}},
    {"schedule": {"type": "interval", "every": 90061.5}},
    {"schedule": {"type": "now"}, "notify": {"on": []}},
    {"schedule": {"type": "rrule", "rule": "FREQ=DAILY", "starts": "2026-10-25T01:30:00Z", "timezone": "Europe/Paris"}},
    {
        "schedule": {"type": "cron", "expression": "@hourly", "timezone": "Europe/Paris"},
        "starts_at": "2090-10-29T01:30:00Z",
        "ends_at": "2091-01-01T00:00:00.5Z",
        "catchup": {"policy": "all", "window": 0.5},
        "retry": {"max_attempts": 3, "backoff": 0.25, "backoff_max": 1.5, "jitter": False},
        "jitter": 0.125,
        "max_runs": 7,
        "priority": 0,
        "timeout": 1.5,
        "overlap": "queue",
        "pause_after_failures": 2,
        "notify": {"on": ["paused"]},
        "queue": "a.b-c",
    },
]
"""What a client may register, and a form shows less exactly."""


@pytest.mark.parametrize("given", ODD, ids=range(len(ODD)))
def test_saving_a_form_that_nobody_touched_changes_nothing(client, browser, send, register, given):
    with db.transaction() as session:
        parameters = [("url", "str"), ("n", "int"), ("flag", "bool")]
        session.get(Target, "debug.echo").parameters = [
            {"name": name, "kind": "keyword_only", "default": "None", "annotation": annotation}
            for name, annotation in parameters
        ] + [
            {"name": name, "kind": f"var_{name}", "default": None, "annotation": None}
            for name in ("keyword", "positional")
        ]
    task = register(**given)
    address = f"/tasks/{task['id']}/edit"
    form = typed(browser.get(address).text)
    answer = send(address, **form | {"save": "yes"})
    assert answer.status_code == 303, answer.text
    after = client.get(f"/api/v1/tasks/{task['id']}").json
    assert after == task | {"target_available": after["target_available"]}
    # and one change is that change alone
    send(address, **form | {"save": "yes", "pause_after_failures": "9"})
    changed = client.get(f"/api/v1/tasks/{task['id']}").json
    differs = {name for name in changed if changed[name] != after[name]}
    assert differs == {"pause_after_failures", "version", "updated_at"}


def test_a_task_that_is_duplicated_is_a_new_one(client, browser, send, register):
    task = register(name="model", schedule={"type": "now"}, kwargs={"a": 1})
    page = browser.get(f"/tasks/new?like={task['id']}").text
    assert "<h1>New task</h1>" in page
    address = send(f"/tasks/new?like={task['id']}", **typed(page) | {"save": "yes"}).headers["Location"]
    made = client.get(f"/api/v1{address}").json
    assert (made["name"], made["kwargs"]) == ("model-copy", {"a": 1})
    assert made["schedule"]["at"] != task["schedule"]["at"]
    assert client.get(f"/api/v1/tasks/{task['id']}").json["version"] == 1


def test_an_emptied_name_leaves_the_name(client, send, register):
    task = register(name="kept")
    assert send(f"/tasks/{task['id']}/edit", **FORM, name="", version="1").status_code == 303
    assert client.get(f"/api/v1/tasks/{task['id']}").json["name"] == "kept"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"target": ""}, "target"),
        ({"unit": "abc"}, "unit"),
        ({"kind": ""}, "kind"),
        ({"kind": "whenever"}, "kind"),
        ({"target": "nobody.offers"}, "target"),
        ({"kind": "cron", "expression": "61 * * * *"}, "expression"),
        ({"every": "often"}, "every"),
        ({"every": "0"}, "every"),
        ({"kind": "once", "at": "tomorrow"}, "at"),
        ({"kind": "once", "at": ""}, "at"),
        ({"kind": "rrule", "rule": "FREQ=NEVER", "starts": "2026-01-01T09:00"}, "rule"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"args": "[1"}, "args"),
        ({"kwargs": "[]"}, "kwargs"),
        ({"priority": "ten"}, "priority"),
        ({"timeout": "0"}, "timeout"),
        ({"max_attempts": "0"}, "max_attempts"),
        ({"catchup_window": "-1"}, "catchup_window"),
        ({"ends_at": "2000-01-01T00:00", "starts_at": "2001-01-01T00:00"}, "ends_at"),
        ({"queue": "amq.mine"}, "queue"),
        ({"pause_after_failures": "0"}, "pause_after_failures"),
        ({"notify": "own", "notify_webhook": "example.com"}, "notify_webhook"),
        ({"notify": "own", "notify_email": "me"}, "notify_email"),
    ],
)
def test_what_is_wrong_is_said_at_its_field_and_nothing_typed_is_lost(send, given, field):
    answer = send("/tasks/new", **FORM | given | {"description": "Typed with care."})
    assert answer.status_code == 422, answer.text
    tags = Tags(answer.text).found
    blamed = [attrs.get("aria-describedby") for _, attrs in tags if attrs.get("aria-invalid") == "true"]
    assert blamed == [f"{field}-problem"]
    assert [attrs for _, attrs in tags if attrs.get("id") == f"{field}-problem"]
    assert "Typed with care." in answer.text


def test_arguments_have_fields_from_the_targets_signature(client, send, browser):
    with db.transaction() as session:
        target = session.get(Target, "http.request")
        kind = "positional_or_keyword"
        target.parameters = [
            {"name": "url", "kind": kind, "default": None, "annotation": "str"},
            {"name": "expect", "kind": kind, "default": "None", "annotation": "list[int] | None"},
        ]
    given = FORM | {"target": "http.request"}
    part = send("/tasks/new", **given, look="yes").text
    assert {"kw-url", "kw-expect"} <= {attrs.get("name") for _, attrs in Tags(part).found}
    lacking = send("/tasks/new", **given)
    assert lacking.status_code == 422
    assert "http.request needs it." in lacking.text
    address = send("/tasks/new", **given, **{"kw-url": "https://a.example", "kw-expect": "[200]"}).headers["Location"]
    assert client.get(f"/api/v1{address}").json["kwargs"] == {"url": "https://a.example", "expect": [200]}
    form = browser.get(f"{address}/edit").text
    assert {"https://a.example", "[200]"} <= {attrs.get("value") for _, attrs in Tags(form).found}


def test_while_one_types_the_form_tells_the_words_the_slots_and_what_surprises(send, browser):
    def outlook(**given):
        page = token(browser.get("/tasks/new").text)
        return browser.post("/tasks/new", data=FORM | given | {"csrf_token": page}, headers={"X-Part": "outlook"}).text

    told = outlook(kind="cron", expression="0 0 31 * *", timezone="Europe/Paris")
    assert "Day 31" in told
    assert told.count("<li>") == 5
    never = browser.post(
        "/tasks/new",
        data={"kind": "cron", "expression": "0 0 30 2 *", "csrf_token": token(browser.get("/tasks/new").text)},
        headers={"X-Part": "outlook"},
    ).text
    assert "problem" in never


def test_an_edit_shows_which_slots_it_adds_and_takes_away(browser, send, register):
    task = register(schedule={"type": "cron", "expression": "0 9 * * *"})
    address = f"/tasks/{task['id']}/edit"
    given = typed(browser.get(address).text) | {"look": "yes"}
    moved = send(address, **given | {"expression": "0 10 * * *"})
    assert moved.status_code == 200
    assert "Adds" in moved.text
    assert "Takes away" in moved.text
    later = send(address, **given | {"starts_at": "2090-01-01T00:00"})
    assert "2090-01-01 09:00:00 UTC" in later.text
    assert "Takes away" in later.text


def test_an_edit_of_what_somebody_else_has_changed_is_refused(client, send, register):
    task = register(name="shared")
    client.patch(f"/api/v1/tasks/{task['id']}", json={"description": "theirs"})
    answer = send(f"/tasks/{task['id']}/edit", **FORM, name="shared", description="mine", version="1")
    assert answer.status_code == 422
    assert "Somebody changed this task meanwhile" in answer.text
    assert ">mine</textarea>" in answer.text
    again = typed(answer.text) | {"save": "yes"}
    assert again["version"] == "2"
    assert send(f"/tasks/{task['id']}/edit", **again).status_code == 303
    assert client.get(f"/api/v1/tasks/{task['id']}").json["description"] == "mine"


def test_a_name_that_is_taken_is_said_at_the_name(send, register):
    register(name="taken")
    answer = send("/tasks/new", **FORM, name="taken")
    assert answer.status_code == 422
    assert "taken by another task" in answer.text


def test_pausing_with_a_note_resuming_running_and_deleting(client, browser, send, task):
    address = f"/tasks/{task['id']}"
    assert send(f"{address}/pause", note="The bank is closed.").headers["Location"] == address
    assert "The bank is closed." in browser.get(address).text
    assert client.get(f"/api/v1{address}").json["note"] == "The bank is closed."
    send(f"{address}/resume", **{"from": "now"})
    assert client.get(f"/api/v1{address}").json["state"] == "active"
    run = send(f"{address}/run", args="[5]", kwargs="").headers["Location"]
    assert browser.get(run).status_code == 200
    assert send(f"{address}/run", args="[5").status_code == 422
    assert send(f"{address}/delete").headers["Location"] == "/tasks"
    assert client.get(f"/api/v1{address}").status_code == 404
    assert "deleted" in browser.get(address).text


def test_a_selection_is_steered_together_and_what_does_not_fit_is_said(client, browser, send, register):
    chosen = [register(name=f"one-{n}") for n in range(50)]
    ids = [task["id"] for task in chosen]
    answer = send("/tasks/selection", action="pause", task=[*ids, "no id"], back="/tasks?state=active")
    assert answer.headers["Location"] == "/tasks?state=active"
    assert "50 tasks paused." in browser.get("/tasks").text
    assert {task["state"] for task in client.get("/api/v1/tasks?limit=60").json["items"]} == {"paused"}
    client.delete(f"/api/v1/tasks/{ids[0]}")
    send("/tasks/selection", action="resume", task=ids[:2])
    said = browser.get("/tasks").text
    assert "1 task resumed." in said
    assert "1 task left as it was" in said
    assert send("/tasks/selection", action="explode", task=ids).status_code == 400


def test_a_backfill_is_counted_first_and_made_when_it_is_confirmed(client, browser, send, register):
    since = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3, minutes=1)
    task = register(schedule={"type": "interval", "every": 3600, "anchor": since.isoformat()})
    span = {
        "since": f"{since:%Y-%m-%dT%H:%M:%S}", "until": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}", "zone": "UTC",
    }  # fmt: skip
    counted = send(f"/tasks/{task['id']}/backfill", **span)
    assert "4 past slots" in counted.text
    assert client.get(f"/api/v1/tasks/{task['id']}/runs").json["items"] == []
    done = send(f"/tasks/{task['id']}/backfill", **span, confirmed="4")
    assert done.status_code == 303
    assert len(client.get(f"/api/v1/tasks/{task['id']}/runs").json["items"]) == 4


def test_a_failed_run_shows_why_and_is_retried_and_a_waiting_one_is_cancelled(client, browser, send, task, run):
    assert send(f"/runs/{run['id']}/cancel").headers["Location"] == f"/runs/{run['id']}"
    assert client.get(f"/api/v1/runs/{run['id']}").json["state"] == "cancelled"
    assert send(f"/runs/{run['id']}/retry").status_code == 409
    error = {"type": "ValueError", "message": "no such account", "traceback": "Traceback: in pay()"}
    fail_all(error=error)
    page = browser.get(f"/runs/{run['id']}").text
    assert "no such account" in page
    assert "in pay()" in page
    send(f"/runs/{run['id']}/retry")
    assert client.get(f"/api/v1/runs/{run['id']}").json["state"] == "retrying"


def test_the_stage_that_made_a_run_late_is_named(client, browser, task, run):
    with db.transaction() as session:
        slot = db.now(session) - timedelta(minutes=5)
        session.query(Run).update(
            {
                "fired_at": slot + timedelta(seconds=1),
                "published_at": slot + timedelta(seconds=2),
                "started_at": slot + timedelta(seconds=62),
                "scheduled_for": slot,
                "attempt_started_at": slot + timedelta(seconds=62),
            }
        )
    page = browser.get(f"/runs/{run['id']}").text
    assert page.count("This made it late.") == 1
    assert re.search(r'class="late">\s*<b>started</b>', page)


def test_lists_are_filtered_and_a_filter_that_cannot_be_read_is_said(browser, register):
    register(name="find-me", labels={"team": "billing"})
    register(name="other")
    for query in ("q=find", "label=team:billing", "q=FIND&order=name", "order=next&q=find", "state=active&q=find"):
        shown = browser.get(f"/tasks?{query}").text
        assert "find-me" in shown, query
        assert ">other<" not in shown, query
    assert "Must be key:value." in browser.get("/tasks?label=team").text
    assert "Must be a time" in browser.get("/runs?since=yesterday").text


NUL = base64.urlsafe_b64encode(json.dumps(["\0", str(UUID(int=0))]).encode()).decode().rstrip("=")
"""A cursor that no page gave: behind a name that no task can have."""


@pytest.mark.parametrize(
    "address",
    [
        "/week?hour=%C2%B2",
        f"/week?hour={'9' * 5000}",
        "/week?hour=2000-01-01T00:00:00Z",
        "/tasks?q=%00",
        "/runs?target=%00",
        "/tasks?after=x",
        "/tasks/new?like=%00",
        f"/tasks?order=name&after={NUL}",
        "/tasks?order=x&state=y&label=z",
        "/runs?task_id=x&state=y&until=z",
    ],
)
def test_a_broken_address_is_answered_with_a_page(browser, address):
    assert browser.get(address).status_code in {200, 404, 422}
    assert browser.get(address, headers={"X-Part": "content"}).status_code in {200, 404, 422}


def test_a_form_that_holds_what_no_column_takes_is_shown_again(send, register):
    for given in ({"target": "a\0b"}, {"name": "a\0b"}, {"kwargs": '{"a": "\\u0000"}'}, {"labels": "a\0: b"}):
        answer = send("/tasks/new", **FORM | given)
        assert answer.status_code == 422, given
        assert "U+0000" in answer.text
    task = register()
    assert send(f"/tasks/{task['id']}/edit", **FORM, name="x", version="9" * 5000).status_code == 303


def test_a_form_that_is_too_large_is_refused(send):
    assert send("/tasks/new", **FORM, description="x" * 300_000).status_code == 413


@pytest.mark.parametrize("order", ["newest", "name", "next"])
def test_each_order_has_every_task_once_page_by_page(browser, register, monkeypatch, order):
    monkeypatch.setattr("web.ui.tasks.LIMIT", 7)
    names = {
        register(name=f"task-{n:02}", schedule={"type": "interval", "every": 60 + n % 3})["name"] for n in range(20)
    }
    seen, address = [], f"/tasks?order={order}"
    while address:
        page = browser.get(address).text
        seen += re.findall(r'">(task-\d\d)</a>', page)
        following = [attrs["href"] for tag, attrs in Tags(page).found if attrs.get("rel") == "next"]
        address = following[0] if following else None
    assert len(seen) == 20
    assert set(seen) == names
    assert order != "name" or seen == sorted(seen)


def test_the_week_counts_runs_per_hour_and_tells_by_which_schedules(browser, register):
    for number in range(3):
        register(name=f"midnight-{number}", schedule={"type": "cron", "expression": "0 0 * * *"})
    register(schedule={"type": "interval", "every": 1800})
    register(schedule={"type": "once", "at": (datetime.now(UTC) + timedelta(hours=30)).isoformat()})
    page = browser.get("/week").text
    cells = [attrs for tag, attrs in Tags(page).found if tag == "a" and attrs.get("class", "").startswith("l")]
    assert len(cells) == 169  # the same hour a week later is the last one
    # the hour that runs is not asked: of it only the rest counts, and it may be midnight's
    midnights = [attrs for attrs in cells[1:] if " 00:00 UTC" in attrs["title"]]
    assert all(attrs["title"].endswith(("5 runs", "6 runs")) for attrs in midnights)
    assert "Every day at 00:00" in browser.get(midnights[0]["href"]).text


@pytest.fixture
def forecast_anew(monkeypatch):
    monkeypatch.setattr(forecast, "RECENT", 0.0)
    monkeypatch.setattr(forecast._Last, "until", 0.0)


def a_worker(processes, name="w"):
    """A worker that is there for a day."""
    now = datetime.now(UTC)
    details = {"queues": ["default"], "processes": processes, "running": 0, "versions": {}}
    node = {"name": name, "kind": "worker", "started_at": now, "seen_at": now + timedelta(days=1), "details": details}
    with db.transaction() as session:
        session.execute(insert(Node).values(**node))


def has_taken(task, seconds):
    """It is known of a task how long its runs take."""
    now = datetime.now(UTC)
    known = {"target": task["target"], "seconds": seconds, "runs": 8, "newest": now, "made_at": now}
    with db.transaction() as session:
        session.execute(insert(Duration).values(task_id=UUID(task["id"]), **known))


def test_the_forecast_says_what_is_late_why_and_what_would_do(browser, register):
    assert "Nothing falls due" in browser.get("/forecast").text
    for number in range(30):
        task = register(name=f"noon-{number}", schedule={"type": "cron", "expression": "0 12 * * *"})
        has_taken(task, 2.0)
    register(queue="reports")
    alone = browser.get("/forecast").text
    assert "No worker serves the queue default: its 30 runs would wait." in alone
    a_worker(2)
    page = browser.get("/forecast").text
    assert re.search(r"1 minute\b.*late|late.*1 minute\b", page, re.DOTALL | re.IGNORECASE)
    assert "Every day at 12:00" in page
    assert "6 processes in place of 2" in page
    assert "No worker serves the queue default" not in page
    bars = [attrs for tag, attrs in Tags(page).found if tag == "rect" and attrs["class"] == "late"]
    assert len(bars) >= 2  # in each of the two charts
    of_one = browser.get("/forecast?queue=reports").text
    assert "Every day at 12:00" not in of_one
    assert "No worker serves the queue reports" in of_one


def test_the_form_says_what_a_task_would_do_to_the_next_day(browser, send, register, forecast_anew):
    a_worker(2)
    for number in range(11):
        task = register(name=f"noon-{number}", schedule={"type": "cron", "expression": "0 12 * * *"})
        has_taken(task, 1.8)
    given = typed(browser.get("/tasks/new").text) | {"target": "debug.echo", "kind": "cron", "timezone": "UTC"}
    browser_asks = {"X-Part": "load"}

    def load(**changed):
        csrf = {"csrf_token": token(browser.get("/tasks/new").text)}
        return browser.post("/tasks/new", data=given | changed | csrf, headers=browser_asks).text

    assert "No run starts late" in load(expression="0 18 * * *")
    has_taken(register(name="slow", schedule={"type": "once", "at": "2099-01-01T00:00:00Z"}), 100.0)
    late = load(expression="0 12 * * *")
    assert "would start late" in late
    assert "1 minute" in late
    assert load(expression="no cron").strip() == ""
    assert "It is not due in the next day" in load(expression=f"0 0 {(datetime.now(UTC) + timedelta(days=9)).day} * *")
    assert "<html" not in late
    whole = send("/tasks/new", **given | {"expression": "0 18 * * *", "look": "yes"}).text
    assert "In the next day" in whole
    assert "In the next day" not in browser.get("/tasks/new").text


def test_the_calendar_of_a_task_needs_no_session_and_is_of_that_task_alone(app, browser, register):
    task = register(name="pay; the, bills", schedule={"type": "cron", "expression": "0 9 * * *"})
    page = browser.get(f"/tasks/{task['id']}").text
    [address] = [attrs["href"] for tag, attrs in Tags(page).found if "/calendar/" in (attrs.get("href") or "")]
    path = address.removeprefix("http://localhost")
    answer = app.test_client().get(path)
    assert answer.content_type == "text/calendar; charset=utf-8"
    assert answer.text.count("BEGIN:VEVENT") == 50
    assert "SUMMARY:pay\\; the\\, bills\r\n" in answer.text
    assert all(len(line.encode()) <= 75 for line in answer.text.split("\r\n"))
    assert app.test_client().get(path.replace(".ics", "x.ics")).status_code == 404


def test_the_calendar_of_a_filter_has_the_slots_of_all_that_it_finds_in_their_order(app, browser, register):
    for hour in (9, 8):
        schedule = {"type": "cron", "expression": f"0 {hour} * * *"}
        register(name=f"at-{hour}", labels={"team": "billing"}, schedule=schedule)
    register(name="other", schedule={"type": "cron", "expression": "0 7 * * *"})
    page = browser.get("/week?label=team:billing").text
    [address] = [attrs["href"] for tag, attrs in Tags(page).found if "/calendar/" in (attrs.get("href") or "")]
    told = app.test_client().get(address.removeprefix("http://localhost")).text
    starts = re.findall(r"DTSTART:(\S+)", told)
    assert len(starts) == 100
    assert starts == sorted(starts)
    assert set(re.findall(r"SUMMARY:(\S+)", told)) == {"at-8", "at-9"}


def test_an_unknown_page_is_a_page_and_a_store_that_is_away_is_said_on_one(browser, no_database):
    missing = browser.get("/nothing", headers={"Accept": "text/html"})
    assert (missing.status_code, missing.content_type) == (404, "text/html; charset=utf-8")
    answer = browser.get("/tasks")
    assert answer.status_code == 503
    assert "store is away" in answer.text
    assert answer.headers["Retry-After"]


def test_without_a_task_the_pages_say_what_to_do_first(browser):
    for address in ("/", "/tasks"):
        assert "/tasks/new" in browser.get(address).text
    assert "No beat runs" in browser.get("/cluster").text


def test_a_key_is_made_in_a_browser_shown_once_and_revoked(app, browser, client, send):
    answer = send(
        "/keys",
        name="billing",
        role="editor",
        labels="team:billing, tier : gold",
        queues="reports",
        expires_at="2090-01-01T10:00",
    )
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    key = re.search(r"punc_\w{50}", answer.text)[0]
    [listed] = client.get("/api/v1/keys").json["items"]
    assert (listed["name"], listed["role"], listed["queues"]) == ("billing", "editor", ["reports"])
    assert listed["labels"] == {"team": "billing", "tier": "gold"}
    assert listed["expires_at"] == "2090-01-01T10:00:00.000Z"
    page = browser.get("/keys").text
    assert key not in page
    assert "billing" in page
    assert app.test_client().get("/api/v1/tasks", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert send(f"/keys/{listed['id']}/revoke").status_code == 303
    assert "revoked" in browser.get("/keys").text
    assert app.test_client().get("/api/v1/tasks", headers={"Authorization": f"Bearer {key}"}).status_code == 401


def test_what_is_wrong_with_a_new_key_is_said_beside_what_was_typed(send):
    answer = send("/keys", name="x", role="king", queues="amq.x", labels="team:billing")
    assert answer.status_code == 422
    assert "role: " in answer.text
    assert "queues.0: " in answer.text
    assert 'value="team:billing"' in answer.text


def test_a_session_ends_with_its_key_and_after_a_week_at_most(client, visitor, monkeypatch):
    entered = visitor("viewer")
    assert entered.get("/tasks").status_code == 200
    [key, *_] = client.get("/api/v1/keys").json["items"]
    client.delete(f"/api/v1/keys/{key['id']}")
    assert entered.get("/tasks").status_code == 303
    other = visitor("viewer")
    assert other.get("/tasks").status_code == 200
    with other.session_transaction() as session:
        session["since"] -= auth.SESSION_KEPT.total_seconds() + 1
    assert other.get("/tasks").status_code == 303


def test_signing_in_leaves_nothing_of_the_session_before(browser, client):
    browser.get("/tasks")
    with browser.session_transaction() as session:
        session["left"] = "behind"
        before = dict(session)
    made = client.post("/api/v1/keys", json={"name": "x", "role": "viewer"}).json
    browser.post("/sign-in", data={"key": made["key"], "csrf_token": token(browser.get("/sign-in").text)})
    with browser.session_transaction() as session:
        assert "left" not in session
        assert {"nonce", "csrf_token", "key", "mark"} <= before.keys()
        assert not [name for name in ("nonce", "csrf_token", "key", "mark") if session.get(name) == before.get(name)]


@pytest.mark.parametrize(
    "changed", [{"key": "admin"}, {"mark": "0" * 64}, {"since": None}, {"since": 0}, {"key": None}, {"key": "x" * 12}]
)
def test_a_session_that_fits_no_key_is_none(visitor, changed):
    entered = visitor("viewer")
    with entered.session_transaction() as session:
        session.update(changed)
    assert entered.get("/tasks").status_code == 303


def test_who_changed_a_task_stands_on_its_page_for_those_who_may_read_it(browser, visitor, client, task):
    client.patch(f"/api/v1/tasks/{task['id']}", json={"priority": 9})
    page = browser.get(f"/tasks/{task['id']}").text
    assert "Who changed it" in page
    assert "<del>5</del> <ins>9</ins>" in page
    assert "Who changed it" not in visitor("editor").get(f"/tasks/{task['id']}").text
    log = browser.get("/audit").text
    assert log.count("<del>5</del> <ins>9</ins>") == 1
    assert "Nobody changed anything" in browser.get("/audit?action=revoke").text
    assert "since: " in browser.get("/audit?since=nonsense").text


def test_pages_show_a_confined_key_its_own_alone(visitor, register, client):
    register(name="mine-alone", labels={"team": "billing"})
    hidden = register(name="not-for-you")
    run = client.post(f"/api/v1/tasks/{hidden['id']}/run").json
    entered = visitor("editor", labels={"team": "billing"})
    for address in ("/", "/tasks", "/runs", "/week", "/cluster"):
        assert "not-for-you" not in entered.get(address).text, address
    assert "mine-alone" in entered.get("/tasks").text
    assert entered.get(f"/tasks/{hidden['id']}").status_code == 404
    assert entered.get(f"/runs/{run['id']}").status_code == 404


def test_a_calendar_shows_what_its_maker_sees_and_ends_with_the_key(app, visitor, register, client):
    register(name="mine-alone", labels={"team": "billing"})
    register(name="not-for-you")
    entered = visitor("viewer", labels={"team": "billing"})
    address = re.search(r'href="(http[^"]+\.ics)"', entered.get("/week").text)[1]
    calendar = app.test_client().get(address)
    assert "mine-alone" in calendar.text
    assert "not-for-you" not in calendar.text
    [key, *_] = client.get("/api/v1/keys").json["items"]
    client.delete(f"/api/v1/keys/{key['id']}")
    assert app.test_client().get(address).status_code == 404


@pytest.mark.parametrize("role", [*Role])
def test_each_page_and_form_answers_the_roles_that_its_rule_names_and_no_other(app, visitor, task, run, role):
    entered = visitor(role)
    rules = [rule for rule in app.url_map.iter_rules() if auth.RULES.get(rule.endpoint) and rule.endpoint[:3] == "ui."]
    for rule in sorted(
        rules, key=lambda rule: (rule.endpoint == "ui.sign_out", rule.endpoint == "ui.delete_task", rule.rule)
    ):
        address = rule.rule.replace("<uuid:task_id>", task["id"]).replace("<uuid:run_id>", run["id"])
        address = address.replace("<string:key_id>", "any")
        if "POST" in rule.methods:
            form = {"csrf_token": token(entered.get("/tasks").text), "action": "pause", "task": task["id"]}
            status = entered.post(address, data=form).status_code
        else:
            status = entered.get(address).status_code
        allowed = role.includes(auth.RULES[rule.endpoint])
        assert (status == 403) is not allowed, (rule.rule, status)
        assert status != 500


def test_a_silent_canary_is_the_first_thing_on_the_overview(browser):
    with db.transaction() as session:
        system.register(
            session,
            db.now(session) - timedelta(minutes=2),
            "punctual.canary.default",
            target=messages.CANARY,
            queue="default",
            schedule={"type": "interval", "every": 15},
        )
    assert "The canary on queue default has been silent for 2 min" in browser.get("/").text
    assert "2 min ago" in browser.get("/cluster").text
    listed = browser.get(f"/tasks?target={messages.CANARY}").text
    assert "punctual.canary.default" in listed
    assert 'type="checkbox" name="task"' not in listed, "nobody steers it"


@pytest.mark.parametrize("part", ["outlook", "load", "arguments", "live"])
def test_what_a_page_asks_for_by_itself_writes_back_no_session(browser, part):
    """It may be answered after a form that was sent meanwhile, and would undo what that one noted for the next page."""
    form = {"csrf_token": token(browser.get("/tasks/new").text), "target": "debug.echo", "kind": "now", "name": "n"}
    for answer in (
        browser.post("/tasks/new", data=form, headers={"X-Part": part}),
        browser.get("/", headers={"X-Part": part}),
    ):
        assert answer.status_code == 200
        assert "Set-Cookie" not in answer.headers
