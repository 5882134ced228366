// Owns the routes behind the `#`. Must not know what the pages show.

// `#/jobs/job_1?status=failed` as `{ name: "jobs", rest: ["job_1"], query: URLSearchParams }`.
export function currentRoute() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name = "", ...rest] = path.split("/").map(decode);
  return { name, rest, query: new URLSearchParams(query) };
}

function decode(segment) {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment; // Typed by hand: it leads to no page.
  }
}

// Changes the address without navigation, so that the present view can be shared and bookmarked.
export function noteRoute(hash) {
  if (location.hash !== hash) history.replaceState(null, "", hash);
}

// Runs `work` now and at every interval while the tab is visible, until the signal is aborted. The next run starts
// after the last has ended: a slow worker is not asked more often than it answers.
export function repeat(work, intervalMs, signal) {
  let timer;
  let running = false;
  const run = async () => {
    clearTimeout(timer);
    if (signal.aborted || document.hidden || running) return;
    running = true;
    try {
      await work();
    } finally {
      running = false;
      if (!signal.aborted) timer = setTimeout(run, intervalMs);
    }
  };
  document.addEventListener("visibilitychange", run, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  return run();
}
