/** What is seen as SVG or PNG, nodes and edges as tables, and the page itself with the view in it. */

import { ERROR } from "./data.mjs";
import { download } from "./dom.mjs";
import { boundsOf } from "./draw.mjs";
import { textWidth } from "./layout.mjs";
import { CanvasPen, SvgPen } from "./pen.mjs";
import { edgesWithin, edgeTable, nodeTable } from "./table.mjs";
import { tint } from "./theme.mjs";
import { clipped, percent, visible } from "./words.mjs";

const TITLE = 40,
  LINE = 17;

/** What the width of an edge means; the two pictures differ in it. */
const WIDTHS = {
  graph: "width: influence on the answers",
  circuit: "width: share of the box’s whole input",
};

/** Prompt and answer in one line. */
export function question(view) {
  const { graph, names, answer } = view,
    prompt = visible(graph.metadata.prompt || graph.tokens.join(""));
  return answer < 0
    ? prompt
    : `${prompt} → ${names.short(answer)} ${graph.token[answer] < 0 ? "" : percent(graph.weightOf[answer])}`;
}

function slug(view) {
  return (
    visible(view.graph.metadata.prompt || view.graph.name || "graph")
      .toLowerCase()
      .match(/[\p{L}\p{N}]+/gu) || ["graph"]
  )
    .slice(-4)
    .join("-")
    .slice(0, 60);
}

/** What every mark of a figure means: [way to draw it, room, words]. */
function keyItems(view) {
  const { theme, scene, dark, groupOf } = view,
    circuit = Boolean(scene.links),
    seen = (test) => scene.marks.some(test);
  const line = (name, dash) => (pen, x, y) =>
    pen.line(x, y, x + 22, y, { stroke: theme[name][0], width: 2.5, dash });
  const swatch = (fill) => (pen, x, y) =>
    pen.rect(x, y - 6, 20, 12, { fill, stroke: theme.outline }, 4);
  const diamond = (pen, x, y) =>
    pen.polygon(
      [
        [x + 6, y - 6],
        [x + 12, y],
        [x + 6, y + 6],
        [x, y],
      ],
      { fill: theme.error, stroke: theme.errorLine },
    );
  const circle = (pen, x, y) => pen.circle(x + 5, y, 5, { fill: theme.node, stroke: theme.outline });
  const group = groupOf.size ? tint(0, dark) : null;
  return [
    [line("excites"), 27, "excites"],
    [line("inhibits", [5, 3]), 27, circuit ? "inhibits, ends in a bar" : "inhibits"],
    seen(({ row }) => view.graph.kind[row] === ERROR) && [line("other"), 27, "from an error"],
    seen(({ shape }) => shape === "diamond") && [diamond, 17, "error"],
    seen(({ shape }) => shape === "circle") && [circle, 15, "feature, area: influence"],
    seen(({ row }) => view.onPath.has(row) && row !== view.answer && !groupOf.has(row)) && [
      swatch(theme.path),
      25,
      "strongest path through features",
    ],
    seen(({ row }) => row === view.answer) && [swatch(theme.answer), 25, "likeliest answer"],
    group && [swatch(group), 25, circuit ? "×n: a group of n nodes" : "a group, a tint each"],
    !circuit && view.clicked >= 0 && [
      (pen, x, y) => pen.circle(x + 6, y, 6, { stroke: theme.mark, width: 2.4 }),
      17,
      "selected",
    ],
    [() => {}, 0, circuit ? WIDTHS.circuit : WIDTHS.graph],
  ].filter(Boolean);
}

/** The key in lines no wider than `width`: [[draw, x, text], ...] each. */
function keyLines(view, width) {
  const lines = [[]];
  let x = 12;
  for (const [draw, room, text] of keyItems(view)) {
    const whole = room + textWidth(text, 10.5);
    if (x > 12 && x + whole > width - 8) {
      lines.push([]);
      x = 12;
    }
    lines[lines.length - 1].push([draw, x, x + room, text]);
    x += whole + 16;
  }
  return lines;
}

/** Size and place of what a figure shows: the window, or of a whole circuit just its boxes. */
function frameOf(stage) {
  const { scene } = stage.view,
    [width, height] = stage.size;
  if (!scene.links || stage.zoom || !scene.marks.length) return { size: [width, height], place: stage.place };
  const [left, top, right, bottom] = boundsOf(scene),
    wide = Math.max(480, right - left + 48);
  return { size: [wide, bottom - top + 40], place: [(wide - left - right) / 2, 20 - top, 1] };
}

/** Draws what a stage shows, with title and key, by a pen that `make` gives for a width and height. */
function drawFigure(make, stage, said) {
  const { view } = stage,
    { size, place } = frameOf(stage),
    [width, height] = size,
    { theme } = view,
    lines = keyLines(view, width),
    foot = 10 + LINE * lines.length;
  const pen = make(width, TITLE + height + foot),
    scale = view.scale;
  view.scale = place[2];
  pen.rect(0, 0, width, height + TITLE + foot, { fill: theme.ground });
  pen.begin([0, TITLE, 1]);
  stage.draw(pen, view.drawn, size, place);
  if (!view.scene.links) stage.drawOver(pen, place, size);
  pen.end();
  view.scale = scale;
  pen.rect(0, 0, width, TITLE, { fill: theme.ground });
  pen.text(12, 14, clipped(question(view), Math.floor(width / 8)), {
    colour: theme.ink,
    size: 14,
    align: "left",
    bold: true,
  });
  pen.text(12, 30, clipped(said, Math.floor(width / 5.6)), { colour: theme.soft, size: 10.5, align: "left" });
  pen.rect(0, height + TITLE, width, foot, { fill: theme.ground });
  lines.forEach((items, at) => {
    const y = height + TITLE + 5 + LINE * (at + 0.5);
    for (const [draw, x, words, text] of items) {
      draw(pen, x, y);
      pen.text(words, y, text, { colour: theme.soft, size: 10.5, align: "left" });
    }
  });
  return pen;
}

export function svgOf(stage, said) {
  const pen = drawFigure((width, height) => new SvgPen(width, height), stage, said);
  return pen.done(question(stage.view));
}

export function saveSvg(stage, said) {
  download(`${slug(stage.view)}.svg`, svgOf(stage, said), "image/svg+xml");
}

export function savePng(stage, said) {
  const canvas = document.createElement("canvas");
  const make = (width, height) => {
    Object.assign(canvas, { width: Math.round(2 * width), height: Math.round(2 * height) });
    const context = canvas.getContext("2d");
    context.scale(2, 2);
    return new CanvasPen(context);
  };
  drawFigure(make, stage, said);
  canvas.toBlob((blob) => download(`${slug(stage.view)}.png`, blob, "image/png"), "image/png");
}

/** The selection, or all that is shown. */
function tableOf(view, what) {
  const shown = view.scene.at
    ? [...view.scene.at.keys()].filter((row) => view.scene.at[row] >= 0)
    : view.scene.marks.flatMap((mark) => mark.rows);
  const rows = (view.chosen.size ? [...view.chosen] : shown).sort((a, b) => a - b);
  if (what === "nodes") return nodeTable(view.graph, view.names, rows);
  const edges = edgesWithin(view.graph, rows).filter((edge) => view.chosen.size || view.kept.edges[edge]);
  return edgeTable(view.graph, view.names, edges);
}

export function saveTable(view, what) {
  download(`${slug(view)}-${what}.csv`, tableOf(view, what), "text/csv");
}

function base64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000)
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

/** The page as it stands on disk, opening at this view. */
export function pageCopy(graphs, view) {
  const policy = document.querySelector("meta[http-equiv]").content.replace("; connect-src 'self'", "");
  const code = document.querySelector("script:not([type])").textContent,
    style = document.querySelector("style").textContent;
  const settings = JSON.stringify({ view }).replaceAll("<", "\\u003c"),
    title = visible(document.title).replace(/[&<>]/g, " ");
  const data = graphs
    .map(
      (graph) =>
        `<script type="application/octet-stream" class="tracer-graph">${base64(graph.packed)}<\/script>`,
    )
    .join("\n");
  return [
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
    `<meta http-equiv="Content-Security-Policy" content="${policy}">`,
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    '<meta name="referrer" content="no-referrer">',
    `<title>${title}</title>\n<style>${style}</style></head>\n<body>`,
    '<div class="tracer-viewer" id="viewer"></div>',
    `<script type="application/json" id="tracer-settings">${settings}<\/script>`,
    `${data}\n<script>${code}<\/script>\n</body></html>\n`,
  ].join("\n");
}

export function savePage(graphs, view, about) {
  download(`${slug(about)}.html`, pageCopy(graphs, view), "text/html");
}
