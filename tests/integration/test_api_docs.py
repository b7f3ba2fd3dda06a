"""The OpenAPI document says the truth, and its page needs nothing from the internet."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[2] / "docs/api.md").read_text()
DOCUMENT = "/api/v1/openapi.json"


@pytest.fixture
def document(stranger):
    answer = stranger.get(DOCUMENT)
    assert answer.status_code == 200
    assert answer.content_type == "application/json"
    return answer.json


def operations(document):
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    }


def test_the_document_is_openapi_3_1_and_names_every_route(app, document):
    assert document["openapi"].startswith("3.1")
    routes = {
        (method, re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
        if not rule.endpoint.startswith(("ui.", "bootstrap.")) and not rule.rule.startswith(("/api/docs", DOCUMENT))
    }
    assert operations(document).keys() == routes


def test_every_operation_has_a_summary_of_one_sentence_and_describes_its_errors(document):
    for call, operation in operations(document).items():
        assert re.fullmatch(r"[A-Z][^.\n]+\.", operation["summary"]), call
        assert operation["responses"]["default"] == {"$ref": "#/components/responses/DEFAULT_ERROR"}


def test_only_health_and_metrics_need_no_key(document):
    assert document["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    public = {path for (_, path), operation in operations(document).items() if operation.get("security") == []}
    assert public == {"/healthz", "/readyz", "/metrics"}


def test_every_reference_leads_somewhere(document):
    for reference in set(re.findall(r"'\$ref': '#/([^']+)'", str(document))):
        place = document
        for part in reference.split("/"):
            place = place[part]


def test_a_task_is_described_field_by_field(document):
    schemas = document["components"]["schemas"]
    task, change = schemas["Task"], schemas["TaskChange"]
    assert task["required"] == ["schedule", "target"]
    assert task["additionalProperties"] is False
    assert task["properties"]["priority"] == {"type": "integer", "default": 5, "minimum": 0, "maximum": 9}
    assert task["properties"]["state"]["readOnly"] is True
    assert "required" not in change
    assert not [name for name, field in change["properties"].items() if "default" in field]
    assert {kind["title"] for kind in schemas["Schedule"]["oneOf"]} == {"now", "once", "cron", "interval", "rrule"}


class Links(HTMLParser):
    """What a page loads."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, _tag, attributes):
        self.found += [value for name, value in attributes if name in {"src", "href"}]


def test_the_page_loads_all_that_it_needs_from_here_and_without_a_key(stranger):
    page = stranger.get("/api/docs")
    assert (page.status_code, page.mimetype) == (200, "text/html")
    links = Links(page.text).found
    assert len(links) >= 3
    assert not re.search(r"(?:https?:)?//", page.text)
    for link in links:
        with stranger.get(link) as asset:
            assert (asset.status_code, len(asset.data) > 1000) == (200, True), link
    assert f'url: "{DOCUMENT}"' in page.text
    assert '"validatorUrl": null' in page.text  # it would be asked over the internet


def test_the_styles_load_nothing_more(stranger):
    with stranger.get("/api/docs/assets/swagger-ui.css") as asset:
        styles = asset.text
    assert not re.search(r"url\((?!\"?data:)", styles)
    assert "@import" not in styles


@pytest.mark.parametrize("path", ["nothing.js", "..%2f__init__.py", "%2e%2e/flask_swagger_ui.py", "/etc/passwd"])
def test_no_other_file_can_be_read_there(stranger, path):
    assert stranger.get(f"/api/docs/assets/{path}").status_code == 404


def test_the_guide_names_every_call(document):
    calls = {(method, f"/api/v1{path}") for method, path in re.findall(r"^\| `(\w+) (/\S+)` \|", GUIDE, re.MULTILINE)}
    assert calls == {call for call in operations(document) if call[1].startswith("/api/v1")}


@pytest.mark.parametrize("text", re.findall(r"```json\n(.*?)```|/tasks --json '(.*?)'", GUIDE, re.DOTALL), ids=str)
def test_the_tasks_in_the_guide_can_be_registered(client, text):
    answer = client.post("/api/v1/tasks", json=json.loads("".join(text)))
    assert answer.status_code == 201, answer.json
