/** One node: what it is in words, its inputs and outputs by sign, its feature, its attention. */

import { EMBEDDING, FEATURE, KINDS, LOGIT } from "./data.mjs";
import { attentionOf, headsOf } from "./attention_panel.mjs";
import { button, h } from "./dom.mjs";
import { featurePanel, labelScore } from "./feature_panel.mjs";
import { featureKey } from "./search.mjs";
import { explain, number, percent, stability, visible } from "./words.mjs";

const AT_FIRST = 12;

/** A node as a button, with the attributes by which hovering is shared between panels. */
export function nodeButton(app, row, text, view = app.view) {
  const { graph } = view;
  return h(
    "button",
    {
      type: "button",
      class: "node",
      data: { id: graph.id[row], kind: KINDS[graph.kind[row]] },
      on: { click: (event) => app.choose(row, event) },
    },
    text ?? view.names.long(row),
  );
}

/** Edges at a node, by the size of their share of the target's input. */
export function linksAt(graph, row, end) {
  const found = [];
  if (end === "source")
    for (let edge = graph.start[row]; edge < graph.start[row + 1]; edge += 1) found.push(edge);
  else
    for (let at = graph.outputs.start[row]; at < graph.outputs.start[row + 1]; at += 1)
      found.push(graph.outputs.edges[at]);
  return found.sort((a, b) => Math.abs(graph.share[b]) - Math.abs(graph.share[a]) || a - b);
}

function linkRow(app, edge, end, most) {
  const { graph, view } = app,
    row = graph[end][edge],
    share = graph.share[edge];
  const heads = headsOf(graph, edge),
    shown = view.kept.edges[edge];
  const bar = h("span", {
    class: `bar ${share < 0 ? "inhibits" : "excites"}`,
    style: { width: `${Math.max(2, (100 * Math.abs(share)) / most)}%` },
  });
  return h(
    "li",
    {
      class: shown ? "" : "below",
      title: [stability(graph.stableEdge, edge), shown ? "" : "below the thresholds set now"].filter(Boolean).join(" · ") || null,
    },
    nodeButton(app, row),
    h("span", { class: "value" }, percent(share)),
    h("span", { class: "track" }, bar),
    heads.length
      ? h(
          "details",
          { class: "heads" },
          h("summary", {}, "heads"),
          h(
            "ul",
            {},
            heads.slice(0, 12).map((one) => h("li", {}, one)),
          ),
        )
      : null,
  );
}

/** One side of a node's edges; `edges` of both signs, the strongest first, so that bars have one scale. */
function signed(app, edges, end, sign) {
  const { graph } = app,
    some = edges.filter((edge) => (sign > 0 ? graph.share[edge] > 0 : graph.share[edge] < 0));
  const sum = some.reduce((total, edge) => total + Math.abs(graph.share[edge]), 0),
    most = Math.abs(graph.share[edges[0]]) || 1;
  const list = h("ol", { class: "links" }),
    title = sign > 0 ? "excites" : "inhibits";
  let shown = 0;
  const more = button("", () => grow(500), { class: "more" });
  const grow = (count) => {
    list.append(...some.slice(shown, shown + count).map((edge) => linkRow(app, edge, end, most)));
    shown = Math.min(some.length, shown + count);
    more.textContent = `${some.length - shown} more`;
    more.hidden = shown >= some.length;
  };
  grow(AT_FIRST);
  const inputs = end === "source";
  return h(
    "div",
    { class: "side" },
    h(
      "h4",
      { class: title },
      `${sign > 0 ? "+" : "−"} ${title} `,
      h("small", {}, `${some.length}${inputs ? ` · ${percent(sum)}` : ""}`),
    ),
    some.length ? list : h("p", { class: "none" }, "none"),
    more,
  );
}

function linkSection(app, row, end) {
  const edges = linksAt(app.graph, row, end),
    { graph } = app;
  const lost =
    end === "source" && graph.computed[row] ? (graph.leftOutAbsolute[row] || 0) / graph.computed[row] : 0;
  return h(
    "section",
    { class: `linked ${end === "source" ? "inputs" : "outputs"}` },
    h("h3", {}, end === "source" ? "Inputs" : "Outputs"),
    h(
      "p",
      { class: "hint" },
      end === "source" ? "share of all its input" : "share of the other node’s input",
      lost > 0.0005 ? ` · ${percent(lost)} of the input is left out here` : "",
    ),
    edges.length
      ? h("div", { class: "sides" }, signed(app, edges, end, 1), signed(app, edges, end, -1))
      : h("p", { class: "none" }, "none"),
  );
}

function facts(app, row) {
  const { graph, view } = app,
    weight = graph.weightOf.reduce((sum, one) => sum + one, 0) || 1,
    found = [["id", graph.id[row]]];
  if (graph.kind[row] === FEATURE)
    found.push(["feature", featureKey(graph, row)], ["activation", number(graph.activation[row])]);
  if (graph.kind[row] !== EMBEDDING && graph.kind[row] !== LOGIT) found.push(["at", view.names.at(row)]);
  if (graph.kind[row] === LOGIT)
    found.push([graph.token[row] < 0 ? "weight" : "probability", view.names.weight(row)]);
  else found.push(["influence", percent(graph.influence[row] / weight)]);
  const stable = stability(graph.stable, row),
    { over } = graph.metadata.stability || {};
  if (stable) found.push(["found", stable + (over ? ` (${visible(over)})` : "")]);
  return h(
    "dl",
    { class: "facts" },
    found.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

function actions(app, row) {
  const { graph, state } = app,
    id = graph.id[row],
    pinned = state.pins.includes(id);
  const group = state.groups.find((one) => one.members.includes(id));
  return h(
    "div",
    { class: "actions" },
    button(pinned ? "Unpin" : "Pin", () => app.pin([row]), { key: "p", pressed: pinned }),
    button("Rename", () => app.startRename(), { key: "r" }),
    group
      ? button("Ungroup", () => app.ungroup(), { key: "u", title: `Dissolve the group ${group.name}` })
      : button("Select", () => app.select(row), {
          key: "x",
          title: "Add to the selection, to group several",
        }),
    button("Path from", () => app.look({ from: id, tab: "paths" }), { key: "a" }),
    button("Path to", () => app.look({ to: id, tab: "paths" }), { key: "b" }),
    graph.kind[row] === FEATURE ? button("What if …", () => app.look({ tab: "whatif" }), { key: "w" }) : null,
    graph.features[featureKey(graph, row)]
      ? button("Examples ↓", () => app.root.querySelector(".feature").scrollIntoView(), {
          title: "What it fires on, from the feature store",
        })
      : null,
  );
}

function welcome(app) {
  const { graph, view } = app,
    top = [];
  for (let row = 0; row < graph.count; row += 1) if (graph.kind[row] === FEATURE) top.push(row);
  top.sort((a, b) => graph.influence[b] - graph.influence[a]);
  return [
    h("h2", {}, "Nothing selected"),
    h(
      "p",
      {},
      "Click a node to see what drives it and what it drives. Shift-click several nodes, or drag a box round them with Shift held, and press G to make them one group.",
    ),
    h("h3", {}, "Most influential features"),
    h(
      "ol",
      { class: "plain" },
      top
        .slice(0, 15)
        .map((row) =>
          h(
            "li",
            {},
            nodeButton(app, row),
            h("span", { class: "value" }, percent(graph.influence[row] / (view.weight || 1))),
          ),
        ),
    ),
  ];
}

export function nodePanel(app) {
  const { view, graph } = app,
    row = view.clicked;
  if (row < 0) return welcome(app);
  const heading = h(
    "h2",
    { class: "title", tabindex: -1 },
    view.names.short(row),
    h("small", {}, ` ${KINDS[graph.kind[row]]}`),
  );
  return [
    heading,
    labelScore(graph, row, app.state.labels),
    app.renaming === "node" ? renameForm(app, row) : null,
    actions(app, row),
    facts(app, row),
    linkSection(app, row, "source"),
    linkSection(app, row, "target"),
    h("h3", {}, "In words"),
    h("p", { class: "explained" }, explain(graph, view.names, row, view.kept.nodes)),
    featurePanel(graph, row),
    attentionOf(app, row),
  ];
}

function renameForm(app, row) {
  const input = h("input", {
    type: "text",
    value: app.view.names.label(row) || app.view.names.short(row),
    "aria-label": "New label",
    maxlength: 200,
  });
  const form = h(
    "form",
    {
      class: "rename",
      on: {
        submit: (event) => {
          event.preventDefault();
          app.rename(row, input.value.trim());
        },
      },
    },
    input,
    h("button", { type: "submit" }, "Save label"),
    button("Cancel", () => app.stopRename()),
  );
  setTimeout(() => input.select(), 0);
  return form;
}
