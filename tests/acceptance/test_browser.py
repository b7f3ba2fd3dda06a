"""The pages in a real Chromium on a running stack, as a person uses them: at a desk and on a telephone.

Screenshots are kept in `.data/screenshots`, to be looked at.
"""

import os
import re
import shutil
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import expect, sync_playwright
from stack import KEY
from stores import BY_HAND, ROOT

SHOTS = ROOT / ".data" / "screenshots"
SIZES = {"desk": {"width": 1280, "height": 900}, "telephone": {"width": 360, "height": 740}}
WIDE = {"width": 2560, "height": 1200}
QUIET = [
    "--no-sandbox",  # root has none
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SECRET = "a key for tests only"
"""What the stack signs sessions with."""

STILL = 0.02
"""A layout shift, as browsers measure it, that nobody sees; a tenth is what they call good."""

SOON = 20_000
"""Milliseconds for what takes a beat, a worker and a refresh."""


@pytest.fixture(scope="module")
def chromium():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs Chromium: set CHROMIUM to its path")
    expect.set_options(timeout=SOON)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def stack(chromium, make_stack):
    made = make_stack("redis")
    made.start_all()
    yield made
    made.stop_all()


class Visit:
    """A page that is signed in, and what went wrong in it."""

    def __init__(self, context, base):
        self.base = base
        self.page = context.new_page()
        self.errors = []
        self.foreign = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._see)
        self.page.on("dialog", lambda dialog: dialog.accept())
        self.sign_in(KEY)

    def sign_in(self, key):
        self.page.goto(f"{self.base}/sign-in?back=/tasks")
        self.page.get_by_label("Your API key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("heading", name="Tasks")).to_be_visible()

    def _hear(self, message):
        if message.type == "error" and "status of 4" not in message.text:
            self.errors.append(message.text)

    def _see(self, request):
        if not request.url.startswith((self.base, "data:")):
            self.foreign.append(request.url)

    def open(self, address):
        self.page.goto(self.base + address)
        return self.page

    def shoot(self, name):
        """Keeps a picture, and looks whether anything sticks out at the side."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
        over = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over <= 0, f"{name} sticks out by {over} px"


@pytest.fixture(params=SIZES)
def visit(request, chromium, stack):
    """A visit at each size; at its end nothing was loaded from elsewhere and nothing failed."""
    with visiting(chromium, stack, viewport=SIZES[request.param]) as made:
        yield made


@contextmanager
def visiting(chromium, stack, **options):
    context = chromium.new_context(timezone_id="Europe/Paris", locale="en-GB", **options)
    context.set_default_timeout(SOON)
    made = Visit(context, f"http://127.0.0.1:{stack.port}")
    yield made
    context.close()
    assert made.errors == []
    assert made.foreign == []


@pytest.fixture
def size(visit):
    return "telephone" if visit.page.viewport_size["width"] < 640 else "desk"


def fill(page, **fields):
    for name, value in fields.items():
        page.locator(f"[name={name}]").fill(value)


def register(page, kind, name, **fields):
    """Fills in the form and sends it; returns the address of the task."""
    page.locator("[name=target]").fill("debug.echo")
    page.locator(f".kind:has([value={kind}])").click()
    fill(page, name=name, **fields)
    page.get_by_role("button", name="Register").click()
    expect(page.get_by_text(f"{name} is registered.")).to_be_visible()
    return re.search(r"/tasks/[\w-]+$", page.url)[0]


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("cron", {"expression": "0 9 * * MON-FRI"}, "Every weekday at 09:00, Europe/Paris time"),
        ("interval", {"every": "90"}, "Every 90 minutes"),
        ("once", {"at": "2090-12-24T18:00:00"}, "Once"),
        (
            "rrule",
            {"rule": "FREQ=MONTHLY;BYDAY=-1FR", "starts": "2026-01-01T09:00:00"},
            "Every month on the last Friday",
        ),
    ],
)
def test_each_kind_of_schedule_is_registered_and_its_meaning_shown_while_one_types(visit, size, kind, fields, words):
    page = visit.open("/tasks/new")
    expect(page.locator("[name=timezone]")).to_have_value("Europe/Paris")
    page.locator(f".kind:has([value={kind}])").click()
    fill(page, **fields)
    expect(page.locator("#outlook .words")).to_contain_text(words)
    visit.shoot(f"new-{kind}-{size}")
    register(page, kind, f"{kind}-on-{size}", **fields)
    expect(page.locator(".words").first).to_contain_text(words)


def test_a_run_turns_from_due_to_succeeded_before_ones_eyes(visit, size):
    page = visit.open("/tasks/new")
    soon = datetime.now(UTC) + timedelta(seconds=20)
    fill(page, timezone="UTC")
    address = register(page, "once", f"soon-on-{size}", at=f"{soon:%Y-%m-%dT%H:%M:%S}")
    page.evaluate("window.mine = 'still the same page'")
    expect(page.locator("#live .state").first).to_contain_text("active")
    expect(page.locator("#live .state", has_text="succeeded")).to_be_visible(timeout=2 * SOON)
    expect(page.locator("#live .state").first).to_contain_text("completed")
    assert page.evaluate("window.mine") == "still the same page"
    visit.shoot(f"task-{size}")
    page.locator("#live .state", has_text="succeeded").click()
    expect(page.locator(".way li").last).to_contain_text("finished")
    visit.shoot(f"run-{size}")
    assert address


def test_a_failing_task_is_understood_mended_and_its_run_retried(visit, size, stack):
    task = stack.create(name=f"broken-on-{size}", target="debug.fail", kwargs={"times": 1}, schedule={"type": "now"})
    stack.ended(task)
    page = visit.open("/")
    page.get_by_role("link", name="failed").first.click()
    expect(page.get_by_role("heading", name="What went wrong")).to_be_visible()
    expect(page.locator("pre.trace").first).to_contain_text("RuntimeError")
    visit.shoot(f"failed-{size}")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("h1")).to_contain_text("succeeded", timeout=SOON)
    expect(page.get_by_role("row").filter(has_text="2")).not_to_have_count(0)


def test_a_task_is_edited_with_its_slots_shown_paused_with_a_note_and_resumed(visit, size, stack):
    task = stack.create(name=f"edited-on-{size}", schedule={"type": "cron", "expression": "0 9 * * *"})
    page = visit.open(f"/tasks/{task['id']}/edit")
    fill(page, expression="0 10 * * *")
    expect(page.locator("#outlook .added")).to_be_visible()
    expect(page.locator("#outlook .removed")).to_be_visible()
    visit.shoot(f"edit-{size}")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".words").first).to_contain_text("Every day at 10:00")
    page.get_by_label("Why, for whoever comes by").fill("The bank is closed.")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#live")).to_contain_text("The bank is closed.")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#live .state").first).to_contain_text("active")


def test_what_is_typed_wrong_is_said_where_it_was_typed(visit, size):
    page = visit.open("/tasks/new")
    fill(page, target="debug.echo", expression="61 * * * *")
    page.get_by_role("button", name="Register").click()
    expect(page.locator("#expression-problem")).to_be_visible()
    expect(page.locator("[name=expression]")).to_have_attribute("aria-invalid", "true")
    visit.shoot(f"wrong-{size}")


def test_arguments_get_fields_as_the_target_is_chosen(visit):
    page = visit.open("/tasks/new")
    fill(page, target="debug.sleep")
    page.get_by_label("seconds").fill("0.1")
    page.locator(".kind:has([value=now])").click()
    page.get_by_role("button", name="Register").click()
    expect(page.locator("pre.json")).to_contain_text('"seconds": 0.1')


def test_fifty_tasks_are_found_as_one_types_and_paused_together(visit, size, stack):
    name = f"many-{size}"
    given = [{"name": f"{name}-{n}", "target": "debug.echo", "schedule": {"type": "interval", "every": 86400}}
             for n in range(50)]  # fmt: skip
    assert stack.api.post("/tasks/bulk", json={"items": given}).status_code == 201
    page = visit.open("/tasks")
    page.get_by_label("Search").fill(name)
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(50)
    expect(rows.first).to_contain_text(name)
    expect(page).to_have_url(re.compile(f"q={name}"))
    expect(page.locator("#live")).to_have_attribute("aria-busy", "false")
    page.get_by_label("Select all on this page").check()
    visit.shoot(f"selection-{size}")
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_text("50 tasks paused.")).to_be_visible()
    expect(page.locator("tbody .state").filter(has_text="paused")).to_have_count(50)


def test_a_backfill_is_counted_and_then_run(visit, size, stack):
    since = datetime.now(UTC) - timedelta(hours=3, minutes=1)
    task = stack.create(
        name=f"backfilled-on-{size}", schedule={"type": "interval", "every": 3600, "anchor": since.isoformat()}
    )
    page = visit.open(f"/tasks/{task['id']}")
    form = page.locator("form", has=page.get_by_role("heading", name="Backfill"))
    form.locator("[name=since]").fill(f"{since - timedelta(minutes=1):%Y-%m-%dT%H:%M:%S}")
    form.locator("[name=until]").fill(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}")
    form.get_by_role("button").click()
    expect(page.get_by_text("4 past slots")).to_be_visible()
    page.get_by_role("button", name="Run 4 slots").click()
    expect(page.locator("#live .state", has_text="succeeded")).to_have_count(4, timeout=SOON)
    assert {run["trigger"] for run in stack.runs(task)} == {"backfill"}


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=BY_HAND), "dark"])
def test_every_page_fits_its_window_and_reads_well(chromium, stack, scheme):
    stack.create(name=f"{'long' * 40} as names may be, {scheme}", target="debug.fail",
                 schedule={"type": "interval", "every": 1}, labels={"team": "billing"}, max_runs=3)  # fmt: skip
    for name, size in {**SIZES, "wide": WIDE}.items():
        with visiting(chromium, stack, viewport=size, color_scheme=scheme) as visit:
            for page in ("", "tasks", "tasks/new", "runs", "week", "forecast", "cluster"):
                shown = visit.open(f"/{page}")
                expect(shown.locator("html")).to_have_attribute("data-bs-theme", scheme)
                visit.shoot(f"{page.replace('/', '-') or 'overview'}-{name}-{scheme}")
                assert contrast(shown) == []


def test_a_viewer_is_offered_no_change_and_refused_it(chromium, stack):
    task = stack.create(name="for-all-to-see", schedule={"type": "interval", "every": 86400})
    with visiting(chromium, stack, viewport=SIZES["desk"]) as visit:
        form = visit.open(f"/tasks/{task['id']}").locator("form", has_text="Run now").first
        sent = form.evaluate(
            "form => ({action: form.action, body: new URLSearchParams(new FormData(form)).toString()})"
        )
        visit.sign_in(stack.api.post("/keys", json={"name": "to look", "role": "viewer"}).json()["key"])
        for address in ("/", "/tasks", f"/tasks/{task['id']}", "/runs", "/week", "/forecast", "/cluster"):
            page = visit.open(address)
            offered = {name.strip() for name in page.get_by_role("button").all_inner_texts()}
            assert offered <= {"", "Sign out", "Find", "Show"}, address
            assert page.get_by_role("link", name=re.compile("New task|Edit|Duplicate")).count() == 0
        own = page.locator("[name=csrf_token]").first.get_attribute("value")
        sent["body"] = re.sub("csrf_token=[^&]*", f"csrf_token={own}", sent["body"])
        status = page.evaluate(
            """({action, body}) => fetch(action, {method: "POST", body,
                 headers: {"Content-Type": "application/x-www-form-urlencoded"}}).then((answer) => answer.status)""",
            sent,
        )
        assert status == 403
        assert stack.runs(task) == []


def test_a_key_is_made_used_and_revoked_by_who_never_read_the_documentation(chromium, stack, visit, size):
    page = visit.open("/")
    page.get_by_role("link", name="Keys").click()
    name = f"the dashboards of {size}"
    page.get_by_label("Whose it is").fill(name)
    page.get_by_role("button", name="Make it").click()
    key = page.locator("#made").inner_text()
    visit.shoot(f"keys-{size}")
    with visiting(chromium, stack, viewport=SIZES["desk"]) as other:
        other.sign_in(key)
        expect(other.open("/").get_by_role("link", name="Keys")).to_have_count(0)
        page.locator("tr", has_text=name).get_by_role("button", name="Revoke").click()
        expect(page.get_by_text(f"{name} opens nothing any more.")).to_be_visible()
        assert key not in page.content()
        until = time.monotonic() + 5
        while other.open("/tasks").get_by_label("Your API key").count() == 0:
            assert time.monotonic() < until, "a revoked key still opens after 5 s"
    page.get_by_role("link", name="Audit").click()
    expect(page.locator("tr", has_text=name).first).to_contain_text("revoke")
    visit.shoot(f"audit-{size}")


def test_nothing_jumps_when_a_page_refreshes(chromium, stack):
    for number in range(4):
        stack.create(name=f"busy-{number}", schedule={"type": "interval", "every": 1 + number}, max_runs=15)
    for size in SIZES.values():
        with visiting(chromium, stack, viewport=size) as visit:
            for address in ("/tasks", "/cluster"):
                page = visit.open(address)
                page.evaluate(
                    """() => { window.shifts = []; new PerformanceObserver((list) => window.shifts.push(
                         ...list.getEntries().map((each) => each.value))).observe({type: "layout-shift"}); }"""
                )
                with page.expect_response(lambda answer: answer.request.headers.get("x-part") == "live"):
                    pass
                page.wait_for_timeout(1_500)
                assert sum(page.evaluate("window.shifts")) < STILL, address


def test_the_form_says_what_a_task_would_do_without_a_jump(chromium, stack):
    for size in SIZES.values():
        with visiting(chromium, stack, viewport=size) as visit:
            page = visit.open("/tasks/new")
            fill(page, target="debug.echo", timezone="UTC", expression="0 9 * * *")
            expect(page.locator("#load")).to_contain_text("In the next day: 1 run")
            page.evaluate(
                """() => { window.shifts = []; new PerformanceObserver((list) => window.shifts.push(
                     ...list.getEntries().filter((each) => !each.hadRecentInput).map((each) => each.value)))
                     .observe({type: "layout-shift"}); }"""
            )
            with page.expect_response(lambda answer: answer.request.headers.get("x-part") == "load"):
                page.locator("[name=expression]").fill("*/30 * * * *")
            expect(page.locator("#load")).to_contain_text("48 runs")
            page.wait_for_timeout(500)
            assert sum(page.evaluate("window.shifts")) < STILL


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, under) => under.map((low, at) => low + (top[at] - low) * top[3] / 255);
  const ground = (element) => {
    if (!element) return [255, 255, 255];
    const own = rgb(getComputedStyle(element).backgroundColor);
    return own[3] === 255 ? own.slice(0, 3) : over(own, ground(element.parentElement));
  };
  const light = (colour) => colour.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const found = [];
  for (const element of document.querySelectorAll("main *, header *, footer *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const style = getComputedStyle(element);
    if (!text || !element.checkVisibility() || element.closest("svg, .sr, .gone, option, datalist")) continue;
    const under = ground(element);
    const [a, b] = [light(over(rgb(style.color), under)), light(under)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const told = `${element.tagName}.${element.className} ${element.textContent.trim().slice(0, 30)}`;
    if (ratio < 4.5) found.push(`${told} ${ratio.toFixed(2)}`);
  }
  return [...new Set(found)];
}"""
"""WCAG's ratio of each text to what lies under it; what is below 4.5 is returned."""


def contrast(page):
    return page.evaluate(CONTRAST)


def test_without_javascript_a_person_registers_finds_and_pauses(chromium, stack):
    with visiting(chromium, stack, viewport=SIZES["desk"], java_script_enabled=False) as visit:
        page = visit.open("/tasks/new")
        register(page, "cron", "without-a-script", expression="0 9 * * *")
        page.goto(f"{visit.base}/tasks")
        page.get_by_label("Search").fill("without-a-script")
        page.get_by_role("button", name="Find").click()
        expect(page.locator("tbody tr")).to_have_count(1)
        page.get_by_role("button", name="Pause without-a-script").click()
        expect(page.locator("tbody .state")).to_contain_text("paused")


def test_a_hidden_tab_asks_for_nothing_and_a_shown_one_for_little(chromium, stack):
    with visiting(chromium, stack, viewport=SIZES["desk"]) as visit:
        page = visit.open("/")
        asked = []
        page.on("request", lambda request: asked.append(request.url.removeprefix(visit.base)))
        with page.expect_request(f"{visit.base}/"):
            pass
        page.wait_for_timeout(3_000)  # the next one comes 5 s after the first
        assert [address for address in asked if not address.startswith("/ui/punctual.svg")] == ["/"]
        page.evaluate("Object.defineProperty(document, 'hidden', {value: true})")
        asked.clear()
        page.wait_for_timeout(6_000)
        assert asked == []


def test_all_can_be_reached_by_keyboard_and_everything_has_a_name(visit):
    for address in ("/", "/tasks", "/tasks/new", "/runs", "/week", "/cluster", "/keys", "/audit"):
        page = visit.open(address)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("a, button, input:not([type=hidden]), select, textarea")]
              .filter((each) => each.checkVisibility())
              .filter((each) => !(each.textContent.trim() || each.ariaLabel || each.title || each.labels?.length))
              .map((each) => each.outerHTML)"""
        )
        assert nameless == []
        assert page.locator("h1").count() == 1
        assert (
            page.evaluate("new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size")
            == page.locator("[id]").count()
        )
