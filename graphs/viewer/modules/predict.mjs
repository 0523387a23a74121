/** What the graph predicts of a change: effects are linear in what their source writes. */

import { FEATURE, LOGIT } from "./data.mjs";

/**
 * Relative change of every node's activation, and change of every logit.
 * @param graph the graph
 * @param changes Map row -> relative change of its activation: −1 ablates, 1 doubles
 * @param direct only along edges of the changed nodes, as mode "direct" does; otherwise through features too,
 *   which stay off once their pre-activation falls to nothing
 */
export function predict(graph, changes, direct) {
  const relative = new Float64Array(graph.count),
    added = new Float64Array(graph.count);
  for (let row = 0; row < graph.count; row += 1) {
    for (let edge = graph.start[row]; edge < graph.start[row + 1]; edge += 1) {
      const of = relative[graph.source[edge]];
      if (of) added[row] += graph.weight[edge] * of;
    }
    if (changes.has(row)) relative[row] = changes.get(row);
    else if (!direct && graph.kind[row] === FEATURE && added[row] && graph.activation[row]) {
      relative[row] = Math.max(-1, added[row] / graph.activation[row]);
    }
  }
  return { relative, added };
}

/** Probabilities of the graph's answers after the logits of `added`; all other tokens keep their logit. */
export function probabilities(graph, added) {
  const rows = [];
  for (let row = 0; row < graph.count; row += 1)
    if (graph.kind[row] === LOGIT && graph.token[row] >= 0) rows.push(row);
  const most = Math.max(0, ...rows.map((row) => added[row]));
  let rest = 1,
    sum = 0;
  const grown = rows.map((row) => {
    rest -= graph.weightOf[row];
    const size = graph.weightOf[row] * Math.exp(added[row] - most);
    sum += size;
    return size;
  });
  sum += Math.max(0, rest) * Math.exp(-most);
  return rows.map((row, at) => ({
    row,
    before: graph.weightOf[row],
    after: grown[at] / sum,
    added: added[row],
  }));
}

/** Relative changes from what a user set: clamp to a value, scale, swap A for B. */
export function relativeChanges(graph, rows, how, value) {
  const changes = new Map();
  for (const row of rows) {
    const now = graph.activation[row];
    if (graph.kind[row] !== FEATURE || !now) continue;
    changes.set(row, how === "clamp" ? value / now - 1 : how === "scale" ? value - 1 : -1);
  }
  return changes;
}
