// Node's fetch and OpenAI's client for Node, refused before their bodies are read: each gets the reason, not a broken
// connection.
//
//     scripts/doors-test.sh [PROGRAM]
//
// installs what this needs, starts the program, and runs tests/e2e/doors.py, which runs this for each address. The
// argument is the folder where the client is installed.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.argv[2]}/`);
const OpenAI = require("openai");

const { FLUXSERVE_TEST_URL: url, FLUXSERVE_TEST_KEY: apiKey } = process.env;
const BODY = Buffer.alloc(8 * 1024 * 1024, "x");
const ROUNDS = 5;

async function status(path, init) {
  const answer = await fetch(`${url}${path}`, { method: "POST", body: BODY, ...init });
  const body = await answer.json();
  assert.ok(body.code || body.error?.code, JSON.stringify(body));
  return answer.status;
}

for (let round = 0; round < ROUNDS; round += 1) {
  assert.equal(await status("/v1/inference/image", {}), 401);
  assert.equal(await status("/v1/nothing", {}), 404);
  assert.equal(await status("/v1/inference/image", { method: "PUT" }), 405);
  const json = { "content-type": "application/json" };
  assert.equal(await status("/v1/images/generations", { headers: { ...json, "x-api-key": apiKey } }), 413);
  assert.equal(await status("/v1/session", { headers: { "content-type": "text/plain" } }), 415);
}

const image = new File([BODY], "image.png", { type: "image/png" });
const edit = (client) => client.images.edit({ model: "fluxserve/flux-shapes", prompt: "a red circle", image: image });
const refused = (call, kind) => assert.rejects(call, (error) => error.constructor === kind && !!error.requestID);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
// With a wrong key the body is not read; with a right one it is, and is no image.
await refused(edit(client.withOptions({ apiKey: "rgpu_nobody" })), OpenAI.AuthenticationError);
await refused(edit(client), OpenAI.BadRequestError);

// Wrong base URLs.
for (const baseURL of [url, `${url}//v1`, `${url}/v1/v1`]) {
  const stray = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
  await assert.rejects(stray.models.list(), (error) => {
    assert.equal(error.constructor, OpenAI.NotFoundError, String(error));
    assert.match(error.message, /the base URL must be `http/);
    return true;
  });
}
