// Owns reading an OpenAPI 3.1 document: operations, types as text, examples. Must not know how they are shown.

import { clientsUrl } from "./clients-url.js";

const METHODS = ["get", "post", "put", "patch", "delete", "head", "options"];
const DEPTH_MAX = 5;

// All operations, grouped by their first tag in the document's order.
export function groupsOf(api) {
  const groups = new Map(
    (api.tags || []).map(({ name, description }) => [name, { name, description, operations: [] }]),
  );
  for (const [path, item] of Object.entries(api.paths || {})) {
    for (const method of METHODS.filter((name) => item[name])) {
      const operation = item[method];
      const tag = operation.tags?.[0] || "Other";
      if (!groups.has(tag)) groups.set(tag, { name: tag, operations: [] });
      const parameters = [...(item.parameters || []), ...(operation.parameters || [])].map((parameter) =>
        resolve(api, parameter),
      );
      groups.get(tag).operations.push({
        ...operation,
        id: operation.operationId || `${method}${path.replace(/[^A-Za-z0-9]+/g, "-")}`,
        method,
        path,
        parameters,
        security: securityOf(api, operation),
        body: bodyOf(api, operation.requestBody),
        responses: responsesOf(api, operation.responses),
      });
    }
  }
  return [...groups.values()].filter((group) => group.operations.length > 0);
}

// Resolves a `$ref`; returns anything else unchanged.
function resolve(api, thing) {
  let current = thing;
  for (let hops = 0; current?.$ref && hops < 10; hops += 1) {
    const target = current.$ref
      .replace(/^#\//, "")
      .split("/")
      .map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
    const { $ref: _, ...beside } = current;
    const found = target.reduce((node, part) => node?.[part], api);
    current = found ? { ...found, ...beside } : { description: `unknown reference ${thing.$ref}` };
  }
  return current || {};
}

const refName = (schema) => schema?.$ref?.split("/").pop();

// A list of alternatives, each a list of schemes that are required together.
function securityOf(api, operation) {
  const needs = operation.security || api.security || [];
  const schemes = api.components?.securitySchemes || {};
  return needs.map((need) =>
    Object.keys(need).map((name) => ({
      ...resolve(api, schemes[name]),
      header: resolve(api, schemes[name]).name,
      name,
    })),
  );
}

function bodyOf(api, requestBody) {
  if (!requestBody) return null;
  const body = resolve(api, requestBody);
  const [type, content] = Object.entries(body.content || {})[0] || [];
  return { ...body, type, schema: content?.schema, example: exampleOf(api, content) };
}

function responsesOf(api, responses) {
  return Object.entries(responses || {}).map(([status, answer]) => {
    const response = resolve(api, answer);
    const contents = Object.entries(response.content || {}).map(([type, content]) => ({ type, ...content }));
    const told = response.description || "";
    return {
      status,
      description: response.description,
      contents,
      headers: Object.entries(response.headers || {}),
      // Codes that the description already names are left out.
      codes: codesOf(api, response, contents).filter((code) => !told.includes(code)),
    };
  });
}

// The error codes of a response, wherever the document lists them.
function codesOf(api, response, contents) {
  const told = response["x-error-codes"] || response["x-codes"] || [];
  const inSchemas = contents.flatMap(({ schema }) =>
    propertiesOf(api, schema)
      .filter(({ name }) => name === "code")
      .flatMap(({ schema: code }) => code.enum || (code.const ? [code.const] : [])),
  );
  const inExamples = contents.flatMap(({ examples }) =>
    Object.values(examples || {})
      .map((example) => resolve(api, example).value?.code)
      .filter(Boolean),
  );
  // An enumeration of all codes is not specific to this response.
  const narrow = [...told, ...inExamples];
  return [...new Set(narrow.length > 0 ? narrow : inSchemas.length <= 12 ? inSchemas : [])];
}

// A schema with its `allOf` merged in.
export function merged(api, schema) {
  const resolved = resolve(api, schema);
  if (!resolved.allOf) return resolved;
  const parts = resolved.allOf.map((part) => merged(api, part));
  return {
    ...Object.assign({}, ...parts),
    ...resolved, allOf: undefined,
    properties: Object.assign({}, ...parts.map((part) => part.properties), resolved.properties),
    required: [...parts, resolved].flatMap((part) => part.required || []),
  };
}

// The fields of an object, as `{ name, schema, isRequired }`; none for other types.
export function propertiesOf(api, schema) {
  const full = merged(api, schema);
  return Object.entries(full.properties || {}).map(([name, property]) => ({
    name,
    schema: merged(api, property),
    reference: property,
    isRequired: (full.required || []).includes(name),
  }));
}

const alternativesOf = (schema) => schema.oneOf || schema.anyOf;

// The objects whose fields are listed below a schema: itself, its items, its alternatives.
export function objectsIn(api, schema, depth = 0) {
  if (!schema || depth > DEPTH_MAX) return [];
  const full = merged(api, schema);
  if (full.properties && Object.keys(full.properties).length > 0)
    return [{ title: refName(schema) || full.title, schema: full }];
  if (full.items) return objectsIn(api, full.items, depth + 1);
  return (alternativesOf(full) || []).flatMap((alternative) => objectsIn(api, alternative, depth + 1));
}

// A type as text: `string or null`, `array of KeyView`.
export function typeText(api, schema, depth = 0) {
  if (!schema || depth > DEPTH_MAX) return "any";
  const name = refName(schema);
  const full = merged(api, schema);
  if (full.const !== undefined) return JSON.stringify(full.const);
  const alternatives = alternativesOf(full);
  if (alternatives && name && alternatives.every((alternative) => merged(api, alternative).properties)) return name;
  if (alternatives)
    return [...new Set(alternatives.map((alternative) => typeText(api, alternative, depth + 1)))].join(" or ");
  const types = [full.type || (full.properties ? "object" : "any")].flat();
  const say = (type) => {
    if (type === "array") return `array of ${typeText(api, full.items, depth + 1)}`;
    if (type === "object" && name) return name;
    return full.format && type !== "null" ? `${type} (${full.format})` : type;
  };
  return [...types, ...(full.nullable ? ["null"] : [])].map(say).join(" or ");
}

// The rules for a value, in short.
export function rulesText(schema) {
  const rules = [];
  if (schema.minimum !== undefined) rules.push(`from ${schema.minimum}`);
  if (schema.maximum !== undefined) rules.push(`up to ${schema.maximum}`);
  if (schema.exclusiveMinimum !== undefined) rules.push(`above ${schema.exclusiveMinimum}`);
  if (schema.multipleOf !== undefined) rules.push(`a multiple of ${schema.multipleOf}`);
  if (schema.minLength === 1) rules.push("not empty");
  else if (schema.minLength) rules.push(`at least ${schema.minLength} characters`);
  if (schema.maxLength !== undefined) rules.push(`at most ${schema.maxLength} characters`);
  if (schema.minItems === 1) rules.push("not empty");
  else if (schema.minItems) rules.push(`at least ${schema.minItems} items`);
  if (schema.maxItems !== undefined) rules.push(`at most ${schema.maxItems} items`);
  if (schema.pattern) rules.push(`matches ${schema.pattern}`);
  if (schema.default !== undefined) rules.push(`default ${JSON.stringify(schema.default)}`);
  return rules.join(", ");
}

function exampleOf(api, content) {
  if (!content) return undefined;
  if (content.example !== undefined) return content.example;
  const first = Object.values(content.examples || {})[0];
  if (first) return resolve(api, first).value;
  return exampleValue(api, content.schema);
}

// A value that fits the schema. Objects have their required fields, or all if none is required.
function exampleValue(api, schema, depth = 0) {
  if (!schema || depth > DEPTH_MAX) return null;
  const full = merged(api, schema);
  const given = full.example ?? full.examples?.[0] ?? full.const ?? full.default ?? full.enum?.[0];
  if (given !== undefined) return given;
  const alternatives = alternativesOf(full);
  if (alternatives) return exampleValue(api, alternatives[0], depth + 1);
  const type = [full.type].flat().find((name) => name !== "null");
  if (type === "array") return [exampleValue(api, full.items, depth + 1)];
  if (type === "integer" || type === "number") return full.minimum ?? 1;
  if (type === "boolean") return true;
  if (type === "string") return full.format === "date-time" ? "2030-01-31T12:00:00Z" : "...";
  const fields = propertiesOf(api, full);
  const shown = fields.some((field) => field.isRequired) ? fields.filter((field) => field.isRequired) : fields;
  return Object.fromEntries(shown.map((field) => [field.name, exampleValue(api, field.reference, depth + 1)]));
}

// The operation as a command line.
export function curlOf(operation) {
  const { method, path, parameters, security, body, responses } = operation;
  const query = parameters
    .filter((parameter) => parameter.in === "query" && parameter.required)
    .map(({ name }) => `${name}=VALUE`);
  const schemes = security.flat();
  const isOfManagement = schemes.some((scheme) => scheme.in === "cookie");
  const origin = isOfManagement ? location.origin : clientsUrl();
  const address = `${origin}${path}${query.length > 0 ? `?${query.join("&")}` : ""}`;
  const isImage = responses.some(
    ({ status, contents }) =>
      status.startsWith("2") && contents.length > 0 && contents.every(({ type }) => type.startsWith("image/")),
  );
  const lines = [`curl --fail-with-body -sS ${method === "get" ? "" : `-X ${method.toUpperCase()} `}'${address}'`];
  const key = schemes.find((scheme) => scheme.type === "apiKey" && scheme.in === "header");
  if (key) lines.push(`-H "${key.header}: $FLUXSERVE_KEY"`);
  else if (schemes.some((scheme) => scheme.type === "http")) lines.push('-H "authorization: Bearer $FLUXSERVE_KEY"');
  else if (isOfManagement) lines.push("-b cookies");
  if (body?.type) {
    lines.push(`-H "content-type: ${body.type}"`);
    if (body.example !== undefined) lines.push(`-d '${JSON.stringify(body.example).replaceAll("'", "'\\''")}'`);
  }
  if (isImage) lines.push("--output image.png");
  return lines.join(" \\\n  ");
}
