// Owns the command lines that are there to be copied.

// A text as one word of a shell.
function shellWord(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// Something that the model can draw: the demo model knows coloured shapes alone.
export function examplePrompt(modelId) {
  if (modelId === "fluxserve/flux-shapes") return "a red circle on a blue background";
  return "a lighthouse on a cliff at dawn, soft light";
}

// Draws one image. Without a key's value the shell's own variable stands in its place. `body` has the fields of the
// request, or what a job says of them: of an image that it started from only that there was one, which is then read from
// a file.
export function drawCommand({ key, body: { input_images: images, ...body } }) {
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
  // Through a pipe: an image is longer than an argument may be.
  const head = shellWord(`${text.slice(0, -1)},"input_images_base64":["`);
  return [`{ printf %s ${head}; base64 < start.png | tr -d '\\n'; printf '"]}'; } |`, ...lines].join("\n");
}

// What a new key can be tried with.
export function firstCommand(key, modelId) {
  return drawCommand({ key, body: { model: modelId, prompt: examplePrompt(modelId) } });
}

// The file's name for an image in a format.
export function fileName(stem, format) {
  return `${stem}.${format === "jpeg" ? "jpg" : format}`;
}

// What the user of a key types to get into a namespace. The value of a key stands in it only where it is shown anyway.
export function kubectlLines({ key, namespace }) {
  const kubectl = `kubectl --kubeconfig ${namespace}.kubeconfig`;
  return [`export REMOTEGPU_API_KEY=${key || "rgpu_…"}`, `${kubectl} get pods`, `${kubectl} exec -it POD -- sh`].join(
    "\n",
  );
}

// Hands objects to kubectl in one command that can be pasted as it is, without what is said of them.
export function kubectlWith(verb, objects) {
  return `kubectl ${verb} -f - <<'EOF'\n${objects.replace(/^#.*\n/gm, "").trimEnd()}\nEOF`;
}
