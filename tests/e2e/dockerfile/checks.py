"""What an image must do, checked by running it. build.py makes the image, container.py runs it."""

import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from container import PUBLISHED, Container

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from endurance import check  # noqa: E402

USER = 65532
PASSWORD = "correct horse battery"
# Until the demo model is ready; Docker waits for `start-period`.
READY_SECONDS = 60
# What `docker stop` waits for.
DOCKER_STOP_SECONDS = 10
DEMO = "fluxserve/flux-shapes"


@dataclass
class Run:
    """The `docker run` command in a Dockerfile's first comment."""

    ports: list = field(default_factory=list)
    volumes: list = field(default_factory=list)
    environment: dict = field(default_factory=dict)
    stop_seconds: int = DOCKER_STOP_SECONDS

    @classmethod
    def of(cls, text):
        comment = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        command = re.search(r"^docker run ((?:.*\\\n)*.*)$", comment, re.MULTILINE)
        found, given = cls(), shlex.split(command.group(1).replace("\\\n", " "))
        while given and given[0].startswith("-"):
            option, value, *given = given
            if option == "-p":
                found.ports.append(int(value.split(":")[-1]))
            elif option == "-v":
                source, place, *options = value.split(":")
                found.volumes.append((source, place, options == ["ro"]))
            elif option == "-e":
                name, _, setting = value.partition("=")
                found.environment[name] = setting
            elif option == "--stop-timeout":
                found.stop_seconds = int(value)
            elif option not in ("--gpus", "--restart"):
                raise RuntimeError(f"the option `{option}` of docker run is not known here")
        return found


class Checks:
    def __init__(self, builder, image, run, folder):
        self.builder, self.image, self.run, self.folder = builder, image, run, folder
        self.program = "/usr/local/bin/fluxserve"
        self.key = None
        password = folder / "password"
        password.write_text(PASSWORD + "\n")
        password.chmod(0o444)
        # What the comment's `/path/to/...` stand for; the model is the demo model, as a folder.
        paths = {"/path/to/models": str(builder.context / "models"), "/path/to/password": str(password)}
        self.volumes = [(paths.get(source, source), place, is_read_only) for source, place, is_read_only in run.volumes]

    def all(self):
        print("the image's files and user")
        self.idle()
        print("a first start, with the demo model")
        self.first_start()
        print("a second start with the same volume and the model of a folder")
        self.second_start()
        print("a start without a password, and one with https")
        self.without_password()
        self.with_https()

    def container(self, name, **options):
        return Container(self.image, self.folder / name, **options)

    def idle(self):
        with self.container("idle", volumes=[], argv=["sleep", "600"]) as container:
            status, libraries = container.exec(["ldd", self.program])
            missing = [line.split()[0] for line in libraries.splitlines() if "not found" in line]
            check(status == 0 and not missing, f"the program's libraries are there, without a driver: {missing or 'all'}")
            self.libraries(container)
            identity = container.exec(["id"])[1].strip()
            names = f"uid={USER}(fluxserve) gid={USER}(fluxserve) groups={USER}(fluxserve)"
            check(identity == names, f"it runs as {identity}")
            account = container.exec(["getent", "passwd", str(USER)])[1].strip().split(":")
            check(account[5:] == ["/tmp", "/usr/sbin/nologin"], f"whose account has {account[5:]}")
            for place in [*self.image.volumes, self.image.environment.get("HOME", "")]:
                is_writable = container.exec(["/bin/sh", "-c", 'touch "$0/x" && rm "$0/x"', place])[0] == 0
                check(is_writable, f"it may write to `{place}`")
            hub = self.image.environment.get("HF_HOME", "")
            check(any(hub.startswith(place + "/") for place in self.image.volumes), f"downloads go into a volume: `{hub}`")
            for place in ["/", "/etc", "/usr/local/bin"]:
                is_writable = container.exec(["/bin/sh", "-c", 'touch "$0/x"', place])[0] == 0
                check(not is_writable, f"it may not write to `{place}`")
            check(not container.healthy(), "the health check fails without a server")
            self.version(container)

    def libraries(self, container):
        """CUDA's libraries, which the program loads by these names where there is a driver."""
        if not self.builder.has_libraries:
            return
        source = (self.builder.context / "scripts/cuda_stand_ins.py").read_text()
        names = sorted(set(re.findall(r"\blib\w+\.so\.\d+", source)) - {"libcuda.so.1", "libcudnn.so.9"})
        # The loader complains, and goes on without what it cannot load.
        load = 'test -e "$0" && LD_PRELOAD=$0 true 2>&1'
        for name in names:
            status, complaint = container.exec(["/bin/sh", "-c", load, f"/usr/local/cuda/lib64/{name}"])
            check(status == 0 and not complaint, f"`{name}` can be loaded {complaint}")

    def version(self, container):
        said = container.exec([self.program, "--version"])[1]
        commit = re.search(r"^commit: +(\S+)$", said, re.MULTILINE)
        given, epoch = (self.builder.given[name] for name in ("SOURCE_COMMIT", "SOURCE_DATE_EPOCH"))
        if self.builder.program:
            elsewhere = subprocess.run([self.builder.program, "--version"], capture_output=True, text=True).stdout
            check(said == elsewhere, "`--version` says what the program says outside")
            for name, value in (("SOURCE_COMMIT", given), ("SOURCE_DATE_EPOCH", epoch)):
                reaching = (self.builder.cargo_environment or {}).get(name)
                check(reaching == value, f"{name} reaches cargo: {reaching}")
        else:
            check(commit and commit.group(1) == given, f"`--version` names the commit: {commit and commit.group(1)}")
            check("cuda" in said, f"and CUDA: {' '.join(said.split())}")

    def ready(self, container):
        """Waits until the image's health check succeeds."""
        until = time.monotonic() + READY_SECONDS
        while not container.healthy():
            if container.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the health check does not succeed; the container's log:\n{container.text()}")
            time.sleep(0.25)
        check(True, "the health check succeeds when the model is ready")

    def curl(self, container, port, path, *arguments):
        """Status and body, as a client gets it through a published port."""
        url = f"http://{PUBLISHED}:{port}{path}"
        argv = ["curl", "--silent", "--write-out", "\n%{http_code}", "--header", f"Host: 127.0.0.1:{port}", *arguments, url]
        body, _, status = container.exec(argv)[1].rpartition("\n")
        return status, body

    def first_start(self):
        environment = {name: value for name, value in self.run.environment.items() if name != "FLUXSERVE_MODELS"}
        with self.container("first", volumes=self.volumes, environment=environment) as container:
            self.ready(container)
            self.process(container)
            clients, console = self.run.ports
            container.says(f"{DEMO} is ready")
            check(PASSWORD not in container.text() and "password, shown" not in container.text(), "the log has no password")
            sign_in = ["--json", json.dumps({"password": PASSWORD})]
            status, body = self.curl(container, console, "/v1/session", *sign_in)
            check(status == "201", f"the password's file signs in at port {console}: {status} {body[:80]}")
            status, _ = self.curl(container, console, "/admin")
            check(status == "200", f"the console is at port {console}: {status}")
            status, _ = self.curl(container, clients, "/admin")
            check(status == "404", f"and not at port {clients}: {status}")
            status, key = container.exec(["fluxserve", "keys", "create", "--name", "me", "--scope", "inference"])
            check(status == 0, "`docker exec` creates a key")
            self.key = key.strip()
            self.generates(container, clients)
            self.keeps_kernels(container)
            self.stops(container)

    def process(self, container):
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{container.first}/status").read_text().splitlines())
        check(lines["Uid"].split() == [str(USER)] * 4, f"the server runs as {lines['Uid'].split()[0]}")
        check(int(lines["CapEff"], 16) == 0, "without any right of root")
        reachable = {port for port, is_any in container.listeners() if is_any}
        check(reachable == self.image.ports, f"it listens at the exposed ports: {sorted(reachable)}")
        check(set(self.run.ports) == self.image.ports, f"and `docker run` publishes them: {sorted(self.run.ports)}")

    def generates(self, container, port):
        request = json.dumps({"model": DEMO, "prompt": "a red circle on a blue background", "steps": 4})
        headers = ["--header", f"x-api-key: {self.key}", "--header", "accept: image/png"]
        status, _ = self.curl(
            container, port, "/v1/inference/image", *headers, "--json", request, "--output", "/tmp/image.png"
        )
        begin = container.exec(["head", "--bytes=4", "/tmp/image.png"])[1]
        check(status == "200" and begin.endswith("PNG"), f"a client gets an image at port {port}: {status}")

    def keeps_kernels(self, container):
        """The driver's cache of compiled kernels. Without CUDA_CACHE_PATH it is below HOME."""
        environment = self.image.environment
        self.cache = environment.get("CUDA_CACHE_PATH") or environment["HOME"] + "/.nv/ComputeCache"
        status, _ = container.exec(["/bin/sh", "-c", 'mkdir -p "$0" && touch "$0/kernel"', self.cache])
        check(status == 0, f"the driver can keep compiled kernels in `{self.cache}`")

    def stops(self, container):
        limit = self.run.stop_seconds
        started = time.monotonic()
        status = container.stop(limit)
        check(status == 0, f"SIGTERM ends it with {status} after {time.monotonic() - started:.1f} s")
        log = container.text()
        check("panicked" not in log and " ERROR " not in log, "and its log has no error")

    def second_start(self):
        environment = dict(self.run.environment)
        (served,) = re.findall(r"=(/\S+)$", environment["FLUXSERVE_MODELS"])
        environment["FLUXSERVE_MODELS"] = f"{DEMO}={Path(served).parent}/flux-shapes"
        with self.container("second", volumes=self.volumes, environment=environment) as container:
            self.ready(container)
            where = f"({Path(served).parent}/flux-shapes)"
            is_served = container.says(re.escape(f"{DEMO} is ready {where}"))
            check(is_served, f"the model is the one in the folder {where}")
            self.generates(container, self.run.ports[0])
            status, _ = container.exec(["test", "-e", f"{self.cache}/kernel"])
            check(status == 0, "compiled kernels survive a new container")
            self.accepted_jobs(container)

    def accepted_jobs(self, container):
        """A job that runs at `docker stop` is finished first."""
        settings = (self.builder.context / "docs/configuration.md").read_text()
        deadline = int(re.search(r"`FLUXSERVE_DRAIN_DEADLINE_SECONDS` \| +\| (\d+)", settings).group(1))
        enough = self.run.stop_seconds > deadline
        check(enough, f"jobs get {deadline} s to finish, and `docker stop` waits {self.run.stop_seconds} s")
        request = json.dumps({"model": DEMO, "prompt": "a red circle", "width": 256, "height": 256, "steps": 30})
        headers = ["--header", f"x-api-key: {self.key}"]
        status, body = self.curl(container, self.run.ports[0], "/v1/inference/image", *headers, "--json", request)
        check(status == "202", f"a job is accepted: {status} {body[:80]}")
        self.stops(container)

    def without_password(self):
        with self.container("without", volumes=[]) as container:
            self.ready(container)
            check(container.says(r"administrator's password, shown this once: \S{12}"), "the log has a new password")
            check(container.says(r"demo key, shown this once: \S+\s+it is valid for 30 days"), "and a key for 30 days")
            check(container.stop(DOCKER_STOP_SECONDS) == 0, "SIGTERM ends it")

    def with_https(self):
        folder = self.folder / "tls"
        folder.mkdir()
        subject = ["-subj", "/CN=localhost", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        files = ["-keyout", "key.pem", "-out", "certificate.pem"]
        subprocess.run(["openssl", "req", "-x509", "-noenc", *subject, *files], cwd=folder, check=True, capture_output=True)
        for file in folder.iterdir():
            subprocess.run(["chown", f"{USER}:{USER}", file], check=True)
        environment = {
            "FLUXSERVE_TLS_CERTIFICATE": "/run/secrets/tls/certificate.pem",
            "FLUXSERVE_TLS_PRIVATE_KEY": "/run/secrets/tls/key.pem",
        }
        volumes = [(str(folder), "/run/secrets/tls", True)]
        with self.container("https", volumes=volumes, environment=environment) as container:
            self.ready(container)
            check(container.stop(DOCKER_STOP_SECONDS) == 0, "SIGTERM ends it")
