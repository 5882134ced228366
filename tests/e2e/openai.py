#!/usr/bin/env python3
"""OpenAI's client for Python against the real program.

    scripts/openai-test.sh [PROGRAM]

installs what this needs, starts the program, and runs this.
"""

import base64
import os
import struct
import urllib.request

# This file has the package's name. A script's own folder is searched first, so it is removed from the path.
import sys

sys.path.pop(0)

import openai  # noqa: E402

MODEL = "fluxserve/flux-shapes"
URL = os.environ["FLUXSERVE_TEST_URL"]
KEY = os.environ["FLUXSERVE_TEST_KEY"]
LIMITED_KEY = os.environ["FLUXSERVE_TEST_LIMITED_KEY"]
PROMPT = "a red circle on a blue background"


def png_size(image):
    """Width and height in the head of a PNG."""
    assert image[:8] == b"\x89PNG\r\n\x1a\n", image[:16]
    return struct.unpack(">II", image[16:24])


def refused(kind, call):
    """The error of a call that must fail."""
    try:
        answer = call()
    except openai.APIStatusError as error:
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
        assert error.request_id, "an error without a request id"
        return error
    raise AssertionError(f"no {kind.__name__}: {answer}")


def generate(client, **options):
    return client.images.generate(**{"model": MODEL, "prompt": PROMPT, **options})


def main():
    client = openai.OpenAI(base_url=URL, api_key=KEY)

    answer = generate(client, size="128x128")
    assert png_size(base64.b64decode(answer.data[0].b64_json)) == (128, 128)
    assert (answer.size, answer.output_format) == ("128x128", "png"), answer.size

    answer = generate(client, n=2, size="64x96", response_format="url", extra_body={"seed": 7, "steps": 4})
    assert [image.seed for image in answer.data] == [7, 8]
    for image in answer.data:
        with urllib.request.urlopen(image.url, timeout=60) as image:
            assert png_size(image.read()) == (64, 96)

    models = list(client.models.list())
    assert [model.id for model in models] == [MODEL], models
    assert client.models.retrieve(MODEL) == models[0]

    # From here on every call must fail, without retries.
    client = client.with_options(max_retries=0)
    error = refused(openai.AuthenticationError, lambda: generate(client.with_options(api_key=KEY[:-1] + "!")))
    assert (error.code, error.type) == ("unauthorized", "authentication_error"), error
    error = refused(openai.BadRequestError, lambda: generate(client, size="100x100"))
    assert (error.param, error.code) == ("size", "invalid_request"), error
    error = refused(openai.BadRequestError, lambda: generate(client, quality="high"))
    assert (error.param, error.code) == ("quality", "invalid_request"), error
    error = refused(openai.NotFoundError, lambda: generate(client, model="gpt-image-2"))
    assert error.code == "model_not_found", error
    error = refused(openai.NotFoundError, lambda: client.models.retrieve("unknown/nothing"))
    assert error.code == "model_not_found", error

    limited = client.with_options(api_key=LIMITED_KEY)
    generate(limited, size="64x64")
    error = refused(openai.RateLimitError, lambda: generate(limited, size="64x64"))
    assert (error.code, error.type) == ("rate_limited", "rate_limit_error"), error
    assert int(error.response.headers["retry-after"]) >= 1

    print(f"openai {openai.__version__} for Python generates images, lists models, and reports every refusal")


main()
