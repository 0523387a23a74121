/** Two canvases: what is drawn once, and what follows the pointer. Zoom, pan, hover, click, drag. */

import { h } from "./dom.mjs";
import {
  boundsOf,
  drawAxes,
  drawBands,
  drawEdge,
  drawEdges,
  drawGroups,
  drawMark,
  drawMarks,
  drawNames,
  drawUnitLinks,
  hit,
  pointOn,
  route,
  wayOf,
} from "./draw.mjs";
import { edgeBetween } from "./paths.mjs";
import { CanvasPen } from "./pen.mjs";
import { percent, stability, visible } from "./words.mjs";

const AT_ONCE = 500,
  CHUNK = 400,
  SLICE = 12,
  PAUSE = 150,
  MARGIN = 30,
  REACH = 30;

export class Stage {
  /** @param on {hover(row), edge(one), say(text), click(row, event), box(rows), move(key, place), zoom(value)} */
  constructor(on, label) {
    Object.assign(this, { on, view: null, zoom: null, hovered: -1, edge: null, path: [], task: 0, drag: null });
    this.base = h("canvas", { "aria-hidden": "true" });
    this.over = h("canvas", { "aria-hidden": "true" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.empty = h("div", { class: "empty", hidden: true });
    this.element = h(
      "div",
      { class: "stage", tabindex: 0, role: "application", "aria-label": label },
      this.base,
      this.over,
      this.tip,
      this.empty,
    );
    this.listen();
    this.observer = new ResizeObserver(() => this.resized());
    this.observer.observe(this.element);
  }

  get size() {
    return [this.element.clientWidth || 1, this.element.clientHeight || 1];
  }

  /** Proportions of the picture, and whether it is narrow. */
  get shape() {
    const [width, height] = this.size,
      aspect = Math.min(4, Math.max(0.35, (width - 2 * MARGIN) / Math.max(1, height - 60)));
    return { aspect, narrow: Number(width < 560) };
  }

  resized() {
    const [width, height] = this.size;
    if (this.last && this.last[0] === width && this.last[1] === height) return;
    this.last = [width, height];
    if (this.on.resize) this.on.resize();
  }

  show(view, zoom) {
    Object.assign(this, { view, zoom, edge: null, hoverKey: "" });
    this.paint();
  }

  /** x, y and scale that show the whole scene, or what the user chose. */
  get place() {
    if (!this.view) return [0, 0, 1];
    if (this.zoom) return this.zoom;
    const [width, height] = this.size,
      { scene } = this.view;
    if (scene.links) {
      const [left, top, right, bottom] = boundsOf(scene),
        k = Math.min(1.15, (width - 40) / (right - left), (height - 48) / (bottom - top));
      return [(width - k * (left + right)) / 2, (height - k * (top + bottom)) / 2, k];
    }
    const k = Math.min(
      1.5,
      (width - 2 * MARGIN - 8) / scene.width,
      (height - 48) / scene.height,
    );
    return [(width - k * scene.width) / 2 + 10, Math.max(8, (height - 24 - k * scene.height) / 2), k];
  }

  pen(canvas, settings) {
    const [width, height] = this.size,
      ratio = Math.min(2, window.devicePixelRatio || 1);
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d", settings);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return new CanvasPen(context);
  }

  /** At once with the strongest edges; with many, all of them in slices of time once nothing changes. */
  paint() {
    if (!this.view) return;
    const task = ++this.task,
      { drawn } = this.view;
    this.view.scale = this.place[2];
    delete this.element.dataset.complete;
    this.draw(this.pen(this.base), Math.min(drawn, AT_ONCE));
    this.paintOver();
    if (drawn <= AT_ONCE) return;
    const canvas = document.createElement("canvas"),
      pen = this.pen(canvas, { willReadFrequently: true });
    let from = drawn;
    this.ground(pen);
    pen.begin(this.place);
    drawBands(pen, this.view);
    const step = () => {
      if (task !== this.task) return;
      const until = performance.now() + SLICE;
      while (from > 0 && performance.now() < until) {
        const next = Math.max(0, from - CHUNK);
        drawEdges(pen, this.view, next, from);
        from = next;
        pen.settle();
      }
      if (from > 0) requestAnimationFrame(step);
      else {
        drawMarks(pen, this.view);
        pen.end();
        this.frame(pen, this.place, this.size);
        const context = this.base.getContext("2d");
        context.setTransform(1, 0, 0, 1, 0, 0);
        context.drawImage(canvas, 0, 0);
        this.element.dataset.complete = String(drawn);
      }
    };
    setTimeout(step, PAUSE);
  }

  /** What is written over the picture at its own size. */
  frame(pen, place, size) {
    drawGroups(pen, this.view, place, size[0]);
    drawNames(pen, this.view, place, ...size);
    drawAxes(pen, this.view, place, ...size);
  }

  ground(pen) {
    pen.rect(0, 0, ...this.size, { fill: this.view.theme.ground });
  }

  draw(pen, edges, size = this.size, place = this.place) {
    pen.rect(0, 0, ...size, { fill: this.view.theme.ground });
    pen.begin(place);
    drawBands(pen, this.view);
    if (this.view.scene.links) drawUnitLinks(pen, this.view);
    else drawEdges(pen, this.view, 0, edges);
    drawMarks(pen, this.view);
    pen.end();
    this.frame(pen, place, size);
  }

  /** What is clicked, chosen and hovered, over a veil that pushes the rest back. */
  paintOver() {
    const { view } = this;
    if (!view) return;
    const pen = this.pen(this.over);
    this.drawOver(pen);
    this.tipFor(this.hovered);
  }

  drawOver(pen, place = this.place, size = this.size) {
    const { view } = this,
      { clicked, chosen, scene } = view;
    const mark = clicked >= 0 ? this.markOf(clicked) : undefined;
    if (mark) {
      pen.rect(0, 0, ...size, { fill: view.theme.veil });
      pen.begin(place);
      const linked = scene.links ? this.boxed(pen, mark) : this.highlight(pen, clicked, 160);
      pen.end();
      if (!scene.links) {
        drawGroups(pen, view, place, size[0]);
        drawNames(pen, view, place, ...size, linked);
        drawAxes(pen, view, place, ...size);
      }
    }
    if (this.path.length) this.drawPath(pen, place, size);
    pen.begin(place);
    if (this.edge && !this.path.length) this.drawEdgeAlone(pen);
    for (const row of view.found || []) this.ring(pen, row, view.theme.focus, [1, 3]);
    for (const row of chosen) this.ring(pen, row, view.theme.focus, [3, 2]);
    if (clicked >= 0) this.ring(pen, clicked, view.theme.mark, null);
    if (this.hovered >= 0 && this.hovered !== clicked) {
      if (!scene.links) this.highlight(pen, this.hovered, clicked >= 0 ? 0 : 40);
      this.ring(pen, this.hovered, view.theme.mark, [4, 3]);
    }
    pen.end();
  }

  /** The path that a panel points at, alone. */
  drawPath(pen, place, size) {
    const { view, path } = this,
      { graph, scene } = view;
    pen.rect(0, 0, ...size, { fill: view.theme.veil });
    pen.begin(place);
    if (scene.links) {
      const boxes = path.map((row) => scene.marks.findIndex((mark) => mark.rows.includes(row)));
      const step = new Set(boxes.slice(1).map((box, at) => `${boxes[at]} ${box}`));
      drawUnitLinks(pen, view, (link) => step.has(`${link.from} ${link.to}`));
      for (const box of boxes) if (box >= 0) drawMark(pen, scene.marks[box], view);
      pen.end();
      return;
    }
    path.slice(1).forEach((row, at) => {
      const edge = edgeBetween(graph, path[at], row);
      if (edge >= 0 && scene.at[path[at]] >= 0 && scene.at[row] >= 0)
        drawEdge(pen, view, edge, 0, view.most, true);
    });
    for (const row of path) if (scene.at[row] >= 0) drawMark(pen, scene.marks[scene.at[row]], view);
    pen.end();
  }

  /** A box of a circuit with all that leads to and from it. */
  boxed(pen, mark) {
    const { marks } = this.view.scene;
    drawUnitLinks(pen, this.view, ({ from, to }) => marks[from] === mark || marks[to] === mark);
    drawMark(pen, mark, this.view);
  }

  /** The edge under the pointer, in full colour over the others. */
  drawEdgeAlone(pen) {
    const { view, edge } = this;
    if (view.scene.links) drawUnitLinks(pen, view, (link) => link === edge.link);
    else drawEdge(pen, view, edge.edge, 0, view.most, true);
    pen.curve(edge.way, { stroke: view.theme.mark, width: 1.2, dash: [3, 3] });
  }

  /** What can be pointed at: the strongest edges drawn, or those of the node that is clicked. */
  ways() {
    const { view } = this,
      { scene, graph, clicked } = view;
    if (scene.links) return scene.links.map((link) => ({ link, way: wayOf(scene, link) }));
    if (this.wayView === view) return this.wayList;
    const some =
      clicked >= 0 && scene.at[clicked] >= 0
        ? this.edgesAt(clicked).slice(0, 160)
        : view.order.slice(0, Math.min(view.drawn, AT_ONCE));
    this.wayView = view;
    this.wayList = Array.from(some, (edge) => {
      const [from, to] = [graph.source[edge], graph.target[edge]].map((row) => scene.marks[scene.at[row]]);
      return { edge, way: route(from, to, graph.share[edge]) };
    });
    return this.wayList;
  }

  /** The edge that runs through a point of the scene, or nothing. */
  edgeAt(px, py) {
    const reach = 5 / this.place[2];
    let best = null,
      least = reach;
    for (const one of this.ways()) {
      const away = distance(one.way, px, py, least);
      if (away < least) [best, least] = [one, away];
    }
    return best;
  }

  /** An edge in words. */
  saidOf({ edge, link }) {
    const { graph, names, scene } = this.view;
    if (link)
      return (
        `${scene.marks[link.from].label} ${link.share < 0 ? "inhibits" : "excites"} ` +
        `${scene.marks[link.to].label}: ${percent(link.share)} of its input, summed over the edges`
      );
    const [from, to] = [graph.source[edge], graph.target[edge]].map((row) => names.long(row));
    const stable = stability(graph.stableEdge, edge);
    return (
      `${from} ${graph.share[edge] < 0 ? "inhibits" : "excites"} ${to}: ${percent(graph.share[edge])} of its input` +
      (stable && ` · ${stable}`)
    );
  }

  markOf(row) {
    const { scene } = this.view;
    if (scene.at) return scene.at[row] >= 0 ? scene.marks[scene.at[row]] : undefined;
    return scene.marks.find((mark) => mark.rows.includes(row));
  }

  ring(pen, row, colour, dash) {
    const mark = this.markOf(row);
    if (!mark) return;
    const spot = this.view.spots.get(row),
      [left, top, k] = this.place;
    const { x, y, w, h: tall } = spot
      ? { x: (spot[0] + spot[2] / 2 - left) / k, y: (spot[1] + 8 - top) / k, w: spot[2] / k, h: 16 / k }
      : mark;
    const look = { stroke: colour, width: spot ? 2.4 / k : 2.4, dash };
    if (mark.shape === "box") pen.rect(x - w / 2 - 4, y - tall / 2 - 4, w + 8, tall + 8, look, 8);
    else pen.circle(x, y, w / 2 + 4, look);
  }

  /** A node with its strongest kept inputs and outputs. */
  highlight(pen, row, most) {
    const { view } = this,
      { graph, scene } = view;
    const some = this.edgesAt(row).slice(0, most),
      strongest = some.length ? graph.through[some[0]] : 1;
    for (const edge of some.reverse()) drawEdge(pen, view, edge, 0, strongest, true);
    const rows = new Set([row, ...some.flatMap((edge) => [graph.source[edge], graph.target[edge]])]);
    for (const one of rows) if (scene.at[one] >= 0) drawMark(pen, scene.marks[scene.at[one]], view);
    return rows;
  }

  /** Kept edges of a node whose ends are in sight, the most influential first. */
  edgesAt(row) {
    const { graph, scene, kept } = this.view,
      edges = [];
    const take = (edge) =>
      kept.edges[edge] &&
      scene.at[graph.source[edge]] >= 0 &&
      scene.at[graph.target[edge]] >= 0 &&
      edges.push(edge);
    for (let edge = graph.start[row]; edge < graph.start[row + 1]; edge += 1) take(edge);
    for (let at = graph.outputs.start[row]; at < graph.outputs.start[row + 1]; at += 1)
      take(graph.outputs.edges[at]);
    return edges.sort((a, b) => graph.through[b] - graph.through[a]);
  }

  tipFor(row) {
    const mark = row >= 0 ? this.markOf(row) : undefined;
    this.tip.hidden = !mark && !this.edge;
    if (mark) this.tipBeside(mark, this.wordsOf(mark, row));
    else if (this.edge) this.tipBeside({ ...this.edge.at, w: 8 }, this.saidOf(this.edge));
  }

  wordsOf(mark, row) {
    const { names, graph, groupOf, groups } = this.view,
      weight = graph.weightOf.reduce((sum, one) => sum + one, 0) || 1;
    if (mark.rows && mark.count > 1) return `${mark.label}: ${mark.count} nodes`;
    const group = groups[groupOf.get(row)],
      parts = [names.long(row)];
    if (!graph.weightOf[row]) parts.push(`${percent(graph.influence[row] / weight)} of influence`);
    if (group) parts.push(`in the group ${visible(group.name)}`);
    return [...parts, stability(graph.stable, row)].filter(Boolean).join(" · ");
  }

  /** Beside the box, where it covers none of those over and under it. */
  tipBeside(mark, text) {
    const [x, y, k] = this.place,
      [width] = this.size,
      half = (k * mark.w) / 2 + 10,
      middle = x + k * mark.x;
    this.tip.textContent = text;
    const wide = this.tip.offsetWidth,
      right = middle + half + wide < width - 8;
    this.tip.style.setProperty("left", `${Math.max(8, right ? middle + half : middle - half - wide)}px`);
    this.tip.style.setProperty("top", `${Math.max(14, y + k * mark.y)}px`);
  }

  setHover(row, edge = null) {
    const key = `${row} ${this.path} ${edge && (edge.edge ?? `${edge.link.from}-${edge.link.to}`)}`;
    if (key === this.hoverKey) return;
    this.hoverKey = key;
    this.hovered = row;
    this.edge = edge;
    this.paintOver();
  }

  at(event) {
    const box = this.element.getBoundingClientRect(),
      [x, y, k] = this.place;
    return [(event.clientX - box.left - x) / k, (event.clientY - box.top - y) / k];
  }

  /** The node whose name, written over its small box, is at a point; what was written last lies on top. */
  named(event) {
    const [x, y] = this.at(event),
      [left, top, k] = this.place,
      [px, py] = [left + k * x, top + k * y];
    const inside = ([, [u, v, w]]) => px >= u && px <= u + w && py >= v && py <= v + 16;
    return ([...this.view.spots].reverse().find(inside) || [])[0];
  }

  found(event) {
    const [x, y] = this.at(event),
      { scene } = this.view,
      row = this.named(event);
    if (row !== undefined) return this.markOf(row);
    const index = hit(scene, x, y, REACH / this.place[2] / (event.pointerType === "touch" ? 1 : 1.5));
    return index < 0 ? null : scene.marks[index];
  }

  listen() {
    const { element } = this;
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.move(event));
    element.addEventListener("pointerup", (event) => this.up(event));
    element.addEventListener("pointercancel", () => {
      this.drag = null;
    });
    element.addEventListener("pointerleave", () => !this.drag && this.on.hover(-1));
    element.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), event);
      },
      { passive: false },
    );
    element.addEventListener("dblclick", (event) => !this.found(event) && this.on.zoom(null));
  }

  zoomBy(factor, event) {
    const box = this.element.getBoundingClientRect(),
      [x, y, k] = this.place;
    const px = event ? event.clientX - box.left : box.width / 2,
      py = event ? event.clientY - box.top : box.height / 2;
    const next = Math.min(12, Math.max(0.05, k * factor)),
      ratio = next / k;
    this.on.zoom([px - (px - x) * ratio, py - (py - y) * ratio, next]);
  }

  down(event) {
    if (event.button !== 0 || !this.view || event.target.closest("button")) return;
    const mark = this.found(event),
      within = mark && this.view.scene.links ? mark : null;
    this.pointers = (this.pointers || new Map()).set(event.pointerId, event);
    this.drag = { start: event, place: this.place, mark: within, moved: false, box: event.shiftKey && !mark };
    capture(this.element, event);
  }

  move(event) {
    if (!this.view) return;
    if (this.pointers && this.pointers.has(event.pointerId) && this.pointers.size === 2)
      return this.pinch(event);
    const { drag } = this;
    if (!drag) {
      return this.pointed(event);
    }
    const dx = event.clientX - drag.start.clientX,
      dy = event.clientY - drag.start.clientY;
    if (!drag.moved && Math.hypot(dx, dy) < 4) return undefined;
    drag.moved = true;
    const [x, y, k] = drag.place;
    if (drag.box) return this.rubber(event);
    if (drag.mark) {
      const [sx, sy] = this.at(event);
      Object.assign(drag.mark, { x: sx, y: sy });
      for (const link of this.view.scene.links) link.way = null;
      return this.paint();
    }
    return this.on.zoom([x + dx, y + dy, k]);
  }

  /** What the pointer is on: a mark, else an edge, else the nearest mark within reach. */
  pointed(event) {
    const [x, y] = this.at(event),
      { scene } = this.view,
      near = hit(scene, x, y, 3 / this.place[2]),
      edge = near < 0 && this.named(event) === undefined ? this.edgeAt(x, y) : null;
    if (edge) return this.on.edge({ ...edge, at: { x, y } });
    const mark = this.found(event);
    return this.on.hover(mark ? mark.row : -1);
  }

  pinch(event) {
    const [a, b] = [...this.pointers.values()];
    const before = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
    this.pointers.set(event.pointerId, event);
    const [c, d] = [...this.pointers.values()];
    const now = Math.hypot(c.clientX - d.clientX, c.clientY - d.clientY);
    if (this.drag) this.drag.moved = true;
    if (before && now)
      this.zoomBy(now / before, {
        clientX: (c.clientX + d.clientX) / 2,
        clientY: (c.clientY + d.clientY) / 2,
      });
  }

  rubber(event) {
    const [x, y] = this.at(this.drag.start),
      [u, v] = this.at(event);
    const pen = this.pen(this.over);
    pen.begin(this.place);
    pen.rect(Math.min(x, u), Math.min(y, v), Math.abs(u - x), Math.abs(v - y), {
      stroke: this.view.theme.focus,
      width: 1.5 / this.place[2],
      dash: [4, 3],
    });
    pen.end();
    this.drag.to = [x, y, u, v];
  }

  up(event) {
    const { drag } = this;
    if (this.pointers) this.pointers.delete(event.pointerId);
    this.drag = null;
    if (!drag) return;
    if (!drag.moved) {
      if (this.edge) return this.on.say(this.saidOf(this.edge));
      const mark = this.found(event);
      this.on.click(mark ? mark.row : -1, event, mark);
    } else if (drag.to) {
      const [x, y, u, v] = drag.to;
      this.on.box(
        this.view.scene.marks
          .filter((mark) => (mark.x - x) * (mark.x - u) <= 0 && (mark.y - y) * (mark.y - v) <= 0)
          .map((mark) => mark.row),
      );
    } else if (drag.mark) this.on.move(drag.mark.key, [Math.round(drag.mark.x), Math.round(drag.mark.y)]);
  }

  /** The nearest mark in a direction, for the arrow keys. */
  neighbour(row, dx, dy) {
    const here = this.markOf(row);
    if (!here) return -1;
    let best = -1,
      least = Infinity;
    for (const mark of this.view.scene.marks) {
      const along = (mark.x - here.x) * dx + (mark.y - here.y) * dy;
      const across = Math.abs((mark.x - here.x) * dy) + Math.abs((mark.y - here.y) * dx);
      if (along > 1 && along + 2.5 * across < least && across <= 1.5 * along + 60) {
        least = along + 2.5 * across;
        best = mark.row;
      }
    }
    return best;
  }
}

/** How far a curve is from a point; Infinity where it is farther than `reach` anyway. */
function distance(way, px, py, reach) {
  const [x, y, a, b, c, d, u, v] = way;
  if (
    px < Math.min(x, a, c, u) - reach ||
    px > Math.max(x, a, c, u) + reach ||
    py < Math.min(y, b, d, v) - reach ||
    py > Math.max(y, b, d, v) + reach
  )
    return Infinity;
  let least = Infinity,
    last = [x, y];
  for (let at = 1; at <= 24; at += 1) {
    const next = pointOn(way, at / 24),
      [dx, dy] = [next[0] - last[0], next[1] - last[1]];
    const part = ((px - last[0]) * dx + (py - last[1]) * dy) / (dx * dx + dy * dy || 1),
      on = Math.min(1, Math.max(0, part));
    least = Math.min(least, Math.hypot(last[0] + on * dx - px, last[1] + on * dy - py));
    last = next;
  }
  return least;
}

/** Pointers that a test made cannot be captured. */
function capture(element, event) {
  try {
    element.setPointerCapture(event.pointerId);
  } catch {
    /* nothing to hold */
  }
}
