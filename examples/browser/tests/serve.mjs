// A static file server, for tests and for looking at the page: node serve.mjs FOLDER [PORT]
import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { extname, join, normalize, sep } from "node:path";
import { pathToFileURL } from "node:url";

const types = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".css": "text/css",
  ".json": "application/json",
  ".svg": "image/svg+xml",
  ".txt": "text/plain; charset=utf-8",
  ".wasm": "application/wasm",
};

/** The part of a file that a request asks for, as [status, body, headers]: all, or from a byte on. */
export function part(request, body) {
  const etag = `"${createHash("sha256").update(body).digest("hex").slice(0, 16)}"`;
  const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "") ?? [];
  if (first === undefined) return [200, body, { etag }];
  if (Number(first) >= body.length && body.length > 0) return [416, Buffer.alloc(0), { "content-range": `bytes */${body.length}` }];
  const some = body.subarray(Number(first), last ? Number(last) + 1 : body.length);
  return [206, some, { etag, "content-range": `bytes ${first}-${Number(first) + some.length - 1}/${body.length}` }];
}

/**
 * Serves folders by the first part of the path, {"": site, "vectors": folder}; resolves to {origin, close}. `hook` sees each file first, and
 * answers it by itself where it returns true.
 */
export function serve(folders, port = 0, hook = () => false) {
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
    const [, first, ...rest] = path.split(sep);
    const file = first in folders ? join(folders[first], ...rest) : join(folders[""], path);
    try {
      const body = await readFile(path.endsWith(sep) ? join(file, "index.html") : file);
      const type = { "content-type": types[extname(file) || ".html"] ?? "application/octet-stream" };
      if (hook(request, response, path, body)) return;
      const [status, some, headers] = part(request, body);
      response.writeHead(status, { ...type, ...headers, "accept-ranges": "bytes", "content-length": some.length });
      response.end(some);
    } catch {
      response.writeHead(404).end("not found");
    }
  });
  return new Promise((resolve, reject) => {
    server.on("error", reject);
    server.listen(port, "127.0.0.1", () => {
      resolve({ origin: `http://localhost:${server.address().port}`, close: () => server.close() });
    });
  });
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const { origin } = await serve({ "": process.argv[2] ?? "." }, Number(process.argv[3] ?? 8000));
  console.log(`${origin}/`);
}
