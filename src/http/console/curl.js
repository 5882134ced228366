// Owns the command lines that users copy.

// Quotes a text as one shell word.
function shellWord(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// A prompt that the model understands. The demo model only knows colored shapes.
export function examplePrompt(modelId) {
  if (modelId === "fluxserve/flux-shapes") return "a red circle on a blue background";
  return "a lighthouse on a cliff at dawn, soft light";
}

// The command that generates one image. Without `key` it uses a shell variable. `body` has the fields of the request,
// or a job's parameters. These only say whether there was an input image; the command then reads it from a file.
export function generateCommand({ key, body: { input_images: images, ...body } }) {
  const format = body.output_format || "png";
  const text = JSON.stringify(body);
  const lines = [
    `curl --fail-with-body -sS ${location.origin}/v1/inference/image \\`,
    `  -H "x-api-key: ${key || "$FLUXSERVE_KEY"}" \\`,
    '  -H "content-type: application/json" \\',
    `  -H "accept: image/${format}" \\`,
    `  -d ${images ? "@-" : shellWord(text)} \\`,
    `  --output ${fileName("image", format)}`,
  ];
  if (!images) return lines.join("\n");
  // Through a pipe: an image exceeds the length limit of an argument.
  const head = shellWord(`${text.slice(0, -1)},"input_images_base64":["`);
  return [`{ printf %s ${head}; base64 < input.png | tr -d '\\n'; printf '"]}'; } |`, ...lines].join("\n");
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
