/** Two canvases: what is drawn once, and what follows the pointer. Zoom, pan, hover, click, drag. */

import { h } from "./dom.mjs";
import {
  drawAxes,
  drawBands,
  drawEdge,
  drawEdges,
  drawMark,
  drawMarks,
  drawNames,
  drawUnitLinks,
  hit,
} from "./draw.mjs";
import { edgeBetween } from "./paths.mjs";
import { CanvasPen } from "./pen.mjs";
import { percent } from "./words.mjs";

const AT_ONCE = 500,
  CHUNK = 400,
  SLICE = 12,
  PAUSE = 150,
  MARGIN = 30,
  REACH = 30;

export class Stage {
  /** @param on {hover(row), click(row, event), box(rows), move(key, place), zoom(value)} */
  constructor(on, label) {
    Object.assign(this, { on, view: null, zoom: null, hovered: -1, path: [], task: 0, drag: null });
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

  get aspect() {
    const [width, height] = this.size;
    return Math.min(4, Math.max(0.35, (width - 2 * MARGIN) / Math.max(1, height - 60)));
  }

  resized() {
    const [width, height] = this.size;
    if (this.last && this.last[0] === width && this.last[1] === height) return;
    this.last = [width, height];
    if (this.on.resize) this.on.resize();
  }

  show(view, zoom) {
    Object.assign(this, { view, zoom });
    this.paint();
  }

  /** x, y and scale that show the whole scene, or what the user chose. */
  get place() {
    if (!this.view) return [0, 0, 1];
    if (this.zoom) return this.zoom;
    const [width, height] = this.size,
      { scene } = this.view;
    const k = Math.min(
      scene.links ? 1.15 : 1.5,
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
    const onStage = (row) => this.markOf(row) !== undefined;
    if (clicked >= 0 && onStage(clicked) && !scene.links) {
      pen.rect(0, 0, ...size, { fill: view.theme.veil });
      pen.begin(place);
      const linked = this.highlight(pen, clicked, 160);
      pen.end();
      drawNames(pen, view, place, ...size, linked);
      drawAxes(pen, view, place, ...size);
    }
    if (this.path.length && !scene.links) this.drawPath(pen, place, size);
    pen.begin(place);
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
    path.slice(1).forEach((row, at) => {
      const edge = edgeBetween(graph, path[at], row);
      if (edge >= 0 && scene.at[path[at]] >= 0 && scene.at[row] >= 0)
        drawEdge(pen, view, edge, 0, view.most, true);
    });
    for (const row of path) if (scene.at[row] >= 0) drawMark(pen, scene.marks[scene.at[row]], view);
    pen.end();
  }

  markOf(row) {
    const { scene } = this.view;
    if (scene.at) return scene.at[row] >= 0 ? scene.marks[scene.at[row]] : undefined;
    return scene.marks.find((mark) => mark.rows.includes(row));
  }

  ring(pen, row, colour, dash) {
    const mark = this.markOf(row);
    if (!mark) return;
    const { x, y, w, h: tall } = mark;
    const look = { stroke: colour, width: 2.4, dash };
    if (mark.shape === "box") pen.rect(x - w / 2 - 4, y - tall / 2 - 4, w + 8, tall + 8, look, 8);
    else pen.circle(x, y, w / 2 + 4, look);
  }

  /** A node with its strongest kept inputs and outputs. */
  highlight(pen, row, most) {
    const { view } = this,
      { graph, scene, kept } = view,
      edges = [];
    const take = (edge) =>
      kept.edges[edge] &&
      scene.at[graph.source[edge]] >= 0 &&
      scene.at[graph.target[edge]] >= 0 &&
      edges.push(edge);
    for (let edge = graph.start[row]; edge < graph.start[row + 1]; edge += 1) take(edge);
    for (let at = graph.outputs.start[row]; at < graph.outputs.start[row + 1]; at += 1)
      take(graph.outputs.edges[at]);
    edges.sort((a, b) => graph.through[b] - graph.through[a]);
    const some = edges.slice(0, most),
      strongest = some.length ? graph.through[some[0]] : 1;
    for (const edge of some.reverse()) drawEdge(pen, view, edge, 0, strongest, true);
    const rows = new Set([row, ...some.flatMap((edge) => [graph.source[edge], graph.target[edge]])]);
    for (const one of rows) if (scene.at[one] >= 0) drawMark(pen, scene.marks[scene.at[one]], view);
    return rows;
  }

  tipFor(row) {
    const mark = row >= 0 ? this.markOf(row) : undefined;
    this.tip.hidden = !mark;
    if (!mark) return;
    const { names, graph } = this.view,
      [x, y, k] = this.place,
      [width] = this.size;
    const weight = graph.weightOf.reduce((sum, one) => sum + one, 0) || 1;
    const whole = mark.rows && mark.count > 1 ? `${mark.label}: ${mark.count} nodes` : names.long(row);
    this.tip.textContent = graph.weightOf[row]
      ? whole
      : `${whole} · ${percent(graph.influence[row] / weight)} of influence`;
    const left = Math.min(width - 40, Math.max(8, x + k * mark.x + 12));
    this.tip.style.setProperty("left", `${left > width - 230 ? Math.max(8, left - 250) : left}px`);
    const end = (mark.h * k) / 2 + 8,
      low = y + k * mark.y < 90 ? end : -end;
    this.tip.style.setProperty("top", `${y + k * mark.y + low}px`);
    this.tip.style.setProperty("transform", low > 0 ? "none" : "translateY(-100%)");
  }

  setHover(row) {
    const key = `${row} ${this.path}`;
    if (key === this.hoverKey) return;
    this.hoverKey = key;
    this.hovered = row;
    this.paintOver();
  }

  at(event) {
    const box = this.element.getBoundingClientRect(),
      [x, y, k] = this.place;
    return [(event.clientX - box.left - x) / k, (event.clientY - box.top - y) / k];
  }

  found(event) {
    const [x, y] = this.at(event),
      { scene } = this.view;
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
      const mark = this.found(event);
      return this.on.hover(mark ? mark.row : -1);
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
      return this.paint();
    }
    return this.on.zoom([x + dx, y + dy, k]);
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

/** Pointers that a test made cannot be captured. */
function capture(element, event) {
  try {
    element.setPointerCapture(event.pointerId);
  } catch {
    /* nothing to hold */
  }
}
