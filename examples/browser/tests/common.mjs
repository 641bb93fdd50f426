// What the checks share: the package, started, and how a check fails.
import init from "/latten/latten.js";

/** The module's exports, its memory among them. */
export const wasm = await init();
export const variants = ["gqa", "gta", "gla", "mla"];

export function assert(condition, message) {
  if (!condition) throw new Error(message);
}

/** Fails unless the call throws, or its promise rejects, a LattenError of that kind; returns the error. */
export async function refused(kind, call) {
  let value;
  try {
    value = await call();
  } catch (error) {
    assert(error instanceof Error && error.name === "LattenError", `${call}: threw ${error}`);
    assert(error.kind === kind, `${call}: kind ${error.kind} (${error.message}), wanted ${kind}`);
    return error;
  }
  throw new Error(`${call}: gave ${value}, wanted an error of kind ${kind}`);
}

/** A file of the server's. */
export async function json(path) {
  const answer = await fetch(path);
  assert(answer.ok, `${path}: status ${answer.status}`);
  return answer.json();
}
