/** Everything by keyboard; key_panel.mjs lists it. */

import { LINKS } from "./state.mjs";
import { fromCount, toCount } from "./toolbar.mjs";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function typing(event) {
  const { target } = event;
  return target.closest && target.closest("input, select, textarea") && target.type !== "checkbox";
}

const rounded = (value) => Math.min(1, Math.max(0.1, Math.round(value * 1000) / 1000));

/** Key -> act(app). */
const ACTS = {
  p: (app) => app.pin(app.marked()),
  x: (app) => app.view.clicked >= 0 && app.select(app.view.clicked),
  u: (app) => app.ungroup(),
  r: (app) => app.startRename(),
  a: (app) => app.view.clicked >= 0 && app.look({ from: app.state.clicked, tab: "paths" }),
  b: (app) => app.view.clicked >= 0 && app.look({ to: app.state.clicked, tab: "paths" }),
  w: (app) => app.look({ tab: "whatif" }),
  c: (app) => app.look({ tab: "compare" }),
  v: (app) => app.look({ mode: app.state.mode === "graph" ? "circuit" : "graph", zoom: null }),
  "[": (app) => app.edit({ nodes: rounded(app.state.nodes - 0.05) }, "nodes"),
  "]": (app) => app.edit({ nodes: rounded(app.state.nodes + 0.05) }, "nodes"),
  "{": (app) => app.edit({ edges: rounded(app.state.edges - 0.01) }, "edges"),
  "}": (app) => app.edit({ edges: rounded(app.state.edges + 0.01) }, "edges"),
  "-": (app) => step(app, -8),
  "+": (app) => step(app, 8),
  l: (app) => app.edit({ links: LINKS[(LINKS.indexOf(app.state.links) + 1) % LINKS.length] }),
  e: (app) => app.edit({ errors: !app.state.errors }),
  0: (app) => app.look({ zoom: null }),
  z: (app) => app.undo(),
  Z: (app) => app.redo(),
  s: (app) => app.save(),
  t: (app) => app.turnTheme(),
  f: (app) => app.fullScreen(),
  "/": (app) => app.openTab("find", true),
  "?": (app) => app.openTab("key"),
  Escape: (app) => app.escape(),
  Enter: (app) => app.focusTitle(),
};

function step(app, by) {
  const all = app.graph.weight.length;
  app.edit(
    { drawn: toCount(Math.min(100, Math.max(0, fromCount(app.state.drawn, all) + by)), all) },
    "drawn",
  );
}

function walk(app, [dx, dy]) {
  const { clicked } = app.view,
    next = clicked < 0 ? app.firstRow() : app.stage.neighbour(clicked, dx, dy);
  if (next >= 0) app.choose(next);
}

export function listen(app, root) {
  root.addEventListener("keydown", (event) => {
    const { key } = event;
    if (typing(event)) {
      if (key === "Escape") app.stage.element.focus();
      return;
    }
    if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "z") {
      event.preventDefault();
      if (event.shiftKey) app.redo();
      else app.undo();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (key === "g" && !event.repeat) app.grouping = { used: false };
    const onStage = app.stage.element.contains(event.target) || event.target === document.body;
    if (ARROWS[key] && onStage) walk(app, ARROWS[key]);
    else if (key === "Enter" && !onStage) return;
    else if (Object.hasOwn(ACTS, key)) ACTS[key](app);
    else return;
    event.preventDefault();
  });
  root.addEventListener("keyup", (event) => {
    if (event.key !== "g" || !app.grouping) return;
    app.grouping = null;
    app.group();
  });
}
