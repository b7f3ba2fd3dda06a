"""Flower's own configuration file: it starts behind a password or not at all. Read by `flower --conf`, imported by
nobody."""

import sys

from tornado.options import options

has_password = options.basic_auth and all(all(login.partition(":")) for login in options.basic_auth)
if not (has_password or options.auth):
    sys.exit("punctual: FLOWER_BASIC_AUTH: is required by flower: user:password")
