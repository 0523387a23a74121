/** From a graph and a state to what is drawn: masks, places, edges in order, and what stands out. */

import { EMBEDDING, FEATURE, LOGIT } from "./data.mjs";
import { layout, linkFilter } from "./layout.mjs";
import { circuit } from "./circuit.mjs";
import { prune, scores } from "./prune.mjs";
import { THEMES } from "./theme.mjs";
import { Names } from "./words.mjs";

/** Edges of the whole graph, the most influential first. */
function ranked(graph) {
  if (!graph.ranked) {
    graph.ranked = Int32Array.from({ length: graph.source.length }, (_, edge) => edge);
    graph.ranked.sort((a, b) => graph.through[b] - graph.through[a] || a - b);
  }
  return graph.ranked;
}

/** The answer explained most: the likeliest target. */
export function answerOf(graph) {
  let best = -1;
  for (let row = 0; row < graph.count; row += 1) {
    if (graph.kind[row] === LOGIT && (best < 0 || graph.weightOf[row] > graph.weightOf[best])) best = row;
  }
  return best;
}

/**
 * The strongest path from a token through features to an answer, in one pass from the last node to
 * the first: `best` over all continuations, `through` over those that meet a feature from here on.
 */
export function mainPath(graph) {
  if (graph.main) return graph.main;
  const { count, kind, outputs, target, share } = graph;
  const best = Float64Array.from(graph.weightOf);
  const through = new Float64Array(count);
  const next = new Int32Array(count).fill(-1);
  const nextThrough = new Int32Array(count).fill(-1);
  for (let row = count - 1; row >= 0; row -= 1) {
    for (let at = outputs.start[row]; at < outputs.start[row + 1]; at += 1) {
      const edge = outputs.edges[at];
      const to = target[edge];
      const size = Math.abs(share[edge]);
      if (size * best[to] > best[row]) [best[row], next[row]] = [size * best[to], to];
      if (size * through[to] > through[row]) [through[row], nextThrough[row]] = [size * through[to], to];
    }
    if (kind[row] === FEATURE) [through[row], nextThrough[row]] = [best[row], next[row]];
  }
  let root = -1;
  for (let row = 0; row < count; row += 1) {
    if (kind[row] === EMBEDDING && through[row] > 0 && (root < 0 || through[row] > through[root])) root = row;
  }
  graph.main = [];
  let met = false;
  for (let row = root; row >= 0; row = met ? next[row] : nextThrough[row]) {
    graph.main.push(row);
    met ||= kind[row] === FEATURE;
  }
  return graph.main;
}

/** Masks and scores at the thresholds of a state; kept until one of them changes. */
export function keptOf(graph, state) {
  const key = `${state.nodes}|${state.edges}|${state.steered}`;
  if (!graph.kept || graph.kept.key !== key) {
    const kept = prune(graph, state);
    graph.kept = { ...kept, key, scores: scores(graph, kept) };
  }
  return graph.kept;
}

function sceneOf(graph, kept, names, state, { aspect, narrow }, rows) {
  if (state.mode === "circuit") return circuit(graph, names, state, aspect);
  const key = [
    kept.key,
    state.errors,
    aspect.toFixed(2),
    narrow,
    JSON.stringify(state.labels),
    [...rows].join(" "),
  ].join("|");
  if (!graph.scene || graph.scene.key !== key) {
    graph.scene = { ...layout(graph, kept, names, { boxed: rows, errors: state.errors, aspect, narrow }), key };
  }
  return graph.scene;
}

/** Rows that a state names and the graph has. */
export function rowsOf(graph, ids) {
  return ids.map((id) => graph.row.get(id)).filter((row) => row !== undefined);
}

/** Everything the stage needs to draw. */
export function viewOf(graph, state, { dark, shape, shared = null }) {
  const names = new Names(graph, state.labels),
    kept = keptOf(graph, state);
  const pinned = new Set(rowsOf(graph, state.pins)),
    groupOf = new Map();
  state.groups.forEach((group, at) => rowsOf(graph, group.members).forEach((row) => groupOf.set(row, at)));
  const extra = new Set([...pinned, ...groupOf.keys()]);
  const marks = { nodes: kept.nodes.slice(), edges: kept.edges };
  for (const row of extra) marks.nodes[row] = 1;
  const scene = sceneOf(graph, { ...marks, key: kept.key }, names, state, shape, extra);
  const clicked = graph.row.get(state.clicked),
    marked = new Set(pinned);
  if (clicked !== undefined) marked.add(clicked);
  let order = [];
  if (state.mode === "graph") {
    const want = linkFilter(graph, state.links, marked),
      { at } = scene;
    order = ranked(graph).filter(
      (edge) =>
        kept.edges[edge] &&
        at[graph.source[edge]] >= 0 &&
        at[graph.target[edge]] >= 0 &&
        (!want || want(edge)),
    );
  }
  return {
    graph,
    names,
    kept,
    scene,
    order,
    possible: order.length,
    drawn: Math.min(state.drawn, order.length),
    most: graph.through[ranked(graph)[0]] || 1,
    theme: THEMES[dark ? "dark" : "light"],
    dark,
    groupOf,
    groups: state.groups,
    pinned,
    onPath: new Set(mainPath(graph)),
    shared,
    /** Names written over small boxes: row -> [left, top, width], in the window. */
    spots: new Map(),
    answer: answerOf(graph),
    clicked: clicked ?? -1,
    chosen: new Set(rowsOf(graph, state.chosen)),
  };
}
