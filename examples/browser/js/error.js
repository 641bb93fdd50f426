// Errors as latten.js makes them, and how they go from a worker to the page.

/** An error with a kind, and numbers as properties. */
export function lattenError(kind, message, fields = {}) {
  return Object.assign(new Error(message), { name: "LattenError", kind, ...fields });
}

export function argument(name, why) {
  return lattenError("Argument", `${name}: ${why}`, { argument: name, why });
}

/** What a message can carry: an Error that is copied loses its own properties. */
export function packed(error) {
  if (error?.name === "LattenError") return { latten: { message: error.message, stack: error.stack, fields: { ...error } } };
  if (error instanceof Error || error instanceof DOMException) return { error };
  return { error: new Error(String(error)) };
}

/** The error that was packed. */
export function unpacked({ latten, error }) {
  if (!latten) return error;
  const { kind, ...fields } = latten.fields;
  return Object.assign(lattenError(kind, latten.message, fields), { stack: latten.stack });
}

/** Refuses names that are not known: a misspelt option would else be ignored. */
export function known(options, names) {
  for (const key of Object.keys(options)) {
    if (!names.includes(key)) throw argument(`options.${key}`, `is not known, only ${names.join(", ")} are`);
  }
}
