// Owns the scripts in Python that users copy. They need its standard library only.

import { clientsUrl } from "./clients-url.js";
import { fileName, requestParts } from "./curl.js";

// A JSON value as Python writes it.
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${entries(value)}}`;
  // Strings and numbers are written alike.
  return JSON.stringify(value);
}

const entries = (value) =>
  Object.entries(value)
    .map(([name, each]) => `${literal(name)}: ${literal(each)}`)
    .join(", ");

const READ = `
def read(path):
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()
`;

// The script that generates one image. `body` is as for `generateCommand`.
export function generateScript({ body }) {
  const { fields, images } = requestParts(body);
  const format = fields.output_format || "png";
  const imageLine = ({ file, ...options }) => `        {${entries(options)}, "base64": read(${literal(file)})},`;
  return [
    images.length > 0 && "import base64",
    "import json",
    "import os",
    "import urllib.request",
    images.length > 0 ? READ : "",
    "body = {",
    ...Object.entries(fields).map(([name, value]) => `    ${literal(name)}: ${literal(value)},`),
    ...(images.length > 0 ? ['    "images": [', ...images.map(imageLine), "    ],"] : []),
    "}",
    "request = urllib.request.Request(",
    `    ${literal(`${clientsUrl()}/v1/inference/image`)},`,
    "    json.dumps(body).encode(),",
    '    {"x-api-key": os.environ["FLUXSERVE_KEY"], "content-type": "application/json", ' +
      `"accept": "image/${format}"},`,
    ")",
    `with urllib.request.urlopen(request) as answer, open(${literal(fileName("image", format))}, "wb") as file:`,
    "    file.write(answer.read())",
  ]
    .filter((line) => line !== false)
    .join("\n");
}
