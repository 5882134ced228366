// OpenAI's client for Node against the real program:
//
//     scripts/openai-test.sh [PROGRAM]
//
// installs what this needs, starts the program, and runs this. The argument is the folder where the client is installed.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { crc32, deflateSync } from "node:zlib";

const require = createRequire(`${process.argv[2]}/`);
const OpenAI = require("openai");

const MODEL = "fluxserve/flux-shapes";
const PROMPT = "a red circle on a blue background";
const { FLUXSERVE_TEST_URL: baseURL, FLUXSERVE_TEST_KEY: apiKey, FLUXSERVE_TEST_LIMITED_KEY: limitedKey } = process.env;
// A key that must not generate.
const { FLUXSERVE_TEST_OTHER_KEY: otherKey } = process.env;

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

/** A PNG file of 128x128 pixels with the color, red to alpha, of each. */
function png(colorOf) {
  const side = 128;
  const chunk = (kind, data) => {
    const bytes = Buffer.concat([Buffer.alloc(4), Buffer.from(kind), data, Buffer.alloc(4)]);
    bytes.writeUInt32BE(data.length, 0);
    bytes.writeUInt32BE(crc32(bytes.subarray(4, -4)), bytes.length - 4);
    return bytes;
  };
  const head = Buffer.from([0, 0, 0, side, 0, 0, 0, side, 8, 6, 0, 0, 0]);
  const rows = Buffer.alloc(side * (1 + 4 * side));
  for (let y = 0; y < side; y += 1) {
    for (let x = 0; x < side; x += 1) {
      rows.set(colorOf(x, y), y * (1 + 4 * side) + 1 + 4 * x);
    }
  }
  const signature = Buffer.from("89504e470d0a1a0a", "hex");
  const parts = [signature, chunk("IHDR", head), chunk("IDAT", deflateSync(rows)), chunk("IEND", Buffer.alloc(0))];
  return new File([Buffer.concat(parts)], "image.png", { type: "image/png" });
}

const inCircle = (x, y) => (x - 64) ** 2 + (y - 64) ** 2 < 36 ** 2;
const circle = png((x, y) => (inCircle(x, y) ? [220, 40, 40, 255] : [40, 80, 210, 255]));
// Transparent, and so replaced: the circle.
const mask = png((x, y) => [0, 0, 0, inCircle(x, y) ? 0 : 255]);

function edit(client, options) {
  return client.images.edit({ model: MODEL, prompt: "a green circle on a blue background", ...options });
}

function generate(client, options) {
  return client.images.generate({ model: MODEL, prompt: PROMPT, ...options });
}

/** The events of an image that forms. */
async function streamed(call, partial_images) {
  const events = [];
  for await (const event of await call({ stream: true, partial_images, seed: 3, steps: 8 })) {
    events.push(event);
  }
  return events;
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

await generate(client, { size: "64x64", quality: "hd", style: "vivid", moderation: "low", output_compression: 100 });
answer = await edit(client, { image: circle, mask, size: "128x128", seed: 3, steps: 4 });
assert.deepEqual(pngSize(Buffer.from(answer.data[0].b64_json, "base64")), [128, 128]);
answer = await edit(client, { image: [circle], n: 2, response_format: "url", seed: 7, steps: 4, strength: 0.8 });
assert.deepEqual(answer.data.map((image) => image.seed), [7, 8]);

const kinds = {
  image_generation: (options) => generate(client, { size: "128x128", ...options }),
  image_edit: (options) => edit(client, { image: circle, ...options }),
};
for (const [kind, call] of Object.entries(kinds)) {
  for (const count of [0, 1, 3]) {
    const events = await streamed(call, count);
    const partial = Array(count).fill(`${kind}.partial_image`);
    assert.deepEqual(events.map((event) => event.type), [...partial, `${kind}.completed`]);
    assert.deepEqual(events.slice(0, -1).map((event) => event.partial_image_index), [...Array(count).keys()]);
    for (const event of events) {
      assert.deepEqual(pngSize(Buffer.from(event.b64_json, "base64")), [128, 128]);
    }
    const { usage } = events.at(-1);
    assert.equal(usage.total_tokens, usage.input_tokens + usage.output_tokens);
    assert.equal(new Set(events.map((event) => event.b64_json)).size, events.length, "it does not form");
  }
  // Whoever leaves early cancels the image.
  for await (const event of await call({ stream: true, partial_images: 3 })) {
    assert.equal(event.type, `${kind}.partial_image`);
    break;
  }
}

const models = [];
for await (const model of client.models.list()) {
  models.push(model);
}
assert.deepEqual(models.map((model) => model.id), [MODEL]);
assert.equal((await client.models.retrieve(MODEL)).created, models[0].created);

// From here on every call must fail, without retries.
client = client.withOptions({ maxRetries: 0 });
let error;
// Keys that are wrong, or must not generate.
for (const [key, kind, code, type] of [
  [`${apiKey.slice(0, -1)}!`, OpenAI.AuthenticationError, "unauthorized", "authentication_error"],
  [otherKey, OpenAI.PermissionDeniedError, "scope_forbidden", "permission_error"],
]) {
  const stranger = client.withOptions({ apiKey: key });
  for (const call of [() => generate(stranger), () => edit(stranger, { image: circle })]) {
    error = await refused(kind, call);
    assert.deepEqual([error.code, error.type, error.param], [code, type, null]);
  }
}
for (const [param, options] of [
  ["size", { size: "100x100" }],
  ["size", { size: 128 }],
  ["n", { n: 11 }],
  ["n", { n: "2" }],
  ["quality", { quality: "ultra" }],
  ["background", { background: "transparent" }],
  ["output_compression", { output_compression: 50 }],
  ["response_format", { response_format: "png" }],
  ["steps", { steps: "8" }],
  ["prompt", { prompt: "" }],
  ["svg", { svg: true }],
]) {
  error = await refused(OpenAI.BadRequestError, () => generate(client, options));
  assert.deepEqual([error.param, error.code, error.type], [param, "invalid_request", "invalid_request_error"]);
}
const file = (content, name) => new File([content], name);
const cut = file(await circle.slice(0, 100).arrayBuffer(), "cut.png");
for (const [param, options] of [
  ["image", { image: [circle, circle] }],
  ["image", { image: file("", "empty.png") }],
  ["image", { image: file("not an image", "notes.txt") }],
  ["image", { image: cut }],
  ["mask", { mask: file("", "empty.png") }],
  ["mask", { mask: file("not an image", "notes.txt") }],
  ["mask", { mask: cut }],
  ["mask", { mask: "white" }],
  ["size", { size: "100x100" }],
  ["n", { n: 11 }],
  ["n", { n: "two" }],
  ["strength", { strength: "much" }],
  ["input_fidelity", { input_fidelity: "none" }],
]) {
  error = await refused(OpenAI.BadRequestError, () => edit(client, { image: circle, ...options }));
  assert.deepEqual([error.param, error.code], [param, "invalid_request"], Object.keys(options).join());
}
if (client.images.createVariation) {
  error = await refused(OpenAI.BadRequestError, () => client.images.createVariation({ image: circle, model: MODEL }));
  assert.deepEqual([error.param, error.code], ["model", "invalid_request"]);
}
error = await refused(OpenAI.NotFoundError, () => generate(client, { model: "gpt-image-2" }));
assert.equal(error.code, "model_not_found");
error = await refused(OpenAI.NotFoundError, () => client.models.retrieve("unknown/nothing"));
assert.equal(error.code, "model_not_found");

const limited = client.withOptions({ apiKey: limitedKey });
await generate(limited, { size: "64x64" });
error = await refused(OpenAI.RateLimitError, () => generate(limited, { size: "64x64" }));
assert.deepEqual([error.code, error.type], ["rate_limited", "rate_limit_error"]);
assert.ok(Number(error.headers.get("retry-after")) >= 1);
assert.equal(error.headers.get("x-ratelimit-remaining-requests"), "0");

const { VERSION } = require("openai/version");
console.log(`openai ${VERSION} for Node generates, edits and streams images, lists models, and reports every refusal`);
