// Owns the API reference, which is built from the worker's OpenAPI document.

import { openapi } from "./api.js";
import { element, replace, setText } from "./dom.js";
import { plural } from "./format.js";
import { curlOf, groupsOf, merged, objectsIn, propertiesOf, rulesText, typeText } from "./openapi.js";
import { noteRoute } from "./router.js";
import { badge, codeBlock, linkButton, pageHead, skeleton } from "./widgets.js";

const NESTING_MAX = 4;
const METHOD_TONES = { get: "accent", post: "good", patch: "warn", put: "warn", delete: "bad" };

export async function showReference({ main, signal, rest }) {
  const place = element("div", { class: "stack" }, skeleton(8));
  replace(
    main,
    pageHead(
      "API reference",
      "All routes of this worker, from its OpenAPI document.",
      linkButton("openapi.json", "/openapi.json", { symbol: "download", download: "openapi.json" }),
    ),
    place,
  );
  const api = await openapi(signal);
  const groups = groupsOf(api).map((group) => groupView(api, group));
  const entries = groups.flatMap((group) => group.entries);
  const found = element("p", { class: "muted", role: "status" }, plural(entries.length, "operation"));
  const filter = element("input", {
    type: "search",
    id: "reference-filter",
    placeholder: "Path, method or text",
    autocomplete: "off",
  });
  filter.addEventListener("input", () => applyFilter(groups, filter.value, found));
  replace(
    place,
    element(
      "div",
      { class: "toolbar" },
      element("div", { class: "inline-field grow" }, element("label", { for: "reference-filter" }, "Filter"), filter),
      found,
    ),
    api.info?.description && element("div", { class: "prose" }, prose(api.info.description)),
    groups.map((group) => group.root),
  );
  const linked = entries.find((entry) => entry.operation.id === rest[0]);
  if (linked) linked.open();
}

function applyFilter(groups, text, found) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  let matches = 0;
  for (const group of groups) {
    let inGroup = 0;
    for (const entry of group.entries) {
      const isMatch = words.every((word) => entry.text.includes(word));
      entry.root.hidden = !isMatch;
      if (isMatch) inGroup += 1;
    }
    group.root.hidden = inGroup === 0;
    matches += inGroup;
  }
  setText(found, plural(matches, "operation"));
}

function groupView(api, group) {
  const entries = group.operations.map((operation) => operationView(api, operation));
  const root = element(
    "section",
    { class: "reference-group" },
    element("h2", null, group.name),
    group.description && element("div", { class: "prose" }, prose(group.description)),
    entries.map((entry) => entry.root),
  );
  return { root, entries };
}

function operationView(api, operation) {
  const { method, path, summary, id } = operation;
  const body = element("div", { class: "operation-body" });
  const root = element(
    "details",
    { class: "operation", id: `operation-${id}` },
    element(
      "summary",
      null,
      badge(method.toUpperCase(), METHOD_TONES[method] || "neutral", {
        class: `badge method badge-${METHOD_TONES[method] || "neutral"}`,
      }),
      element("code", { class: "operation-path" }, path),
      element("span", { class: "operation-summary" }, summary),
    ),
    body,
  );
  // The body is rendered when it is first opened: there are many operations, and few are opened.
  root.addEventListener("toggle", () => {
    if (!root.open) return;
    if (!body.firstChild) replace(body, operationBody(api, operation));
    noteRoute(`#/reference/${encodeURIComponent(id)}`);
  });
  const open = () => {
    root.open = true;
    root.scrollIntoView({ block: "start" });
  };
  const text = [method, path, summary, operation.description, id, ...(operation.tags || [])].join(" ").toLowerCase();
  return { root, operation, text, open };
}

function operationBody(api, operation) {
  const { description, summary, parameters, body, responses, id } = operation;
  return [
    element(
      "p",
      { class: "operation-link" },
      element("a", { href: `#/reference/${encodeURIComponent(id)}` }, "Link to this operation"),
      operation.deprecated && badge("Deprecated", "warn"),
    ),
    description && description !== summary && element("div", { class: "prose" }, prose(description)),
    part("Authentication", element("p", null, securityText(operation.security))),
    parameters.length > 0 && part("Parameters", parameterList(api, parameters)),
    body?.schema &&
      part(
        `Request body${body.type ? `, ${body.type}` : ""}`,
        body.description && element("div", { class: "prose" }, prose(body.description)),
        schemaView(api, body.schema),
      ),
    part(
      "Responses",
      element(
        "div",
        { class: "responses" },
        responses.map((response) => responseView(api, response)),
      ),
    ),
    part("Example", codeBlock(curlOf(operation), `example for ${operation.method.toUpperCase()} ${operation.path}`)),
  ];
}

const part = (title, ...children) =>
  element("section", { class: "operation-part" }, element("h3", null, title), children);

function securityText(security) {
  if (security.every((schemes) => schemes.length === 0)) return "None.";
  const say = (scheme) => {
    if (scheme.type === "apiKey" && scheme.in === "cookie") return "an administrator's session (cookie)";
    if (scheme.type === "apiKey") return `an API key (${scheme.in} ${scheme.header})`;
    if (scheme.type === "http") return `an API key (authorization: ${scheme.scheme})`;
    return scheme.name;
  };
  const needed = security.filter((schemes) => schemes.length > 0).map((schemes) => schemes.map(say).join(" with "));
  // An empty alternative stands for something that is not a scheme, such as a signature in the URL.
  const ways = [...needed, needed.length < security.length && "none of these, as described above"]
    .filter(Boolean)
    .join(", or ");
  return `${ways.charAt(0).toUpperCase()}${ways.slice(1)}.`;
}

function parameterList(api, parameters) {
  const entries = parameters.map((parameter) =>
    fieldView(
      api,
      {
        name: parameter.name,
        schema: merged(api, parameter.schema),
        reference: parameter.schema,
        isRequired: parameter.required,
        where: parameter.in,
        description: parameter.description,
      },
      NESTING_MAX,
    ),
  );
  return element("dl", { class: "schema" }, entries);
}

// The fields of every object in a schema; its type if there are no objects.
function schemaView(api, schema, depth = 0) {
  const objects = objectsIn(api, schema);
  if (objects.length === 0) return element("p", null, element("code", null, typeText(api, schema)));
  const isChoice = objects.length > 1;
  return objects.map(({ title, schema: object }, index) => [
    isChoice &&
      element(
        "p",
        { class: "schema-choice" },
        index === 0 ? "Either " : "or ",
        element("code", null, title || "an object"),
      ),
    element(
      "dl",
      { class: "schema" },
      propertiesOf(api, object).map((field) => fieldView(api, field, depth)),
    ),
  ]);
}

function fieldView(api, { name, schema, reference, isRequired, where, description = schema.description }, depth) {
  const rules = rulesText(schema);
  const isNested = depth < NESTING_MAX && objectsIn(api, reference).length > 0;
  return element(
    "div",
    { class: "schema-field" },
    element(
      "dt",
      null,
      element("code", null, name),
      element("span", { class: "schema-type" }, typeText(api, reference)),
      where && element("span", { class: "schema-type" }, `in ${where}`),
      isRequired && element("span", { class: "schema-required" }, "required"),
    ),
    element(
      "dd",
      null,
      description && prose(description),
      rules && element("p", { class: "hint" }, `${rules.charAt(0).toUpperCase()}${rules.slice(1)}`),
      schema.enum &&
        element(
          "p",
          { class: "hint" },
          "One of ",
          schema.enum.map((value, index) => [index > 0 && ", ", element("code", null, String(value))]),
        ),
      isNested &&
        element(
          "details",
          { class: "schema-nested" },
          element("summary", null, `Fields of ${name}`),
          schemaView(api, reference, depth + 1),
        ),
    ),
  );
}

function responseView(api, { status, description, contents, codes, headers }) {
  const tone = status.startsWith("2") ? "good" : status.startsWith("5") ? "bad" : "warn";
  // The schema of errors is the same everywhere; only their codes differ.
  const shown = contents.filter(({ type, schema }) => schema && type.includes("json") && !type.includes("problem"));
  return element(
    "div",
    { class: "response" },
    element(
      "p",
      { class: "response-head" },
      badge(status, tone),
      element("span", null, contents.map(({ type }) => type).join(", ")),
    ),
    description && element("div", { class: "prose" }, prose(description)),
    codes.length > 0 &&
      element(
        "p",
        { class: "codes" },
        codes.map((code) => element("code", null, code)),
      ),
    headers.length > 0 &&
      element(
        "p",
        { class: "hint" },
        "Headers: ",
        headers.map(([name], index) => [index > 0 && ", ", element("code", null, name)]),
      ),
    shown.map(({ schema }) =>
      element(
        "details",
        { class: "schema-nested" },
        element("summary", null, `Body: ${typeText(api, schema)}`),
        schemaView(api, schema),
      ),
    ),
  );
}

// Renders text with paragraphs, lists and `code`. The document uses no other Markdown.
function prose(text) {
  return text
    .trim()
    .split(/\n\s*\n/)
    .map((block) => {
      const lines = block.split("\n");
      if (lines.every((line) => /^\s*[-*] /.test(line)))
        return element(
          "ul",
          null,
          lines.map((line) => element("li", null, inline(line.replace(/^\s*[-*] /, "")))),
        );
      return element("p", null, inline(block));
    });
}

function inline(text) {
  return text.split(/`([^`]+)`/).map((piece, index) => (index % 2 === 1 ? element("code", null, piece) : piece));
}
