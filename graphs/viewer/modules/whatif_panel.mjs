/** What if a node or group were set, scaled or swapped: what the graph predicts, what the model does. */

import { FEATURE } from "./data.mjs";
import { button, h } from "./dom.mjs";
import { predict, probabilities, relativeChanges } from "./predict.mjs";
import { number, percent, token } from "./words.mjs";

const MODES = {
  free: "everything after it recomputed",
  held: "attention held as it was",
  direct: "direct effects alone",
};

/** What can be changed: the clicked node, the selection, pins, groups. */
export function targets(app) {
  const { graph, view, state } = app,
    found = [];
  const add = (key, name, rows) => {
    const features = rows.filter((row) => graph.kind[row] === FEATURE);
    if (features.length) found.push({ key, name, rows: features });
  };
  if (view.clicked >= 0)
    add(`node ${graph.id[view.clicked]}`, `selected: ${view.names.long(view.clicked)}`, [view.clicked]);
  if (view.chosen.size > 1) add("chosen", `selection of ${view.chosen.size}`, [...view.chosen]);
  for (const group of state.groups)
    add(
      `group ${group.name}`,
      `group: ${group.name}`,
      group.members.map((id) => graph.row.get(id)).filter((row) => row !== undefined),
    );
  for (const id of state.pins)
    if (graph.row.has(id))
      add(`pin ${id}`, `pin: ${view.names.long(graph.row.get(id))}`, [graph.row.get(id)]);
  return found;
}

/** Groups and pins of the compared graph, whose features can be put in. */
export function foreign(app) {
  const { other } = app;
  if (!other) return [];
  const { groups, view } = other,
    found = [],
    rows = (ids) =>
      ids.map((id) => other.row.get(id)).filter((row) => row !== undefined && other.kind[row] === FEATURE);
  for (const group of groups || [])
    found.push({
      key: `there ${group.name}`,
      name: `there: ${group.name}`,
      graph: other,
      rows: rows(group.members || []),
    });
  for (const id of (view || {}).pins || [])
    found.push({
      key: `there pin ${id}`,
      name: `there: ${app.otherView.names.long(other.row.get(id) ?? 0)}`,
      graph: other,
      rows: rows([id]),
    });
  const top = [];
  for (let row = 0; row < other.count; row += 1) if (other.kind[row] === FEATURE) top.push(row);
  top.sort((a, b) => other.influence[b] - other.influence[a]);
  for (const row of top.slice(0, 12))
    found.push({
      key: `there ${other.id[row]}`,
      name: `there: ${app.otherView.names.long(row)}`,
      graph: other,
      rows: [row],
    });
  return found.filter((one) => one.rows.length);
}

/** Every single change of a feature that a plan makes: {layer, position, feature, value | scale}. */
export function changesOf(graph, plan) {
  const place = (row) => ({
    layer: graph.layer[row],
    position: graph.position[row],
    feature: graph.feature[row],
  });
  if (plan.how === "clamp") return plan.rows.map((row) => ({ ...place(row), value: plan.value }));
  if (plan.how === "scale") return plan.rows.map((row) => ({ ...place(row), scale: plan.value }));
  const out = plan.rows.map((row) => ({ ...place(row), scale: 0 }));
  const best = [...plan.rows].sort((a, b) => graph.influence[b] - graph.influence[a])[0];
  const from = plan.with.graph || graph,
    put = plan.with.rows.map((row) => ({
      layer: from.layer[row],
      feature: from.feature[row],
      position: graph.position[best],
      value: from.activation[row],
    }));
  const key = (one) => `${one.layer}/${one.position}/${one.feature}`,
    taken = new Set(put.map(key));
  return [...out.filter((one) => !taken.has(key(one))), ...put];
}

/** Relative changes of the graph's own nodes under single changes; and how many of them have no node. */
export function onNodes(graph, changes) {
  const rows = new Map();
  for (let row = 0; row < graph.count; row += 1) {
    if (graph.kind[row] === FEATURE)
      rows.set(`${graph.layer[row]}/${graph.position[row]}/${graph.feature[row]}`, row);
  }
  const relative = new Map();
  let missing = 0;
  for (const one of changes) {
    const row = rows.get(`${one.layer}/${one.position}/${one.feature}`);
    if (row === undefined || !graph.activation[row]) missing += 1;
    else
      for (const [key, value] of relativeChanges(
        graph,
        [row],
        one.scale === undefined ? "clamp" : "scale",
        one.scale ?? one.value,
      ))
        relative.set(key, value);
  }
  return { relative, missing };
}

function resultTable(app, predicted, measured) {
  const { names, graph } = app.view,
    byToken = new Map((measured ? measured.answers : []).map((one) => [one.token, one]));
  const rows = predicted.map((one) => {
    const real = byToken.get(graph.token[one.row]);
    byToken.delete(graph.token[one.row]);
    return [names.short(one.row), one.before, one.after, real];
  });
  for (const real of byToken.values()) rows.push([token(real.text), real.before, null, real]);
  const cell = (value) =>
    h("td", { class: "value" }, value === null || value === undefined ? "–" : percent(value));
  const head = ["answer", "before", "graph predicts", "model says"].map((text) =>
    h("th", { scope: "col" }, text),
  );
  return h(
    "table",
    { class: "result" },
    h("thead", {}, h("tr", {}, head)),
    h(
      "tbody",
      {},
      rows.map(([name, before, after, real]) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, name),
          cell(real ? real.before : before),
          cell(after),
          measured ? cell(real && real.after) : h("td", { class: "value" }, "…"),
        ),
      ),
    ),
  );
}

/** What is changed, in a sentence, and what of it the graph knows nothing of. */
function changed(graph, { how, rows, count, missing }) {
  const now = rows.slice(0, 3).map((row) => number(graph.activation[row]));
  const swap =
    ": what is swapped out goes to 0, what comes in takes the activation it has, " +
    "at the position of the strongest swapped out";
  const what = how === "swap" ? swap : ` (now ${now.join(", ")}${rows.length > 3 ? ", …" : ""})`;
  const unknown =
    missing === 1
      ? "; 1 of them is no node here, so the graph predicts nothing of it"
      : `; ${missing} of them are no nodes here, so the graph predicts nothing of them`;
  return `${count} feature${count === 1 ? "" : "s"} changed${what}${missing ? unknown : ""}.`;
}

/** The shortest command that shows a graph with its model: the embedded one needs no name. */
export function command({ name, metadata }) {
  const folder = /^[\w.-]+$/.test(name) ? name : "FOLDER",
    embedded = String(metadata.model).startsWith("embedded/");
  return `tracer view ${folder}${embedded ? "" : " --model M --transcoders T"}`;
}

export function whatIfPanel(app) {
  const { graph } = app,
    all = targets(app),
    plan = app.plan;
  if (!all.length)
    return [
      h("h2", {}, "What if"),
      h(
        "p",
        { class: "hint" },
        "Click a feature, select several, or make a group: then set, scale or swap it here and see what becomes of the answer.",
      ),
    ];
  const target = all.find((one) => one.key === plan.key) || all[0],
    partners = [...all.filter((one) => one !== target), ...foreign(app)];
  const partner = partners.find((one) => one.key === plan.partner) || partners[0];
  const choice = (label, items, value, act) => {
    const select = h(
      "select",
      { on: { change: () => act(select.value) } },
      items.map(([key, name]) => h("option", { value: key }, name)),
    );
    select.value = value;
    return h("label", { class: "field" }, h("span", {}, label), select);
  };
  const how = plan.how === "swap" && !partner ? "scale" : plan.how;
  const value = h("input", {
    type: "number",
    step: "any",
    value: String(plan.value),
    "aria-label": how === "clamp" ? "activation" : "factor",
    on: { change: () => app.planned({ value: Number(value.value) || 0 }) },
  });
  const quick =
    how === "scale"
      ? [0, -1, 2].map((factor) =>
          button(
            factor === 0 ? "off" : `×${factor}`.replace("-", "−"),
            () => app.planned({ value: factor }),
            { class: "small" },
          ),
        )
      : null;
  const changes = changesOf(graph, { ...plan, how, rows: target.rows, with: partner });
  const { relative, missing } = onNodes(graph, changes),
    { added } = predict(graph, relative, plan.mode === "direct");
  const predicted = probabilities(graph, added),
    key = JSON.stringify([changes, plan.mode]);
  const measured = app.measured && app.measured.key === key ? app.measured : null;
  const run = app.host.whatIf
    ? button(app.running ? "Running …" : "Ask the model", () => app.runWhatIf(changes, plan.mode, key), {
        class: "primary",
        disabled: app.running,
      })
    : h(
        "p",
        { class: "hint" },
        `The model’s own answer needs the model: ${command(graph)}.`,
      );
  return [
    h("h2", {}, "What if"),
    h(
      "div",
      { class: "plan" },
      choice(
        "Change",
        all.map((one) => [one.key, one.name]),
        target.key,
        (name) => app.planned({ key: name }),
      ),
      choice(
        "How",
        [
          ["scale", "scale by"],
          ["clamp", "set to"],
          ["swap", "swap for"],
        ].filter(([name]) => name !== "swap" || partner),
        how,
        (name) => app.planned({ how: name }),
      ),
      how === "swap"
        ? choice(
            "With",
            partners.map((one) => [one.key, one.name]),
            partner.key,
            (name) => app.planned({ partner: name }),
          )
        : h("div", { class: "field" }, value, quick),
      choice("In the model", Object.entries(MODES), plan.mode, (mode) => app.planned({ mode })),
    ),
    h("p", { class: "hint" }, changed(graph, { how, rows: target.rows, count: changes.length, missing })),
    run,
    app.problem ? h("p", { class: "problem", role: "alert" }, app.problem) : null,
    resultTable(app, predicted, measured),
    h(
      "p",
      { class: "hint" },
      "The graph predicts by its effects, attention held, features switching off where their input falls to nothing; tokens that are no answers here keep their logit.",
    ),
  ];
}
