// Owns the command lines that users copy.

import { clientsUrl } from "./clients-url.js";

// Quotes a text as one shell word.
function shellWord(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// A prompt that the model understands. The demo model only knows colored shapes.
export function examplePrompt(modelId) {
  if (modelId === "fluxserve/flux-shapes") return "a red circle on a blue background";
  return "a lighthouse on a cliff at dawn, soft light";
}

// The parts of a request, or of a job's parameters: its plain fields, and its images, each with the name of a file. A job
// says what its images were, not where they came from.
export function requestParts({ input_images: inputs = 0, images = [], ...fields }) {
  const given = images.length > 0 ? images : Array.from({ length: inputs }, () => ({ role: "input" }));
  // The result's file must not replace one of them: browsers call every pasted image image.png.
  const taken = new Set([fileName("image", fields.output_format || "png")]);
  const nameOf = ({ role, file }, index) => {
    const isAlone = given.filter((other) => other.role === role).length === 1;
    let name = [file, isAlone && `${role}.png`].find((wanted) => wanted && !taken.has(wanted));
    // The name of another image may be such a name, too.
    for (let number = index + 1; !name || taken.has(name); number += 1) name = `${role}-${number}.png`;
    taken.add(name);
    return name;
  };
  return { fields, images: given.map((image, index) => ({ ...image, file: nameOf(image, index) })) };
}

// The command that generates one image. Without `key` it uses a shell variable. `body` has the fields of the request,
// or a job's parameters; its images are read from files.
export function generateCommand({ key, body }) {
  const { fields, images } = requestParts(body);
  const format = fields.output_format || "png";
  const text = JSON.stringify(fields);
  const lines = [
    `curl --fail-with-body -sS ${shellWord(`${clientsUrl()}/v1/inference/image`)} \\`,
    `  -H "x-api-key: ${key || "$FLUXSERVE_KEY"}" \\`,
    '  -H "content-type: application/json" \\',
    `  -H "accept: image/${format}" \\`,
    `  -d ${images.length > 0 ? "@-" : shellWord(text)} \\`,
    `  --output ${fileName("image", format)}`,
  ];
  if (images.length === 0) return lines.join("\n");
  // Through a pipe: an image exceeds the length limit of an argument.
  return [...imageLines(text, images), ...lines].join("\n");
}

// Lines that write a request with the contents of files to a pipe.
function imageLines(text, images) {
  const open = ({ file, ...options }) => `${JSON.stringify(options).slice(0, -1)},"base64":"`;
  const lines = images.flatMap((image, index) => {
    const before = index === 0 ? `${text.slice(0, -1)},"images":[` : '"},';
    return [`printf %s ${shellWord(before + open(image))}`, `base64 < ${shellWord(image.file)} | tr -d '\\n'`];
  });
  return ["{", ...[...lines, `printf %s '"}]}'`].map((line) => `  ${line}`), "} |"];
}

// The command to try a new key with.
export function firstCommand(key, modelId) {
  return generateCommand({ key, body: { model: modelId, prompt: examplePrompt(modelId) } });
}

// The name of an image file.
export function fileName(stem, format) {
  return `${stem}.${format === "jpeg" ? "jpg" : format}`;
}

// What a key's user types to access a namespace. It contains the key's value only where the value is shown anyway.
export function kubectlLines({ key, namespace }) {
  const kubectl = `kubectl --kubeconfig ${namespace}.kubeconfig`;
  return [`export REMOTEGPU_API_KEY=${key || "rgpu_…"}`, `${kubectl} get pods`, `${kubectl} exec -it POD -- sh`].join(
    "\n",
  );
}

// One command that passes objects to kubectl, without their comments.
export function kubectlWith(verb, objects) {
  return `kubectl ${verb} -f - <<'EOF'\n${objects.replace(/^#.*\n/gm, "").trimEnd()}\nEOF`;
}
