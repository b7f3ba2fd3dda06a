#!/bin/sh
# Prints users.acl with the SHA-256 of each password in the place of its name, for redis-server's --aclfile:
#
#   sh deploy/permissions/redis.sh >/etc/redis/users.acl
#
# The passwords come from the environment: REDIS_PASSWORD, WEB_PASSWORD, BEAT_PASSWORD and WORKER_PASSWORD.
set -eu

sum() {
  printf %s "$1" | sha256sum | cut -d ' ' -f 1
}

sed -e '/^#/d' \
  -e "s/#REDIS_PASSWORD /#$(sum "${REDIS_PASSWORD:?set it}") /" \
  -e "s/#WEB_PASSWORD /#$(sum "${WEB_PASSWORD:?set it}") /" \
  -e "s/#BEAT_PASSWORD /#$(sum "${BEAT_PASSWORD:?set it}") /" \
  -e "s/#WORKER_PASSWORD /#$(sum "${WORKER_PASSWORD:?set it}") /" \
  "$(dirname "$0")/users.acl"
