/** Colours of both themes; contrast of text on its ground is at least 4.5 to 1 in each. */

export const THEMES = {
  light: {
    ground: "#fbfaf7",
    band: "#f3f1eb",
    endBand: "#e9e6dd",
    rule: "#ffffff",
    ink: "#1d1d1f",
    soft: "#5d5b55",
    node: "#ffffff",
    outline: "#3a3a3c",
    error: "#cfcdc6",
    errorLine: "#807d75",
    answer: "#fff0bd",
    path: "#ffe0ac",
    token: "#ffffff",
    mark: "#c2185b",
    focus: "#0b57d0",
    shared: "#0a7d8c",
    veil: "rgba(251,250,247,.72)",
    excites: ["#12692d", "#3f9d55", "#6db67d"],
    inhibits: ["#6a1b78", "#9159a3", "#ab80b9"],
    other: ["#6d6a63", "#918e86", "#b0ada5"],
    alpha: [0.95, 0.6, 0.3],
  },
  dark: {
    ground: "#16171b",
    band: "#1d1f24",
    endBand: "#26282e",
    rule: "#16171b",
    ink: "#f1f0ec",
    soft: "#b3b1aa",
    node: "#2b2e35",
    outline: "#d5d3cc",
    error: "#55565c",
    errorLine: "#a09e98",
    answer: "#5c4a12",
    path: "#5d4420",
    token: "#2b2e35",
    mark: "#ff7eb0",
    focus: "#8ab4f8",
    shared: "#56c8d8",
    veil: "rgba(22,23,27,.74)",
    excites: ["#7fdc98", "#4fae69", "#3a7d4c"],
    inhibits: ["#d9a5e8", "#a674b8", "#795488"],
    other: ["#b5b2aa", "#85827b", "#66645e"],
    alpha: [0.95, 0.65, 0.4],
  },
};

/** Tints of groups: (light, dark), told apart by people who see few colours too, and named in the list anyway. */
export const TINTS = [
  ["#cfe0ff", "#24406e"],
  ["#d3efd0", "#24512a"],
  ["#f6d0e4", "#632546"],
  ["#e4d9fb", "#46336f"],
  ["#cdeef0", "#17535a"],
  ["#f3e9a8", "#575012"],
  ["#e5dcd2", "#4d443a"],
  ["#ffd3c4", "#6b3020"],
];

export function tint(index, dark) {
  return TINTS[index % TINTS.length][dark ? 1 : 0];
}

/** How strong an edge of this rank is drawn: 0 strong, 1 middle, 2 weak. */
export function tier(rank) {
  return rank < 25 ? 0 : rank < 80 ? 1 : 2;
}
