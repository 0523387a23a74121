/** Find, paths, groups and comparison: the other tabs beside the picture. */

import { compare } from "./compare.mjs";
import { EMBEDDING, ERROR, LOGIT } from "./data.mjs";
import { button, h } from "./dom.mjs";
import { nodeButton } from "./node_panel.mjs";
import { edgeBetween, strongestPaths } from "./paths.mjs";
import { search } from "./search.mjs";
import { TINTS } from "./theme.mjs";
import { percent, route, visible } from "./words.mjs";

export function findPanel(app) {
  const list = h("ol", { class: "plain found", "aria-live": "polite" });
  const fill = () => {
    const hits = search(app.graph, app.view.names, input.value);
    list.replaceChildren(
      ...hits.map(({ row, where, text }) =>
        h(
          "li",
          {},
          nodeButton(app, row),
          app.view.names.long(row).includes(text) ? null : h("small", {}, `${where}: ${visible(text)}`),
        ),
      ),
    );
    if (input.value.trim() && !hits.length) list.append(h("li", { class: "none" }, "No node matches."));
    app.search(
      input.value,
      hits.map((one) => one.row),
    );
  };
  const input = h("input", {
    type: "search",
    value: app.state.query,
    placeholder: "label, token, example, id, layer/feature",
    "aria-label": "Find nodes by label, token or example",
    on: { input: fill },
  });
  const all = button("Select all found", () =>
    app.selectMany(search(app.graph, app.view.names, input.value).map((one) => one.row)),
  );
  setTimeout(fill, 0);
  return [h("h2", {}, "Find"), h("div", { class: "actions" }, input, all), list];
}

function ends(app, which, otherwise) {
  const { graph, view, state } = app,
    row = graph.row.get(state[which]);
  return h(
    "p",
    { class: "end" },
    which === "from" ? "From " : "To ",
    row === undefined ? otherwise : nodeButton(app, row),
    button(
      view.clicked >= 0 ? "set to the selected node" : "click a node first",
      () => app.look({ [which]: graph.id[view.clicked] }),
      { disabled: view.clicked < 0, key: which === "from" ? "a" : "b" },
    ),
    row === undefined ? null : button("any", () => app.look({ [which]: null })),
  );
}

/** Strongest paths from A to B; from any token or error to any answer where none is named. */
export function pathsBetween(app, count = 12) {
  const { graph, state } = app,
    from = graph.row.get(state.from),
    to = graph.row.get(state.to),
    starts = [],
    goals = new Map();
  for (let row = 0; row < graph.count; row += 1) {
    if (from === undefined ? graph.kind[row] === EMBEDDING || graph.kind[row] === ERROR : row === from)
      starts.push(row);
    if (to === undefined ? graph.kind[row] === LOGIT && graph.weightOf[row] > 0 : row === to)
      goals.set(row, to === undefined ? graph.weightOf[row] : 1);
  }
  return {
    paths: strongestPaths(graph, starts, goals, count),
    whole: to === undefined ? [...goals.values()].reduce((sum, one) => sum + one, 0) : 1,
    to,
  };
}

export function pathsPanel(app) {
  const { graph, view } = app,
    { paths, whole, to } = pathsBetween(app);
  const items = paths.map(({ nodes, strength }) => {
    const shares = nodes.slice(1).map((row, at) => graph.share[edgeBetween(graph, nodes[at], row)]);
    const steps = nodes.map((row, at) => [
      at
        ? h(
            "span",
            {
              class: shares[at - 1] < 0 ? "inhibits" : "excites",
              "aria-label": shares[at - 1] < 0 ? "inhibits" : "excites",
            },
            shares[at - 1] < 0 ? " ⊣ " : " → ",
          )
        : null,
      nodeButton(app, row),
    ]);
    return h(
      "li",
      { title: route(view.names, nodes, shares), data: { path: nodes.join(" ") } },
      h("span", { class: "value" }, percent(strength / (whole || 1))),
      steps,
      button("Pin", () => app.pin(nodes, true), { title: "Pin every node of this path", class: "small" }),
    );
  });
  return [
    h("h2", {}, "Strongest paths"),
    ends(app, "from", "any token or error "),
    ends(app, "to", "any answer "),
    h(
      "p",
      { class: "hint" },
      to === undefined
        ? "The part of the answers that each path carries: the product of the shares along it."
        : "The part of the end’s input, over all steps, that each path carries: the product of the shares along it.",
    ),
    items.length
      ? h("ol", { class: "paths" }, items)
      : h("p", { class: "none" }, "No path leads from the one to the other."),
  ];
}

function groupItem(app, group, index) {
  const { view, graph } = app;
  const input = h("input", {
    type: "text",
    value: group.name,
    "aria-label": `Name of the group ${group.name}`,
    maxlength: 200,
    on: { change: () => app.renameGroup(group.name, input.value.trim()) },
  });
  return h(
    "li",
    { class: "group" },
    h(
      "div",
      { class: "actions" },
      h("span", { class: "swatch", style: { background: TINTS[index % TINTS.length][view.dark ? 1 : 0] } }),
      input,
      button("Ungroup", () => app.dissolve(group.name), { class: "small" }),
    ),
    h(
      "ul",
      { class: "plain" },
      group.members.map((id) => {
        const row = graph.row.get(id);
        return h(
          "li",
          {},
          row === undefined ? visible(id) : nodeButton(app, row),
          button("×", () => app.leaveGroup(group.name, id), {
            class: "small",
            "aria-label": `Remove ${id} from ${group.name}`,
          }),
        );
      }),
    ),
  );
}

export function groupsPanel(app) {
  const { state, view } = app,
    chosen = [...view.chosen];
  const pins = state.pins.filter((id) => app.graph.row.has(id));
  return [
    h("h2", {}, "Selection, pins and groups"),
    h(
      "section",
      {},
      h("h3", {}, `Selected: ${chosen.length}`),
      chosen.length
        ? h(
            "ul",
            { class: "plain" },
            chosen.map((row) => h("li", {}, nodeButton(app, row))),
          )
        : h("p", { class: "hint" }, "Shift-click nodes, drag a box with Shift held, or hold G and click."),
      h(
        "div",
        { class: "actions" },
        button("Group", () => app.group(), { key: "g", disabled: chosen.length < 1 }),
        button("Pin all", () => app.pin(chosen, true), { disabled: !chosen.length }),
        button("Table (.csv)", () => app.exportTable(), {
          title: "The selection, or all that is shown, as a table",
        }),
        button("Clear", () => app.look({ chosen: [] }), { disabled: !chosen.length }),
      ),
    ),
    h(
      "section",
      {},
      h("h3", {}, `Groups: ${state.groups.length}`),
      h(
        "ul",
        { class: "groups" },
        state.groups.map((group, at) => groupItem(app, group, at)),
      ),
    ),
    h(
      "section",
      {},
      h("h3", {}, `Pins: ${pins.length}`),
      h(
        "ul",
        { class: "plain" },
        pins.map((id) =>
          h(
            "li",
            {},
            nodeButton(app, app.graph.row.get(id)),
            button("×", () => app.pin([app.graph.row.get(id)]), {
              class: "small",
              "aria-label": `Unpin ${id}`,
            }),
          ),
        ),
      ),
      button("Pin the main steps", () => app.suggest(), { title: "The nodes of the strongest paths" }),
    ),
  ];
}

function comparedList(app, title, items, graphs) {
  const names = [app.view.names, app.otherView.names];
  return h(
    "section",
    {},
    h("h3", {}, `${title}: ${items.length}`),
    h(
      "ol",
      { class: "plain compared" },
      items.slice(0, 60).map((one) => {
        const side = one.left.length ? 0 : 1,
          row = [one.left, one.right][side][0];
        const node =
          side === 0
            ? nodeButton(app, row)
            : h(
                "button",
                {
                  type: "button",
                  class: "node",
                  data: { other: graphs[1].id[row] },
                  on: { click: () => app.chooseOther(row) },
                },
                names[1].long(row),
              );
        return h(
          "li",
          {},
          node,
          h("span", { class: "value" }, one.of.map((part) => (part ? percent(part) : "–")).join(" | ")),
        );
      }),
    ),
  );
}

export function comparePanel(app) {
  const others = app.graphs.map((one, at) => ({ ...one, at })).filter(({ at }) => at !== app.state.graph);
  const pick = h(
    "select",
    {
      "aria-label": "Graph to compare with",
      on: { change: () => app.compareWith(pick.value === "" ? null : Number(pick.value)) },
    },
    h("option", { value: "" }, "no other"),
    others.map(({ name, at }) => h("option", { value: at }, visible(name))),
  );
  pick.value = app.state.other === null ? "" : String(app.state.other);
  const file = h("input", {
    type: "file",
    accept: ".html",
    class: "file",
    "aria-label": "Another exported page",
    on: { change: () => app.openFile(file.files[0]) },
  });
  const parts = [
    h("h2", {}, "Compare"),
    h("div", { class: "actions" }, pick),
    h("p", { class: "hint" }, "Or open a page that tracer exported:"),
    file,
  ];
  if (!app.otherView) return parts;
  const found = compare(app.graph, app.other, app.view.kept.nodes, app.otherView.kept.nodes);
  return [
    ...parts,
    h(
      "p",
      {},
      `Of the features’ influence ${percent(found.overlap)} is shared. Numbers: part of each graph’s own influence, here | there. What both have is outlined in the pictures.`,
    ),
    comparedList(app, "In both", found.shared, [app.graph, app.other]),
    comparedList(app, "Only here", found.left, [app.graph, app.other]),
    comparedList(app, "Only there", found.right, [app.graph, app.other]),
  ];
}
