"""Refusals reach their clients, directly and through a proxy:

    scripts/doors-test.sh [PROGRAM]

installs what this needs and runs it.
"""

import argparse
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from ports import free_port

# A file in this folder has the package's name. A script's own folder is searched first, so it is removed from the path.
sys.path.pop(0)

import openai  # noqa: E402

PATIENCE_SECONDS = 180
PASSWORD = "the password of this test"
HOST = "images.test"
BODY_BYTES = 8 * 1024 * 1024

NGINX = """
{user}daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  upstream worker {{ server 127.0.0.1:{worker}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://worker;
      proxy_http_version 1.1;
      proxy_request_buffering {buffering};
      proxy_set_header Host $http_host;
      proxy_set_header Connection "";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}
"""


def until(is_so, process, what):
    started = time.monotonic()
    while not is_so():
        assert process.poll() is None, f"{what}: it has ended"
        assert time.monotonic() - started < PATIENCE_SECONDS, f"{what}: it takes too long"
        time.sleep(0.1)


def is_open(port):
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
        return True
    except OSError:
        return False


def refused(port, method, path, headers="", host="localhost", chunked=False):
    """The status of the answer to a client that reads it only after sending its complete body."""
    length = "transfer-encoding: chunked" if chunked else f"content-length: {BODY_BYTES}"
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}{length}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(head.encode())
        chunk = b"x" * 65536
        for _ in range(BODY_BYTES // len(chunk)):
            connection.sendall(b"10000\r\n" + chunk + b"\r\n" if chunked else chunk)
        if chunked:
            connection.sendall(b"0\r\n\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert b'"code"' in answer, answer
    return int(answer.split(b" ", 2)[1])


def raw(port, key):
    for chunked in (False, True):
        json = "content-type: application/json\r\n"
        for status, method, path, headers in [
            (401, "POST", "/v1/inference/image", json),
            (404, "POST", "/v1/nothing", ""),
            (405, "PUT", "/v1/inference/image", json),
            (413, "POST", "/v1/images/generations", f"{json}x-api-key: {key}\r\n"),
            (415, "POST", "/v1/inference/image", f"content-type: text/plain\r\nx-api-key: {key}\r\n"),
            (401, "POST", "/v1/api-keys", json),
        ]:
            found = refused(port, method, path, headers, chunked=chunked)
            assert found == status, f"{method} {path}, chunked: {chunked}: {found} instead of {status}"
    # A foreign host name is refused; the worker's own names and those of this machine are accepted.
    for host, status in [(HOST, 401), ("127.0.0.1", 401), ("evil.test", 421)]:
        found = refused(port, "POST", "/v1/inference/image", host=host)
        assert found == status, f"{host}: {found} instead of {status}"


def python_client(url, key):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    # With a wrong key the body is not read; with a right one it is, and is no image.
    for key, kind in [("rgpu_nobody", openai.AuthenticationError), (key, openai.BadRequestError)]:
        image = ("image.png", io.BytesIO(b"x" * BODY_BYTES), "image/png")
        try:
            client.with_options(api_key=key).images.edit(model="fluxserve/flux-shapes", prompt="a red circle", image=image)
            raise AssertionError("that is no image")
        except kind as error:
            assert error.request_id, "an error without a request id"
    try:
        openai.OpenAI(base_url=url, api_key=key, max_retries=0).models.list()
        raise AssertionError("there is nothing without /v1")
    except openai.NotFoundError as error:
        assert f"the base URL must be `{url}/v1`" in error.message, error.message


def clients(port, key, options):
    url = f"http://127.0.0.1:{port}"
    raw(port, key)
    python_client(url, key)
    environment = {**os.environ, "FLUXSERVE_TEST_URL": url, "FLUXSERVE_TEST_KEY": key}
    script = os.path.join(os.path.dirname(__file__), "doors.mjs")
    subprocess.run([options.node, script, options.packages], env=environment, check=True)


def through_nginx(folder, worker, key, options):
    for buffering in ("on", "off"):
        port = free_port()
        file = os.path.join(folder, "nginx.conf")
        with open(file, "w") as configuration:
            # Started by root it would run as another user, who may not write into the folder.
            user = "user root;\n" if os.getuid() == 0 else ""
            configuration.write(NGINX.format(user=user, folder=folder, worker=worker, port=port, buffering=buffering))
        nginx = subprocess.Popen([options.nginx, "-p", folder, "-c", file])
        try:
            until(lambda: is_open(port), nginx, "nginx")
            clients(port, key, options)
        finally:
            nginx.send_signal(signal.SIGQUIT)
            nginx.wait()
        print(f"through nginx, request buffering {buffering}: every refusal arrives")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("--node", required=True)
    parser.add_argument("--packages", required=True)
    parser.add_argument("--nginx", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ, "FLUXSERVE_ADMIN_PASSWORD": PASSWORD, "FLUXSERVE_METRICS_LISTEN": "off",
            "FLUXSERVE_HTTP_HOSTS": HOST, "FLUXSERVE_HTTP_TRUSTED_PROXIES": "127.0.0.1",
        }
        port = free_port()
        data = os.path.join(folder, "data")
        log = open(os.path.join(folder, "log"), "w+")
        command = [options.program, "--data-dir", data, "serve", "--listen", f"127.0.0.1:{port}"]
        worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            until(lambda: is_open(port), worker, "the worker")
            create = [options.program, "--data-dir", data, "keys", "create", "--name", "test", "--scope", "inference"]
            key = re.search("rgpu_[0-9A-Za-z]{46}", subprocess.run(create, check=True, capture_output=True, text=True).stdout)[0]
            clients(port, key, options)
            print("directly: every refusal arrives")
            if options.nginx:
                through_nginx(folder, port, key, options)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(PATIENCE_SECONDS) == 0
        finally:
            worker.kill()
            worker.wait()


main()
