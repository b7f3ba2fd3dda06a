#!/bin/sh
# Prints the Secrets that the manifests name, from the same .env that docker compose reads: see .env.example.
#
#   set -a; . ./.env; set +a
#   sh deploy/kubernetes/secrets.sh | kubectl apply --server-side -f -
set -eu
namespace=${NAMESPACE:-punctual}
tls='sslmode=verify-full&sslrootcert=/run/secrets/postgresql/ca.crt'
redis='punctual-redis-0.punctual-redis:26379,punctual-redis-1.punctual-redis:26379,punctual-redis-2.punctual-redis:26379'
rabbitmq=punctual-rabbitmq.$namespace.svc:5672

for name in REDIS OWNER WEB BEAT WORKER FLOWER FLOWER_BROKER; do
  eval "password=\${${name}_PASSWORD:?set it in .env}"
  case $password in
    *[!A-Za-z0-9._~-]*)
      echo "secrets.sh: ${name}_PASSWORD: becomes a part of URLs, and holds what must not stand there" >&2
      exit 1
      ;;
  esac
done
# replicas and Sentinels have no name in .env: theirs follows from the administrator's, which does not follow from it
replication=$(printf %s "replication of $REDIS_PASSWORD" | sha256sum | cut -d ' ' -f 1)

secret() { # NAME TYPE, then KEY VALUE as often as there are some
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\n' "$1" "$namespace"
  # the operator looks again when a password was changed
  printf '  labels: {app.kubernetes.io/part-of: punctual, cnpg.io/reload: "true"}\ntype: %s\ndata:\n' "$2"
  shift 2
  while [ $# -gt 0 ]; do
    printf '  %s: "%s"\n' "$1" "$(printf %s "$2" | base64 | tr -d '\n')"
    shift 2
  done
}

# whom web, beat and worker log in as at PostgreSQL and RabbitMQ: another name while a password is replaced
web=${WEB_USER:-punctual_web} beat=${BEAT_USER:-punctual_beat} worker=${WORKER_USER:-punctual_worker}

managed() { # PROCESS NAME PASSWORD; the password of a name that processes are leaving stays until they have left
  [ "$2" != "punctual_$1" ] || secret "punctual-postgresql-$1" kubernetes.io/basic-auth username "$2" password "$3"
}
database() { echo "postgresql+psycopg://$1:$2@punctual-postgresql-${3-rw}:5432/punctual?$tls"; }
bell() { echo "redis-sentinel://punctual_$1:$2@$redis/punctual/0"; }
broker() { echo "amqp://$1:$2@$rabbitmq/"; }

secret punctual-web Opaque \
  DATABASE_URL "$(database "$web" "$WEB_PASSWORD")" \
  DATABASE_READ_URL "$(database "$web" "$WEB_PASSWORD" ro)" \
  REDIS_URL "$(bell web "$WEB_PASSWORD")" \
  BROKER_URL "$(broker "$web" "$WEB_PASSWORD")" \
  SECRET_KEY "${SECRET_KEY:?set it in .env}" \
  SECRET_KEY_SECOND "${SECRET_KEY_SECOND-}" \
  PUNCTUAL_ADMIN_KEY "${PUNCTUAL_ADMIN_KEY:?set it in .env}" \
  PUNCTUAL_ADMIN_KEY_SECOND "${PUNCTUAL_ADMIN_KEY_SECOND-}"
secret punctual-beat Opaque \
  DATABASE_URL "$(database "$beat" "$BEAT_PASSWORD")" \
  REDIS_URL "$(bell beat "$BEAT_PASSWORD")" \
  BROKER_URL "$(broker "$beat" "$BEAT_PASSWORD")" \
  PUNCTUAL_NOTIFY_WEBHOOK "${PUNCTUAL_NOTIFY_WEBHOOK-}" \
  PUNCTUAL_SMTP_URL "${PUNCTUAL_SMTP_URL-}"
secret punctual-worker Opaque \
  DATABASE_URL "$(database "$worker" "$WORKER_PASSWORD")" \
  REDIS_URL "$(bell worker "$WORKER_PASSWORD")" \
  BROKER_URL "$(broker "$worker" "$WORKER_PASSWORD")" \
  PUNCTUAL_NOTIFY_WEBHOOK "${PUNCTUAL_NOTIFY_WEBHOOK-}" \
  PUNCTUAL_SMTP_URL "${PUNCTUAL_SMTP_URL-}" \
  PUNCTUAL_WEBHOOK_SECRET "${PUNCTUAL_WEBHOOK_SECRET-}"
secret punctual-flower Opaque \
  BROKER_URL "$(broker punctual_flower "$FLOWER_BROKER_PASSWORD")" \
  FLOWER_BASIC_AUTH "admin:$FLOWER_PASSWORD"
secret punctual-release Opaque DATABASE_URL "$(database punctual_owner "$OWNER_PASSWORD")"
# who counts what waits for workers needs no right at all, as web has none; not every client takes a bare / for the vhost
secret punctual-scaler Opaque host "$(broker "$web" "$WEB_PASSWORD")%2F"

secret punctual-postgresql-owner kubernetes.io/basic-auth username punctual_owner password "$OWNER_PASSWORD"
managed web "$web" "$WEB_PASSWORD"
managed beat "$beat" "$BEAT_PASSWORD"
managed worker "$worker" "$WORKER_PASSWORD"
secret punctual-second-passwords Opaque \
  WEB_PASSWORD_SECOND "${WEB_PASSWORD_SECOND-}" \
  BEAT_PASSWORD_SECOND "${BEAT_PASSWORD_SECOND-}" \
  WORKER_PASSWORD_SECOND "${WORKER_PASSWORD_SECOND-}"
secret punctual-rabbitmq-passwords Opaque \
  WEB_PASSWORD "$WEB_PASSWORD" \
  BEAT_PASSWORD "$BEAT_PASSWORD" \
  WORKER_PASSWORD "$WORKER_PASSWORD" \
  FLOWER_BROKER_PASSWORD "$FLOWER_BROKER_PASSWORD"
secret punctual-redis-passwords Opaque \
  REDIS_PASSWORD "$REDIS_PASSWORD" \
  WEB_PASSWORD "$WEB_PASSWORD" \
  BEAT_PASSWORD "$BEAT_PASSWORD" \
  WORKER_PASSWORD "$WORKER_PASSWORD" \
  REPLICATION_PASSWORD "$replication"
