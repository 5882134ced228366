"""What a worker has to bear: kills in mid-work, a flood, clients that leave. Against the real program, on the CPU.

    python3 tests/e2e/endurance.py PROGRAM [--parts leaving chaos flood] [--jobs 200] [--kills 10] [--flood-seconds 60]

Needs nothing but Python. Each part says what it saw, and the program ends with 1 when anything was not as promised.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

MODEL = "fluxserve/flux-shapes"
PATIENCE_SECONDS = 300
PASSWORD = "the password of this test"
faults = []


def check(is_so, what):
    print(("  ok     " if is_so else "  FAULT  ") + what, flush=True)
    if not is_so:
        faults.append(what)


class Worker:
    """The program, started again and again on the same data."""

    def __init__(self, program, folder, environment=None):
        self.program, self.folder = os.path.realpath(program), folder
        self.environment = {"FLUXSERVE_ADMIN_PASSWORD": PASSWORD, "FLUXSERVE_LOG_FILTER": "warn", **(environment or {})}
        self.process = None
        self.port = free_port()

    def key(self, name):
        command = [self.program, "--data-dir", self.folder, "keys", "create", "--name", name, "--scope", "inference"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def start(self):
        command = [self.program, "--data-dir", self.folder, "serve", "--device", "cpu", "--listen", f"127.0.0.1:{self.port}"]
        log = open(os.path.join(self.folder, "log"), "a")
        self.process = subprocess.Popen(command, env={**os.environ, **self.environment}, stdout=log, stderr=log)
        started = time.monotonic()
        while True:
            try:
                if self.ask("GET", "/readyz").status == 200:
                    return time.monotonic() - started
            except OSError:
                pass
            assert self.process.poll() is None, "the worker has ended by itself"
            assert time.monotonic() - started < PATIENCE_SECONDS, "the worker does not become ready"
            time.sleep(0.02)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    def ask(self, method, path, key=None, body=None, headers=None, timeout=60):
        """The answer, read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            headers = dict(headers or {})
            if key:
                headers["x-api-key"] = key
            if body is not None:
                body = json.dumps(body)
                headers["content-type"] = "application/json"
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.data = answer.read()
            return answer
        finally:
            connection.close()

    def json(self, method, path, key=None, body=None, headers=None):
        answer = self.ask(method, path, key, body, headers)
        return answer.status, json.loads(answer.data), answer.headers

    def metric(self, name):
        """The sum over all series."""
        text = self.ask("GET", "/metrics").data.decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(name + r"[{ ]", line))

    def resident_mebibytes(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def picture(numbers, seed):
    side = lambda: numbers.choice([64, 80, 96, 128])
    words = numbers.choice(["a red circle on a blue background", "two green squares", "a small star above a cross"])
    return {"model": MODEL, "prompt": words, "width": side(), "height": side(), "steps": numbers.randint(4, 30), "seed": seed}


def chaos(program, folder, jobs, kills, seed):
    print(f"{jobs} jobs, and kill -9 at {kills} random moments")
    numbers = random.Random(seed)
    worker = Worker(program, folder)
    key = worker.key("chaos")
    worker.start()
    wanted = [picture(numbers, number) for number in range(jobs)]
    acknowledged = {}
    stop = threading.Event()

    def submit():
        """Until each is acknowledged; one whose answer is lost is asked for again under the same word."""
        for number, body in enumerate(wanted):
            while not stop.is_set():
                try:
                    headers = {"idempotency-key": f"chaos-{number}"}
                    status, answer, _ = worker.json("POST", "/v1/inference/image", key, body, headers)
                except (OSError, http.client.HTTPException, ValueError):
                    time.sleep(0.05)
                    continue
                if status == 202:
                    acknowledged[number] = answer["job_id"]
                    break
                time.sleep(0.05)
            time.sleep(numbers.random() * 0.1)

    submitting = threading.Thread(target=submit)
    submitting.start()
    for _ in range(kills):
        time.sleep(numbers.uniform(0.3, 2.5))
        worker.kill()
        worker.start()
    submitting.join(PATIENCE_SECONDS)
    stop.set()
    check(len(acknowledged) == jobs, f"{len(acknowledged)} of {jobs} acknowledged")
    ends, started = {}, time.monotonic()
    while len(ends) < len(acknowledged) and time.monotonic() - started < PATIENCE_SECONDS:
        for number, job in acknowledged.items():
            if number not in ends:
                status, view, _ = worker.json("GET", f"/v1/inference/jobs/{job}", key)
                if status != 200 or view["status"] in ("succeeded", "failed", "canceled"):
                    ends[number] = view
        time.sleep(0.2)
    succeeded = [number for number, view in ends.items() if view.get("status") == "succeeded"]
    others = [view for view in ends.values() if view.get("status") != "succeeded"]
    check(len(succeeded) == jobs, f"{len(succeeded)} succeeded, not so: {[view.get('error', view) for view in others][:3]}")
    check(len(set(acknowledged.values())) == len(acknowledged), "no two requests have the same job")
    listed, cursor = 0, ""
    while cursor is not None:
        _, page, _ = worker.json("GET", f"/v1/inference/jobs?limit=100{cursor and '&cursor=' + cursor}", key)
        listed, cursor = listed + len(page["data"]), page["next_cursor"]
    check(listed == jobs, f"{listed} jobs are listed: nobody's was made twice")
    check(images_drawn(worker, key) == len(succeeded), f"{images_drawn(worker, key)} pictures counted: each ended once")
    pictures = {number: worker.ask("GET", f"/v1/inference/jobs/{acknowledged[number]}/result", key).data for number in succeeded}
    # The same requests once more, one at a time, with nobody beside them and nothing that breaks.
    waits = {"prefer": "wait=60", "accept": "image/png"}
    alone = {number: worker.ask("POST", "/v1/inference/image", key, wanted[number], waits).data for number in succeeded}
    same = sum(pictures[number] == alone[number] and pictures[number][:4] == b"\x89PNG" for number in succeeded)
    check(same == len(succeeded), f"{same} of {len(succeeded)} are the same files that are drawn alone")
    check(worker.stop() == 0, "ends with 0 when told to stop")


def images_drawn(worker, key):
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30)
    connection.request("POST", "/v1/session", json.dumps({"password": PASSWORD}), {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    cookie = answer.headers["set-cookie"].split(";")[0]
    _, keys, _ = worker.json("GET", "/v1/api-keys?limit=100", headers={"cookie": cookie})
    own = next(view for view in keys["data"] if key.startswith(view["prefix"]))
    _, usage, _ = worker.json("GET", f"/v1/api-keys/{own['id']}/usage", headers={"cookie": cookie})
    return sum(day["images"] for day in usage["data"])


def flood(program, folder, seconds):
    print(f"ten times what can be drawn, for {seconds} s")
    worker = Worker(program, folder, {"FLUXSERVE_QUEUE_JOBS_MAX": "64"})
    greedy, modest = [worker.key(f"greedy {number}") for number in range(2)], worker.key("modest")
    worker.start()
    body = {"model": MODEL, "prompt": "a red circle", "width": 128, "height": 128, "steps": 20, "seed": 1}
    started = time.monotonic()
    for _ in range(5):
        worker.ask("POST", "/v1/inference/image", modest, body, {"prefer": "wait=60"})
    alone = (time.monotonic() - started) / 5
    rate = 10 / alone
    memory_before = worker.resident_mebibytes()
    end = time.monotonic() + seconds
    accepted, refused, bare, other, lock = [], [0], [0], [], threading.Lock()

    def send(number, threads):
        key, due = greedy[number % len(greedy)], time.monotonic()
        while time.monotonic() < end:
            due += threads / rate
            time.sleep(max(0, due - time.monotonic()))
            try:
                status, answer, headers = worker.json("POST", "/v1/inference/image", key, {**body, "seed": number})
            except (OSError, http.client.HTTPException) as error:
                with lock:
                    other.append(repr(error))
                continue
            with lock:
                if status == 202:
                    accepted.append((key, answer["job_id"]))
                elif status == 429:
                    refused[0] += 1
                    bare[0] += headers.get("retry-after") is None
                else:
                    other.append((status, answer.get("code")))

    threads = [threading.Thread(target=send, args=(number, 8)) for number in range(8)]
    for thread in threads:
        thread.start()
    latencies, memory = [], []
    while time.monotonic() < end:
        begun = time.monotonic()
        answer = worker.ask("POST", "/v1/inference/image", modest, body, {"prefer": "wait=60", "accept": "image/png"})
        if answer.status == 200:
            latencies.append(time.monotonic() - begun)
        else:
            other.append(("modest", answer.status))
        memory.append(worker.resident_mebibytes())
    for thread in threads:
        thread.join()
    sent = len(accepted) + refused[0]
    print(f"  alone {alone:.2f} s; {sent / seconds:.1f} a second sent, {len(accepted)} accepted, {refused[0]} refused")
    latencies.sort()
    p99 = latencies[int(0.99 * (len(latencies) - 1))]
    print(f"  the modest key beside it: {len(latencies)} pictures, p50 {statistics.median(latencies):.2f} s, p99 {p99:.2f} s")
    print(f"  memory {memory_before:.0f} MiB before, {max(memory):.0f} MiB at most")
    check(refused[0] > len(accepted), "most are refused")
    check(bare[0] == 0, "every refusal says when to come back")
    check(not other, f"no other answers {other[:3]}")
    check(max(memory) < memory_before + 150, "memory stays bounded")
    check(p99 < 8 * alone, f"one picture at a time takes at most 8 times as long as alone ({p99 / alone:.1f})")
    ended = {}
    until = time.monotonic() + PATIENCE_SECONDS
    while len(ended) < len(accepted) and time.monotonic() < until:
        for key, job in accepted:
            if job not in ended:
                _, view, _ = worker.json("GET", f"/v1/inference/jobs/{job}", key)
                if view["status"] in ("succeeded", "failed", "canceled"):
                    ended[job] = view["status"]
    good = sum(status == "succeeded" for status in ended.values())
    check(good == len(accepted), f"{good} of {len(accepted)} accepted jobs are drawn")
    check(worker.stop() == 0, "ends with 0 when told to stop")


def leaving(program, folder):
    print("from the wish to the free place")
    worker = Worker(program, folder)
    key = worker.key("leaving")
    worker.start()
    body = {"model": MODEL, "prompt": "a red circle", "width": 256, "height": 256, "steps": 100, "seed": 1}

    def drawing():
        until = time.monotonic() + PATIENCE_SECONDS
        while worker.metric("fluxserve_engine_pictures") == 0:
            assert time.monotonic() < until
            time.sleep(0.005)
        time.sleep(random.uniform(0.1, 0.5))

    def step_seconds():
        return worker.metric("fluxserve_step_duration_seconds_sum") / worker.metric("fluxserve_step_duration_seconds_count")

    def freed(begun):
        while worker.metric("fluxserve_engine_pictures") > 0:
            assert time.monotonic() - begun < PATIENCE_SECONDS
        return time.monotonic() - begun

    def cancelled():
        _, job, _ = worker.json("POST", "/v1/inference/image", key, body)
        drawing()
        begun = time.monotonic()
        worker.ask("DELETE", f"/v1/inference/jobs/{job['job_id']}", key)
        return freed(begun)

    def disconnected():
        text = json.dumps(body)
        head = f"POST /v1/inference/image HTTP/1.1\r\nhost: worker\r\nx-api-key: {key}\r\nprefer: wait=60\r\n"
        request = f"{head}content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n{text}"
        connection = socket.create_connection(("127.0.0.1", worker.port))
        connection.sendall(request.encode())
        drawing()
        begun = time.monotonic()
        connection.close()
        return freed(begun)

    for name, leave in (("cancelled", cancelled), ("disconnected", disconnected)):
        times = [leave() for _ in range(10)]
        step = step_seconds()
        # One step, and what asking takes.
        check(max(times) < step + 0.05, f"{name}: {max(times) * 1000:.0f} ms at most, a step takes {step * 1000:.0f} ms")
    check(worker.stop() == 0, "ends with 0 when told to stop")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--flood-seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parts = {
        "leaving": lambda folder: leaving(options.program, folder),
        "chaos": lambda folder: chaos(options.program, folder, options.jobs, options.kills, options.seed),
        "flood": lambda folder: flood(options.program, folder, options.flood_seconds),
    }
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    options = parser.parse_args()
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[part](folder)
    print(f"{len(faults)} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
