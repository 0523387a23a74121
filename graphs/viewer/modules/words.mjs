/** Tokens, labels and numbers for people. All of it ends in text nodes, never in markup. */

import { EMBEDDING, ERROR, FEATURE, LOGIT } from "./data.mjs";

const SEEN = { " ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥" };
const HIDDEN =
  /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u{e0100}-\u{e01ef}]/u;
const JOINED = /[\p{Lo}\p{Mn}\p{Mc}\p{So}\p{Sk}]/u;

/** Text on one line with everything spelled out that a reader would not see, as graphs/words.py. */
export function visible(text) {
  let shown = "",
    before = "";
  for (const char of String(text ?? "")) {
    if (SEEN[char] && char !== " ") shown += SEEN[char];
    else if ((char === "\u200c" || char === "\u200d") && JOINED.test(before)) shown += char;
    else if (HIDDEN.test(char)) {
      const code = char.codePointAt(0);
      if (code < 32) shown += String.fromCodePoint(0x2400 + code);
      else
        shown +=
          code < 256
            ? `\\x${code.toString(16).padStart(2, "0")}`
            : code < 65536
              ? `\\u${code.toString(16).padStart(4, "0")}`
              : `\\U${code.toString(16).padStart(8, "0")}`;
    } else shown += char;
    before = char;
  }
  return shown;
}

/** A token without the space in front; white space alone is made visible. */
export function token(text) {
  const bare = String(text ?? "").replace(/^ +| +$/g, "");
  if (bare) return visible(bare);
  return text ? "␣".repeat(text.length) : "∅";
}

export function clipped(text, length) {
  const letters = [...text];
  if (letters.length <= length) return text;
  const start = letters.slice(0, length - 1).join("");
  return `${start.replace(/[ ,·]+$/, "")}…`;
}

/** A share from 0 to 1. */
export function percent(share) {
  if (!Number.isFinite(share)) return "–";
  const value = 100 * share,
    size = Math.abs(value);
  if (size > 0 && size < 0.1) return value < 0 ? "−<0.1%" : "<0.1%";
  return `${value.toFixed(size > 0 && size < 9.95 ? 1 : 0)}%`.replace("-", "−");
}

/** In how many variants of the prompt, or of what else was varied, a node or an edge was found; "" where nobody asked. */
export function stability(values, at) {
  return values && values[at] >= 0 ? `in ${percent(values[at])} of variants` : "";
}

export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  return Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 6 }).replace("-", "−");
}

/** What a feature promotes, and the token it fires on where the label says so. */
export function labelParts(label) {
  const text = visible(label ?? "").trim(),
    at = ` ${text}`.lastIndexOf(" · ");
  return at < 0 ? [text, ""] : [` ${text}`.slice(0, at).trim(), ` ${text}`.slice(at + 3).trim()];
}

/** Names of nodes under the labels that a user gave. */
export class Names {
  constructor(graph, labels = {}) {
    this.graph = graph;
    this.labels = labels;
  }

  label(row) {
    return this.labels[this.graph.id[row]] ?? this.graph.label[row] ?? "";
  }

  at(row) {
    const { tokens, position } = this.graph;
    const place = position[row];
    return place < tokens.length ? `“${token(tokens[place])}”` : `position ${place}`;
  }

  /** A few words: what a feature promotes, a token, an answer. */
  short(row) {
    const { kind, graph } = { kind: this.graph.kind[row], graph: this.graph };
    const given = this.labels[graph.id[row]];
    if (given) return visible(given);
    if (kind === EMBEDDING) return token(graph.text[row] ?? `token ${graph.token[row]}`);
    if (kind === ERROR) return "error";
    if (kind === LOGIT)
      return token(graph.token[row] < 0 ? graph.label[row] || graph.id[row] : graph.text[row]);
    return labelParts(graph.label[row])[0] || `feature ${graph.feature[row]}`;
  }

  /** The same with where it stands. */
  long(row) {
    const { kind, layer } = this.graph;
    if (kind[row] === EMBEDDING) return `token “${this.short(row)}”`;
    if (kind[row] === LOGIT) return `answer “${this.short(row)}” ${this.weight(row)}`;
    return `${this.short(row)} (L${layer[row]}, at ${this.at(row)})`;
  }

  weight(row) {
    const { weightOf, token: tokens } = this.graph;
    return tokens[row] < 0 ? `(weight ${number(weightOf[row])})` : percent(weightOf[row]);
  }

  place(row) {
    const { kind, layer, feature, position } = this.graph;
    if (kind[row] === FEATURE) return `${layer[row]}/${feature[row]} at ${position[row]}`;
    if (kind[row] === ERROR) return `error L${layer[row]} at ${position[row]}`;
    return `at ${position[row]}`;
  }
}

/** A path in words: → excites, ⊣ inhibits. */
export function route(names, nodes, shares) {
  return nodes.map((row, at) => (at ? `${shares[at - 1] < 0 ? "⊣" : "→"} ` : "") + names.long(row)).join(" ");
}

function strongest(edges, graph, sign, count) {
  return edges
    .filter((edge) => Math.sign(graph.share[edge]) === sign)
    .sort((a, b) => Math.abs(graph.through[b]) - Math.abs(graph.through[a]))
    .slice(0, count);
}

function list(items) {
  if (items.length < 2) return items.join("");
  return `${items.slice(0, -1).join(", ")} and ${items[items.length - 1]}`;
}

/** What a node is, what drives it and what it drives, in sentences. */
export function explain(graph, names, row, shown) {
  const kind = graph.kind[row],
    said = [];
  const inputs = [],
    outputs = [];
  for (let edge = graph.start[row]; edge < graph.start[row + 1]; edge += 1) inputs.push(edge);
  for (let at = graph.outputs.start[row]; at < graph.outputs.start[row + 1]; at += 1)
    outputs.push(graph.outputs.edges[at]);
  const [promotes, on] = labelParts(names.label(row));
  if (kind === FEATURE) {
    const what = promotes ? `labelled “${promotes}”` : "without a label";
    said.push(
      `Feature ${graph.feature[row]} of layer ${graph.layer[row]}, ${what}, is active at ${names.at(row)} with ${number(graph.activation[row])}.`,
    );
    if (on && `“${on}”` !== names.at(row)) said.push(`Its label names “${on}” as a token it fires on.`);
  } else if (kind === ERROR) {
    said.push(
      `What the dictionary misses of the MLP of layer ${graph.layer[row]} at ${names.at(row)}; it has no inputs in the graph.`,
    );
  } else if (kind === EMBEDDING)
    said.push(`The token “${names.short(row)}” at position ${graph.position[row]}.`);
  else
    said.push(
      `The answer “${names.short(row)}”: ${graph.token[row] < 0 ? "a target of the user’s own, " : "probability "}${names.weight(row)}.`,
    );
  const weight = graph.weightOf.reduce((sum, one) => sum + one, 0);
  if (kind !== LOGIT)
    said.push(`${percent(graph.influence[row] / weight)} of the answers’ influence passes through it.`);
  const named = (edges, end) =>
    list(edges.map((edge) => `${names.long(graph[end][edge])} (${percent(graph.share[edge])})`));
  const excited = strongest(inputs, graph, 1, 3),
    inhibited = strongest(inputs, graph, -1, 2);
  if (excited.length) said.push(`Most of what excites it: ${named(excited, "source")} of its input.`);
  if (inhibited.length) said.push(`It is inhibited by ${named(inhibited, "source")}.`);
  const drives = strongest(outputs, graph, 1, 3),
    opposes = strongest(outputs, graph, -1, 2);
  if (drives.length) said.push(`It excites most: ${named(drives, "target")}.`);
  if (opposes.length) said.push(`It inhibits ${named(opposes, "target")}.`);
  const lost = graph.computed[row] ? (graph.leftOutAbsolute[row] || 0) / graph.computed[row] : 0;
  if (lost > 0.005) said.push(`${percent(lost)} of its input is left out of this graph.`);
  if (shown && !shown[row]) said.push("It is below the threshold set now, so the picture does not show it.");
  return said.join(" ");
}
