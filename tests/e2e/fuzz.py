#!/usr/bin/env python3
"""Fuzzing: images, headers, JSON, forms and query strings, changed at random, with a valid key.

    python3 tests/e2e/fuzz.py target/release/fluxserve --count 10000 --seed 7

Starts the given program on a folder of its own. Prints its seed, so that a run can be repeated. Fails if the program
ends, if an answer is an undocumented server error (documented are 503 or 504 with a code of the table, and a job that
failed by its own code), or if the memory does not return to within 20 % of its level after the warm-up.
Needs Linux (/proc) and only Python's standard library.
"""

import argparse
import base64
import collections
import http.client
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib

from image_files import black_webp
from ports import free_port

MODEL = "fluxserve/flux-shapes"
BOUNDARY = "a-boundary"
WARM_UP_REQUESTS = 300
GROWTH_MAX = 0.20
# Below this, the allocator alone keeps a fifth.
GROWTH_FREE_BYTES = 24 * 1024 * 1024
SETTLE_SECONDS_MAX = 30
SERVER_ERRORS = {
    503: {"model_unavailable", "draining", "storage_unavailable", "auth_unavailable", "not_ready",
          "kubernetes_not_configured", "kubernetes_unavailable"},
    504: {"deadline_exceeded"},
}


def png(width, height, rows, bits=8, color=2, interlace=0):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def images(dice):
    """Initial files: valid ones, and those whose heads announce large images."""
    side = 64
    noise = b"".join(b"\0" + dice.randbytes(side * 3) for _ in range(side))
    yield png(side, side, noise)
    yield png(side, side, b"".join(b"\0" + b"\x80" * side for _ in range(side)), color=0)
    yield png(side, side, b"".join(b"\4" + dice.randbytes(side * 8) for _ in range(side)), bits=16, color=6)
    for width, height in [(32_000_000, 1), (1, 32_000_000), (4_000_000, 8), (16_384, 1), (1, 16_384), (16_385, 1)]:
        yield png(width, height, (b"\0" + b"\0" * ((width + 7) // 8)) * height, bits=1, color=0)
    # A few bytes, a second of work.
    yield black_webp(5656, 5656)
    yield b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9"
    yield b"GIF89a\x01\0\x01\0\0\0\0;"
    yield b""


def damaged(dice, data):
    """The same bytes with a few changed, removed, duplicated or inserted."""
    data = bytearray(data)
    for _ in range(dice.randrange(6)):
        at = dice.randrange(len(data) + 1)
        kind = dice.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del data[at:at + dice.randrange(1, 32)]
        elif kind == 2:
            data[at:at] = dice.randbytes(dice.randrange(1, 16))
        elif kind == 3:
            data[at:at] = data[at:at + dice.randrange(1, 64)]
        elif at + 4 <= len(data):
            data[at:at + 4] = dice.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
    return bytes(data)


def value(dice, depth=0):
    """Any JSON value, unusual ones first."""
    odd = [None, True, False, 0, -1, 1.5, 42.0, 1e308, -1e-300, 2**53, 2**64, -2**63, "", "\0", "\ufeff", "\u202e",
           "x" * 3000, "🦊" * 700, "a\u0301" * 500, "data:image/png;base64,AAAA", "NaN", [], {}]
    if depth < 3 and dice.random() < 0.2:
        if dice.random() < 0.5:
            return [value(dice, depth + 1) for _ in range(dice.randrange(5))]
        return {str(dice.choice(odd))[:20]: value(dice, depth + 1) for _ in range(dice.randrange(4))}
    return dice.choice(odd)


class Fuzzer:
    def __init__(self, dice, port, key):
        self.dice, self.port, self.key = dice, port, key
        self.images = list(images(dice))
        self.statuses = collections.Counter()
        self.faults = []

    def body(self):
        dice = self.dice
        body = {"model": MODEL, "prompt": "a red circle", "width": 64, "height": 64, "steps": 1, "seed": dice.randrange(2**53)}
        if dice.random() < 0.5:
            body["input_images_base64"] = [base64.b64encode(damaged(dice, dice.choice(self.images))).decode()]
        fields = ["model", "prompt", "negative_prompt", "width", "height", "steps", "guidance", "strength", "seed",
                  "output_format", "priority", "deadline_seconds", "input_images_base64", "images", "mask_padding", "n",
                  "size", "response_format", "stream", "user", "cache", "cache_threshold", "unknown", ""]
        for _ in range(dice.choice([0, 0, 0, 1, 2, 5])):
            body[dice.choice(fields)] = value(dice)
        text = json.dumps(body, ensure_ascii=dice.random() < 0.5).encode("utf-8", "replace")
        kind = dice.random()
        if kind < 0.05:
            text = b"\xef\xbb\xbf" + text
        elif kind < 0.15:
            text = damaged(dice, text)
        elif kind < 0.17:
            text = b"[" * 5000
        elif kind < 0.19:
            text = b'{"a":[' + b",".join([b'{"":0}'] * 5000) + b"]}"
        elif kind < 0.21:
            text = b"{" + b",".join(b'"f%d":0' % number for number in range(3000)) + b"}"
        return text

    def form(self):
        """A form with images, for the routes of OpenAI's clients."""
        dice = self.dice
        parts = [("model", MODEL), ("prompt", "a red circle"), ("size", "64x64"), ("steps", "1")]
        names = ["image", "image[]", "image[0]", "mask"]
        parts += [(dice.choice(names), damaged(dice, dice.choice(self.images))) for _ in range(dice.randrange(4))]
        fields = ["prompt", "n", "size", "seed", "strength", "mask_padding", "loras", "stream", "quality", "unknown", ""]
        parts += [(dice.choice(fields), str(value(dice))) for _ in range(dice.choice([0, 0, 1, 3]))]
        body = b""
        for name, content in parts:
            is_file = isinstance(content, bytes)
            head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"' + '; filename="a"' * is_file
            body += head.encode() + b"\r\n\r\n" + (content if is_file else content.encode("utf-8", "replace")) + b"\r\n"
        body += f"--{BOUNDARY}--\r\n".encode()
        return damaged(dice, body) if dice.random() < 0.2 else body

    def query(self):
        dice = self.dice
        names = ["limit", "cursor", "status", "preview", "expires", "signature", "x", ""]
        words = ["", "0", "-1", "1", "100", "101", "1e3", "true", "%", "%00", "%ff", "%C3%28", "succeeded", "a" * 4000, "&&", "="]
        return "&".join(f"{dice.choice(names)}={dice.choice(words)}" for _ in range(dice.randrange(5)))

    def path(self):
        word = self.dice.choice(["", "job_", "job_018f3c1e9d5b7a2c8e4f6a1b2c3d4e5f", "%2e%2e", "%00", "a" * 3000, "%ff"])
        paths = ["/v1/inference/jobs", f"/v1/inference/jobs/{word}", f"/v1/inference/jobs/{word}/result",
                 f"/v1/inference/jobs/{word}/events", "/v1/models", f"/v1/models/{word}", "/v1/inference/models",
                 "/v1/inference/runtime/models", "/healthz", "/readyz", f"/admin/assets/{word}", f"/{word}", "//v1"]
        return f"{self.dice.choice(paths)}?{self.query()}"

    def headers(self):
        dice = self.dice
        odd = ["", "*/*", "image/png;q=2", "text/html", "a" * 4000, "\xff\xfe", "identity", "gzip", "wait=1", "wait=-1",
               "wait=99999999999999999999", ",,,;;;===", '"', "0", "application/json; charset=utf-16"]
        names = ["accept", "prefer", "idempotency-key", "content-encoding", "x-request-id", "last-event-id", "origin",
                 "forwarded", "x-forwarded-for", "cookie", "range", "if-none-match", "expect", "te", "x-odd"]
        headers = {"x-api-key": self.key}
        for _ in range(dice.choice([0, 0, 1, 3])):
            headers[dice.choice(names)] = dice.choice(odd)
        if dice.random() < 0.02:
            headers["x-api-key"] = damaged(dice, self.key.encode()).decode("latin-1")
        return headers

    def ask(self):
        """Sends one request by http.client, or raw bytes that barely are one."""
        dice = self.dice
        kind = dice.random()
        if kind < 0.6:
            path = dice.choice(["/v1/inference/image"] * 3 + ["/v1/images/generations", "/v1/session"])
            content_type = dice.choice(["application/json"] * 8 + ["text/plain", "application/json;charset=utf-8"])
            asked = "POST", path, self.body(), {"content-type": content_type}
            if dice.random() < 0.15:
                path = dice.choice(["/v1/images/edits"] * 3 + ["/v1/images/variations"])
                asked = "POST", path, self.form(), {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        else:
            asked = dice.choice(["GET"] * 6 + ["DELETE", "PUT", "HEAD", "PATCH"]), self.path(), None, {}
        method, path, body, more = asked
        headers = self.headers() | more
        if dice.random() < 0.08:
            return self.raw(method, path, body or b"", headers)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            # Not by `request`, which would refuse unusual paths and headers itself.
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, text in headers.items():
                connection.putheader(name, clean(text))
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            self.sort(connection.getresponse(), (method, path))
        except (http.client.HTTPException, OSError, ValueError) as error:
            self.statuses[type(error).__name__] += 1
        finally:
            connection.close()

    def raw(self, method, path, body, headers):
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        head += "".join(f"{name}: {clean(text)}\r\n" for name, text in headers.items())
        whole = head.encode("latin-1", "replace") + b"connection: close\r\n\r\n" + body
        whole = damaged(self.dice, whole)
        if self.dice.random() < 0.3:
            whole = whole[:self.dice.randrange(len(whole) + 1)]
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            try:
                connection.sendall(whole)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(200)
                status = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
                self.statuses[f"raw {status[1].decode()}" if status else "raw closed"] += 1
            except OSError as error:
                self.statuses[f"raw {type(error).__name__}"] += 1

    def sort(self, response, asked):
        text = b""
        if "text/event-stream" not in (response.headers.get("content-type") or ""):
            text = response.read()
        self.statuses[response.status] += 1
        if response.status < 500:
            return
        found = re.search(rb'"code"\s*:\s*"(\w+)"', text)
        code = found[1].decode() if found else None
        is_ready_question = asked[1].startswith("/readyz")
        if code not in SERVER_ERRORS.get(response.status, set()) and not is_ready_question:
            self.faults.append((asked[0], asked[1][:80], response.status, text[:300]))


def clean(text):
    """A header's value that http.client accepts: without line ends."""
    return re.sub(r"[\r\n\0]", " ", text).encode("latin-1", "replace").decode("latin-1")


def resident_bytes(process):
    with open(f"/proc/{process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_until_ready(process, port):
    for _ in range(1200):
        if process.poll() is not None:
            sys.exit(f"the program ended with {process.returncode} before it was ready")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit("the program was not ready within two minutes")


def settled(process, bytes_max):
    """Its memory once it is idle, or after a while if it does not shrink."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while (now := resident_bytes(process)) > bytes_max and time.monotonic() < deadline:
        time.sleep(0.5)
    return now


def run(process, fuzzer, count):
    """Sends the requests, and returns what went wrong."""
    warm = 0
    for number in range(count):
        fuzzer.ask()
        if process.poll() is not None:
            return [f"the program ended with {process.returncode} after request {number + 1}"]
        if number + 1 == min(WARM_UP_REQUESTS, count):
            time.sleep(2)
            warm = resident_bytes(process)
    wait_until_ready(process, fuzzer.port)
    bytes_max = max(warm * (1 + GROWTH_MAX), warm + GROWTH_FREE_BYTES)
    after = settled(process, bytes_max)
    mib = 1024 * 1024
    print(f"memory: {warm / mib:.0f} MiB when warm, {after / mib:.0f} MiB in the end")
    print("answers:", dict(sorted(fuzzer.statuses.items(), key=lambda pair: str(pair[0]))))
    faults = [f"undocumented: {fault}" for fault in fuzzer.faults[:10]]
    if after > bytes_max:
        faults.append(f"memory does not come back: {after / mib:.0f} MiB, at most {bytes_max / mib:.0f} MiB")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    arguments = parser.parse_args()
    print(f"seed: {arguments.seed}", flush=True)
    program, port = os.path.abspath(arguments.program), free_port()
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: text for name, text in os.environ.items() if not name.startswith("FLUXSERVE_")}
        environment |= {"FLUXSERVE_DATA_DIR": f"{folder}/data", "FLUXSERVE_LISTEN": f"127.0.0.1:{port}"}
        options = {"env": environment, "cwd": folder}
        made = subprocess.run([program, "keys", "create", "--name", "fuzz", "--scope", "inference"],
                              check=True, capture_output=True, text=True, **options)
        key = re.search(r"rgpu_\w+", made.stdout + made.stderr)[0]
        with open(f"{folder}/log", "wb") as log:
            process = subprocess.Popen([program, "serve"], stdout=log, stderr=log, **options)
        try:
            wait_until_ready(process, port)
            faults = run(process, Fuzzer(random.Random(arguments.seed), port, key), arguments.count)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        with open(f"{folder}/log", errors="replace") as log:
            faults += [f"in the log: {line.strip()[:300]}" for line in log if "panicked" in line][:5]
    for fault in faults:
        print(f"FAULT: {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
