// Owns the page of LoRAs: what each one changes, uploads and removals.

import { loras } from "./api.js";
import { element, replace, setText } from "./dom.js";
import { bytes, count, plural } from "./format.js";
import { field } from "./form.js";
import { formDialog } from "./form-dialog.js";
import { toastDone } from "./toast.js";
import { badge, button, emptyState, facts, iconButton, notice, pageHead, paragraph, skeleton, time } from "./widgets.js";

const NAME_CHARACTERS_MAX = 100;
// Reasons why tensors are not used, before the rest is counted.
const UNUSED_SHOWN_MAX = 4;

const COMPONENTS = { transformer: "Transformer", text_encoder: "CLIP", text_encoder_2: "T5" };

export async function showLoras({ main, signal }) {
  const place = element("div", { class: "columns" }, skeleton(6));
  const reload = async () => {
    const list = await loras.list(signal);
    replace(place, list.length > 0 ? list.map((lora) => loraCard(lora, reload)) : nothing());
  };
  const add = () => addLora({ signal, onDone: reload });
  const nothing = () =>
    emptyState(
      "loras",
      "No LoRAs yet",
      "Add one for FLUX.1. Requests can then use it, alone or with others.",
      button("Add the first LoRA", { kind: "primary", symbol: "upload", onClick: add }),
    );
  replace(
    main,
    pageHead(
      "LoRAs",
      "Adapters that requests can use, each with its own strength.",
      button("Add LoRA", { kind: "primary", symbol: "upload", id: "add-lora", onClick: add }),
    ),
    place,
  );
  await reload();
}

function loraCard(lora, onChange) {
  const { id, name, trigger_words: words, unused } = lora;
  const rest = unused.length - UNUSED_SHOWN_MAX;
  return element(
    "section",
    { class: "card lora-card", data: { testid: "lora-card", loraId: id } },
    element(
      "div",
      { class: "card-head" },
      element("h2", { class: "card-title" }, name),
      lora.needs_control_image && badge("Needs a control image", "warn"),
      iconButton(`Remove ${name}`, "trash", () => removeLora(lora, onChange)),
    ),
    lora.has_thumbnail && element("img", { class: "lora-thumbnail", src: loras.thumbnailPath(id), alt: "", loading: "lazy" }),
    facts([
      ["Title", lora.title !== name && lora.title],
      ["Base", lora.base],
      ["Size", bytes(lora.bytes)],
      ["Changes", lora.components.map(componentText).join("; ")],
      ["Kinds", kindsText(lora)],
      ["Trigger words", words.length > 0 && words.join(", ")],
      ["License", lora.license],
      ["Added", time(lora.created_at)],
      ["ID", element("code", { class: "lora-id" }, id)],
    ]),
    unused.length > 0 &&
      notice(
        "warn",
        paragraph("Some tensors of the file are not used:"),
        element(
          "ul",
          { class: "bullets" },
          unused.slice(0, UNUSED_SHOWN_MAX).map((reason) => element("li", null, reason)),
          rest > 0 && element("li", null, `and ${plural(rest, "other reason")}`),
        ),
      ),
  );
}

function componentText({ name, layers, of, norms }) {
  const more = norms > 0 ? `, ${plural(norms, "norm")}` : "";
  return `${COMPONENTS[name] || name}: ${count(layers)} of ${count(of)} layers${more}`;
}

function kindsText({ kinds, rank_min: least, rank_max: greatest, dtypes }) {
  const parts = kinds.map(({ kind, count: number }) => `${count(number)} ${kind}`);
  if (least !== null) parts.push(least === greatest ? `rank ${least}` : `rank ${least} to ${greatest}`);
  return [...parts, ...dtypes].join(", ");
}

function addLora({ signal, onDone }) {
  const file = element("input", { type: "file", id: "lora-file", accept: ".safetensors,.sft", required: true, autofocus: true });
  const name = element("input", {
    type: "text",
    id: "lora-name",
    maxlength: NAME_CHARACTERS_MAX,
    autocomplete: "off",
    spellcheck: "false",
  });
  const bar = element("progress", { class: "bar", max: 1, value: 0, "aria-label": "Share of the file that was sent" });
  const state = element("p", { class: "hint", role: "status" });
  const progress = element("div", { hidden: true }, bar, state);
  const read = () => ({
    body: { file: file.files[0], name: name.value.trim() },
    errors: file.files.length > 0 ? [] : [["file", "Choose a file"]],
  });
  const onProgress = (share) => {
    bar.value = share;
    setText(state, share < 1 ? `${Math.floor(100 * share)} % sent` : "The worker checks the file");
  };
  const send = async ({ file: chosen, name: wanted }) => {
    progress.hidden = false;
    try {
      const lora = await loras.add(chosen, wanted, { onProgress, signal });
      return () => {
        toastDone(`Added ${lora.name}.`);
        onDone();
      };
    } finally {
      progress.hidden = true;
    }
  };
  formDialog({
    title: "Add LoRA",
    label: "Add LoRA",
    testid: "add-lora",
    content: [
      field("file", "File", file, {
        hint: "A safetensors file of any trainer, for FLUX.1. A broken one is refused, with the reason.",
      }),
      field("name", "Name", name, { optional: true, hint: "For requests. By default that of the file." }),
      progress,
    ],
    read,
    send,
  });
}

function removeLora({ id, name }, onDone) {
  formDialog({
    title: `Remove ${name}?`,
    label: "Remove LoRA",
    kind: "danger",
    testid: "remove-lora",
    content: [paragraph("Its file is deleted. Requests that name it are refused from then on. Images that were generated with it stay.")],
    send: async () => {
      await loras.remove(id);
      return () => {
        toastDone(`Removed ${name}.`);
        onDone();
        document.getElementById("add-lora")?.focus();
      };
    },
  });
}
