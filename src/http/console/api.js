// Owns requests to the worker: sending, errors, and the event that the session has ended.

import { setClientsUrl } from "./clients-url.js";
import { sentence } from "./format.js";

// An error in the worker's answer, or in reaching the worker.
export class Problem extends Error {
  constructor({ status, code, title, detail, errors, requestId, retryAfterSeconds }) {
    super(detail || title || "Something went wrong");
    this.name = "Problem";
    this.status = status;
    this.code = code;
    this.errors = errors || [];
    this.requestId = requestId || null;
    this.retryAfterSeconds = retryAfterSeconds ?? null;
  }
}

// Emits `session-ended` when an answer says that a session is needed.
export const sessionEvents = new EventTarget();

const SESSION_PATH = "/v1/session";

// Appends the query parameters that have a value.
function withQuery(path, query) {
  const given = Object.entries(query || {}).filter(
    ([, value]) => value !== null && value !== undefined && value !== "",
  );
  const text = new URLSearchParams(given).toString();
  return text ? `${path}?${text}` : path;
}

// Sends a request and returns the response. Throws a Problem if it is an error.
async function send(method, path, { body, query, signal } = {}) {
  const options = { method, signal, credentials: "same-origin", cache: "no-store", headers: {} };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(withQuery(path, query), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
  if (!response.ok) throw await problemOf(response, path);
  return response;
}

const unreachable = () =>
  new Problem({ status: 0, code: "unreachable", detail: "The worker cannot be reached." });

async function problemOf(response, path) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A proxy answered, not the worker: only the status is known.
  }
  const problem = new Problem({
    status: response.status,
    code: body.code || "unknown",
    title: body.title || `The worker answered ${response.status}`,
    detail: body.detail ? sentence(body.detail) : undefined,
    errors: body.errors,
    requestId: body.request_id || response.headers.get("x-request-id"),
    retryAfterSeconds: Number(response.headers.get("retry-after")) || null,
  });
  if (problem.status === 401 && path !== SESSION_PATH) sessionEvents.dispatchEvent(new Event("session-ended"));
  return problem;
}

async function json(method, path, options) {
  const response = await send(method, path, options);
  return response.status === 204 ? null : response.json();
}

const get = (path, query, signal) => json("GET", path, { query, signal });
const post = (path, body, signal) => json("POST", path, { body, signal });
const patch = (path, body, signal) => json("PATCH", path, { body, signal });
const remove = (path, signal) => json("DELETE", path, { signal });

function begun(shown) {
  setClientsUrl(shown.clients_url);
  return shown;
}

export const session = {
  show: async (signal) => begun(await get(SESSION_PATH, null, signal)),
  signIn: async (password) => begun(await post(SESSION_PATH, { password })),
  signOut: () => remove(SESSION_PATH),
};

const keyPath = (id) => `/v1/api-keys/${encodeURIComponent(id)}`;
const jobPath = (id) => `/v1/jobs/${encodeURIComponent(id)}`;

export const keys = {
  list: (query, signal) => get("/v1/api-keys", query, signal),
  show: (id, signal) => get(keyPath(id), null, signal),
  create: (body) => post("/v1/api-keys", body),
  edit: (id, changes) => patch(keyPath(id), changes),
  rotate: (id, graceSeconds) => post(`${keyPath(id)}/rotate`, { grace_seconds: graceSeconds }),
  revoke: (id) => remove(keyPath(id)),
  usage: (id, days, signal) => get(`${keyPath(id)}/usage`, { days }, signal),
};

export const webhooks = {
  show: (keyId, signal) => get(`${keyPath(keyId)}/webhook`, null, signal),
  edit: (keyId, changes) => patch(`${keyPath(keyId)}/webhook`, changes),
  makeSecret: (keyId, graceSeconds) => post(`${keyPath(keyId)}/webhook/secret`, { grace_seconds: graceSeconds }),
  test: (keyId) => post(`${keyPath(keyId)}/webhook/test`),
  deliveries: (keyId, query, signal) => get(`${keyPath(keyId)}/deliveries`, query, signal),
  resend: (keyId, id) => post(`${keyPath(keyId)}/deliveries/${encodeURIComponent(id)}/resend`),
};

// The operator's receiver of alerts.
export const alerts = {
  deliveries: (query, signal) => get("/v1/webhooks/deliveries", query, signal),
  resend: (id) => post(`/v1/webhooks/deliveries/${encodeURIComponent(id)}/resend`),
  test: () => post("/v1/webhooks/test"),
};

export const jobs = {
  list: (query, signal) => get("/v1/jobs", query, signal),
  show: (id, signal) => get(jobPath(id), null, signal),
  cancel: (id) => remove(jobPath(id)),
  generate: (body) => post("/v1/playground/image", body),
  // The job's updates with previews. The browser reopens a broken stream by itself.
  events: (id) => new EventSource(`${jobPath(id)}/events?preview=true`),
  resultPath: (id) => `${jobPath(id)}/result`,
  // The image's file.
  result: async (id) => (await send("GET", `${jobPath(id)}/result`)).blob(),
};

export const models = {
  cards: async (signal) => (await get("/v1/inference/models", null, signal)).models,
  runtime: async (signal) => (await get("/v1/inference/runtime/models", null, signal)).models,
};

const LORAS_PATH = "/v1/loras";
const loraPath = (id) => `${LORAS_PATH}/${encodeURIComponent(id)}`;

export const loras = {
  list: async (signal) => (await get(LORAS_PATH, null, signal)).data,
  remove: (id) => remove(loraPath(id)),
  thumbnailPath: (id) => `${loraPath(id)}/thumbnail`,
  // Sends a file. `onProgress` gets the share that was sent. `fetch` reports no progress of what it sends.
  add: (file, name, { onProgress, signal }) =>
    new Promise((resolve, reject) => {
      const form = new FormData();
      if (name !== "") form.append("name", name);
      form.append("file", file);
      const request = new XMLHttpRequest();
      request.open("POST", LORAS_PATH);
      request.upload.addEventListener("progress", ({ loaded, total }) => onProgress(total > 0 ? loaded / total : 0));
      request.addEventListener("load", async () => {
        const headers = { "x-request-id": request.getResponseHeader("x-request-id") ?? "" };
        const response = new Response(request.responseText, { status: request.status, headers });
        if (response.ok) resolve(await response.json());
        else reject(await problemOf(response, LORAS_PATH));
      });
      request.addEventListener("error", () => reject(unreachable()));
      request.addEventListener("abort", () => reject(new DOMException("The upload was canceled.", "AbortError")));
      signal.addEventListener("abort", () => request.abort(), { once: true });
      request.send(form);
    }),
};

const NAMESPACES_PATH = "/v1/kubernetes/namespaces";
const namespacePath = (id) => `${NAMESPACES_PATH}/${encodeURIComponent(id)}`;

export const kubernetes = {
  cluster: (signal) => get("/v1/kubernetes", null, signal),
  namespaces: async (signal) => (await get(NAMESPACES_PATH, null, signal)).data,
  add: (name) => post(NAMESPACES_PATH, { name }),
  rename: (id, name) => patch(namespacePath(id), { name }),
  // With `force` even if keys have it in their scope.
  remove: (id, { force = false } = {}) => json("DELETE", namespacePath(id), { query: { force: force || null } }),
  kubeconfig: (id, apiVersion) => get(`${namespacePath(id)}/kubeconfig`, { api_version: apiVersion }),
};

// Whether a problem means that this worker has no cluster.
export const hasNoCluster = (problem) => problem.code === "kubernetes_not_configured";

// The namespaces, or null if this worker has no cluster.
export async function namespaces(signal) {
  try {
    return await kubernetes.namespaces(signal);
  } catch (error) {
    if (hasNoCluster(error)) return null;
    throw error;
  }
}

const PROJECTS_PATH = "/v1/projects";
const projectPath = (id) => `${PROJECTS_PATH}/${encodeURIComponent(id)}`;

export const projects = {
  list: async (signal) => (await get(PROJECTS_PATH, null, signal)).data,
  show: (id, signal) => get(projectPath(id), null, signal),
  create: (body) => post(PROJECTS_PATH, body),
  edit: (id, changes) => patch(projectPath(id), changes),
  remove: (id) => remove(projectPath(id)),
};

export const usage = {
  report: (query, signal) => get("/v1/usage", query, signal),
  // For links that download.
  path: (query) => withQuery("/v1/usage", query),
};

export const overview = (signal) => get("/v1/overview", null, signal);
export const audit = (query, signal) => get("/v1/audit", query, signal);
export const openapi = (signal) => get("/openapi.json", null, signal);
