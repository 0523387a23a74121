/** Nodes that match words in their label, token, place, or the examples of their feature. */

import { FEATURE } from "./data.mjs";
import { token } from "./words.mjs";

export function featureKey(graph, row) {
  return graph.kind[row] === FEATURE ? `${graph.layer[row]}/${graph.feature[row]}` : "";
}

function texts(graph, names, row) {
  const found = [
    ["label", names.label(row)],
    ["token", graph.text[row] ?? ""],
    ["id", graph.id[row]],
    ["place", names.place(row)],
  ];
  const known = (graph.features || {})[featureKey(graph, row)];
  if (known) {
    found.push(["fires on", (known.fires_on || []).map((one) => token(one[0])).join(", ")]);
    found.push(["promotes", (known.promoted || []).map((one) => token(one[0])).join(", ")]);
    found.push(["example", (known.examples || []).map((one) => one.texts.join("")).join("\n")]);
  }
  return found;
}

/** Rows whose texts hold every word, most influential first: [{row, where, text}]. */
export function search(graph, names, query, limit = 100) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const hits = [];
  for (let row = 0; row < graph.count; row += 1) {
    const all = texts(graph, names, row),
      low = all.map(([, text]) => String(text).toLowerCase());
    if (!words.every((word) => low.some((text) => text.includes(word)))) continue;
    const at = low.findIndex((text) => text.includes(words[0]));
    hits.push({ row, where: all[at][0], text: excerpt(String(all[at][1]), words[0]) });
  }
  const rank = (row) => graph.influence[row] + graph.weightOf[row];
  return hits.sort((a, b) => rank(b.row) - rank(a.row)).slice(0, limit);
}

function excerpt(text, word) {
  const said = /^([^·]*\S) · /.exec(text);
  if (said && said[1].toLowerCase().includes(word)) return said[1];
  const at = text.toLowerCase().indexOf(word),
    [from, to] = text.length > 90 ? [Math.max(0, at - 24), at + 40] : [0, text.length];
  return `${from ? "…" : ""}${text.slice(from, to)}${to < text.length ? "…" : ""}`;
}
