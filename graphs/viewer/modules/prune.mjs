/** Which nodes and edges stay, as graphs/prune.py has it, and the live scores of what stays. */

import { EMBEDDING, ERROR, LOGIT } from "./data.mjs";
import { influence, rowSums, threshold } from "./influence.mjs";

/** Nodes that lie on a path from a root to a logit, with tokens and logits and errors that reach one. */
function onPath(graph, edges) {
  const { count, kind, start, source } = graph;
  const below = new Uint8Array(count),
    above = new Uint8Array(count),
    nodes = new Uint8Array(count);
  for (let row = 0; row < count; row += 1) {
    below[row] = kind[row] === EMBEDDING || kind[row] === ERROR ? 1 : 0;
    for (let edge = start[row]; edge < start[row + 1] && !below[row]; edge += 1) {
      if (edges[edge] && below[source[edge]]) below[row] = 1;
    }
  }
  for (let row = count - 1; row >= 0; row -= 1) {
    if (kind[row] === LOGIT) above[row] = 1;
    if (!above[row]) continue;
    for (let edge = start[row]; edge < start[row + 1]; edge += 1) {
      if (edges[edge]) above[source[edge]] = 1;
    }
  }
  for (let row = 0; row < count; row += 1) {
    const stays = kind[row] === EMBEDDING || kind[row] === LOGIT;
    nodes[row] = stays || (below[row] && above[row]) ? 1 : 0;
  }
  return nodes;
}

/** |effect| + what steers, an entry wherever either has one; `place`: where each edge stands in it. */
function joined(graph) {
  if (graph.joined) return graph.joined;
  const { count, start, source, weight, steerStart, steerSource, steerSize } = graph,
    place = new Int32Array(source.length),
    rows = [0],
    sources = [],
    sizes = [];
  for (let row = 0; row < count; row += 1) {
    let [edge, at] = [start[row], steerStart[row]];
    while (edge < start[row + 1] || at < steerStart[row + 1]) {
      const one = edge < start[row + 1] ? source[edge] : Infinity,
        other = at < steerStart[row + 1] ? steerSource[at] : Infinity;
      sources.push(Math.min(one, other));
      sizes.push((one <= other ? Math.abs(weight[edge]) : 0) + (other <= one ? steerSize[at] : 0));
      if (one <= other) place[edge++] = sizes.length - 1;
      if (other <= one) at += 1;
    }
    rows.push(sizes.length);
  }
  const target = new Int32Array(sizes.length);
  for (let row = 0; row < count; row += 1) target.fill(row, rows[row], rows[row + 1]);
  const { kind, weightOf, before } = graph;
  graph.joined = { count, kind, weightOf, before, place, start: rows, source: sources, target, weight: sizes };
  return graph.joined;
}

/** Masks over nodes and edges that hold the given shares of influence; `steered` with what steers them. */
export function prune(graph, shares) {
  if (!shares.steered || !graph.steerStart) return pruned(graph, shares);
  const whole = joined(graph),
    { nodes, edges } = pruned(whole, shares);
  return { nodes, edges: Uint8Array.from(whole.place, (at) => edges[at]) };
}

function pruned(graph, shares) {
  const { count, kind, source, target, weight, before } = graph;
  const nodes = new Uint8Array(count).fill(1),
    edges = new Uint8Array(weight.length).fill(1);
  if (shares.nodes >= before.nodes && shares.edges >= before.edges) return { nodes, edges };
  const reached = (graph.reached ??= influence(graph, rowSums(graph)));
  const least = threshold(reached, shares.nodes);
  for (let row = 0; row < count; row += 1) {
    nodes[row] = reached[row] >= least || kind[row] === EMBEDDING || kind[row] === LOGIT ? 1 : 0;
  }
  for (let edge = 0; edge < edges.length; edge += 1) {
    edges[edge] = nodes[source[edge]] & nodes[target[edge]];
  }
  const left = rowSums(graph, edges),
    among = influence(graph, left, edges);
  const score = new Float64Array(edges.length);
  for (let edge = 0; edge < edges.length; edge += 1) {
    const row = target[edge];
    if (edges[edge]) {
      score[edge] = (Math.abs(weight[edge]) / (left[row] || 1)) * (among[row] + graph.weightOf[row]);
    }
  }
  const floor = threshold(
    score.filter((one) => one > 0),
    shares.edges,
  );
  for (let edge = 0; edge < edges.length; edge += 1) {
    if (!(score[edge] >= floor)) edges[edge] = 0;
  }
  const linked = onPath(graph, edges);
  for (let row = 0; row < count; row += 1) nodes[row] &= linked[row];
  for (let edge = 0; edge < edges.length; edge += 1) {
    edges[edge] &= nodes[source[edge]] & nodes[target[edge]];
  }
  return { nodes, edges };
}

/** Replacement and completeness with rows divided by `total`; see graphs/scores.py. */
function pair(graph, kept, total) {
  const { count, kind, source, target, weight, weightOf } = graph;
  const reached = influence(graph, total, kept.edges);
  const filled = new Float64Array(count),
    error = new Float64Array(count);
  for (let edge = 0; edge < weight.length; edge += 1) {
    if (!kept.edges[edge]) continue;
    const share = Math.abs(weight[edge]) / (total[target[edge]] || 1);
    filled[target[edge]] += share;
    if (kind[source[edge]] === ERROR) error[target[edge]] += share;
  }
  let tokens = 0,
    errors = 0,
    whole = 0,
    explained = 0,
    through = 0,
    anyLost = false;
  for (let row = 0; row < count; row += 1) {
    if (!kept.nodes[row]) continue;
    const lost = total[row] > 0 ? 1 - filled[row] : 0;
    if (lost > 1e-9) anyLost = true;
    if (kind[row] === EMBEDDING) tokens += reached[row];
    if (kind[row] === ERROR) errors += reached[row];
    whole += weightOf[row];
    explained += (reached[row] + weightOf[row]) * (1 - error[row] - lost);
    through += reached[row] + weightOf[row];
  }
  return { replacement: tokens / (anyLost ? whole : tokens + errors), completeness: explained / through };
}

/** Scores of what is kept: ours count what is left out as error, `among` is blind to a cap. */
export function scores(graph, kept) {
  const ours = pair(graph, kept, graph.computed);
  return { ...ours, among: graph.capped ? pair(graph, kept, graph.total) : ours };
}

/** Counts of what is kept. */
export function counts(kept) {
  let nodes = 0,
    edges = 0;
  for (const one of kept.nodes) nodes += one;
  for (const one of kept.edges) edges += one;
  return { nodes, edges };
}
