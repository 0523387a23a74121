/** What two graphs share: the same feature at the same token, or the same feature elsewhere. */

import { ERROR, FEATURE, LOGIT } from "./data.mjs";

function key(graph, row) {
  const kind = graph.kind[row];
  if (kind === FEATURE) return `f${graph.layer[row]}/${graph.feature[row]}`;
  if (kind === ERROR) return `e${graph.layer[row]}/${graph.position[row]}`;
  if (kind === LOGIT) return `l${graph.token[row]}/${graph.token[row] < 0 ? graph.label[row] : ""}`;
  return `t${graph.token[row]}/${graph.text[row]}`;
}

function rowsByKey(graph, shown) {
  const found = new Map();
  for (let row = 0; row < graph.count; row += 1) {
    if (shown && !shown[row]) continue;
    const name = key(graph, row);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(row);
  }
  return found;
}

const total = (graph, rows) => rows.reduce((sum, row) => sum + graph.influence[row] + graph.weightOf[row], 0);
const weight = (graph) => graph.weightOf.reduce((sum, one) => sum + one, 0) || 1;

/**
 * Nodes of both graphs, matched; each with its part of its own graph's influence.
 * @returns {shared: [{left: rows, right: rows, of: [share, share]}], left: [...], right: [...],
 *   overlap} overlap: sum of the smaller part over the sum of the larger, over features.
 */
export function compare(left, right, shownLeft, shownRight) {
  const a = rowsByKey(left, shownLeft),
    b = rowsByKey(right, shownRight);
  const wholes = [weight(left), weight(right)];
  const result = { shared: [], left: [], right: [], overlap: 0 };
  let smaller = 0,
    larger = 0;
  for (const name of new Set([...a.keys(), ...b.keys()])) {
    const rows = [a.get(name) || [], b.get(name) || []];
    const of = [total(left, rows[0]) / wholes[0], total(right, rows[1]) / wholes[1]];
    const where = rows[0].length && rows[1].length ? "shared" : rows[0].length ? "left" : "right";
    result[where].push({ left: rows[0], right: rows[1], of });
    if (name[0] === "f") {
      smaller += Math.min(...of);
      larger += Math.max(...of);
    }
  }
  for (const where of ["shared", "left", "right"]) {
    result[where].sort((x, y) => Math.max(...y.of) - Math.max(...x.of));
  }
  result.overlap = larger ? smaller / larger : 0;
  return result;
}

/** Rows of a graph whose counterpart stands in the other: a mask. */
export function sharedRows(comparison, side, count) {
  const mask = new Uint8Array(count);
  for (const one of comparison.shared) for (const row of one[side]) mask[row] = 1;
  return mask;
}
