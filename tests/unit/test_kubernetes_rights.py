"""What the manifests for Kubernetes allow: of rights, of ways through the network, and of how many there may be."""

import re
import subprocess
from ipaddress import ip_address, ip_network

import pytest
import yaml
from manifests import (
    BUILT,
    KUBERNETES,
    PROCESSES,
    ROOT,
    containers,
    environment,
    everywhere,
    find,
    ours,
    pods,
    secret,
    walk,
)


@everywhere
def test_each_pod_is_as_restricted_as_its_namespace_asks(overlay):
    labels = find(overlay, "Namespace", "punctual")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    accounts = {each["metadata"]["name"]: each for each in BUILT[overlay] if each["kind"] == "ServiceAccount"}
    for name, pod in pods(overlay).items():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert accounts[pod["serviceAccountName"]]["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name  # they would set PUNCTUAL_WEB_PORT, which is no setting
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not [each for each in pod["volumes"] if "hostPath" in each]
    for name, (_, container) in containers(overlay).items():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
        assert "memory" in container["resources"]["limits"], name


def test_the_user_of_our_pods_is_the_images():
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE).groups()
    for pod, _ in ours("small").values():
        context = pod["securityContext"]
        assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user


@everywhere
def test_what_a_spot_notice_leaves_of_time_is_enough_for_a_worker_to_stop(overlay):
    pod, container = ours(overlay)["worker"]
    grace = int(environment(container)["PUNCTUAL_STOP_GRACE"])
    assert grace + 10 <= pod["terminationGracePeriodSeconds"] <= 110  # of the 120 s some go by until the pod is told


@everywhere
def test_a_worker_is_asked_for_by_what_one_has_and_never_more_than_postgresql_lets_in(overlay):
    _, container = ours(overlay)["worker"]
    most = int(re.search(r"--autoscale=(\d+),", " ".join(container["command"]))[1])
    scaled = find(overlay, "ScaledObject", "punctual-worker")["spec"]
    triggers = {each["type"]: each["metadata"] for each in scaled["triggers"]}
    assert int(triggers["prometheus"]["threshold"]) == most
    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    spec = find(overlay, "Cluster", "punctual-postgresql")["spec"]
    limits = {role["name"]: role["connectionLimit"] for role in spec["managed"]["roles"]}
    surge = 1.25  # two releases side by side
    assert limits["punctual_worker"] >= scaled["maxReplicaCount"] * surge * (most + 2)
    web = find(overlay, "HorizontalPodAutoscaler", "punctual-web")["spec"]["maxReplicas"]
    assert limits["punctual_web"] >= (web + 1) * 2 * 15  # gunicorn's workers, and the pool of each
    assert limits["punctual_beat"] >= (find(overlay, "Deployment", "punctual-beat")["spec"]["replicas"] + 1) * 15
    # the owner's five, and what servers and operator keep for themselves
    assert sum(limits.values()) + 5 + 15 <= int(spec["postgresql"]["parameters"]["max_connections"])


def test_roles_are_made_as_the_file_of_permissions_leaves_them():
    text = (ROOT / "deploy/permissions/postgresql.sql").read_text()
    roles = find("small", "Cluster", "punctual-postgresql")["spec"]["managed"]["roles"]
    owner = find("small", "Cluster", "punctual-postgresql")["spec"]["bootstrap"]["initdb"]["owner"]
    # second names have no password but while one is replaced, and backups are the operator's
    made = set(re.findall(r"^ +\('(punctual_\w+)', \d+, '\w+', NULL\)", text, re.MULTILINE))
    assert {*(role["name"] for role in roles), owner} == made - {"punctual_backup"}
    assert "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION NOBYPASSRLS" in text
    assert {(role["login"], role["inherit"]) for role in roles} == {(True, False)}  # the rest is off unless it is named


@everywhere
def test_each_budget_and_each_policy_finds_pods_and_no_budget_keeps_all_of_them(overlay):
    labels = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in BUILT[overlay]
        if each["kind"] in ("Deployment", "StatefulSet", "Job")
    ]
    labels += [{"cnpg.io/cluster": "punctual-postgresql"}, {"app.kubernetes.io/name": "punctual-rabbitmq"}]
    selectors = [
        part
        for each in BUILT[overlay]
        if each["kind"] in ("PodDisruptionBudget", "NetworkPolicy", "Service", "PodMonitor")
        for part in walk(each["spec"])
        if "matchLabels" in part and "kubernetes.io/metadata.name" not in part["matchLabels"]
    ]
    assert len(selectors) > 30
    assert [each for each in selectors if not any(_selects(each, pod) for pod in labels)] == []
    budgets = [each["spec"] for each in BUILT[overlay] if each["kind"] == "PodDisruptionBudget"]
    assert {each["maxUnavailable"] for each in budgets} == {1, "50%"}


def _selects(selector, labels):
    listed = selector.get("matchExpressions", ())
    return selector["matchLabels"].items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in listed
    )


def _policies(overlay, component, direction):
    """The rules of one direction for a process, `egress` or `ingress`."""
    labels = {"app.kubernetes.io/name": "punctual", "app.kubernetes.io/component": component}
    for each in BUILT[overlay]:
        if each["kind"] != "NetworkPolicy":
            continue
        selector = {"matchLabels": {}} | each["spec"]["podSelector"]
        if _selects(selector, labels):
            yield from each["spec"].get(direction, ())


@everywhere
def test_nobody_speaks_but_for_what_a_policy_says(overlay):
    deny = find(overlay, "NetworkPolicy", "deny-all")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for each in BUILT[overlay]:
        if each["kind"] == "NetworkPolicy":
            rules = [*each["spec"].get("ingress", ()), *each["spec"].get("egress", ())]
            assert all("ports" in rule or "to" in rule for rule in rules), each["metadata"]["name"]
    opened = {
        process: {port["port"] for rule in _policies(overlay, process, "ingress") for port in rule["ports"]}
        for process in (*PROCESSES, "release")
    }
    assert opened == {"web": {8000}, "beat": {9540}, "worker": {9540}, "flower": set(), "release": set()}


@pytest.mark.parametrize("process", PROCESSES)
@everywhere
def test_a_process_reaches_the_stores_that_its_addresses_name(overlay, process):
    ports = {port["port"] for rule in _policies(overlay, process, "egress") for port in rule.get("ports", ())}
    made = secret(f"punctual-{process}")
    named = {
        int(port) for name in made if name.endswith("_URL") for port in re.findall(r"[\w-]:(\d{4,5})\b", made[name])
    }
    assert named <= ports
    assert ports == named | {53} | ({6379} if "REDIS_URL" in made else set())  # to which the Sentinels lead


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "172.16.3.4", "192.168.1.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "fd00:ec2::254", "::1"],
)
def test_a_target_reaches_neither_the_cluster_nor_the_clouds_metadata(address):
    assert not _is_reached(address)


def test_a_target_reaches_what_is_public():
    assert _is_reached("93.184.215.14")
    assert _is_reached("2606:2800:21f:cb07:6820:80da:af6b:8b2c")


def _is_reached(address):
    given = ip_address(address)
    blocks = [to["ipBlock"] for rule in _policies("small", "worker", "egress") for to in rule["to"] if "ipBlock" in to]
    assert not [rule for rule in _policies("small", "worker", "egress") if "to" not in rule]
    return any(
        given in ip_network(block["cidr"]) and not any(given in ip_network(each) for each in block.get("except", ()))
        for block in blocks
        if ip_network(block["cidr"]).version == given.version
    )


@everywhere
def test_the_world_reaches_web_alone_and_not_its_metrics(overlay):
    ways = [
        (path["path"], path["pathType"], path["backend"]["service"]["name"], each["metadata"]["annotations"])
        for each in BUILT[overlay]
        if each["kind"] == "Ingress"
        for rule in each["spec"]["rules"]
        for path in rule["http"]["paths"]
    ]
    assert {name for _, _, name, _ in ways} == {"punctual-web"}
    assert [(path, kind) for path, kind, *_ in ways] == [("/", "Prefix"), ("/metrics", "Exact")]
    assert ways[1][3] == {"nginx.ingress.kubernetes.io/whitelist-source-range": "127.0.0.1/32"}
    assert {each["type"] for each in _services(overlay)} == {"ClusterIP"}


def _services(overlay):
    return [{"type": "ClusterIP"} | each["spec"] for each in BUILT[overlay] if each["kind"] == "Service"]


def test_the_ingress_has_the_limits_of_the_gateway():
    template = (ROOT / "deploy/gateway/punctual.conf.template").read_text()
    given = find("small", "Ingress", "punctual")["metadata"]["annotations"]
    said = {name.removeprefix("nginx.ingress.kubernetes.io/"): value for name, value in given.items()}
    in_seconds = {"proxy-connect-timeout", "proxy-send-timeout", "proxy-read-timeout", "proxy-next-upstream-timeout"}
    names = {"proxy-body-size": "client_max_body_size"}
    for name in (*in_seconds, "proxy-body-size", "proxy-next-upstream", "proxy-next-upstream-tries"):
        directive = names.get(name, name.replace("-", "_"))
        value = said[name] + ("s" if name in in_seconds else "")
        assert re.search(rf"^ +{directive} {re.escape(value)};", template, re.MULTILINE), name
    assert f"rate={said['limit-rps']}r/s" in template
    assert f"burst={int(said['limit-rps']) * int(said['limit-burst-multiplier'])} " in template
    assert f"limit_conn connections {said['limit-connections']};" in template


def test_prometheus_knows_each_process_by_the_name_that_the_alerts_use():
    given = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())["scrape_configs"]
    for each in given:
        monitor = find("small", "PodMonitor", each["job_name"])["spec"]["podMetricsEndpoints"][0]
        assert monitor["relabelings"] == [{"targetLabel": "job", "replacement": each["job_name"]}]
        _, container = ours("small")[each["job_name"].removeprefix("punctual-")]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports[monitor["port"]] == each["dns_sd_configs"][0]["port"]


def test_the_alerts_are_those_of_deploy_monitoring():
    made = subprocess.run(["sh", KUBERNETES / "base/alerts.sh"], check=True, capture_output=True, text=True).stdout
    assert (KUBERNETES / "base/alerts.yaml").read_text() == made, "run alerts.sh again"
    rules = yaml.safe_load((ROOT / "deploy/monitoring/rules.yml").read_text())
    assert find("small", "PrometheusRule", "punctual")["spec"] == rules


def test_production_lives_without_any_one_machine_or_zone():
    spec = find("production", "Cluster", "punctual-postgresql")["spec"]
    assert (spec["instances"], spec["postgresql"]["synchronous"]["dataDurability"]) == (3, "required")
    assert find("production", "RabbitmqCluster", "punctual-rabbitmq")["spec"]["replicas"] == 3
    assert find("production", "StatefulSet", "punctual-redis")["spec"]["replicas"] == 3
    assert find("production", "Deployment", "punctual-beat")["spec"]["replicas"] == 3
    for name in ("punctual-beat", "punctual-redis"):
        zones, hosts = pods("production")[name]["topologySpreadConstraints"]
        assert (zones["topologyKey"], zones["whenUnsatisfiable"]) == ("topology.kubernetes.io/zone", "DoNotSchedule")
        assert hosts["topologyKey"] == "kubernetes.io/hostname"


def test_workers_alone_are_let_on_spot_machines():
    pool = find("production", "NodePool", "punctual-spot")["spec"]["template"]["spec"]
    (taint,) = pool["taints"]
    tolerant = {name: pod["tolerations"] for name, pod in pods("production").items() if "tolerations" in pod}
    assert tolerant == {"punctual-worker": [{"key": taint["key"], "operator": "Exists", "effect": taint["effect"]}]}
