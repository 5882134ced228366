// Owns the pages for users who are not signed in.

import { session } from "./api.js";
import { element, replace } from "./dom.js";
import { duration } from "./format.js";
import { clearErrors, field, formAlert, showErrors, showProblem } from "./form.js";
import { mark } from "./icons.js";
import { button, codeBlock, problemView, whileBusy } from "./widgets.js";

function frame(application, title, ...children) {
  const head = element("div", { class: "sign-in-head" }, mark(), element("h1", null, title));
  replace(application, element("main", { class: "sign-in" }, head, element("div", { class: "card" }, children)));
}

export function showSignIn(application, { hasEnded, onDone }) {
  const password = element("input", {
    type: "password",
    id: "password",
    name: "password",
    autocomplete: "current-password",
    required: true,
    autofocus: true,
  });
  // For password managers: there is only one account, without a name.
  const account = element("input", {
    type: "text",
    name: "username",
    value: "administrator",
    autocomplete: "username",
    hidden: true,
  });
  const submit = element(
    "button",
    { type: "submit", class: "button button-primary button-block", id: "sign-in" },
    "Sign in",
  );
  const form = element(
    "form",
    { class: "form", novalidate: true, on: { submit: (event) => send(event) } },
    formAlert(),
    account,
    field("password", "Administrator password", password),
    submit,
  );
  const send = async (event) => {
    event.preventDefault();
    clearErrors(form);
    if (password.value === "") return showErrors(form, [["password", "Enter the password"]]);
    try {
      await whileBusy(submit, () => session.signIn(password.value));
    } catch (error) {
      showProblem(form, refusal(error));
      password.select();
      return;
    }
    onDone();
  };
  frame(
    application,
    "Sign in to fluxserve",
    hasEnded &&
      element(
        "p",
        { class: "sign-in-note", role: "status" },
        "Your session has ended. Sign in to continue where you were.",
      ),
    form,
    element(
      "p",
      { class: "hint" },
      "The first start prints a password. Lost it? Set a new one with ",
      element("code", null, "fluxserve admin set-password"),
      ".",
    ),
  );
  password.focus();
}

function refusal(error) {
  if (error.code === "wrong_password") {
    return { ...error, message: error.message, errors: [{ field: "password", reason: "Wrong password" }] };
  }
  if (error.status === 429) {
    const wait = error.retryAfterSeconds
      ? `Wait ${duration(error.retryAfterSeconds)} and try again.`
      : "Wait a while and try again.";
    return { errors: [], message: `Too many attempts. ${wait}`, requestId: error.requestId };
  }
  return error;
}

// The worker has no administrator password, and so no management routes.
export function showNoPassword(application) {
  document.title = "Set a password - fluxserve";
  frame(
    application,
    "No password is set",
    element(
      "p",
      null,
      "This worker has no administrator password, so sign-in is not possible. Set one on the worker's machine:",
    ),
    codeBlock("fluxserve admin set-password", "command that sets a password"),
    element("p", null, "Or start the worker with the password in its environment:"),
    codeBlock("FLUXSERVE_ADMIN_PASSWORD='a long password' fluxserve serve", "command that starts with a password"),
    button("Check again", { kind: "primary", onClick: () => location.reload() }),
  );
}

export function showUnreachable(application, problem, retry) {
  frame(application, "fluxserve", problemView(problem, retry));
}
