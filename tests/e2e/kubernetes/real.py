"""The real kubectl against a real API server, with keys of the real program.

    tests/e2e/kubernetes/tools.sh TOOLS_DIR
    python3 tests/e2e/kubernetes/real.py PROGRAM TOOLS_DIR [--parts opening rights ...]

Needs Python, curl and openssl beside the tools of tools.sh. Each part prints what it saw, and the program exits with 1 if
a check failed.
"""

import argparse
import calendar
import collections
import json
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
import traceback
import uuid

# Its import adds the folder of the others to the path.
from actors import HERE, Cluster, Person, Watch, Worker, claims, eventually, run
from endurance import check, faults

DEPLOY = os.path.realpath(os.path.join(HERE, "../../../deploy"))
HOLDER = "fluxserve"
POD_SECURITY = "pod-security.kubernetes.io/enforce"
# The API server caches a valid token for ten seconds; the rest is time for the worker and kubectl.
DEATH_SECONDS_MAX = 12
# Until the worker notices a change to the cluster.
SEEN_SECONDS_MAX = 15
# Until it checks an open namespace again.
OPEN_LOOK_SECONDS_MAX = 75
# Until a worker that reaches the cluster again has completed its pending removals.
REMOVED_SECONDS_MAX = 45
UNBOUND = "team-unbound"
KEY_SCOPES = {"all": {"all": True}, "inference": {"inference": True}, "kubernetes": {"kubernetes_exec": {"all_namespaces": True}}}
POD = """
apiVersion: v1
kind: Pod
metadata: {name: p1}
spec: {containers: [{name: main, image: registry.example/never-started}]}
"""
CONFIG_MAP = """
apiVersion: v1
kind: ConfigMap
metadata: {name: colours}
data: {circle: red}
"""


def brief(text):
    """A text on one line."""
    line = " | ".join(part.strip() for part in text.strip().splitlines() if part.strip())
    return line if len(line) <= 300 else line[:300] + " …"


def first(text, count=1):
    """The first lines: the plugin's own message, before kubectl repeats it."""
    return brief("\n".join(text.splitlines()[:count]))


def refusal(text):
    """The worker's refusal as shown by the plugin."""
    for found in re.findall(r"\{.*\}", text):
        try:
            said = json.loads(found)
        except ValueError:
            continue
        if "error" in said:
            return said
    return {}


class Stage:
    """The cluster, the worker, and the initial keys and namespaces."""

    def __init__(self, program, tools, folder):
        for name in ("cluster", "data"):
            os.mkdir(os.path.join(folder, name))
        self.cluster = Cluster(tools, os.path.join(folder, "cluster"))
        self.worker = Worker(program, os.path.join(folder, "data"))
        self.kubeconfigs, self.issued = {}, []

    def scope(self, *names):
        return {"kubernetes_exec": {"namespace_ids": [self.namespace(name)["id"] for name in names]}}

    def namespace(self, name):
        """Adds a namespace of the cluster and waits until it is open."""
        namespace = self.worker.namespace(name)
        if namespace is None:
            self.cluster.kubectl("create", "namespace", name)
            status, namespace = self.worker.manage("POST", "/v1/kubernetes/namespaces", {"name": name})
            assert status == 201, namespace
        if namespace["state"] != "open":
            self.cluster.apply(namespace["objects"])
            assert self.stands(name, "open"), f"{name} does not open: {self.worker.namespace(name)}"
        return namespace

    def stands(self, name, state):
        return eventually(SEEN_SECONDS_MAX, lambda: (self.worker.namespace(name) or {}).get("state") == state)

    def kubeconfig(self, name, version="v1"):
        """Downloads it once, like a user."""
        if (name, version) not in self.kubeconfigs:
            path = f"/v1/kubernetes/namespaces/{self.namespace(name)['id']}/kubeconfig?api_version={version}"
            status, answer = self.worker.manage("GET", path)
            assert status == 200, answer
            file = os.path.join(self.cluster.home(), answer["filename"])
            with open(file, "w") as out:
                out.write(answer["kubeconfig"])
            self.kubeconfigs[name, version] = file
        return self.kubeconfigs[name, version]

    def person(self, key, name, version="v1"):
        return Person(self.cluster, self.kubeconfig(name, version), key)

    def note(self, key, name, token):
        self.issued.append((key[: len("rgpu_") + 8], name, token))
        return token

    def token(self, key, name):
        return self.note(key, name, self.person(key, name).credential()["status"]["token"])

    def post(self, key, name, body=None):
        """The credential route itself, without kubectl's plugin."""
        body = body or {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "spec": {"interactive": False}}
        path = f"/v1/kubernetes/namespaces/{self.namespace(name)['id']}/exec-credential"
        return self.worker.ask("POST", path, key, body)

    def watch(self, key, name):
        watch = Watch(self.cluster, self.token(key, name), name)
        assert watch.is_used(), f"a new token is refused: {watch.said}"
        return watch

    def dead(self, what, watch, since, words=("Unauthorized",)):
        """Checks that the token ends soon after `since`, not before."""
        after = watch.dead_after(since, DEATH_SECONDS_MAX)
        watch.stop()
        is_so = after is not None and after > 0 and any(word in watch.said for word in words)
        check(is_so, f"{what}: " + (f"dead after {after:.1f} s: {brief(watch.said)}" if after is not None else "it lives on"))

    def alive(self, what, watch):
        watch.stop()
        check(watch.dead_at is None, f"{what}: lives on {brief(watch.said)}")

    def secret_of(self, token):
        return "secret/" + claims(token)["kubernetes.io"]["secret"]["name"]

    def secret_goes(self, what, token, seconds=DEATH_SECONDS_MAX):
        secret = self.secret_of(token)
        check(eventually(seconds, lambda: secret not in self.cluster.secrets()), f"{what}: {secret} is gone")


def connecting(stage):
    print("a worker is connected to a cluster")
    cluster, worker = stage.cluster, stage.worker
    outcome = worker.command("kubernetes", "check")
    check(outcome.code == 1, f"`check` without a cluster ends with 1: {brief(outcome.err or outcome.out)}")
    manifest = worker.command("kubernetes", "manifest").out
    outcome = worker.command("kubernetes", "connect", "--kubeconfig", cluster.kubeconfig)
    check(outcome.code == 1, f"`connect` before the manifest is applied ends with 1: {brief(outcome.err)}")
    cluster.apply(manifest)
    again = cluster.apply(manifest).out.strip().splitlines()
    check(all(line.endswith("unchanged") for line in again), f"the manifest can be applied again: {len(again)} unchanged")
    outcome = worker.command("kubernetes", "connect", "--kubeconfig", cluster.kubeconfig, "--context", "nobody")
    check(outcome.code == 1 and "nobody" in outcome.err, f"an unknown context is refused: {brief(outcome.err)}")
    outcome = worker.command("kubernetes", "connect", "--kubeconfig", cluster.kubeconfig)
    check(outcome.code == 0, f"`connect`: {brief(outcome.out + outcome.err)}")
    for name in ("kubeconfig", "token"):
        path = os.path.join(worker.folder, "kubernetes", name)
        mode = stat.S_IMODE(os.stat(path).st_mode)
        with open(path) as file:
            text = file.read()
        check(mode == 0o600 and "client-key" not in text, f"{name} is the worker's alone ({mode:o}), without the administrator's key")
    outcome = eventually(5, lambda: succeeded(worker.command("kubernetes", "check")))
    check(outcome, "`check` ends with 0")
    print("\n".join("    " + line for line in (outcome.out if outcome else "").splitlines()))
    cluster.kubectl("-n", HOLDER, "delete", "rolebinding", "worker")
    outcome = eventually(5, lambda: failed(worker.command("kubernetes", "check")))
    check(outcome and "secrets" in outcome.out + outcome.err, "`check` names the rights that are missing")
    cluster.apply(manifest)
    print(f"  the worker is ready after {worker.start():.1f} s")
    status, view = eventually(5, lambda: found(worker.manage("GET", "/v1/kubernetes"), "reachable"))
    version = json.loads(cluster.kubectl("version", "-o", "json").out)["serverVersion"]["gitVersion"]
    seen = (status, view.get("reachable"), view.get("version"), view.get("namespace"), view.get("server"), view.get("problem"))
    check(seen == (200, True, version, HOLDER, cluster.server, None), f"the worker knows the cluster: {seen}")


def succeeded(outcome):
    return outcome if outcome.code == 0 else None


def failed(outcome):
    return outcome if outcome.code == 1 else None


def found(answer, field):
    return answer if answer[1].get(field) else None


def opening(stage):
    print("a namespace is opened")
    cluster, worker = stage.cluster, stage.worker
    for name in ("team-a", "team-b"):
        cluster.kubectl("create", "namespace", name)
        if name == "team-a":
            cluster.kubectl("label", "namespace", name, f"{POD_SECURITY}=baseline")
        status, namespace = worker.manage("POST", "/v1/kubernetes/namespaces", {"name": name})
        check((status, namespace["state"]) == (201, "pending"), f"{name}: {status}, {namespace['state']}")
        check("service_account" in namespace["missing"], f"missing: {namespace['missing']}")
        key = worker.new_key(f"early {name}", {"kubernetes_exec": {"namespace_ids": [namespace["id"]]}})["key"]
        path = f"/v1/kubernetes/namespaces/{namespace['id']}/exec-credential"
        body = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "spec": {"interactive": False}}
        status, answer, _ = worker.json("POST", path, key, body)
        check((status, answer.get("code")) == (409, "namespace_pending"), f"a key for it: {status} {brief(str(answer.get('error')))}")
        account, binding = split(namespace["objects"])
        cluster.apply(account)
        looked = eventually(SEEN_SECONDS_MAX, lambda: lacking(worker.namespace(name), ["role_binding"]))
        check(looked, f"with its account: missing {(looked or worker.namespace(name))['missing']}")
        cluster.apply(binding)
        check(stage.stands(name, "open"), f"with both: {worker.namespace(name)['state']}")
        status, answer, _ = worker.json("POST", path, key, body)
        check(status == 200, f"the key: {status}")
    view = worker.namespace("team-a")
    check(view["missing"] == [] and view["problem"] is None and view["checked_at"], f"nothing is missing: {view['missing']}, {view['problem']}")
    problem = worker.namespace("team-b")["problem"]
    check(problem and f"{POD_SECURITY}=restricted" in problem, f"where pods may take over their node: {problem}")
    status, answer = worker.manage("POST", "/v1/kubernetes/namespaces", {"name": "team-a"})
    check((status, answer["code"]) == (409, "namespace_exists"), f"the same once more: {status} {answer['code']}")
    for name in ("Team", "a.b", "-a", "x" * 64, ""):
        status, answer = worker.manage("POST", "/v1/kubernetes/namespaces", {"name": name})
        fields = [error["field"] for error in answer.get("errors", [])]
        check((status, fields) == (400, ["name"]), f"`{name[:8]}` is no name: {status} {fields}")
    stage.namespace(UNBOUND)
    cluster.kubectl("-n", UNBOUND, "delete", "rolebinding", "fluxserve")


def unbinding(stage):
    print("an open namespace loses its binding in the cluster")
    if stage.worker.namespace(UNBOUND) is None:
        stage.namespace(UNBOUND)
        stage.cluster.kubectl("-n", UNBOUND, "delete", "rolebinding", "fluxserve")
    looked = eventually(OPEN_LOOK_SECONDS_MAX, lambda: lacking(stage.worker.namespace(UNBOUND), ["role_binding"]))
    check(looked, f"the worker sees it: {looked and (looked['state'], looked['missing'])}")


def split(objects):
    """The printed objects of a namespace: its account and its binding."""
    return re.split(r"^---\n", objects.removeprefix("---\n"), flags=re.MULTILINE)


def lacking(namespace, missing):
    return namespace if namespace["missing"] == missing else None


def rights(stage):
    print("what a key may and may not do with kubectl")
    stage.namespace("team-a"), stage.namespace("team-b")
    keys = {name: stage.worker.new_key(name, scope)["key"] for name, scope in KEY_SCOPES.items()}
    keys["team-a"] = stage.worker.new_key("team-a", stage.scope("team-a"))["key"]
    with open(stage.kubeconfig("team-a")) as file:
        check("rgpu_" not in re.sub("rgpu_…", "", file.read()), "there is no key in the kubeconfig")

    person = stage.person(keys["team-a"], "team-a")
    credential = person.credential()
    token = stage.note(keys["team-a"], "team-a", credential["status"]["token"])
    seconds = claims(token)["exp"] - claims(token)["iat"]
    ends = calendar.timegm(time.strptime(credential["status"]["expirationTimestamp"][:19], "%Y-%m-%dT%H:%M:%S"))
    early = claims(token)["exp"] - ends
    check(seconds == 600 and 29 <= early <= 31, f"a token lasts {seconds} s; kubectl is told to come {early:.0f} s before its end")
    check(claims(token)["sub"] == f"system:serviceaccount:{HOLDER}:ns-team-a", f"it is {claims(token)['sub']}")

    allowed(person, "get", "pods")
    for text in (CONFIG_MAP, POD):
        outcome = person.kubectl("apply", "-f", "-", text=text)
        check(outcome.code == 0, f"kubectl apply: {brief(outcome.out + outcome.err)}")
    allowed(person, "get", "pods")
    # There is no node, so an allowed user gets only this far.
    outcome = person.kubectl("exec", "p1", "--", "true")
    check("does not have a host assigned" in outcome.err, f"kubectl exec p1 -- true: {brief(outcome.err)}")
    for verb, resource in [("get", "pods/exec"), ("create", "pods/exec"), ("get", "pods/portforward"), ("create", "pods/portforward")]:
        can(person, True, verb, resource)
    for verb, resource in [("create", "rolebindings"), ("create", "serviceaccounts/token"), ("list", "nodes"), ("impersonate", "users")]:
        can(person, False, verb, resource)
    for words in (["get", "pods"], ["exec", "p1", "--", "true"], ["get", "secrets"]):
        for name in ("team-b", "default", HOLDER, "kube-system"):
            outcome = person.kubectl("-n", name, *words)
            check(outcome.code == 1 and "Forbidden" in outcome.err, f"kubectl -n {name} {' '.join(words)}: {brief(outcome.err)}")

    for name in ("kubernetes", "all"):
        for namespace in ("team-a", "team-b"):
            allowed(stage.person(keys[name], namespace), "get", "pods", who=f"scope {name}, {namespace}")
    refused(stage.person(keys["team-a"], "team-b"), "scope_forbidden", "a key for team-a in team-b")
    refused(stage.person(keys["inference"], "team-a"), "scope_forbidden", "a key for images")
    refused(stage.person(keys["all"][:-1] + "!", "team-a"), "unauthorized", "a mistyped key")
    outcome = stage.person(None, "team-a").kubectl("get", "pods")
    check(outcome.code == 1 and "REMOTEGPU_API_KEY" in outcome.err, f"without a key: {first(outcome.err)}")

    limited = stage.worker.new_key("limited", stage.scope("team-a"), limits={"requests_per_minute": 1})["key"]
    stage.token(limited, "team-a")
    refused(stage.person(limited, "team-a"), "rate_limited", "one request too many")

    old = stage.person(keys["team-a"], "team-a", "v1beta1")
    check(old.plugin()["apiVersion"] == "client.authentication.k8s.io/v1beta1", "a kubeconfig of v1beta1")
    check(old.credential()["apiVersion"] == "client.authentication.k8s.io/v1beta1", "it is answered in its own words")
    allowed(old, "get", "pods", who="v1beta1")
    bodies(stage, keys)


def allowed(person, *words, who=None):
    outcome = person.kubectl(*words)
    check(outcome.code == 0, f"{who + ': ' if who else ''}kubectl {' '.join(words)}: {brief(outcome.out + outcome.err)}")


def can(person, expected, verb, resource):
    outcome = person.kubectl("auth", "can-i", verb, resource)
    check(outcome.out.strip() == ("yes" if expected else "no"), f"may {verb} {resource}: {brief(outcome.out + outcome.err)}")


def refused(person, code, what):
    outcome = person.kubectl("get", "pods")
    said = refusal(outcome.err)
    check(outcome.code == 1 and said.get("code") == code, f"{what}: {first(outcome.err)}")


def bodies(stage, keys):
    """Requests without kubectl."""
    path = f"/v1/kubernetes/namespaces/{uuid.uuid4()}/exec-credential"
    version = "client.authentication.k8s.io/"
    good = {"kind": "ExecCredential", "apiVersion": version + "v1", "spec": {}}
    asked = [
        ("no key", lambda: stage.post(None, "team-a"), 401, "unauthorized"),
        ("an empty body", lambda: stage.post(keys["all"], "team-a", {"spec": {}}), 400, "invalid_request"),
        ("v1alpha1", lambda: stage.post(keys["all"], "team-a", {**good, "apiVersion": version + "v1alpha1"}), 400, "invalid_request"),
        ("no namespace of ours", lambda: stage.worker.ask("POST", path, keys["all"], good), 404, "namespace_not_found"),
    ]
    for what, ask, status, code in asked:
        answer = ask()
        said = refusal(answer.data.decode())
        is_so = (answer.status, said.get("code"), set(said)) == (status, code, {"error", "code", "request_id"})
        check(is_so and b"\n" not in answer.data.strip(), f"{what}: {answer.status} {brief(answer.data.decode())}")
    answers = at_once(8, lambda number: stage.post(keys["all"], "team-a"))
    tokens = [stage.note(keys["all"], "team-a", json.loads(answer.data)["status"]["token"]) for answer in answers if answer.status == 200]
    bound = {stage.secret_of(token) for token in tokens}
    check(len(tokens) == 8 and len(bound) == 1, f"8 at once: {len(tokens)} tokens, bound to {len(bound)} Secret")
    stage.cluster.kubectl("-n", HOLDER, "delete", *bound)
    answer = stage.post(keys["all"], "team-a")
    check(answer.status == 200, f"another client has deleted the Secret: {answer.status} {brief(answer.data.decode()) if answer.status != 200 else ''}")


def at_once(count, call):
    answers = [None] * count

    def one(number):
        answers[number] = call(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def holder(stage):
    print("what the worker itself may do in the cluster")
    cluster = stage.cluster
    person = Person(cluster, os.path.join(stage.worker.folder, "kubernetes", "kubeconfig"))
    secret = stage.secret_of(stage.token(stage.worker.new_key("secret", stage.scope("team-a"))["key"], "team-a"))
    expected = {HOLDER: {("", "serviceaccounts/token", "create"), ("", "secrets", "create"), ("", "secrets", "delete")}}
    for name in (HOLDER, "team-a", "default"):
        print(f"    kubectl auth can-i --list -n {name}")
        lines = person.kubectl("auth", "can-i", "--list", "-n", name).out.splitlines()
        # The rights of everyone fill pages and are of no interest.
        print("\n".join("      " + line.rstrip() for line in lines if not line.startswith(" ")))
        check(rules(person, name) == expected.get(name, set()), f"in {name}: {sorted(rules(person, name)) or 'nothing'}")
    for words in (["get", "secrets"], ["get", secret], ["get", "pods"], ["get", "serviceaccounts"], ["create", "serviceaccount", "x"]):
        outcome = person.kubectl("-n", HOLDER, *words)
        check(outcome.code == 1 and "is forbidden" in outcome.err, f"kubectl {' '.join(words)}: {brief(outcome.err)}")


def rules(person, name):
    """The rights of a user, without those that every user has."""
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": name}}
    outcome = person.kubectl("create", "-o", "json", "-f", "-", text=json.dumps(review))
    assert outcome.code == 0, outcome.err
    return {
        (group, resource, verb)
        for rule in json.loads(outcome.out)["status"]["resourceRules"]
        for group in rule.get("apiGroups", [])
        for resource in rule.get("resources", [])
        for verb in rule["verbs"]
        if not resource.startswith("selfsubject")
    }


def ends(stage):
    print("what ends a token that is in use")
    stage.namespace("team-a"), stage.namespace("team-b")
    worker = stage.worker
    revoked = worker.new_key("revoked", stage.scope("team-a"))
    narrowed = worker.new_key("narrowed", stage.scope("team-a", "team-b"))
    watch, in_a, in_b = (stage.watch(key["key"], name) for key, name in ((revoked, "team-a"), (narrowed, "team-a"), (narrowed, "team-b")))
    revoked_token, narrowed_token = stage.issued[-3][2], stage.issued[-1][2]
    status, _ = worker.manage("DELETE", f"/v1/api-keys/{revoked['id']}")
    begun = time.monotonic()
    assert status == 200, status
    refused(stage.person(revoked["key"], "team-a"), "unauthorized", "a revoked key, at once")
    status, _ = worker.manage("PATCH", f"/v1/api-keys/{narrowed['id']}", {"scope": stage.scope("team-a")})
    begun_narrowed = time.monotonic()
    assert status == 200, status
    refused(stage.person(narrowed["key"], "team-b"), "scope_forbidden", "a key without team-b, at once")
    stage.dead("the key is revoked", watch, begun)
    stage.secret_goes("the key is revoked", revoked_token)
    stage.dead("team-b is taken from the key", in_b, begun_narrowed)
    stage.secret_goes("team-b is taken from the key", narrowed_token)
    stage.alive("the key goes on in team-a", in_a)

    rotated = worker.new_key("rotated", stage.scope("team-a"))
    ending = worker.new_key("ending", stage.scope("team-a"))
    by_command = worker.new_key("by command", stage.scope("team-a"))
    watches = [stage.watch(key["key"], "team-a") for key in (rotated, ending, by_command)]
    grace = 3
    status, new = worker.manage("POST", f"/v1/api-keys/{rotated['id']}/rotate", {"grace_seconds": grace})
    begun = time.monotonic() + grace
    assert status == 200, new
    moment = time.time() + grace
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000):03}Z"
    status, _ = worker.manage("PATCH", f"/v1/api-keys/{ending['id']}", {"expires_at": end})
    begun_ending = time.monotonic() + grace
    assert status == 200, status
    outcome = worker.command("keys", "revoke", by_command["prefix"])
    begun_command = time.monotonic()
    assert outcome.code == 0, outcome.err
    check(stage.post(rotated["key"], "team-a").status == 200, "the old value gets tokens while its grace lasts")
    new_watch = stage.watch(new["key"], "team-a")
    stage.dead("revoked by the command line", watches[2], begun_command)
    stage.dead("the grace of the old value is over", watches[0], begun)
    stage.dead("the key has expired", watches[1], begun_ending)
    stage.alive("the new value", new_watch)
    for what, key in (("the old value", rotated), ("an expired key", ending), ("a key revoked by the command line", by_command)):
        refused(stage.person(key["key"], "team-a"), "unauthorized", what)
    allowed(stage.person(new["key"], "team-a"), "get", "pods", who="the new value")


def race(stage):
    print("keys are revoked while tokens are issued for them")
    stage.namespace("team-a")
    worker, count = stage.worker, 6
    keys = [worker.new_key(f"race {number}", stage.scope("team-a")) for number in range(count)]
    stop, given, others, lock = threading.Event(), [], [], threading.Lock()
    path = f"/v1/kubernetes/namespaces/{stage.namespace('team-a')['id']}/exec-credential"
    body = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "spec": {"interactive": False}}

    def ask(number):
        key = keys[number % count]
        while not stop.is_set():
            answer = worker.ask("POST", path, key["key"], body)
            with lock:
                if answer.status == 200:
                    given.append((number % count, json.loads(answer.data)["status"]["token"]))
                else:
                    others.append((answer.status, brief(answer.data.decode())))
                    return

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2 * count)]
    for thread in threads:
        thread.start()
    for key in keys:
        time.sleep(0.3)
        status, _ = worker.manage("DELETE", f"/v1/api-keys/{key['id']}")
        assert status == 200, status
    begun = time.monotonic()
    time.sleep(1)
    stop.set()
    for thread in threads:
        thread.join()
    # Repeated refusals from one address are also throttled.
    refusals = collections.Counter(status for status, _ in others)
    check(set(refusals) <= {401, 429} and sum(refusals.values()) == len(threads), f"{len(given)} tokens, then {dict(refusals)}")
    answer = stage.post(worker.new_key("in good standing", stage.scope("team-a"))["key"], "team-a")
    check(answer.status == 200, f"a good key from the same address: {answer.status}")
    last = [token for number in range(count) for token in [token for of, token in given if of == number][-4:]]
    secrets = {stage.secret_of(token) for _, token in given}
    check(eventually(DEATH_SECONDS_MAX, lambda: not secrets & stage.cluster.secrets()), f"{len(secrets)} Secrets are gone")
    time.sleep(max(0, begun + DEATH_SECONDS_MAX - time.monotonic()))
    statuses = collections.Counter(stage.cluster.status(token, "/api/v1/namespaces/team-a/pods") for token in last)
    check(set(statuses) == {401}, f"the last tokens of each: {dict(statuses)}")


def away(stage):
    print("the worker or the cluster is unreachable")
    stage.namespace("team-a")
    cluster, worker = stage.cluster, stage.worker
    kept = worker.new_key("kept", stage.scope("team-a"))
    lost = worker.new_key("lost", stage.scope("team-a"))
    person = stage.person(kept["key"], "team-a")
    token = stage.token(lost["key"], "team-a")
    secret = stage.secret_of(token)
    assert cluster.status(token, "/api/v1/namespaces/team-a/pods") == 200

    cluster.pause()
    try:
        begun = time.monotonic()
        outcome = person.ask()
        seconds = time.monotonic() - begun
        is_so = outcome.code == 1 and refusal(outcome.err).get("code")
        check(is_so and seconds < 20, f"the cluster does not answer: after {seconds:.1f} s {brief(outcome.err)}")
        begun = time.monotonic()
        status, _ = worker.manage("DELETE", f"/v1/api-keys/{lost['id']}")
        seconds = time.monotonic() - begun
        worker.kill()
        check(status == 200 and seconds < 2, f"a revocation is answered all the same: {status} after {seconds:.2f} s; then kill -9")
        outcome = person.kubectl("get", "pods")
        is_so = outcome.code == 1 and re.search(r"connect|reach", outcome.err)
        check(is_so, f"the worker is away: {first(outcome.err, 2)}")
        print(f"  the worker is ready again after {worker.start():.1f} s, without the cluster")
        view = eventually(SEEN_SECONDS_MAX, lambda: unreachable(worker.manage("GET", "/v1/kubernetes")[1]))
        check(view and view["problem"], f"it says: {view and view['problem']}")
        pending = (view or {}).get("pending_removals", [])
        seen = [(removal["key_prefix"], removal["namespace"]) for removal in pending if removal["key_id"] == lost["id"]]
        check(seen == [(lost["prefix"], "team-a")], f"it knows what is left to do: {pending}")
        outcome = worker.command("kubernetes", "check")
        check(outcome.code == 1, f"`check` ends with 1: {brief(outcome.out + outcome.err)}")
    finally:
        cluster.resume()
    begun = time.monotonic()
    check(eventually(REMOVED_SECONDS_MAX, lambda: secret not in cluster.secrets()), f"it is gone after {time.monotonic() - begun:.1f} s")
    empty = eventually(SEEN_SECONDS_MAX, lambda: worker.manage("GET", "/v1/kubernetes")[1]["pending_removals"] == [])
    check(empty, "nothing is left to do")
    dead = eventually(DEATH_SECONDS_MAX, lambda: cluster.status(token, "/api/v1/namespaces/team-a/pods") == 401)
    check(dead, "the token is dead")
    allowed(person, "get", "pods", who="another key")


def unreachable(view):
    return view if view["reachable"] is False else None


def closing(stage):
    print("namespaces are deleted and renamed")
    cluster, worker = stage.cluster, stage.worker
    for name in ("team-a", "team-c", "team-d"):
        stage.namespace(name)
    only = worker.new_key("only c", stage.scope("team-c"))
    both = worker.new_key("a and c", stage.scope("team-a", "team-c"))
    moved = worker.new_key("moved", stage.scope("team-d"))
    before = len(stage.issued)
    of_only, of_both, of_moved = (stage.watch(key["key"], name) for key, name in ((only, "team-c"), (both, "team-c"), (moved, "team-d")))
    route = f"/v1/kubernetes/namespaces/{stage.namespace('team-c')['id']}"
    status, answer = worker.manage("DELETE", route)
    listed = {error["field"]: error["reason"] for error in answer.get("errors", [])}
    expected = {key["id"]: f"{key['name']} ({key['prefix']})" for key in (only, both)}
    check((status, answer["code"], listed) == (409, "namespace_in_use", expected), f"{status} {answer['code']}: {sorted(listed.values())}")
    status, _ = worker.manage("DELETE", route + "?force=true")
    begun = time.monotonic()
    check(status == 204 and worker.namespace("team-c") is None, f"by force: {status}")
    keys = {key["id"]: worker.manage("GET", f"/v1/api-keys/{key['id']}")[1] for key in (only, both)}
    check(keys[only["id"]]["state"] == "revoked", f"a key for it alone is {keys[only['id']]['state']}")
    check(keys[both["id"]]["scope"] == stage.scope("team-a"), f"another has {keys[both['id']]['scope']}")
    team_d = stage.namespace("team-d")
    cluster.kubectl("create", "namespace", "team-e")
    status, renamed = worker.manage("PATCH", f"/v1/kubernetes/namespaces/{team_d['id']}", {"name": "team-e"})
    begun_renamed = time.monotonic()
    check((status, renamed["id"], renamed["name"]) == (200, team_d["id"], "team-e"), f"team-d is team-e: {status} {renamed['state']}")
    stage.dead("team-c is taken away, a key for it alone", of_only, begun)
    stage.dead("team-c is taken away, a key for more", of_both, begun)
    stage.dead("team-d is another namespace", of_moved, begun_renamed)
    for _, name, token in stage.issued[before:]:
        stage.secret_goes(f"a key for {name}", token)
    allowed(stage.person(both["key"], "team-a"), "get", "pods", who="the key for more, in team-a")
    stage.namespace("team-e")
    allowed(stage.person(moved["key"], "team-e"), "get", "pods", who="the key for team-d, now in team-e")


def own(stage):
    print("the worker's own token")
    cluster, worker = stage.cluster, stage.worker
    path = os.path.join(worker.folder, "kubernetes", "token")
    check(worker.stop() == 0, "ends with 0 when told to stop")
    token = cluster.kubectl("-n", HOLDER, "create", "token", "worker", "--duration", "24h").out.strip()
    write(path, cluster.aged(token, 20 * 3600))
    worker.start()

    def renewed():
        with open(path) as file:
            return claims(file.read())["exp"] - time.time() > 20 * 3600

    check(eventually(SEEN_SECONDS_MAX, renewed), "one that ends in four hours is renewed while it serves")
    mode = stat.S_IMODE(os.stat(path).st_mode)
    check(mode == 0o600, f"the new one is the worker's alone ({mode:o})")
    key = worker.new_key("after the renewal", stage.scope("team-a"))["key"]
    check(stage.post(key, "team-a").status == 200, "tokens are made with it")
    worker.stop()
    write(path, cluster.aged(token, 25 * 3600))
    outcome = worker.command("kubernetes", "check")
    check(outcome.code == 1 and "connect" in outcome.out + outcome.err, f"one that has ended: {brief(outcome.out + outcome.err)}")
    worker.start()
    view = eventually(SEEN_SECONDS_MAX, lambda: found(worker.manage("GET", "/v1/kubernetes"), "problem"))
    check(view and view[0] == 200, f"the worker serves all the same, and says: {view and view[1]['problem']}")
    worker.stop()
    outcome = worker.command("kubernetes", "connect", "--kubeconfig", cluster.kubeconfig)
    check(outcome.code == 0, "`connect` mends it")
    in_pod(stage)
    worker.start()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def in_pod(stage):
    """A pod's file system and environment; skipped where they cannot be simulated."""
    if shutil.which("unshare") is None or run(["unshare", "--map-root-user", "--mount", "true"]).code != 0:
        print("  skipped: in a pod, because this machine has no private file systems")
        return
    cluster, worker = stage.cluster, stage.worker
    token = cluster.kubectl("-n", HOLDER, "create", "token", "worker").out.strip()
    kept = cluster.home()
    write(os.path.join(kept, "token"), token)
    write(os.path.join(kept, "namespace"), HOLDER)
    shutil.copy(cluster.authority, os.path.join(kept, "ca.crt"))
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    script = f'mount -t tmpfs none "$(realpath /var/run)" && mkdir -p {folder} && cp "$0"/* {folder} && exec "$@"'
    host, port = cluster.server.removeprefix("https://").split(":")
    environment = {
        "PATH": os.environ["PATH"], "HOME": kept, "KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port,
        "FLUXSERVE_KUBERNETES_IN_CLUSTER": "true", "FLUXSERVE_KUBERNETES_SERVER": cluster.server,
    }
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, kept]
    outcome = run([*command, worker.program, "--data-dir", cluster.home(), "kubernetes", "check"], environment)
    check(outcome.code == 0, f"in a pod `check` ends with {outcome.code}: {brief(outcome.out + outcome.err)}")


def log(stage):
    print("the audit log")
    worker = stage.worker
    stage.token(worker.new_key("logged", stage.scope("team-a"))["key"], "team-a")
    entries = worker.pages("/v1/audit")
    logged = collections.Counter()
    for entry in entries:
        if entry["action"] == "credential_issued":
            detail = entry["detail"]
            logged[entry["key_prefix"], detail["namespace"], detail.get("jti"), detail["secret"]] += 1
    wanted = collections.Counter()
    for prefix, name, token in stage.issued:
        said = claims(token)
        # Before 1.29, Kubernetes tokens have no id.
        wanted[prefix, name, said.get("jti"), said["kubernetes.io"]["secret"]["name"]] += 1
    missed = wanted - logged
    with_id = sum("jti" in claims(token) for _, _, token in stage.issued)
    check(
        wanted and not missed,
        f"of {sum(logged.values())} tokens in the log these {sum(wanted.values())} are {sum((wanted - missed).values())}; "
        f"{with_id} of them have an id {dict(missed) or ''}",
    )
    actions = collections.Counter(entry["action"] for entry in entries)
    check(actions["namespace_created"] > 0, f"{dict(actions)}")
    signatures = {token.rsplit(".", 1)[1] for _, _, token in stage.issued}
    text = json.dumps(entries)
    check(not any(signature in text for signature in signatures), "no token is in the log")
    files = [os.path.join(folder, name) for folder, _, names in os.walk(worker.folder) for name in names]
    spilled = [path for path in files if holds(path, signatures)]
    check(not spilled, f"none of {len(signatures)} tokens is in any of {len(files)} files {spilled or ''}")


def holds(path, words):
    with open(path, "rb") as file:
        data = file.read()
    return any(word.encode() in data for word in words)


def alone(stage):
    print("a worker that opens namespaces by itself")
    cluster, worker = stage.cluster, stage.worker
    more = worker.command("kubernetes", "manifest", "--auto-open").out
    cluster.apply(more)
    worker.stop()
    worker.environment["FLUXSERVE_KUBERNETES_AUTO_OPEN"] = "true"
    worker.start()
    check(worker.manage("GET", "/v1/kubernetes")[1]["auto_open"] is True, "it says so")
    cluster.kubectl("create", "namespace", "team-auto")
    status, namespace = worker.manage("POST", "/v1/kubernetes/namespaces", {"name": "team-auto"})
    check(status == 201 and stage.stands("team-auto", "open"), f"{status} {namespace['state']}, then {worker.namespace('team-auto')}")
    labelled = json.loads(cluster.kubectl("get", "namespace", "team-auto", "-o", "json").out)["metadata"]["labels"]
    check(labelled.get(POD_SECURITY) == "restricted", f"its pods are kept from their node: {labelled}")
    key = worker.new_key("auto", {"kubernetes_exec": {"namespace_ids": [namespace["id"]]}})
    allowed(stage.person(key["key"], "team-auto"), "get", "pods")
    person = Person(cluster, os.path.join(worker.folder, "kubernetes", "kubeconfig"))
    outcome = person.kubectl("-n", "team-auto", "create", "rolebinding", "more", "--clusterrole=cluster-admin", f"--serviceaccount={HOLDER}:worker")
    check(outcome.code == 1 and "forbidden" in outcome.err, f"it can give away no other role: {brief(outcome.err)}")
    watch = stage.watch(key["key"], "team-auto")
    status, _ = worker.manage("DELETE", f"/v1/kubernetes/namespaces/{namespace['id']}?force=true")
    begun = time.monotonic()
    # Whichever ends first: the token's Secret or its rights.
    stage.dead(f"it is closed ({status})", watch, begun, ("Unauthorized", "Forbidden"))
    stage.secret_goes("it is closed", stage.issued[-1][2])

    def left():
        return cluster.kubectl("-n", HOLDER, "get", "serviceaccount", "ns-team-auto", "--ignore-not-found", "-o", "name").out + \
            cluster.kubectl("-n", "team-auto", "get", "rolebinding", "fluxserve", "--ignore-not-found", "-o", "name").out

    check(eventually(SEEN_SECONDS_MAX, lambda: left() == ""), f"neither its account nor its binding is left {brief(left())}")
    status, missing = worker.manage("POST", "/v1/kubernetes/namespaces", {"name": "team-nowhere"})
    check(status == 201 and missing["state"] == "pending" and missing["problem"], f"one that the cluster has not: {status} {missing['problem']}")


def deploy(stage):
    print("the manifests for the worker itself")
    cluster, program = stage.cluster, stage.worker
    with open(os.path.join(DEPLOY, "kubernetes", "rbac.yaml")) as file:
        is_so = file.read() == program.command("kubernetes", "manifest").out
        check(is_so, "kubernetes/rbac.yaml is what `kubernetes manifest` prints")
    served = cluster.kubectl("api-versions").out.split()
    known = set(re.findall(r"FLUXSERVE_\w+", program.command("--help").out))
    folders = sorted(folder for folder, _, names in os.walk(DEPLOY) if "kustomization.yaml" in names)
    with open(os.path.join(HERE, "monitoring-crd.yaml")) as file:
        cluster.apply(file.read())
    cluster.kubectl("wait", "--for=condition=established", "crd/servicemonitors.monitoring.coreos.com", "--timeout=30s")
    for folder in folders:
        name = os.path.basename(folder)
        used = set()
        for file in os.listdir(folder):
            with open(os.path.join(folder, file)) as text:
                used.update(re.findall(r"FLUXSERVE_\w+", text.read()))
        check(used <= known, f"{name}: the program knows all {len(used)} variables {sorted(used - known) or ''}")
        outcome = cluster.kubectl("kustomize", folder)
        check(outcome.code == 0, f"{name} is put together {brief(outcome.err)}")
        check(lasts(outcome.out), f"{name}: the pod is given more time to end than the worker takes")
        for text in re.split(r"^---\n", outcome.out, flags=re.MULTILINE):
            # Before Kubernetes 1.21 these fields only exist in the draft version.
            if "policy/v1" not in served:
                text = text.replace("apiVersion: policy/v1\n", "apiVersion: policy/v1beta1\n")
            outcome = cluster.kubectl("apply", "--dry-run=server", "-f", "-", text=text)
            check(outcome.code == 0, f"{name}: {brief(outcome.out + outcome.err)}")


def lasts(text):
    drain, grace = (int(re.search(word + r": \"?(\d+)", text).group(1)) for word in ("DRAIN_DEADLINE_SECONDS", "terminationGracePeriodSeconds"))
    return drain < grace


PARTS = [opening, rights, holder, ends, race, away, closing, unbinding, own, deploy, alone, log]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("tools")
    names = [part.__name__ for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    # The user's own cluster must not be used by this test.
    os.environ.pop("KUBECONFIG", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(options.program, options.tools, folder)
        stage.cluster.start()
        try:
            for part in [connecting, *(part for part in PARTS if part.__name__ in options.parts)]:
                try:
                    part(stage)
                except Exception as error:
                    traceback.print_exc(file=sys.stdout)
                    check(False, f"{part.__name__} broke off: {error!r}")
                    if stage.worker.process is None:
                        break
        finally:
            if stage.worker.process is not None:
                stage.worker.kill()
            stage.cluster.stop()
            if faults:
                with open(os.path.join(stage.worker.folder, "log")) as file:
                    print("".join(file.readlines()[-40:]))
    print(f"{len(faults)} faults, {time.monotonic() - begun:.0f} s")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
