"""Schemathesis against the running stack: whatever it makes of the OpenAPI document, each answer is as described."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stack import KEY

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
)
EXAMPLES = os.environ.get("EXAMPLES", "12")
SEED = os.environ.get("SEED", "1")
"""Cases of each call that are drawn; more of them, and others, by hand."""


@pytest.mark.parametrize("stack", ["redis"], indirect=True)
def test_no_call_answers_otherwise_than_the_document_says(stack, tmp_path):
    base = f"http://127.0.0.1:{stack.port}"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{base}/api/v1/openapi.json"),
        *("--header", f"Authorization: Bearer {KEY}", "--origin", base, "--workers", "2"),
        *("--phases", "examples,coverage,fuzzing,stateful", "--checks", ",".join(CHECKS)),
        *(
            "--max-examples",
            EXAMPLES,
            "--seed",
            SEED,
            "--continue-on-failure",
            "--suppress-health-check",
            "all",
            "--warnings",
            "off",
        ),
    ]
    env = os.environ | {"SCHEMATHESIS_HOOKS": "shorter", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f"✅ {phase}" in done.stdout, done.stdout[-6000:]
