/** The strongest paths from some nodes to others, exactly: products of shares of the input. */

/**
 * @param graph the graph
 * @param from rows a path may begin at
 * @param to Map from rows it may end at to what they weigh
 * @param count at most so many
 * @param kept Uint8Array over edges, or nothing for all
 * @returns [{nodes, strength}], strongest first
 */
export function strongestPaths(graph, from, to, count, kept) {
  const { outputs, target, share } = graph;
  const best = Array.from({ length: graph.count }, () => []);
  for (let row = graph.count - 1; row >= 0; row -= 1) {
    const found = to.has(row) ? [{ strength: to.get(row), next: -1, rank: 0 }] : [];
    for (let at = outputs.start[row]; at < outputs.start[row + 1]; at += 1) {
      const edge = outputs.edges[at];
      if (kept && !kept[edge]) continue;
      const size = Math.abs(share[edge]);
      best[target[edge]].forEach((way, rank) => {
        const strength = size * way.strength;
        if (strength > 0) found.push({ strength, next: target[edge], rank });
      });
    }
    if (!found.length) continue;
    best[row] = found.sort((a, b) => b.strength - a.strength || a.next - b.next).slice(0, count);
  }
  const starts = [...from].flatMap((row) => best[row].map((way) => ({ row, way })));
  starts.sort((a, b) => b.way.strength - a.way.strength || a.row - b.row);
  return starts
    .filter(({ way }) => way.next >= 0)
    .slice(0, count)
    .map(({ row, way }) => {
      const nodes = [row];
      for (let at = way; at.next >= 0; at = best[at.next][at.rank]) nodes.push(at.next);
      return { nodes, strength: way.strength };
    });
}

/** The edge from one row to another; -1 where there is none. */
export function edgeBetween(graph, from, to) {
  for (let edge = graph.start[to]; edge < graph.start[to + 1]; edge += 1) {
    if (graph.source[edge] === from) return edge;
  }
  return -1;
}
