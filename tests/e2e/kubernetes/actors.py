"""The actors of real.py: the cluster and its administrator, the worker and its administrator, and kubectl users."""

import base64
import collections
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import endurance  # noqa: E402

POLL_SECONDS = 0.5
# kubectl waits forever without an answer.
COMMAND_SECONDS_MAX = 60

Outcome = collections.namedtuple("Outcome", "code out err")


def run(command, environment=None, text=None):
    """Runs a program to its end. One that does not end is a fault of the program, not of this test."""
    try:
        ended = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, env=environment
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, "", f"no end within {COMMAND_SECONDS_MAX} s: {' '.join(command)}")
    return Outcome(ended.returncode, ended.stdout, ended.stderr)


def eventually(seconds, look):
    """The result of `look` as soon as it is truthy; after `seconds` whatever it is."""
    ends = time.monotonic() + seconds
    while True:
        found = look()
        if found or time.monotonic() > ends:
            return found
        time.sleep(0.2)


def claims(token):
    """The claims of a token."""
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def part_of_token(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Cluster:
    def __init__(self, tools, folder):
        self.tools, self.folder = os.path.realpath(tools), folder
        self.kubectl_program = os.path.join(self.tools, "kubectl")
        self.kubeconfig = None
        self.homes = 0

    def control(self, word):
        environment = {**os.environ, "FLUXSERVE_KUBERNETES_TOOLS": self.tools}
        # Not with pipes: child processes would keep them open.
        with open(os.path.join(self.folder, word), "w+") as out:
            script = os.path.join(HERE, "cluster.sh")
            subprocess.run([script, word, self.folder], check=True, stdout=out, env=environment)
            out.seek(0)
            return out.read().strip()

    def start(self):
        self.kubeconfig = self.control("start")
        self.administrator = Person(self, self.kubeconfig)
        self.server = json.loads(self.kubectl("config", "view", "-o", "json").out)["clusters"][0]["cluster"]["server"]
        self.authority = os.path.join(self.folder, "pki", "ca.crt")
        with open(os.path.join(self.folder, "apiserver.pid")) as file:
            self.process = int(file.read())

    def stop(self):
        self.control("stop")

    def pause(self):
        os.kill(self.process, signal.SIGSTOP)

    def resume(self):
        os.kill(self.process, signal.SIGCONT)

    def home(self):
        self.homes += 1
        folder = os.path.join(self.folder, f"home-{self.homes}")
        os.mkdir(folder)
        return folder

    def kubectl(self, *words, text=None):
        """Runs kubectl as the administrator."""
        return self.administrator.kubectl(*words, text=text)

    def apply(self, text):
        outcome = self.kubectl("apply", "-f", "-", text=text)
        assert outcome.code == 0, outcome.err
        return outcome

    def secrets(self, holder="fluxserve"):
        return set(self.kubectl("-n", holder, "get", "secrets", "-o", "name").out.split())

    def aged(self, token, seconds):
        """The same token, as if issued that long ago: this test has the API server's signing key."""
        said = claims(token)
        said.update((name, said[name] - seconds) for name in ("iat", "nbf", "exp"))
        text = token.split(".")[0] + "." + part_of_token(json.dumps(said).encode())
        key = os.path.join(self.folder, "pki", "accounts.key")
        command = ["openssl", "dgst", "-sha256", "-sign", key]
        signature = subprocess.run(command, input=text.encode(), check=True, capture_output=True).stdout
        # DER has two numbers of up to 33 bytes; a token has 32 bytes for each.
        first_length = signature[3]
        numbers = signature[4 : 4 + first_length], signature[6 + first_length :]
        raw = b"".join(number[-32:].rjust(32, b"\0") for number in numbers)
        return text + "." + part_of_token(raw)

    def status(self, token, path):
        """The API server's answer to a token, without kubectl."""
        address = urllib.parse.urlsplit(self.server)
        context = ssl.create_default_context(cafile=self.authority)
        connection = http.client.HTTPSConnection(address.hostname, address.port, timeout=30, context=context)
        try:
            connection.request("GET", path, headers={"authorization": f"Bearer {token}"})
            return connection.getresponse().status
        finally:
            connection.close()

    def kubeconfig_of(self, token, namespace):
        """A kubeconfig with a token and no plugin. JSON is YAML."""
        with open(self.authority, "rb") as file:
            authority = base64.b64encode(file.read()).decode()
        cluster = {"server": self.server, "certificate-authority-data": authority}
        context = {"cluster": "test", "user": "test", "namespace": namespace}
        path = os.path.join(self.home(), "kubeconfig")
        with open(path, "w") as file:
            json.dump({
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "test", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": context}],
            }, file)
        return path


class Person:
    """A user with a kubeconfig and an optional key, in an empty home of their own."""

    def __init__(self, cluster, kubeconfig, key=None):
        self.cluster, self.kubeconfig, self.key = cluster, kubeconfig, key
        self.home = cluster.home()

    def environment(self):
        environment = {"PATH": os.environ["PATH"], "HOME": self.home}
        if self.key is not None:
            environment["REMOTEGPU_API_KEY"] = self.key
        return environment

    def kubectl(self, *words, text=None):
        command = [self.cluster.kubectl_program, "--kubeconfig", self.kubeconfig, *words]
        return run(command, self.environment(), text)

    def plugin(self):
        """The plugin in the kubeconfig."""
        config = json.loads(self.kubectl("config", "view", "--raw", "-o", "json").out)
        return config["users"][0]["user"]["exec"]

    def ask(self):
        """The plugin's output when kubectl runs it."""
        plugin = self.plugin()
        request = {"kind": "ExecCredential", "apiVersion": plugin["apiVersion"], "spec": {"interactive": False}}
        environment = {**self.environment(), "KUBERNETES_EXEC_INFO": json.dumps(request)}
        return run([plugin["command"], *plugin["args"]], environment)

    def credential(self):
        outcome = self.ask()
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)


class Watch:
    """Polls whether a token that was issued once is still accepted."""

    def __init__(self, cluster, token, namespace):
        self.person = Person(cluster, cluster.kubeconfig_of(token, namespace))
        self.dead_at, self.last_alive_at, self.said = None, None, ""
        self.first, self.stopped = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.poll, daemon=True)
        self.thread.start()

    def poll(self):
        while not self.stopped.is_set():
            begun = time.monotonic()
            outcome = self.person.kubectl("get", "pods", "-o", "name")
            if outcome.code == 0:
                self.last_alive_at = time.monotonic()
            else:
                self.dead_at, self.said = time.monotonic(), outcome.err.strip()
            self.first.set()
            if self.dead_at:
                return
            self.stopped.wait(max(0, begun + POLL_SECONDS - time.monotonic()))

    def is_used(self):
        """Waits until the token is accepted; the API server then caches it for a while."""
        return self.first.wait(COMMAND_SECONDS_MAX) and self.dead_at is None

    def dead_after(self, since, seconds):
        """How long after `since` it was refused; `None` if it is still accepted `seconds` later."""
        self.thread.join(max(0, since + seconds - time.monotonic()))
        return None if self.dead_at is None else self.dead_at - since

    def stop(self):
        self.stopped.set()
        self.thread.join(COMMAND_SECONDS_MAX)


class Worker(endurance.Worker):
    """The worker with its administrator's actions."""

    cookie = None

    def command(self, *words, environment=None):
        return run([self.program, "--data-dir", self.folder, *words], {**os.environ, **(environment or {})})

    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        seconds = super().start()
        answer = self.ask("POST", "/v1/session", body={"password": endurance.PASSWORD}, headers={"origin": self.url()})
        assert answer.status == 201, answer.data
        self.cookie = answer.headers["set-cookie"].split(";")[0]
        return seconds

    def manage(self, method, path, body=None):
        headers = {"cookie": self.cookie, "origin": self.url()}
        answer = self.ask(method, path, body=body, headers=headers)
        return answer.status, json.loads(answer.data) if answer.data else None

    def new_key(self, name, scope, **more):
        status, key = self.manage("POST", "/v1/api-keys", {"name": name, "scope": scope, **more})
        assert status == 201, key
        return key

    def namespace(self, name):
        _, namespaces = self.manage("GET", "/v1/kubernetes/namespaces")
        return next((namespace for namespace in namespaces["data"] if namespace["name"] == name), None)

    def pages(self, path):
        """All entries of a list."""
        entries, cursor = [], ""
        while cursor is not None:
            status, page = self.manage("GET", f"{path}?limit=100{cursor and '&cursor=' + cursor}")
            assert status == 200, page
            entries, cursor = entries + page["data"], page["next_cursor"]
        return entries
