/** A scene on a pen: bands, edges, marks. What stands where comes from layout.js or circuit.js. */

import { ERROR } from "./data.mjs";
import { textWidth } from "./layout.mjs";
import { tier, tint } from "./theme.mjs";
import { clipped, visible } from "./words.mjs";

/**
 * The curve of an edge: leaves at the top of its source, enters at the bottom of its target. Edges
 * that go straight up would lie on each other: they swing out, the farther the wider, those that
 * excite to the right and those that inhibit to the left. `aside` is added to that near the source,
 * and `after` near the target.
 */
export function route(from, to, share = 1, aside = 0, after = aside) {
  const across = to.x - from.x,
    y = from.y - from.h / 2,
    v = to.y + to.h / 2,
    high = Math.abs(v - y),
    steep = Math.max(0, 1 - Math.abs(across) / (0.5 * high + 1));
  const swing = (share < 0 ? -1 : 1) * steep * Math.min(120, 8 + 0.3 * high);
  const lean = (mark, way) => Math.max(-mark.w / 2 + 4, Math.min(mark.w / 2 - 4, way));
  const x = from.x + lean(from, across * 0.12 + (swing + aside) * 0.25),
    u = to.x + lean(to, -across * 0.12 + (swing + after) * 0.25),
    bend = Math.max(14, high * 0.45);
  if (Math.abs(from.y - to.y) < 9) return [x, v, x, v + 34, u, v + 34, u, v];
  return [x, y, x + swing + aside, y - bend, u + swing + after, v + bend, u, v];
}

/** A point of a curve, `part` from 0 to 1 along it. */
export function pointOn([x, y, a, b, c, d, u, v], part) {
  const rest = 1 - part,
    [p, q, r, s] = [rest ** 3, 3 * rest ** 2 * part, 3 * rest * part ** 2, part ** 3];
  return [p * x + q * a + r * c + s * u, p * y + q * b + r * d + s * v];
}

const AROUND = 60;
const STEPS = Array.from({ length: 23 }, (_, at) => (at + 1) / 24);

/** How much of a curve runs behind boxes that it does not end at: 0 for a free way. */
function behind(way, marks, from, to) {
  let found = 0;
  for (const part of STEPS) {
    const [x, y] = pointOn(way, part);
    for (const mark of marks)
      if (
        mark !== from &&
        mark !== to &&
        Math.abs(x - mark.x) < mark.w / 2 + 6 &&
        Math.abs(y - mark.y) < mark.h / 2 + 6
      )
        found += 1;
  }
  return found;
}

/** How far curves are tried aside, near their source and near their target: the straightest first. */
const ASIDE = [0, 30, -30, 60, -60, 100, -100, 150, -150, 220, -220, 300, -300, 400, -400, 550, -550];
const WAYS = ASIDE.flatMap((aside) => ASIDE.map((after) => [aside, after])).sort(
  (a, b) => bent(a) - bent(b),
);

function bent([aside, after]) {
  return Math.abs(aside) + Math.abs(after) + Math.abs(aside - after) / 2;
}

/** The curve between two boxes that runs least behind others, of a few that swing out more and more. */
export function routeAround(from, to, share, marks, width = Infinity) {
  let best = null,
    least = Infinity;
  for (const [aside, after] of WAYS) {
    const way = route(from, to, share, aside, after),
      outside = [2, 4].filter((at) => way[at] < -60 || way[at] > width + 60).length,
      found = behind(way, marks, from, to) + outside;
    if (found < least) [best, least] = [way, found];
    if (!found) break;
  }
  return best;
}

/** What a circuit covers, [left, top, right, bottom], curves included; as before a box is dragged. */
export function boundsOf(scene) {
  if (scene.bounds) return scene.bounds;
  const spots = scene.marks.map(({ x, y, w, h }) => [x - w / 2, y - h / 2, x + w / 2 + 10, y + h / 2]);
  for (const link of scene.links)
    for (const part of [0.25, 0.5, 0.75]) {
      const [x, y] = pointOn(wayOf(scene, link), part);
      spots.push([x - 5, y, x + 5, y]);
    }
  const side = (at, of) => of(...spots.map((spot) => spot[at]));
  scene.bounds = spots.length
    ? [side(0, Math.min), side(1, Math.min), side(2, Math.max), side(3, Math.max)]
    : [0, 0, scene.width, scene.height];
  return scene.bounds;
}

function ink(theme, share, fromError, level) {
  return theme[fromError ? "other" : share < 0 ? "inhibits" : "excites"][level];
}

function edgeWidth(through, most) {
  return 0.5 + 4.2 * Math.sqrt(Math.max(0, through) / (most || 1));
}

/** One edge of a graph. `rank` by influence, 0 the strongest. */
export function drawEdge(pen, view, edge, rank, most, strong = false) {
  const { graph, scene, theme } = view,
    level = strong ? 0 : tier(rank);
  const from = scene.marks[scene.at[graph.source[edge]]],
    to = scene.marks[scene.at[graph.target[edge]]];
  const negative = graph.share[edge] < 0,
    width = edgeWidth(graph.through[edge], most);
  pen.curve(route(from, to, graph.share[edge]), {
    stroke: ink(theme, graph.share[edge], graph.kind[graph.source[edge]] === ERROR, level),
    alpha: strong ? 0.9 : theme.alpha[level],
    width,
    dash: negative ? [4 + width, 3] : null,
  });
}

export function drawBands(pen, view) {
  const { scene, theme } = view;
  scene.bands.forEach((band, at) => {
    if (band.end || at % 2)
      pen.rect(0, band.from, scene.width, band.to - band.from, {
        fill: band.end ? theme.endBand : theme.band,
      });
  });
  for (const column of scene.columns.slice(1)) {
    pen.line(column.from, 0, column.from, scene.height, { stroke: theme.rule, width: 1.5 });
  }
}

/** What fills a mark: its group's tint, the answer, the strongest path, or nothing. */
function fillOf(mark, view) {
  const { theme, dark, groupOf, onPath, graph } = view;
  const group = groupOf.get(mark.row);
  if (group !== undefined) return tint(group, dark);
  if (mark.answer) return mark.row === view.answer ? theme.answer : theme.node;
  if (onPath.has(mark.row)) return theme.path;
  return graph.kind[mark.row] === ERROR ? theme.error : theme.node;
}

export function drawMark(pen, mark, view, look = {}) {
  const { theme, pinned, shared } = view;
  const heavy = pinned.has(mark.row) || mark.rows,
    error = mark.shape === "diamond";
  const style = {
    fill: fillOf(mark, view),
    stroke: shared && shared[mark.row] ? theme.shared : error ? theme.errorLine : theme.outline,
    width: heavy ? 2.4 : shared && shared[mark.row] ? 2.2 : 1,
    ...look,
  };
  const { x, y, w, h } = mark;
  if (mark.count > 1) {
    for (const step of [2, 1])
      pen.rect(x - w / 2 + 4 * step, y - h / 2 - 4 * step, w, h, { ...style, width: 1 }, 7);
  }
  if (mark.shape === "circle") pen.circle(x, y, w / 2, style);
  else if (error)
    pen.polygon(
      [
        [x, y - h / 2],
        [x + w / 2, y],
        [x, y + h / 2],
        [x - w / 2, y],
      ],
      style,
    );
  else pen.rect(x - w / 2, y - h / 2, w, h, style, mark.rows ? 7 : 5);
  if (mark.label && view.scale >= LEGIBLE)
    pen.text(x, y, mark.label, {
      colour: theme.ink,
      size: mark.rows ? 13 : 11.5,
      bold: mark.row === view.answer,
    });
  if (mark.count > 1)
    pen.text(x + w / 2 - 4, y + h / 2 - 5, `×${mark.count}`, { colour: theme.ink, size: 9, align: "right" });
}

/** Edges of the full graph from the weakest drawn to the strongest: [from, to) of the order by influence. */
export function drawEdges(pen, view, from, to) {
  const { order, most } = view;
  for (let rank = Math.min(to, order.length) - 1; rank >= from; rank -= 1)
    drawEdge(pen, view, order[rank], rank, most);
}

function arrow(pen, route, share, colour, width) {
  const [, , , , c, d, u, v] = route,
    length = Math.hypot(u - c, v - d) || 1,
    size = 4 + width;
  const [dx, dy] = [(u - c) / length, (v - d) / length];
  const [p, q] = [u - 5 * dx, v - 5 * dy];
  if (share < 0)
    pen.line(p - dy * size, q + dx * size, p + dy * size, q - dx * size, { stroke: colour, width: 3 });
  else
    pen.polygon(
      [
        [u, v],
        [u - dx * 1.5 * size - dy * size * 0.7, v - dy * 1.5 * size + dx * size * 0.7],
        [u - dx * 1.5 * size + dy * size * 0.7, v - dy * 1.5 * size - dx * size * 0.7],
      ],
      { fill: colour },
    );
}

/** Edges between units of a circuit, the strongest drawn last; only those that `want` where it is given. */
export function drawUnitLinks(pen, view, want = null) {
  const { scene, theme, graph } = view;
  [...scene.links].reverse().forEach((link) => {
    if (want && !want(link)) return;
    const width = unitWidth(link),
      from = scene.marks[link.from],
      to = scene.marks[link.to],
      way = wayOf(scene, link);
    const error = graph.kind[from.row] === ERROR,
      colour = ink(theme, link.share, error, want || Math.abs(link.share) > 0.08 ? 0 : 1);
    pen.curve(way, { stroke: colour, width, alpha: 0.9, dash: link.share < 0 ? [6, 4] : null });
    arrow(pen, way, link.share, colour, width);
    if (want) for (const mark of [from, to]) drawMark(pen, mark, view);
  });
}

function unitWidth(link) {
  return Math.min(7, 0.8 + 8 * Math.sqrt(Math.abs(link.share)));
}

/** The curve of a circuit's edge, kept until a box is moved; far down the list it takes the plain way. */
export function wayOf(scene, link) {
  const { marks, links } = scene,
    [from, to] = [marks[link.from], marks[link.to]];
  link.way ??=
    links.indexOf(link) < AROUND ? routeAround(from, to, link.share, marks, scene.width) : route(from, to, link.share);
  return link.way;
}

export function drawMarks(pen, view) {
  for (const mark of view.scene.marks) drawMark(pen, mark, view);
}

/** Below this scale the labels of boxes cannot be read: they are written at full size where there is room. */
export const LEGIBLE = 0.62;

/** Where a name is tried: so many characters of it, so far above or below its box. */
const NEAR = [
  [40, 0],
  [14, 0],
  [26, -17],
  [26, 17],
  [10, -17],
  [10, 17],
];

/** Labels of the most influential boxes over a picture that is too small for them, beside the names of groups. */
export function drawNames(pen, view, [x, y, k], width, height, only = null) {
  const { scene, theme, graph } = view,
    taken = [...view.tags];
  if (k >= LEGIBLE || scene.links) return;
  const value = (mark) =>
    graph.influence[mark.row] + graph.weightOf[mark.row] + (view.pinned.has(mark.row) ? 10 : 0);
  const boxes = scene.marks
    .filter((mark) => mark.label && !mark.token && (!only || only.has(mark.row)))
    .sort((a, b) => value(b) - value(a))
    .slice(0, 60);
  for (const mark of boxes) {
    const middle = x + k * mark.x,
      centre = y + k * mark.y - 8;
    if (middle < 0 || middle > width || centre < 0 || centre > height - 24) continue;
    const spot = NEAR.map(([length, away]) => {
      const text = clipped(mark.label, length),
        w = textWidth(text, 10.5) + 10;
      return [Math.max(2, Math.min(width - w - 2, middle - w / 2)), centre + away, w, text];
    }).find(([u, v, w]) => taken.every(([a, b, c]) => u > a + c + 3 || u + w + 3 < a || Math.abs(v - b) > 16));
    if (!spot) continue;
    const [u, v, w, text] = spot;
    taken.push(spot);
    view.spots.delete(mark.row);
    view.spots.set(mark.row, spot);
    pen.rect(
      u,
      v,
      w,
      16,
      { fill: fillOf(mark, view), stroke: theme.outline, width: view.pinned.has(mark.row) ? 2 : 0.8 },
      4,
    );
    pen.text(u + w / 2, v + 8, text, { colour: theme.ink, size: 10.5 });
  }
}

/** The name of each group over its most influential member in sight, at its own size. */
export function drawGroups(pen, view, [x, y, k], width) {
  const { scene, theme, graph, groups, dark } = view;
  view.tags = [];
  if (scene.links) return;
  groups.forEach((group, at) => {
    const marks = group.members.map((id) => scene.marks[scene.at[graph.row.get(id)]]).filter(Boolean);
    if (!marks.length) return;
    const [mark] = marks.sort((a, b) => graph.influence[b.row] - graph.influence[a.row]);
    const text = `${clipped(visible(group.name), k < LEGIBLE ? 14 : 24)} ×${marks.length}`,
      w = textWidth(text, 10) + 10,
      left = Math.max(2, Math.min(width - w - 2, x + k * (mark.x - mark.w / 2) - 6)),
      top = y + k * (mark.y - mark.h / 2) - 14;
    view.tags.push([left, top, w]);
    pen.rect(left, top, w, 15, { fill: tint(at, dark), stroke: theme.ink, width: 1.2 }, 3);
    pen.text(left + w / 2, top + 7.5, text, { colour: theme.ink, size: 10, bold: true });
  });
}

/** Names of rows and columns at the borders of the window, wherever it looks. */
export function drawAxes(pen, view, [x, y, k], width, height) {
  const { scene, theme } = view;
  for (const band of scene.bands) {
    const middle = y + (k * (band.from + band.to)) / 2;
    if (middle > 8 && middle < height - 22 && k * (band.to - band.from) > 9) {
      const words = band.name;
      pen.rect(0, middle - 8, 11 + 6.4 * words.length, 16, { fill: theme.ground, alpha: 0.75 });
      pen.text(5, middle, words, { colour: theme.soft, size: 10.5, align: "left" });
    }
  }
  const bottom = y + k * scene.height;
  if (!scene.columns.length || (bottom < height - 6 && k >= LEGIBLE)) return;
  const lines = [[], []],
    free = [0, 0];
  for (const column of scene.columns) {
    const middle = x + (k * (column.from + column.to)) / 2,
      name = clipped(column.name, Math.max(7, (k * (column.to - column.from)) / 6)),
      half = textWidth(name, 10.5) / 2,
      line = free.findIndex((end) => middle - half > end);
    if (line < 0 || middle + half > width) continue;
    lines[line].push([middle, name]);
    free[line] = middle + half + 4;
  }
  const tall = lines[1].length ? 30 : 20;
  pen.rect(0, height - tall, width, tall, { fill: theme.endBand, alpha: 0.96 });
  lines.forEach((line, at) =>
    line.forEach(([middle, name]) =>
      pen.text(middle, height - tall + 9 + 13 * at, name, { colour: theme.ink, size: 10.5 }),
    ),
  );
}

/** The mark at a point of the scene, or the nearest within reach; -1 for none. */
export function hit(scene, px, py, reach) {
  let best = -1,
    least = reach;
  for (let at = 0; at < scene.marks.length; at += 1) {
    const { x, y, w, h } = scene.marks[at];
    const away = Math.hypot(Math.max(0, Math.abs(px - x) - w / 2), Math.max(0, Math.abs(py - y) - h / 2));
    if (away < least || (away === 0 && least === 0)) {
      least = away;
      best = at;
    }
  }
  return best;
}
