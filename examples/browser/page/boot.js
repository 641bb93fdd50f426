// Starts the page, and says which of its files is missing where it cannot.
const byId = (id) => document.getElementById(id);
/** What nothing works without. Models are not of these: the page goes on without one. */
const files = ["page.js", "compare.js", "format.js", "plot.js", "progress.js", "scroll.js", "latten/latten.js",
  "latten/latten_bg.wasm"];

/** A file that the server does not give. */
export class Missing extends Error {}

/** The answer to a request for a file; throws `Missing` with its path. */
export async function file(path) {
  const answer = await fetch(path).catch((error) => {
    throw new Missing(`${path} did not come: ${error.message}`);
  });
  if (!answer.ok) throw new Missing(`${path} is missing: the server answers with status ${answer.status}`);
  // Some servers answer with their start page instead.
  const html = answer.headers.get("content-type")?.startsWith("text/html");
  if (html) throw new Missing(`${path} is missing: the server answers with a page of HTML`);
  return answer;
}

/** Which of the page's own files are missing, each in words. */
async function lacking() {
  // Not every server knows HEAD; what comes is not read.
  const asked = await Promise.allSettled(files.map((path) => file(path).then((answer) => answer.body?.cancel())));
  return asked.filter(({ status }) => status === "rejected").map(({ reason }) => reason.message);
}

/** Says why there is nothing to use here: files that are missing, else what went wrong, with `advice`. Whether it is files. */
export async function giveUp(title, error, advice) {
  const missing = await lacking();
  byId("adapter").textContent = missing.length > 0 ? "not started" : title;
  byId("missing-title").textContent = missing.length > 0 ? "A file of this page is missing" : title;
  byId("missing-why").textContent = missing.length > 0 ? `${missing.join("; ")}.` : error;
  byId("missing-files").hidden = missing.length === 0;
  byId("missing-webgpu").hidden = true;
  if (advice) advice.hidden = missing.length > 0;
  byId("missing").hidden = false;
  return missing.length > 0;
}

byId("late").remove();
import("./page.js").catch((error) => {
  byId("retry").addEventListener("click", () => location.reload());
  return giveUp("The page did not start", `${error}`);
});
