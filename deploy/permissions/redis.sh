#!/bin/sh
# Prints users.acl with the SHA-256 of each password in the place of its name, for redis-server's --aclfile:
#
#   sh deploy/permissions/redis.sh >/etc/redis/users.acl
#
# The passwords come from the environment: REDIS_PASSWORD, WEB_PASSWORD, BEAT_PASSWORD and WORKER_PASSWORD. While one is
# replaced WEB_PASSWORD_SECOND, BEAT_PASSWORD_SECOND or WORKER_PASSWORD_SECOND lets the same user in, too.
set -eu

sums() { # PASSWORD, and a second one or nothing
  printf '#%s ' "$(printf %s "$1" | sha256sum | cut -d ' ' -f 1)"
  [ -z "${2-}" ] || sums "$2"
}

sed -e '/^#/d' \
  -e "s/#REDIS_PASSWORD /$(sums "${REDIS_PASSWORD:?set it}")/" \
  -e "s/#WEB_PASSWORD /$(sums "${WEB_PASSWORD:?set it}" "${WEB_PASSWORD_SECOND-}")/" \
  -e "s/#BEAT_PASSWORD /$(sums "${BEAT_PASSWORD:?set it}" "${BEAT_PASSWORD_SECOND-}")/" \
  -e "s/#WORKER_PASSWORD /$(sums "${WORKER_PASSWORD:?set it}" "${WORKER_PASSWORD_SECOND-}")/" \
  "$(dirname "$0")/users.acl"
