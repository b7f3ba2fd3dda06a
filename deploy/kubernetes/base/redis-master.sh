#!/bin/sh
# Where this pod's Redis and its Sentinel find the master; read by the two scripts that start them. What can be set is
# set by a test, which has one host for all.
set -eu
umask 077
domain=${DOMAIN-.punctual-redis}
me=$HOSTNAME$domain
first=${FIRST:-punctual-redis-0$domain:6379}
sentinels=${SENTINELS:-punctual-redis-0$domain:26379 punctual-redis-1$domain:26379 punctual-redis-2$domain:26379}
secrets=${SECRETS:-/run/secrets/redis}
run=${RUN:-/run/redis}
password=$(cat "$secrets/REPLICATION_PASSWORD")

# Prints its host and port, as the first Sentinel says that answers. Where none does all is new: the first pod is it.
find_master() {
  for sentinel in $sentinels; do
    found=$(timeout 2 redis-cli -h "${sentinel%:*}" -p "${sentinel#*:}" --raw \
      sentinel get-master-addr-by-name punctual 2>/dev/null | tr '\n' ' ')
    case $found in
      ?*' '[0-9]*) # and not the words of an error
        echo "$found"
        return
        ;;
    esac
  done
  echo "${first%:*} ${first#*:}"
}
