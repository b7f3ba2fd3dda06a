#!/bin/sh
# Starts a Redis server of the StatefulSet: as the master, or behind it.
. "${0%/*}/redis-master.sh"
port=${PORT:-6379}
permissions=${PERMISSIONS:-/permissions}
second=${SECOND:-/run/secrets/second}

for name in REDIS WEB BEAT WORKER; do
  export "${name}_PASSWORD=$(cat "$secrets/${name}_PASSWORD")"
done
for name in WEB BEAT WORKER; do
  export "${name}_PASSWORD_SECOND=$(cat "$second/${name}_PASSWORD_SECOND")"
done
sum=$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)
# the users of every installation, and two for replicas and Sentinels
{
  sh "$permissions/redis.sh"
  echo "user replication on #$sum resetchannels +ping +psync +replconf"
  echo "user sentinel on #$sum resetchannels &__sentinel__:hello +client|kill +client|setname +config|rewrite +exec" \
    "+info +multi +ping +publish +role +script|kill +slaveof +subscribe"
} >"$run/users.acl"
cat >"$run/redis.conf" <<END
port $port
dir $run
aclfile $run/users.acl
masteruser replication
masterauth $password
replica-announce-ip $me
replica-announce-port $port
save ""
appendonly no
maxmemory 256mb
maxmemory-policy noeviction
END
# shellcheck disable=SC2046 # two words: host and port
set -- $(find_master)
[ "$1:$2" = "$me:$port" ] || echo "replicaof $1 $2" >>"$run/redis.conf"
exec redis-server "$run/redis.conf"
