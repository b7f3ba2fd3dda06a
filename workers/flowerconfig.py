"""Flower's own configuration file: it starts behind a password or not at all. Read by `flower --conf`, imported by
nobody."""

import sys
from logging import ERROR, getLogger  # the name of the module itself would be taken for an option

from tornado.options import options

has_password = options.basic_auth and all(all(login.partition(":")) for login in options.basic_auth)
if not (has_password or options.auth):
    sys.exit("punctual: FLOWER_BASIC_AUTH: is required by flower: user:password")

# It asks the workers before the first is there, and warns of each question: its pages show who answers.
getLogger("flower.inspector").setLevel(ERROR)
