#!/bin/sh
# Starts the Sentinel beside a Redis server. Who comes without a name may ask who the master is, and nothing else.
. "${0%/*}/redis-master.sh"
port=${PORT:-26379}

# shellcheck disable=SC2046 # two words: host and port
set -- $(find_master)
cat >"$run/sentinel.conf" <<END
port $port
dir $run
user default on nopass resetchannels -@all +auth +client|setname +hello +ping +sentinel|get-master-addr-by-name +sentinel|masters +sentinel|replicas +sentinel|sentinels +sentinel|slaves
user sentinel on >$password allchannels +@all
sentinel sentinel-user sentinel
sentinel sentinel-pass $password
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $me
sentinel announce-port $port
sentinel monitor punctual $1 $2 2
sentinel auth-user punctual sentinel
sentinel auth-pass punctual $password
sentinel down-after-milliseconds punctual 2000
sentinel failover-timeout punctual 10000
sentinel parallel-syncs punctual 2
END
exec redis-server "$run/sentinel.conf" --sentinel
