/** Heads that carry an edge, and why a head looked where it did, from the tables beside a graph. */

import { h } from "./dom.mjs";
import { number, token, visible } from "./words.mjs";

/** Rows of a table that came as columns. */
export function rowsOfTable(table) {
  const names = Object.keys(table || {}),
    count = names.length ? table[names[0]].length : 0;
  return Array.from({ length: count }, (_, at) =>
    Object.fromEntries(names.map((name) => [name, table[name][at]])),
  );
}

/** What stands in a table of heads where there is none, as graphs/attention_tables.py has it. */
const NO_HEAD = { "-1": "stays in the stream", "-2": "written above", "-3": "heads not listed" };

function headIndex(graph) {
  if (!graph.headIndex) {
    graph.headIndex = new Map();
    for (const one of rowsOfTable((graph.tables || {}).heads)) {
      if (!graph.headIndex.has(one.edge)) graph.headIndex.set(one.edge, []);
      graph.headIndex.get(one.edge).push(one);
    }
  }
  return graph.headIndex;
}

function at(graph, position) {
  return graph.tokens[position] === undefined ? `position ${position}` : `“${token(graph.tokens[position])}”`;
}

/** What a table of attention names that is no node, as graphs/attention_words.py has it. */
const CONSTANTS = {
  "constant.positions": "learned positions",
  "constant.biases": "biases",
  "constant.skipped": "positions without nodes",
  sink: "the head’s sink",
  rest: "the rest",
};

/** What carries an edge at every layer it passes, in words, the largest first; of a head its strongest cell. */
export function headsOf(graph, edge) {
  const index = headIndex(graph);
  if (!index.size) return [];
  const found = index.get(`${graph.id[graph.source[edge]]}__${graph.id[graph.target[edge]]}`) || [];
  const whole = Math.abs(graph.weight[edge]) || 1;
  const size = (one) => Math.abs(one.loading ?? 0),
    cells = found.filter((one) => one.key !== null).sort((a, b) => size(b) - size(a));
  return found
    .filter((one) => one.key === null)
    .sort((a, b) => size(b) - size(a))
    .map((one) => {
      const who = NO_HEAD[one.head] ?? `head ${one.layer}.${one.head}`,
        cell = cells.find(({ layer, head }) => layer === one.layer && head === one.head);
      const where = cell ? `, most where ${at(graph, cell.query)} reads ${at(graph, cell.key)}` : "";
      return `layer ${one.layer}: ${who}${where}: ${number(one.loading)} (${Math.round((100 * (one.loading ?? 0)) / whole)}% of the edge)`;
    });
}

/** A node that the graph does not have, by its id. */
function elsewhere(graph, id) {
  const [, layer, feature, position] = /^(\d+)_(-?\d+)_(\d+)$/.exec(id) || [];
  if (layer === undefined) return visible(id);
  const what = feature === "-1" ? "error" : `feature ${feature}`;
  return `${what} (L${layer}, at ${at(graph, Number(position))})`;
}

function named(app, id) {
  const row = app.graph.row.get(id);
  if (row === undefined) return h("span", {}, CONSTANTS[id] ?? elsewhere(app.graph, id));
  return h(
    "button",
    { type: "button", class: "node", data: { id }, on: { click: (event) => app.choose(row, event) } },
    app.view.names.long(row),
  );
}

function weights(app, title, rows, cells) {
  if (!rows.length) return null;
  const top = [...rows].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, 10);
  return h(
    "div",
    {},
    h("h5", {}, title),
    h(
      "ul",
      { class: "plain" },
      top.map((one) => h("li", {}, cells(one), h("span", { class: "value" }, number(one.weight)))),
    ),
  );
}

function explanation(app, one) {
  const { graph } = app,
    tables = graph.tables,
    of = (name) => rowsOfTable(tables[name]).filter((row) => row.explanation === one.explanation);
  const marginals = of("attention_marginals"),
    pairs = of("attention_pairs");
  const side = (name) => marginals.filter((row) => String(row.side).startsWith(name));
  const warn = one.cancellation > 10 ? " · much cancels: read the sums with care" : "";
  return h(
    "details",
    { open: false },
    h("summary", {}, `Head ${one.layer}.${one.head}: ${at(graph, one.query)} reads ${at(graph, one.key)}`),
    h(
      "p",
      { class: "hint" },
      `pattern ${number(one.pattern)} · log-odds ${number(one.log_odds)} · cancellation ${number(one.cancellation)}${warn}`,
    ),
    weights(app, "What asks (query side)", side("q"), (row) => named(app, row.node)),
    weights(app, "What answers (key side)", side("k"), (row) => named(app, row.node)),
    weights(app, "Pairs", pairs, (row) => [named(app, row.node_q), " × ", named(app, row.node_k)]),
  );
}

/** Explanations of heads whose query or key stands where the node does. */
export function attentionOf(app, row) {
  const { graph } = app,
    tables = graph.tables || {};
  const why = rowsOfTable(tables.attention),
    place = graph.position[row];
  if (!why.length && !tables.heads) return null;
  const here = why.filter((one) => one.query === place || one.key === place);
  return h(
    "section",
    { class: "attention" },
    h("h3", {}, "Attention"),
    tables.heads
      ? h("p", { class: "hint" }, "“heads” beside an input or output says which heads carry that edge.")
      : null,
    here.length
      ? here.map((one) => explanation(app, one))
      : why.length
        ? h("p", { class: "hint" }, "No explained head reads from or at this token.")
        : null,
  );
}
