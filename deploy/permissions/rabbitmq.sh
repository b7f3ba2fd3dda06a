#!/bin/sh
# What each process may do in RabbitMQ. Where rabbitmqctl may be used:
#
#   QUEUES='default|reports' sh deploy/permissions/rabbitmq.sh
#
# May be repeated at any time. QUEUES are the queues that tasks name, VHOST is the virtual host. The passwords come from
# the environment: WEB_PASSWORD, BEAT_PASSWORD, WORKER_PASSWORD and FLOWER_BROKER_PASSWORD. While one is replaced,
# WEB_PASSWORD_SECOND is the one of punctual_web_second, who may do the same and is there for as long as it is set;
# BEAT_PASSWORD_SECOND and WORKER_PASSWORD_SECOND do likewise.
set -eu
vhost=${VHOST:-/}
queues="(${QUEUES:-default})"

# Celery's remote control: an exchange for the commands, one for the answers, and a queue for each who listens.
uuid='[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'
commands='celery\.pidbox'
answers='reply\.celery\.pidbox'
mailbox="[^@]+@.+\.$commands"
asked="$uuid\.$answers"
# Its events: an exchange, and a queue for each who watches.
events='celeryev'
watching="celeryev\.$uuid"

people=$(rabbitmqctl --quiet list_users)

is_there() { # NAME
  case "$people" in *"$1"[![:graph:]]*) ;; *) return 1 ;; esac
}

make() { # NAME PASSWORD, then what it may CONFIGURE, WRITE and READ
  verb=add_user
  if is_there "$1"; then verb=change_password; fi
  printf '%s\n' "$2" | rabbitmqctl --quiet "$verb" "$1" >/dev/null
  rabbitmqctl --quiet set_permissions --vhost "$vhost" "$1" "^($3)\$" "^($4)\$" "^($5)\$"
}

allow() { # NAME, its PASSWORD, the one of its second name or nothing, then the same three
  make "$1" "$2" "$4" "$5" "$6"
  if [ -n "$3" ]; then
    make "$1_second" "$3" "$4" "$5" "$6"
  elif is_there "$1_second"; then
    rabbitmqctl --quiet delete_user "$1_second"
  fi
}

# web: looks whether RabbitMQ answers, and how deep its queues are, which needs no permission
allow punctual_web "${WEB_PASSWORD:?set it}" "${WEB_PASSWORD_SECOND-}" '' '' ''

# beat: declares the queues of runs, with their dead letters, and sends runs; answers a ping
allow punctual_beat "${BEAT_PASSWORD:?set it}" "${BEAT_PASSWORD_SECOND-}" \
  "$queues|$commands|$answers|$mailbox" \
  "amq\.default|$answers|$mailbox" \
  "$queues|$commands|$mailbox"

# worker: consumes runs and calls, answers who called, tells of what it does, and takes commands; its probe sends one
allow punctual_worker "${WORKER_PASSWORD:?set it}" "${WORKER_PASSWORD_SECOND-}" \
  "$queues|punctual(\.dead)?|$events|$commands|$answers|$mailbox|$asked" \
  "amq\.default|punctual|$events|$commands|$answers|$mailbox|$asked" \
  "$queues|punctual|$commands|$answers|$mailbox|$asked"

# flower: watches events, asks and commands workers; it reaches no run and no call
allow punctual_flower "${FLOWER_BROKER_PASSWORD:?set it}" '' \
  "$events|$watching|$commands|$answers|$asked" \
  "$watching|$commands|$asked" \
  "$events|$watching|$answers|$asked"
