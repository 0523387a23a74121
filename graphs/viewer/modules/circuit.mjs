/** Pins and groups as a few boxes, their edges summed: the figure one shows to others. */

import { EMBEDDING, ERROR, LOGIT } from "./data.mjs";
import { textWidth } from "./layout.mjs";
import { clipped, percent } from "./words.mjs";

/** Groups, and pins that are in none: [{key, name, rows, group}]. */
export function units(graph, names, state) {
  const found = [],
    taken = new Set();
  state.groups.forEach((group, index) => {
    const rows = group.members.map((id) => graph.row.get(id)).filter((row) => row !== undefined);
    rows.forEach((row) => taken.add(row));
    if (rows.length)
      found.push({ key: `group ${group.name}`, name: group.name, rows, group: index, place: group.place });
  });
  for (const id of state.pins) {
    const row = graph.row.get(id);
    if (row !== undefined && !taken.has(row))
      found.push({ key: id, name: names.short(row), rows: [row], group: -1, place: null });
  }
  return found;
}

/** Signed influence between units: {from, to, through, share}, share of the target unit's whole input. */
export function unitLinks(graph, found) {
  const unitOf = new Int32Array(graph.count).fill(-1),
    input = new Float64Array(found.length);
  found.forEach((unit, at) =>
    unit.rows.forEach((row) => {
      unitOf[row] = at;
      input[at] += graph.influence[row] + graph.weightOf[row];
    }),
  );
  const sums = new Map();
  found.forEach((unit, to) =>
    unit.rows.forEach((row) => {
      for (let edge = graph.start[row]; edge < graph.start[row + 1]; edge += 1) {
        const from = unitOf[graph.source[edge]];
        if (from < 0 || from === to) continue;
        const key = from * found.length + to,
          sum = sums.get(key) || { from, to, through: 0, signed: 0 };
        sum.through += graph.through[edge];
        sum.signed += Math.sign(graph.weight[edge]) * graph.through[edge];
        sums.set(key, sum);
      }
    }),
  );
  return [...sums.values()]
    .map(({ from, to, through, signed }) => ({ from, to, through, share: signed / (input[to] || 1) }))
    .sort((a, b) => b.through - a.through);
}

const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;

/** Middles near those wanted, in order, without overlap and within the width. */
function spread(marks, wanted, width) {
  const found = [];
  let free = 0;
  marks.forEach((mark, at) => {
    found.push(Math.max(free + mark.w / 2, wanted[at]));
    free = found[at] + mark.w / 2 + 26;
  });
  let end = width;
  for (let at = marks.length - 1; at >= 0; at -= 1) {
    found[at] = Math.min(found[at], end - marks[at].w / 2);
    end = found[at] - marks[at].w / 2 - 26;
  }
  return found;
}

/** Marks of the circuit: rows by depth, tokens below, answers on top; a place given by hand wins. */
export function circuit(graph, names, state, aspect = 1.6) {
  const found = units(graph, names, state),
    all = unitLinks(graph, found),
    links = all.filter((link) => link.through >= 0.002 * all[0].through);
  const depth = (unit) =>
    mean(
      unit.rows.map((row) =>
        graph.kind[row] === EMBEDDING ? -1 : graph.kind[row] === LOGIT ? 1e6 : graph.layer[row],
      ),
    );
  const ranked = [...new Set(found.map(depth).map(Math.round))].sort((a, b) => a - b);
  const lines = ranked.map(() => []);
  found.forEach((unit, at) => lines[ranked.indexOf(Math.round(depth(unit)))].push(at));
  const marks = found.map((unit) => {
    const row = unit.rows[0],
      answer = graph.kind[row] === LOGIT && unit.group < 0;
    const label =
      clipped(unit.name, 30) + (answer && graph.token[row] >= 0 ? ` ${percent(graph.weightOf[row])}` : "");
    return {
      row,
      rows: unit.rows,
      key: unit.key,
      group: unit.group,
      label,
      shape: graph.kind[row] === ERROR && unit.group < 0 ? "diamond" : "box",
      answer,
      token: graph.kind[row] === EMBEDDING,
      w: Math.max(46, textWidth(label, 13) + 26),
      h: 30,
      count: unit.rows.length,
    };
  });
  const width = Math.max(560, ...lines.map((line) => line.reduce((sum, at) => sum + marks[at].w + 34, 0)));
  const height = Math.max(260, width / aspect, lines.length * 78),
    last = Math.max(1, graph.tokens.length - 1);
  const wanted = (at) =>
    marks.length === 1
      ? width / 2
      : (width * (0.5 + mean(found[at].rows.map((row) => graph.position[row])))) / (last + 1);
  lines.forEach((line, rank) => {
    line.sort((a, b) => wanted(a) - wanted(b) || a - b);
    const y =
      lines.length === 1
        ? height / 2
        : height - 40 - (rank * (height - 80)) / (lines.length - 1);
    spread(
      line.map((at) => marks[at]),
      line.map(wanted),
      width,
    ).forEach((x, at) => Object.assign(marks[line[at]], { x, y }));
  });
  found.forEach((unit, at) => {
    const place = state.places[unit.key] || unit.place;
    if (place) [marks[at].x, marks[at].y] = place;
  });
  return { marks, links, between: all.length, columns: [], bands: [], width, height };
}

/** What to pin when nothing is: the nodes of the strongest paths to the likeliest answer. */
export function suggestion(graph, paths, most = 12) {
  const rows = new Set();
  for (const { nodes } of paths) {
    if (nodes.some((row) => graph.kind[row] === ERROR)) continue;
    if (rows.size && new Set([...rows, ...nodes]).size > most) continue;
    nodes.forEach((row) => rows.add(row));
  }
  return [...rows].sort((a, b) => a - b);
}
