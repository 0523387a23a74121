/** The viewer in a notebook, as an anywidget: packed graphs come as bytes, the view goes both ways. */

import { App } from "./app.mjs";
import { readGraph } from "./data.mjs";

function bytesOf(value) {
  return value instanceof DataView
    ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
    : new Uint8Array(value);
}

async function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "tracer-viewer in-notebook";
  el.append(root);
  const packed = bytesOf(model.get("graph")),
    graph = await readGraph(packed);
  graph.packed = packed;
  const app = new App(root, [{ name: graph.name, load: async () => graph }], {
    view: model.get("view"),
    changed: (state) => {
      model.set("view", state);
      model.save_changes();
    },
  });
  await app.start();
  return () => app.stage.observer.disconnect();
}

export const widget = { render };
