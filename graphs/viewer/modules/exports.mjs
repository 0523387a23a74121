/** What is seen as SVG or PNG, nodes and edges as tables, and the page itself with the view in it. */

import { download } from "./dom.mjs";
import { CanvasPen, SvgPen } from "./pen.mjs";
import { edgesWithin, edgeTable, nodeTable } from "./table.mjs";
import { clipped, percent, visible } from "./words.mjs";

const TITLE = 40,
  FOOT = 26;

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

function keyLine(pen, theme, y, circuit) {
  let x = 12;
  const word = (text) => {
    pen.text(x, y, text, { colour: theme.soft, size: 10.5, align: "left" });
    x += 5.8 * text.length + 18;
  };
  for (const [shares, text] of [
    ["excites", "excites"],
    ["inhibits", "inhibits"],
    ["other", "from an error"],
  ]) {
    pen.line(x, y, x + 22, y, {
      stroke: theme[shares][0],
      width: 2.5,
      dash: shares === "inhibits" ? [5, 3] : null,
    });
    x += 27;
    word(text);
  }
  pen.polygon(
    [
      [x + 5, y - 6],
      [x + 11, y],
      [x + 5, y + 6],
      [x - 1, y],
    ],
    { fill: theme.error, stroke: theme.errorLine },
  );
  x += 16;
  word("error");
  if (circuit) word("×n: a group of n nodes");
  else {
    pen.circle(x + 5, y, 5, { fill: theme.node, stroke: theme.outline });
    x += 15;
    word("feature, area = influence");
  }
  word(circuit ? "width = share of the input" : "width = influence on the answers");
}

/** Draws a stage with title and key; the pen's page is `TITLE + FOOT` taller than the stage. */
function drawFigure(pen, stage, said) {
  const { view } = stage,
    [width, height] = stage.size,
    { theme } = view;
  pen.rect(0, 0, width, height + TITLE + FOOT, { fill: theme.ground });
  pen.begin([0, TITLE, 1]);
  stage.draw(pen, view.drawn);
  stage.drawOver(pen);
  pen.end();
  pen.rect(0, 0, width, TITLE, { fill: theme.ground });
  pen.text(12, 14, clipped(question(view), Math.floor(width / 8)), {
    colour: theme.ink,
    size: 14,
    align: "left",
    bold: true,
  });
  pen.text(12, 30, clipped(said, Math.floor(width / 5.6)), { colour: theme.soft, size: 10.5, align: "left" });
  pen.rect(0, height + TITLE, width, FOOT, { fill: theme.ground });
  keyLine(pen, theme, height + TITLE + FOOT / 2, Boolean(view.scene.links));
}

export function svgOf(stage, said) {
  const [width, height] = stage.size,
    pen = new SvgPen(width, height + TITLE + FOOT);
  drawFigure(pen, stage, said);
  return pen.done(question(stage.view));
}

export function saveSvg(stage, said) {
  download(`${slug(stage.view)}.svg`, svgOf(stage, said), "image/svg+xml");
}

export function savePng(stage, said) {
  const [width, height] = stage.size,
    canvas = document.createElement("canvas");
  canvas.width = 2 * width;
  canvas.height = 2 * (height + TITLE + FOOT);
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  drawFigure(new CanvasPen(context), stage, said);
  canvas.toBlob((blob) => download(`${slug(stage.view)}.png`, blob, "image/png"), "image/png");
}

/** The selection, or all that is shown. */
export function tableOf(view, what) {
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
