// A static file server, for tests and for looking at the page: node serve.mjs FOLDER [PORT]
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

/** Serves folders by the first part of the path, {"": site, "vectors": folder}; resolves to {origin, close}. */
export function serve(folders, port = 0) {
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
    const [, first, ...rest] = path.split(sep);
    const file = first in folders ? join(folders[first], ...rest) : join(folders[""], path);
    try {
      const body = await readFile(path.endsWith(sep) ? join(file, "index.html") : file);
      response.writeHead(200, { "content-type": types[extname(file) || ".html"] ?? "application/octet-stream" });
      response.end(body);
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
