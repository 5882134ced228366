// Owns the texts about namespaces: states, what they lack, names by ids, and the rules for names.

import { kubernetes } from "./api.js";
import { element } from "./dom.js";
import { sentence, words } from "./format.js";
import { badge } from "./widgets.js";

const NAME_CHARACTERS_MAX = 63;

const STATES = {
  open: ["Open", "good"],
  pending: ["Pending", "warn"],
};

const MISSING = {
  service_account: "the service account",
  role_binding: "the role binding",
  namespace: "the namespace itself",
};

export function stateBadge({ state }) {
  const [text, tone] = STATES[state] || [words(state), "neutral"];
  return badge(text, tone, { data: { state } });
}

// Why a namespace is not open, as sentences.
export function lacks({ state, missing, problem }) {
  const sentences = [];
  if (state === "pending" && missing.length > 0) sentences.push(`The cluster lacks ${missingText(missing)}.`);
  if (problem) sentences.push(sentence(problem));
  if (state === "pending" && sentences.length === 0) sentences.push("Checking the cluster.");
  return sentences;
}

function missingText(missing) {
  const named = missing.map((word) => MISSING[word] || `the ${word.replaceAll("_", " ")}`);
  return named.length > 1 ? `${named.slice(0, -1).join(", ")} and ${named.at(-1)}` : named[0];
}

// What is wrong with a name, or null. The worker checks it again.
export function nameError(name) {
  if (name === "") return "Enter the namespace's name";
  if (name === "all") return "A namespace cannot be called all: in a scope that word means every namespace";
  if (name.length > NAME_CHARACTERS_MAX) return `Use at most ${NAME_CHARACTERS_MAX} characters`;
  if (!/^[a-z0-9-]+$/.test(name)) return "Use lowercase letters, digits and hyphens only";
  if (name.startsWith("-") || name.endsWith("-")) return "Start and end with a letter or digit";
  return null;
}

// The namespaces by their ids. Without them only the names are missing, so errors are ignored.
export async function namespacesById(signal) {
  try {
    const list = await kubernetes.namespaces(signal);
    return new Map(list.map((namespace) => [namespace.id, namespace]));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return new Map();
  }
}

// A namespace by its name, or by its id if the name is unknown.
export function namespaceView(id, known) {
  const namespace = known.get(id);
  if (!namespace) return element("code", null, id);
  return [
    element("a", { href: "#/kubernetes" }, namespace.name),
    namespace.state !== "open" && [" ", stateBadge(namespace)],
  ];
}
