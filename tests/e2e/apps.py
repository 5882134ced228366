#!/usr/bin/env python3
"""The requests of applications that speak OpenAI's API, as each sends them: the real program must draw every one.

    scripts/openai-test.sh [PROGRAM]

starts the program and runs this. A request is recorded with the application's version and the file of it that makes the request.
Only the model is another, and so is a size that the demo model does not have. Needs only Python's standard library.
"""

import base64
import http.client
import json
import os
import re
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import urlparse

from image_files import CIRCLE, MASK, png_size

MODEL = "fluxserve/flux-shapes"
URL = urlparse(os.environ["FLUXSERVE_TEST_URL"])
KEY = os.environ["FLUXSERVE_TEST_KEY"]
PROMPT = "a red circle on a blue background"
BOUNDARY = "--------------------------59448d45ea843d86648fb553"
CHUNK_BYTES = 1000

OPEN_WEBUI = "Open WebUI 0.12.4, open_webui/routers/images.py"
LIBRECHAT = "LibreChat 8731432, api/app/clients/tools/structured/OpenAIImageTools.js"
LIBRECHAT_DALLE = "LibreChat 37d31ec, api/app/clients/tools/structured/DALLE3.js"
LANGCHAIN = "@langchain/openai 1.5.8, dist/tools/dalle.js"
LITELLM = "LiteLLM 1.110.2, litellm/images/main.py"
LITELLM_EDIT = "LiteLLM 1.110.2, litellm/llms/openai/image_edit/transformation.py"

# What Open WebUI adds where it is told to forward users.
USER_HEADERS = {
    "X-OpenWebUI-User-Name": "J%C3%B6rg", "X-OpenWebUI-User-Id": "7", "X-OpenWebUI-User-Email": "j@example.org",
    "X-OpenWebUI-User-Role": "user", "X-OpenWebUI-Chat-Id": "1",
}


@dataclass
class Sent:
    """A request, and what the application reads of the answer."""

    app: str
    fields: dict
    # Each with its field, its file name and its content. With files it is a form, without it is JSON.
    files: list = field(default_factory=list)
    # The member with the image.
    reads: str = "b64_json"
    query: str = ""
    headers: dict = field(default_factory=dict)
    # Whether parts with text say that they are text.
    has_text_types: bool = False
    is_chunked: bool = False

    def path(self):
        return f"{URL.path}/images/{'edits' if self.files else 'generations'}{self.query}"

    def body(self):
        """Its bytes and their media type."""
        fields = {"model": MODEL, "prompt": PROMPT, **self.fields}
        if re.fullmatch(r"\d+x\d+", fields.get("size", "")):
            fields["size"] = "128x128"
        if not self.files:
            return json.dumps(fields).encode(), "application/json"
        body = b""
        for name, text in fields.items():
            kind = "Content-Type: text/plain; charset=utf-8\r\n" if self.has_text_types else ""
            body += part(f'{kind}Content-Disposition: form-data; name="{name}"', str(text).encode())
        for name, file_name, content in self.files:
            disposition = f'Content-Disposition: form-data; name="{name}"; filename="{file_name}"'
            body += part(f"{disposition}\r\nContent-Type: image/png", content)
        return body + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"


def part(head, content):
    """A part of a form."""
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + content + b"\r\n"


IMAGE = ("image[]", "image.png", CIRCLE)
REQUESTS = [
    Sent(OPEN_WEBUI, {"n": 1, "size": "512x512", "response_format": "b64_json"}),
    # With the parameters that an administrator may add, an API version and a user.
    Sent(
        OPEN_WEBUI,
        {"n": 2, "size": "512x512", "response_format": "b64_json", "steps": 4, "seed": 7, "quality": "low"},
        query="?api-version=2025-04-01-preview",
        headers=USER_HEADERS,
    ),
    Sent(
        OPEN_WEBUI,
        {"n": 1, "size": "512x512", "background": "auto", "response_format": "b64_json"},
        [("image", "6c0e1f0a.png", CIRCLE)],
        headers=USER_HEADERS,
        has_text_types=True,
    ),
    Sent(OPEN_WEBUI, {"response_format": "b64_json"}, [IMAGE], has_text_types=True),
    Sent(LIBRECHAT, {"n": 1, "background": "auto", "output_format": "png", "quality": "auto", "size": "auto"}),
    Sent(
        LIBRECHAT,
        {
            "n": 1, "background": "opaque", "output_format": "webp", "output_compression": 100, "quality": "high",
            "size": "1536x1024",
        },
    ),
    Sent(LIBRECHAT, {"quality": "auto", "size": "auto"}, [IMAGE]),
    # From a store of files whose length it does not know.
    Sent(LIBRECHAT, {"quality": "medium", "size": "1024x1024"}, [IMAGE], is_chunked=True),
    # It reads `url` without asking for it, which is not what this worker answers by default.
    Sent(LIBRECHAT_DALLE, {"quality": "standard", "style": "vivid", "size": "1024x1024", "n": 1}),
    Sent(LIBRECHAT_DALLE, {"quality": "hd", "style": "natural", "size": "1792x1024", "n": 1}),
    Sent(
        LANGCHAIN,
        {"n": 1, "size": "1024x1024", "response_format": "url", "style": "vivid", "quality": "standard"},
        reads="url",
    ),
    Sent(
        LANGCHAIN,
        {
            "n": 1, "size": "1024x1024", "response_format": "b64_json", "style": "natural", "quality": "hd",
            "user": "someone",
        },
    ),
    Sent(
        LITELLM,
        {
            "background": "auto", "moderation": "auto", "n": 1, "output_compression": 100, "output_format": "png",
            "quality": "auto", "size": "auto", "user": "someone",
        },
    ),
    Sent(LITELLM, {"moderation": "low", "quality": "medium", "size": "1024x1024"}),
    Sent(
        LITELLM_EDIT,
        {
            "n": 1, "quality": "auto", "response_format": "url", "size": "auto", "user": "someone", "background": "auto",
            "input_fidelity": "low",
        },
        [IMAGE, ("mask", "mask.png", MASK)],
        reads="url",
    ),
    Sent(LITELLM_EDIT, {}, [("image[]", "/tmp/circle.png", CIRCLE)]),
]


def answer_to(sent):
    """The status and the bytes of the answer."""
    body, kind = sent.body()
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": kind, **sent.headers}
    connection = http.client.HTTPConnection(URL.hostname, URL.port, timeout=120)
    try:
        if sent.is_chunked:
            pieces = (body[at : at + CHUNK_BYTES] for at in range(0, len(body), CHUNK_BYTES))
            connection.request("POST", sent.path(), pieces, headers, encode_chunked=True)
        else:
            connection.request("POST", sent.path(), body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def image_of(member, image):
    """The file of an image of an answer."""
    if member == "b64_json":
        return base64.b64decode(image["b64_json"])
    with urllib.request.urlopen(image["url"], timeout=60) as file:
        return file.read()


def check(sent):
    status, body = answer_to(sent)
    assert status == 200, f"{sent.app}: {sent.fields}: {status} {body[:500]}"
    data = json.loads(body)["data"]
    assert len(data) == sent.fields.get("n", 1), f"{sent.app}: {len(data)} images"
    for image in data:
        file = image_of(sent.reads, image)
        if sent.fields.get("output_format") == "webp":
            assert file[:4] + file[8:12] == b"RIFFWEBP", file[:16]
        else:
            assert png_size(file) == (128, 128), sent.app


def main():
    for sent in REQUESTS:
        check(sent)
    apps = sorted({sent.app.split(",")[0] for sent in REQUESTS})
    print(f"{len(REQUESTS)} requests are drawn as these send them: {'; '.join(apps)}")


main()
