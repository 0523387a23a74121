/** The line of sliders and switches under the picture. */

import { button, h } from "./dom.mjs";
import { LINKS } from "./state.mjs";

const LINK_WORDS = {
  all: "all edges",
  input: "into marked nodes",
  output: "out of marked nodes",
  either: "one end marked",
  both: "both ends marked",
};

function slider(label, id, { min, max, step, title }, value, shown, act) {
  const output = h("output", { for: id }, shown);
  const input = h("input", {
    type: "range",
    id,
    min,
    max,
    step,
    value,
    title,
    "aria-valuetext": shown,
    on: { input: () => act(Number(input.value)) },
  });
  return {
    element: h("div", { class: "slider" }, h("label", { for: id }, label), input, output),
    input,
    output,
  };
}

/** Numbers of edges on a slider: 10 at one end, all at the other, evenly by factor. */
export function toCount(place, all) {
  const most = Math.max(11, all);
  return place >= 100 ? most : Math.round(10 * (most / 10) ** (place / 100));
}

export function fromCount(count, all) {
  const most = Math.max(11, all);
  return Math.min(100, Math.max(0, (100 * Math.log(count / 10)) / Math.log(most / 10)));
}

export class Toolbar {
  constructor(app, id) {
    this.app = app;
    const { state } = app;
    const share = { min: 0.1, max: 1, step: 0.01 };
    this.nodes = slider(
      "Nodes",
      `${id}-nodes`,
      { ...share, title: "Share of the nodes' influence that is kept ([ and ])" },
      state.nodes,
      "",
      (value) => app.edit({ nodes: value }, "nodes"),
    );
    this.edges = slider(
      "Edges",
      `${id}-edges`,
      { ...share, step: 0.005, title: "Share of the edges' influence that is kept ({ and })" },
      state.edges,
      "",
      (value) => app.edit({ edges: value }, "edges"),
    );
    this.drawn = slider(
      "Drawn",
      `${id}-drawn`,
      {
        min: 0,
        max: 100,
        step: 1,
        title: "How many of the kept edges are drawn, the most influential (- and +)",
      },
      0,
      "",
      (value) => app.edit({ drawn: toCount(value, app.graph.weight.length) }, "drawn"),
    );
    this.links = h(
      "select",
      { id: `${id}-links`, on: { change: () => app.edit({ links: this.links.value }) } },
      LINKS.map((link) => h("option", { value: link }, LINK_WORDS[link])),
    );
    this.errors = h("input", {
      type: "checkbox",
      id: `${id}-errors`,
      on: { change: () => app.edit({ errors: this.errors.checked }) },
    });
    this.steered = h("input", {
      type: "checkbox",
      id: `${id}-steered`,
      on: { change: () => app.edit({ steered: this.steered.checked }) },
    });
    this.modes = ["graph", "circuit"].map((mode) =>
      button(mode === "graph" ? "Graph" : "Circuit", () => app.look({ mode, zoom: null }), {
        title: mode === "graph" ? "The whole graph" : "Only pins and groups, as boxes to arrange",
        key: "v",
        "data-mode": mode,
      }),
    );
    this.said = h("p", { class: "said" });
    this.zoom = h(
      "div",
      { class: "segment zoom", role: "group", "aria-label": "Zoom" },
      button("−", () => app.stage.zoomBy(1 / 1.4), { title: "Smaller", "aria-label": "Zoom out" }),
      button("Fit", () => app.look({ zoom: null }), { title: "Show everything", key: "0" }),
      button("+", () => app.stage.zoomBy(1.4), { title: "Larger", "aria-label": "Zoom in" }),
    );
    this.element = h(
      "div",
      { class: "toolbar", role: "group", "aria-label": "What is shown" },
      h("div", { class: "segment", role: "group", "aria-label": "Picture" }, this.modes),
      this.nodes.element,
      this.edges.element,
      this.drawn.element,
      h("div", { class: "field" }, h("label", { for: `${id}-links` }, "Links"), this.links),
      h("div", { class: "field" }, this.errors, h("label", { for: `${id}-errors` }, "error nodes")),
      (this.steering = h(
        "div",
        { class: "field", title: "Keep also what moves attention" },
        this.steered,
        h("label", { for: `${id}-steered` }, "what steers attention"),
      )),
      this.said,
    );
  }

  update(view, counts) {
    const { state, graph } = this.app;
    const set = (part, value, shown) => {
      part.input.value = value;
      part.output.textContent = shown;
      part.input.setAttribute("aria-valuetext", shown);
    };
    set(this.nodes, state.nodes, state.nodes.toFixed(2));
    set(this.edges, state.edges, String(Math.round(state.edges * 1000) / 1000));
    set(this.drawn, fromCount(state.drawn, graph.weight.length), view.drawn.toLocaleString("en"));
    const apart = state.mode !== "graph";
    this.drawn.input.disabled = this.links.disabled = apart;
    if (apart) this.drawn.output.textContent = "–";
    this.links.value = state.links;
    this.errors.checked = state.errors;
    this.steered.checked = state.steered;
    this.steering.hidden = !graph.steerStart;
    this.modes.forEach((mode) => mode.setAttribute("aria-pressed", String(mode.dataset.mode === state.mode)));
    this.said.textContent = said(graph, state, view, counts);
  }
}

const many = (count) => count.toLocaleString("en");

const plural = (count, word, more = `${word}s`) => `${many(count)} ${count === 1 ? word : more}`;

/** What stands in the circuit: its boxes, the nodes in them, and the edges summed between them. */
function boxes(graph, { marks, links, between }) {
  const groups = marks.filter((mark) => mark.group >= 0).length,
    nodes = marks.reduce((sum, mark) => sum + mark.rows.length, 0),
    pins = marks.length - groups,
    what = [pins && plural(pins, "pin"), groups && plural(groups, "group")].filter(Boolean).join(" and ");
  const weak = between > links.length ? `, ${many(between - links.length)} too weak to see` : "";
  return (
    `${plural(marks.length, "box", "boxes")}${what && `: ${what}`}, ${many(nodes)} of ${plural(graph.count, "node")} · ` +
    `${plural(links.length, "summed edge")} between them${weak}`
  );
}

/** What is kept, what is drawn, and what the file does not hold. */
export function said(graph, state, view, counts) {
  const apart = state.mode === "circuit";
  const parts = [
    apart
      ? boxes(graph, view.scene)
      : `${many(counts.nodes)} of ${many(graph.count)} nodes and ${many(counts.edges)} of ${many(graph.weight.length)} edges kept`,
  ];
  if (!apart && view.drawn < counts.edges) parts.push(`${many(view.drawn)} drawn`);
  if (!apart && state.links !== "all" && !view.pinned.size && view.clicked < 0)
    parts.push("click or pin a node to filter its links");
  const { held, metadata } = graph,
    { pruned } = metadata;
  if (held.total_edges)
    parts.push(
      `this page holds the strongest ${many(held.edges)} of ${many(held.total_edges)} edges ` +
        `(${(100 * held.influence).toFixed(1)}% of their influence) and ${many(held.nodes)} of ` +
        `${many(held.total_nodes)} nodes`,
    );
  if (pruned)
    parts.push(
      `pruned before it was saved, at ${pruned.nodes} and ${pruned.edges}, from ${many(pruned.total_nodes)} nodes and ${many(pruned.total_edges)} edges`,
    );
  return `${parts.join(" · ")}.`;
}
