/** Shares and influence of the part of a graph that is kept, as graphs/influence.py has them. */

/** Sum of |weight| of every row, over kept edges. */
export function rowSums(graph, kept) {
  const sums = new Float64Array(graph.count);
  for (let edge = 0; edge < graph.weight.length; edge += 1) {
    if (!kept || kept[edge]) sums[graph.target[edge]] += Math.abs(graph.weight[edge]);
  }
  return sums;
}

/**
 * b = w (P + P^2 + ...): what part of the weights flows through every node.
 * Rows stand in computation order, so one pass from the last to the first is exact.
 */
export function influence(graph, total, kept) {
  const reached = Float64Array.from(graph.weightOf);
  for (let row = graph.count - 1; row >= 0; row -= 1) {
    const inflow = reached[row] / (total[row] || 1);
    if (inflow === 0) continue;
    for (let edge = graph.start[row]; edge < graph.start[row + 1]; edge += 1) {
      if (!kept || kept[edge]) reached[graph.source[edge]] += Math.abs(graph.weight[edge]) * inflow;
    }
  }
  for (let row = 0; row < graph.count; row += 1) reached[row] -= graph.weightOf[row];
  return reached;
}

/** What shall be kept holds `quantile` of the sum: the smallest value that is. */
export function threshold(values, quantile) {
  if (quantile >= 1) return -Infinity;
  const rising = Float64Array.from(values).sort();
  const running = new Float64Array(rising.length);
  let sum = 0;
  for (let at = rising.length - 1, to = 0; at >= 0; at -= 1, to += 1) running[to] = sum += rising[at];
  if (!(sum > 0)) return Infinity;
  let low = 0,
    high = running.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (running[middle] / sum < quantile) low = middle + 1;
    else high = middle;
  }
  return rising[rising.length - 1 - Math.min(low, rising.length - 1)];
}
