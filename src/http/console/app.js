// Owns the application's flow: the session check, the page to show, the end of the session.

import { Problem, session, sessionEvents } from "./api.js";
import { closeAllDialogs } from "./dialog.js";
import { replace } from "./dom.js";
import { showAudit } from "./page-audit.js";
import { showJobs } from "./page-jobs.js";
import { showKey } from "./page-key.js";
import { showKeys } from "./page-keys.js";
import { showKubernetes } from "./page-kubernetes.js";
import { showLoras } from "./page-loras.js";
import { showModels } from "./page-models.js";
import { showOverview } from "./page-overview.js";
import { showPlayground } from "./page-playground.js";
import { showProjects } from "./page-projects.js";
import { showReference } from "./page-reference.js";
import { showNoPassword, showSignIn, showUnreachable } from "./page-sign-in.js";
import { showUsage } from "./page-usage.js";
import { currentRoute } from "./router.js";
import { buildShell } from "./shell.js";
import { toastProblem } from "./toast.js";
import { emptyState, linkButton, pageHead, problemView } from "./widgets.js";

// `show` fills `main`; its `signal` is aborted when the user leaves the page.
const PAGES = {
  "": { title: "Overview", show: showOverview },
  playground: { title: "Playground", show: showPlayground },
  jobs: { title: "Jobs", show: showJobs, hasRest: true },
  keys: { title: "API keys", show: (page) => (page.rest.length > 0 ? showKey(page) : showKeys(page)), hasRest: true },
  projects: { title: "Projects", show: showProjects, hasRest: true },
  usage: { title: "Usage", show: showUsage },
  models: { title: "Models", show: showModels },
  loras: { title: "LoRAs", show: showLoras },
  kubernetes: { title: "Kubernetes", show: showKubernetes },
  audit: { title: "Audit log", show: showAudit },
  reference: { title: "API reference", show: showReference, hasRest: true },
};

const application = document.getElementById("application");
let shell = null;
let leaving = new AbortController();

async function start() {
  try {
    await session.show();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status === 401) signIn();
    else if (error.status === 404) showNoPassword(application);
    else showUnreachable(application, error, start);
    return;
  }
  enter();
}

function signIn(hasEnded = false) {
  leave();
  document.title = "Sign in - fluxserve";
  showSignIn(application, { hasEnded, onDone: enter });
}

function enter() {
  shell = buildShell(application, signOut);
  showRoute({ isFirst: true });
}

function leave() {
  shell = null;
  leaving.abort();
  closeAllDialogs();
}

async function signOut() {
  try {
    await session.signOut();
  } catch (error) {
    if (error.status !== 401) {
      toastProblem(error);
      return;
    }
  }
  signIn();
}

async function showRoute({ isFirst = false } = {}) {
  if (!shell) return;
  leaving.abort();
  leaving = new AbortController();
  closeAllDialogs();
  const { signal } = leaving;
  const { main } = shell;
  const { name, rest, query } = currentRoute();
  const page = PAGES[name];
  if (!page || (rest.length > 0 && !page.hasRest)) {
    shell.markPage(null);
    document.title = "Not found - fluxserve";
    replace(
      main,
      pageHead("Not found"),
      emptyState("information", "This page does not exist", null, linkButton("Go to the overview", "#/")),
    );
    return;
  }
  shell.markPage(name);
  document.title = `${page.title} - fluxserve`;
  replace(main);
  window.scrollTo(0, 0);
  const shown = run(page, { main, signal, rest, query });
  // Tells keyboard and screen reader users where they are. On the first page the browser does so itself.
  if (!isFirst) main.querySelector("h1")?.focus({ preventScroll: true });
  await shown;
}

async function run(page, context) {
  try {
    await page.show(context);
  } catch (error) {
    if (error.name === "AbortError" || context.signal.aborted || error.status === 401) return;
    if (!(error instanceof Problem)) console.error(error);
    const retry = () => showRoute();
    replace(context.main, pageHead(page.title), problemView(error, retry));
  }
}

sessionEvents.addEventListener("session-ended", () => {
  if (shell) signIn(true);
});
window.addEventListener("hashchange", () => showRoute());
start();
