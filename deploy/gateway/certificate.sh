#!/bin/sh
# Run by nginx's image before it starts: makes a certificate where none was put into GATEWAY_TLS, so that TLS is spoken
# from the first minute on. Nobody else vouches for it: put fullchain.pem and key.pem of your own there.
set -eu
if [ ! -e "$GATEWAY_TLS/fullchain.pem" ]; then
  echo "gateway: no certificate in $GATEWAY_TLS, making one that no browser trusts" >&2
  openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=${GATEWAY_NAME:-localhost}" \
    -addext "subjectAltName=DNS:${GATEWAY_NAME:-localhost},IP:127.0.0.1" \
    -keyout "$GATEWAY_TLS/key.pem" -out "$GATEWAY_TLS/fullchain.pem" 2>/dev/null
fi
