// OpenAI's client for Node against the real program:
//
//     scripts/openai-test.sh [PROGRAM]
//
// installs what this needs, starts the program, and runs this. The argument is the folder where the client is installed.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.argv[2]}/`);
const OpenAI = require("openai");

const MODEL = "fluxserve/flux-shapes";
const PROMPT = "a red circle on a blue background";
const { FLUXSERVE_TEST_URL: baseURL, FLUXSERVE_TEST_KEY: apiKey, FLUXSERVE_TEST_LIMITED_KEY: limitedKey } = process.env;

/** Width and height, as the head of a PNG says. */
function pngSize(image) {
  assert.equal(image.subarray(0, 8).toString("hex"), "89504e470d0a1a0a");
  return [image.readUInt32BE(16), image.readUInt32BE(20)];
}

/** The error of a call that has to fail. */
async function refused(kind, call) {
  const error = await call().then(
    (answer) => assert.fail(`no ${kind.name}: ${JSON.stringify(answer)}`),
    (error) => error,
  );
  assert.equal(error.constructor, kind, String(error));
  assert.ok(error.requestID, "an error without a request id");
  return error;
}

function generate(client, options) {
  return client.images.generate({ model: MODEL, prompt: PROMPT, ...options });
}

let client = new OpenAI({ baseURL, apiKey });

let answer = await generate(client, { size: "128x128" });
assert.deepEqual(pngSize(Buffer.from(answer.data[0].b64_json, "base64")), [128, 128]);
assert.deepEqual([answer.size, answer.output_format], ["128x128", "png"]);

answer = await generate(client, { n: 2, size: "64x96", response_format: "url", seed: 7, steps: 4 });
assert.deepEqual(answer.data.map((image) => image.seed), [7, 8]);
for (const { url } of answer.data) {
  const image = await fetch(url);
  assert.deepEqual(pngSize(Buffer.from(await image.arrayBuffer())), [64, 96]);
}

const models = [];
for await (const model of client.models.list()) {
  models.push(model);
}
assert.deepEqual(models.map((model) => model.id), [MODEL]);
assert.equal((await client.models.retrieve(MODEL)).created, models[0].created);

// From here on every call must fail, without retries.
client = client.withOptions({ maxRetries: 0 });
const stranger = client.withOptions({ apiKey: `${apiKey.slice(0, -1)}!` });
let error = await refused(OpenAI.AuthenticationError, () => generate(stranger));
assert.deepEqual([error.code, error.type], ["unauthorized", "authentication_error"]);
error = await refused(OpenAI.BadRequestError, () => generate(client, { size: "100x100" }));
assert.deepEqual([error.param, error.code], ["size", "invalid_request"]);
error = await refused(OpenAI.BadRequestError, () => generate(client, { quality: "high" }));
assert.deepEqual([error.param, error.code], ["quality", "invalid_request"]);
error = await refused(OpenAI.NotFoundError, () => generate(client, { model: "gpt-image-2" }));
assert.equal(error.code, "model_not_found");
error = await refused(OpenAI.NotFoundError, () => client.models.retrieve("unknown/nothing"));
assert.equal(error.code, "model_not_found");

const limited = client.withOptions({ apiKey: limitedKey });
await generate(limited, { size: "64x64" });
error = await refused(OpenAI.RateLimitError, () => generate(limited, { size: "64x64" }));
assert.deepEqual([error.code, error.type], ["rate_limited", "rate_limit_error"]);
assert.ok(Number(error.headers.get("retry-after")) >= 1);

const { VERSION } = require("openai/version");
console.log(`openai ${VERSION} for Node generates images, lists models, and reports every refusal`);
