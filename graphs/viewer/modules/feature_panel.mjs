/** What a feature store knows of a feature: examples by decile, histogram, tokens, label and its score. */

import { FEATURE } from "./data.mjs";
import { h, s } from "./dom.mjs";
import { featureKey } from "./search.mjs";
import { number, percent, token, visible } from "./words.mjs";

/** How well a label was measured to hold, where it was. */
export function labelScore(graph, row, labels = {}) {
  if (labels[graph.id[row]] && graph.kind[row] === FEATURE)
    return h("p", { class: "score" }, "your own label, not measured");
  const known = ((graph.metadata || {}).labels || {})[featureKey(graph, row)];
  if (!known || graph.kind[row] !== FEATURE) return null;
  const parts = [];
  if (typeof known.f1 === "number") parts.push(`label holds with F1 ${known.f1.toFixed(2)}`);
  else parts.push("label not measured");
  if (known.source) parts.push(`from ${visible(known.source)}`);
  if (known.polysemantic) parts.push("fires on several unlike things");
  return h(
    "p",
    { class: `score ${typeof known.f1 === "number" && known.f1 < 0.5 ? "weak" : ""}` },
    parts.join(" · "),
  );
}

function histogram({ bounds, counts }) {
  const most = Math.max(1, ...counts),
    width = 300,
    tall = 64,
    step = width / Math.max(1, counts.length);
  const bars = counts.map((count, at) =>
    s(
      "rect",
      {
        x: at * step + 0.5,
        y: tall - (tall - 4) * Math.sqrt(count / most),
        width: Math.max(1, step - 1),
        height: (tall - 4) * Math.sqrt(count / most),
        class: "fill",
      },
      s(
        "title",
        {},
        `${number(bounds[at])} to ${number(bounds[at + 1])}: ${count.toLocaleString("en")} tokens`,
      ),
    ),
  );
  return h(
    "figure",
    {},
    s(
      "svg",
      {
        viewBox: `0 0 ${width} ${tall}`,
        class: "histogram",
        role: "img",
        "aria-label": `Histogram of activations from ${number(bounds[0])} to ${number(bounds[bounds.length - 1])}`,
      },
      bars,
    ),
    h(
      "figcaption",
      {},
      `activation ${number(bounds[0])} to ${number(bounds[bounds.length - 1])}; height: square root of the number of tokens`,
    ),
  );
}

function tokens(title, unit, pairs) {
  return h(
    "div",
    {},
    h("h4", {}, title),
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "token"), h("th", { scope: "col" }, unit))),
      h(
        "tbody",
        {},
        (pairs || []).map(([text, value]) =>
          h("tr", {}, h("td", {}, token(text)), h("td", { class: "value" }, value.toFixed(2))),
        ),
      ),
    ),
  );
}

function example(one, most) {
  const spans = one.texts.map((text, at) => {
    const value = one.activations[at] || 0,
      mark = at === one.position;
    if (!value && !mark) return visible(text);
    return h(
      mark ? "b" : "span",
      {
        class: value < 0 ? "cold" : "warm",
        title: number(value),
        style: { "--strength": `${Math.round(100 * Math.min(1, Math.abs(value) / most))}%` },
      },
      visible(text) || "∅",
    );
  });
  return h(
    "p",
    { class: "example" },
    h("span", { class: "value" }, number(one.activation)),
    h("span", { class: "text" }, spans),
  );
}

function examples(known) {
  const all = known.examples || [],
    most = Math.max(1e-9, ...all.map((one) => Math.abs(one.activation)));
  const kinds = [
    ["top", "Strongest examples"],
    ["bottom", "Most negative examples"],
  ];
  const parts = kinds.map(([kind, title]) => {
    const some = all.filter((one) => one.kind === kind);
    return some.length
      ? h(
          "div",
          {},
          h("h4", {}, title),
          some.map((one) => example(one, most)),
        )
      : null;
  });
  const deciles = all.filter((one) => one.kind === "decile").sort((a, b) => b.rank - a.rank);
  if (deciles.length) {
    parts.push(
      h(
        "details",
        {},
        h("summary", {}, "Examples by decile of activation"),
        deciles.map((one) =>
          h(
            "div",
            {},
            h("h5", {}, `${10 * one.rank} to ${10 * one.rank + 10} % of its activations`),
            example(one, most),
          ),
        ),
      ),
    );
  }
  return parts;
}

export function featurePanel(graph, row) {
  if (graph.kind[row] !== FEATURE) return null;
  const known = (graph.features || {})[featureKey(graph, row)];
  if (!known) {
    const why = Object.keys(graph.features || {}).length
      ? "This feature is not among those stored with the page."
      : "No feature store went with this page: tracer export --store adds examples, histogram and tokens.";
    return h("section", { class: "feature" }, h("h3", {}, "Feature"), h("p", { class: "hint" }, why));
  }
  const said = known.active
    ? `active at ${known.active.toLocaleString("en")} tokens (${percent(known.density)}), mean ${number(known.mean)}, maximum ${number(known.maximum)}`
    : "never active on the corpus of the store";
  return h(
    "section",
    { class: "feature" },
    h("h3", {}, `Feature ${featureKey(graph, row)}`),
    h("p", {}, said),
    known.histogram ? histogram(known.histogram) : null,
    examples(known),
    h(
      "div",
      { class: "columns" },
      tokens("Fires on", "share", known.fires_on),
      tokens("Promotes", "deviations", known.promoted),
      tokens("Suppresses", "deviations", known.suppressed),
    ),
  );
}
