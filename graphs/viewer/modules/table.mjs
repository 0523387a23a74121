/** Nodes and edges as text for a spreadsheet. */

import { KINDS } from "./data.mjs";

/** Text in a cell that no spreadsheet takes for a formula. */
function cell(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const lines = (rows) => `${rows.map((row) => row.map(cell).join(",")).join("\n")}\n`;

export function nodeTable(graph, names, rows) {
  const head = [
    "id",
    "kind",
    "layer",
    "position",
    "token",
    "feature",
    "label",
    "activation",
    "influence",
    "probability",
  ];
  return lines([
    head,
    ...rows.map((row) => [
      graph.id[row],
      KINDS[graph.kind[row]],
      graph.layer[row],
      graph.position[row],
      graph.tokens[graph.position[row]] ?? "",
      graph.feature[row] < 0 ? null : graph.feature[row],
      names.label(row),
      graph.activation[row],
      graph.influence[row],
      graph.weightOf[row] || null,
    ]),
  ]);
}

export function edgeTable(graph, names, edges) {
  const head = ["source", "target", "weight", "share", "influence", "source_label", "target_label"];
  return lines([
    head,
    ...edges.map((edge) => {
      const [from, to] = [graph.source[edge], graph.target[edge]];
      return [
        graph.id[from],
        graph.id[to],
        graph.weight[edge],
        graph.share[edge],
        graph.through[edge],
        names.short(from),
        names.short(to),
      ];
    }),
  ]);
}

/** Edges that both ends of stand in `rows`. */
export function edgesWithin(graph, rows) {
  const inside = new Set(rows),
    found = [];
  for (const row of rows) {
    for (let edge = graph.start[row]; edge < graph.start[row + 1]; edge += 1) {
      if (inside.has(graph.source[edge])) found.push(edge);
    }
  }
  return found;
}
