/** Where every node of a graph stands: tokens are columns, layers bands, as in the pictures of graphs/pictures. */

import { EMBEDDING, ERROR, FEATURE, LOGIT } from "./data.mjs";
import { FAMILY } from "./pen.mjs";
import { clipped, percent, token } from "./words.mjs";

const FONT = 11.5;
const LETTER = 6.3,
  GAP = 7,
  LABELLED = 18;

let ruler = null;

/** Room that text takes: measured where there is a canvas, near enough elsewhere. */
export function textWidth(text, size = FONT) {
  if (typeof document !== "undefined") {
    ruler ??= document.createElement("canvas").getContext("2d");
    ruler.font = `600 ${size}px ${FAMILY}`;
    return ruler.measureText(text).width;
  }
  let width = 0;
  for (const char of text)
    width +=
      char.codePointAt(0) > 0x2e80
        ? 12
        : "iljtf.,:;|'! ".includes(char)
          ? 3.6
          : "mwMW@%".includes(char)
            ? 9.6
            : LETTER;
  return width;
}

/**
 * The most characters that a box holds, the most width that a few boxes take beside each other, how
 * far lines of boxes are apart, and the space about a column; here and in a narrow window, where
 * names are written larger than their boxes.
 */
const LONG = [32, 15],
  WIDE = [230, 110],
  LINE = [25, 42],
  ABOUT = [22, 12];

/** A label for a box: of an example what stands near its marked token says more than its beginning. */
function boxLabel(text, long) {
  const example = /^(≈ )?e\.g\. …?(.*\[.*)$/.exec(text);
  if (!example || text.length <= long) return clipped(text, long);
  const end = example[2].indexOf("]") + 1,
    said = example[2].slice(0, end);
  return `${example[1] || ""}e.g. ${said.length > long - 6 ? `…${said.slice(6 - long).trim()}` : said}`;
}

function box(row, text, long, more) {
  const label = boxLabel(text, long);
  return { row, shape: "box", label, w: Math.max(24, textWidth(label) + 16), h: 20, ...more };
}

/** Every node of the mask as a mark with a size, not placed yet. */
function marks(graph, shown, names, boxed, long) {
  const top = [];
  for (let row = 0; row < graph.count; row += 1) if (shown[row] && graph.kind[row] === FEATURE) top.push(row);
  const most = Math.max(1e-12, ...sample(top.map((row) => graph.influence[row])));
  const named = new Set(top.sort((a, b) => graph.influence[b] - graph.influence[a]).slice(0, LABELLED));
  const found = [];
  for (let row = 0; row < graph.count; row += 1) {
    if (!shown[row]) continue;
    const kind = graph.kind[row],
      size = Math.sqrt(graph.influence[row] / most);
    if (kind === EMBEDDING) found.push(box(row, names.short(row), long, { token: true }));
    else if (kind === LOGIT)
      found.push(
        box(row, `${names.short(row)} ${graph.token[row] < 0 ? "" : percent(graph.weightOf[row])}`, long, {
          answer: true,
        }),
      );
    else if (kind === ERROR)
      found.push({ row, shape: "diamond", w: 7 + 7 * size, h: 7 + 7 * size, label: "" });
    else if (named.has(row) || boxed.has(row)) found.push(box(row, names.short(row), long));
    else found.push({ row, shape: "circle", w: 7 + 9 * size, h: 7 + 9 * size, label: "" });
  }
  return found;
}

/** Spread arguments have a limit. */
const sample = (values) => [values.reduce((most, one) => Math.max(most, one), 0)];

/** Mean position of what feeds each node: who is fed from the left stands left in its cell. */
function leaning(graph, shown, edges) {
  const sum = new Float64Array(graph.count),
    all = new Float64Array(graph.count);
  for (let edge = 0; edge < edges.length; edge += 1) {
    if (!edges[edge]) continue;
    sum[graph.target[edge]] += graph.through[edge] * graph.position[graph.source[edge]];
    all[graph.target[edge]] += graph.through[edge];
  }
  return (row) => (all[row] ? sum[row] / all[row] : graph.position[row]);
}

/** Marks of a cell in lines no wider than `most`. */
function linesOf(cell, most) {
  const lines = [];
  let width = Infinity;
  for (const mark of cell) {
    if (width + GAP + mark.w > most) {
      lines.push({ marks: [], width: 0 });
      width = -GAP;
    }
    lines[lines.length - 1].marks.push(mark);
    width += GAP + mark.w;
    lines[lines.length - 1].width = width;
  }
  return lines;
}

/** A long list of answers shares the width of the picture; a cell of features a few boxes' width. */
function cells(found, graph, lean, wide) {
  const byPlace = new Map();
  for (const mark of found) {
    const { row } = mark,
      layer = graph.kind[row] === EMBEDDING ? -1 : graph.kind[row] === LOGIT ? Infinity : graph.layer[row];
    const key = `${layer}|${graph.position[row]}`;
    if (!byPlace.has(key)) byPlace.set(key, { layer, position: graph.position[row], marks: [] });
    byPlace.get(key).marks.push(mark);
  }
  for (const cell of byPlace.values()) {
    const last = cell.layer === Infinity;
    cell.marks.sort(
      (a, b) =>
        (last ? graph.weightOf[b.row] - graph.weightOf[a.row] : lean(a.row) - lean(b.row)) || a.row - b.row,
    );
    const many = cell.marks.length;
    cell.lines = linesOf(cell.marks, last ? 330 : many > 40 ? 60 + 8 * Math.sqrt(many * 20) : wide);
  }
  return [...byPlace.values()];
}

/**
 * Places of all marks in a picture of about the proportions `aspect` (width over height).
 * @param kept {nodes, edges} masks
 * @param boxed Set of rows that are boxes whatever their influence
 * @param narrow 1 in a narrow window, whose boxes say less so that they can be read; else 0
 */
export function layout(graph, kept, names, { boxed = new Set(), errors = true, aspect = 1.6, narrow = 0 } = {}) {
  const shown = kept.nodes.map((one, row) => (one && (errors || graph.kind[row] !== ERROR) ? 1 : 0));
  const found = marks(graph, shown, names, boxed, LONG[narrow]),
    byPlace = cells(found, graph, leaning(graph, shown, kept.edges), WIDE[narrow]);
  const positions = Math.max(graph.tokens.length, ...byPlace.map((cell) => cell.position + 1), 1);
  const layers = layerList(graph, byPlace),
    rank = new Map(layers.map((layer, at) => [layer, at]));
  const widths = new Float64Array(positions).fill(30),
    heights = new Float64Array(layers.length).fill(13);
  for (const cell of byPlace) {
    widths[cell.position] = Math.max(
      widths[cell.position],
      ABOUT[narrow] + Math.max(...cell.lines.map((line) => line.width)),
    );
    heights[rank.get(cell.layer)] = Math.max(heights[rank.get(cell.layer)], 9 + LINE[narrow] * cell.lines.length);
  }
  const natural = [sumOf(widths), sumOf(heights)],
    stretch = natural[0] / natural[1] / aspect;
  grow(widths, Math.min(2.6, Math.max(1, 1 / stretch)));
  grow(heights, Math.min(4.5, Math.max(1, stretch)));
  const columns = borders(widths),
    rows = borders(heights),
    height = rows[rows.length - 1];
  const at = new Int32Array(graph.count).fill(-1);
  found.forEach((mark, index) => {
    at[mark.row] = index;
  });
  for (const cell of byPlace) place(cell, columns, rows, rank.get(cell.layer), height, LINE[narrow]);
  return {
    marks: found,
    at,
    shown,
    width: columns[columns.length - 1],
    height,
    columns: Array.from(widths, (_, index) => ({
      from: columns[index],
      to: columns[index + 1],
      name: graph.tokens[index] === undefined ? "" : token(graph.tokens[index]),
    })),
    bands: layers.map((layer, index) => ({
      from: height - rows[index + 1],
      to: height - rows[index],
      end: layer === -1 || layer === Infinity,
      layer,
      name: layer === -1 ? "Tokens" : layer === Infinity ? "Answers" : `L${layer}`,
    })),
  };
}

function layerList(graph, byPlace) {
  const inner = byPlace.map((cell) => cell.layer).filter((layer) => layer >= 0 && layer < Infinity);
  const most = Math.max(-1, (graph.metadata.layers ?? 0) - 1, ...inner);
  return [-1, ...Array.from({ length: most + 1 }, (_, layer) => layer), Infinity];
}

function place(cell, columns, rows, rank, height, apart) {
  const middle = (columns[cell.position] + columns[cell.position + 1]) / 2;
  const centre = height - (rows[rank] + rows[rank + 1]) / 2;
  cell.lines.forEach((line, index) => {
    let x = middle - line.width / 2;
    const y = centre + (index - (cell.lines.length - 1) / 2) * apart;
    for (const mark of line.marks) {
      Object.assign(mark, { x: x + mark.w / 2, y });
      x += mark.w + GAP;
    }
  });
}

const sumOf = (values) => values.reduce((sum, one) => sum + one, 0);

function grow(sizes, factor) {
  for (let at = 0; at < sizes.length; at += 1) sizes[at] *= factor;
}

function borders(sizes) {
  const found = [0];
  for (const size of sizes) found.push(found[found.length - 1] + size);
  return found;
}

/** Which edges the link type shows, given the marked rows: as circuit-tracer's and Neuronpedia's front ends. */
export function linkFilter(graph, links, marked) {
  if (links === "all" || !marked.size) return null;
  const { source, target } = graph;
  if (links === "input") return (edge) => marked.has(target[edge]);
  if (links === "output") return (edge) => marked.has(source[edge]);
  if (links === "either") return (edge) => marked.has(source[edge]) || marked.has(target[edge]);
  return (edge) => marked.has(source[edge]) && marked.has(target[edge]);
}
