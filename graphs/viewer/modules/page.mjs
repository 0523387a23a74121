/** The viewer in a page: graphs stand in the page itself, or come from the server it is from. */

import { App } from "./app.mjs";
import { fromBase64, readGraph } from "./data.mjs";

function once(make) {
  let made = null;
  return () => (made ??= make());
}

async function loaded(bytes) {
  const graph = await readGraph(bytes);
  graph.packed = bytes;
  return graph;
}

function titleOf(graph) {
  return graph.name || graph.metadata.prompt || "graph";
}

/** A request to the server with its token; its one-line errors are thrown as they are. */
async function ask(settings, path, body) {
  const headers = { "X-Tracer-Token": settings.token };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
    credentials: "omit",
  });
  if (!answer.ok) throw new Error((await answer.text()).slice(0, 500) || `the server says ${answer.status}`);
  return answer;
}

function served(settings) {
  return settings.graphs.map((name, at) => ({
    name,
    load: async () => loaded(new Uint8Array(await (await ask(settings, `/api/graphs/${at}`)).arrayBuffer())),
  }));
}

function hostOf(settings) {
  const host = { page: true, fragment: true, view: settings.view };
  if (settings.token) host.save = (graph, body) => ask(settings, `/api/graphs/${graph}/save`, body);
  if (settings.model)
    host.whatIf = async (graph, body) => (await ask(settings, `/api/graphs/${graph}/what-if`, body)).json();
  return host;
}

export async function start() {
  const root = document.getElementById("viewer"),
    settings = JSON.parse(document.getElementById("tracer-settings").textContent);
  try {
    const inside = [...document.querySelectorAll("script.tracer-graph")].map((block) =>
      once(() => loaded(fromBase64(block.textContent))),
    );
    const first = inside.length > 1 ? await Promise.all(inside.map((load) => load())) : [];
    const graphs = settings.graphs
      ? served(settings).map(({ name, load }) => ({ name, load: settings.graphs.length ? load : once(load) }))
      : inside.map((load, at) => ({ name: first[at] ? titleOf(first[at]) : "graph", load }));
    const app = new App(root, graphs, hostOf(settings));
    window.__viewer = app;
    await app.start();
  } catch (error) {
    root.textContent = `This page cannot be shown: ${error.message}. A browser of 2024 or later is needed.`;
    root.dataset.failed = "1";
    throw error;
  }
}
