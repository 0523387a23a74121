/** The legend of every mark, and every key. */

import { glyph, h } from "./dom.mjs";
import { TINTS } from "./theme.mjs";

export const KEYS = [
  ["arrows", "to the nearest node that way"],
  ["Enter", "what is said of it"],
  ["/", "find"],
  ["p", "pin or unpin"],
  ["x", "add to the selection, or take out"],
  ["g", "group the selection; or hold and click nodes"],
  ["u", "ungroup"],
  ["r", "rename"],
  ["a, b", "paths from A, to B"],
  ["w", "what if"],
  ["c", "compare"],
  ["v", "graph or circuit"],
  ["[ ]", "fewer or more nodes"],
  ["{ }", "fewer or more edges"],
  ["- +", "draw fewer or more edges"],
  ["l", "which links"],
  ["e", "error nodes"],
  ["0", "fit"],
  ["z, Shift+z", "undo, redo"],
  ["s", "save (in tracer view), or a copy of the page"],
  ["t", "light, dark"],
  ["f", "full screen"],
  ["?", "this page"],
  ["Esc", "select nothing"],
];

export function legend(theme, dark) {
  const outline = { stroke: theme.outline, "stroke-width": 1 };
  const items = [
    [
      "box",
      { fill: theme.node, ...outline },
      "feature with its label (the most influential, pins, groups); at the bottom a token, on top an answer",
    ],
    ["circle", { fill: theme.node, ...outline }, "other feature; area: influence"],
    [
      "diamond",
      { fill: theme.error, stroke: theme.errorLine },
      "error: what the dictionary misses of an MLP; area: influence",
    ],
    ["box", { fill: theme.answer, ...outline }, "the likeliest answer"],
    ["box", { fill: theme.path, ...outline }, "on the strongest path through features"],
    ["box", { fill: TINTS[0][dark ? 1 : 0], ...outline }, "in a group, a tint each"],
    ["stack", { fill: TINTS[1][dark ? 1 : 0], ...outline }, "a group in the circuit, ×n its nodes"],
    ["box", { fill: theme.node, stroke: theme.outline, "stroke-width": 2.4 }, "pinned"],
    [
      "box",
      { fill: theme.node, stroke: theme.shared, "stroke-width": 2.4 },
      "in both graphs, when two are compared",
    ],
    ["line", { stroke: theme.excites[0], "stroke-width": 3 }, "excites; darker and on top: more influence"],
    [
      "line",
      { stroke: theme.inhibits[0], "stroke-width": 3, "stroke-dasharray": "5 3" },
      "inhibits (dashed)",
    ],
    ["line", { stroke: theme.other[0], "stroke-width": 3 }, "from an error"],
    [
      "tee",
      { stroke: theme.inhibits[0], "stroke-width": 2.5 },
      "a bar instead of an arrowhead in the circuit: inhibits",
    ],
    ["ring", { stroke: theme.mark, "stroke-width": 2.4 }, "clicked; dashed: under the pointer"],
    ["ring", { stroke: theme.focus, "stroke-width": 2.4, "stroke-dasharray": "3 2" }, "in the selection"],
  ];
  return h(
    "ul",
    { class: "legend" },
    items.map(([shape, look, means]) => h("li", {}, glyph(shape, look), h("span", {}, means))),
  );
}

export function keyPanel(app) {
  return [
    h("h2", {}, "Legend"),
    legend(app.view.theme, app.view.dark),
    h(
      "p",
      { class: "hint" },
      "Columns are tokens, bands are layers, later layers higher. In Graph the width of an edge is its " +
        "influence on the answers: its share of the target’s input times what passes through the target. " +
        "In Circuit, where edges between boxes are summed, it is their share of the box’s whole input. " +
        "Percentages are shares of all the input that the model computed. Names in grey are of edges " +
        "below the thresholds set now.",
    ),
    h(
      "p",
      { class: "hint" },
      "Labels: “on” the token it fires on, “says” the next token it goes with, “e.g.” an example where " +
        "nothing true enough was found, [its token]; “+4”: so many alternatives more; “mostly”: none of " +
        "them holds here; “≈”: fires on several unlike things. F1: how well it held on other " +
        "text, 1 the best; from predicate: by rule, from example: its strongest example.",
    ),
    h(
      "p",
      { class: "hint" },
      "Scores: replacement, the part of the answer that leads back to tokens and not to errors; " +
        "completeness, the part of all inputs that is neither error nor left out. Ours count what is " +
        "left out as error; “among the nodes” is the reference’s figure, blind to a cap on features.",
    ),
    h("h2", {}, "Mouse"),
    h(
      "dl",
      { class: "keys" },
      [
        ["click", "select"],
        ["Ctrl- or ⌘-click", "pin"],
        ["Shift-click, Shift-drag", "select several"],
        ["wheel, drag, two fingers", "zoom and move"],
        ["double click", "fit"],
      ].map(pair),
    ),
    h("h2", {}, "Keys"),
    h("dl", { class: "keys" }, KEYS.map(pair)),
  ];
}

const pair = ([key, means]) => h("div", {}, h("dt", {}, key), h("dd", {}, means));
