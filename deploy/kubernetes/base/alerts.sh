#!/bin/sh
# Prints alerts.yaml: the groups of deploy/monitoring/rules.yml as the Prometheus Operator takes them. After a change there:
#
#   sh deploy/kubernetes/base/alerts.sh >deploy/kubernetes/base/alerts.yaml
set -eu
cat <<'END'
# Made by alerts.sh from deploy/monitoring/rules.yml: change that one.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: punctual
spec:
END
sed -n '/^groups:/,$ { s/^./  &/; p; }' "$(dirname "$0")/../../monitoring/rules.yml"
