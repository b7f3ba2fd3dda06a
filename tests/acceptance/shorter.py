"""Leaves out what no server in front of ours would let through: an address longer than 8,000 characters."""

import schemathesis


@schemathesis.hook
def filter_case(_context, case):
    return len(case.as_transport_kwargs(base_url="http://x").get("url", "")) + query_length(case) < 8_000


def query_length(case):
    return sum(len(str(name)) + 12 * len(str(value)) for name, value in (case.query or {}).items())
