// The viewer's pure modules, with node's own test runner; tests/test_graphs_viewer.py starts it.
// What is compared with Python comes in the file that TRACER_VIEWER_CASES names.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { compare, sharedRows } from "../graphs/viewer/modules/compare.mjs";
import { units, unitLinks, circuit, suggestion } from "../graphs/viewer/modules/circuit.mjs";
import { fromBase64, readGraph, LOGIT, EMBEDDING, FEATURE, ERROR } from "../graphs/viewer/modules/data.mjs";
import { boundsOf, hit, pointOn, route, routeAround } from "../graphs/viewer/modules/draw.mjs";
import { influence, threshold } from "../graphs/viewer/modules/influence.mjs";
import { layout, linkFilter } from "../graphs/viewer/modules/layout.mjs";
import { strongestPaths } from "../graphs/viewer/modules/paths.mjs";
import { SvgPen } from "../graphs/viewer/modules/pen.mjs";
import { predict, probabilities } from "../graphs/viewer/modules/predict.mjs";
import { counts, prune, scores } from "../graphs/viewer/modules/prune.mjs";
import { search } from "../graphs/viewer/modules/search.mjs";
import {
  changed,
  clean,
  fromFragment,
  grouped,
  History,
  renamedGroup,
  START,
  toFragment,
  ungrouped,
} from "../graphs/viewer/modules/state.mjs";
import { edgesWithin, edgeTable, nodeTable } from "../graphs/viewer/modules/table.mjs";
import { fromCount, toCount } from "../graphs/viewer/modules/toolbar.mjs";
import { changesOf, command, onNodes } from "../graphs/viewer/modules/whatif_panel.mjs";
import { mainPath } from "../graphs/viewer/modules/view.mjs";
import { explain, Names, percent, token, visible } from "../graphs/viewer/modules/words.mjs";

const cases = JSON.parse(readFileSync(process.env.TRACER_VIEWER_CASES, "utf8"));
const graphs = await Promise.all(
  cases.graphs.map(async (one) => ({ ...one, graph: await readGraph(fromBase64(one.packed)) })),
);
const { graph } = graphs[0];
const names = new Names(graph);
const close = (a, b, what) =>
  assert.ok(Math.abs(a - b) <= 1e-9 * Math.max(1, Math.abs(b)), `${what}: ${a} is not ${b}`);

test("edges come back as they went", () => {
  for (const one of graphs) {
    assert.deepEqual([...one.graph.source], one.source);
    assert.deepEqual([...one.graph.target], one.target);
    assert.deepEqual([...one.graph.weight], one.weight);
    one.share.forEach((share, edge) => close(one.graph.share[edge], share, "share"));
    one.influence.forEach((share, edge) => close(one.graph.through[edge], share, "influence"));
  }
});

test("pruning keeps what Python keeps, and scores it alike", () => {
  for (const one of graphs) {
    for (const { nodes, edges, steered, kept, links, replacement, completeness, among } of one.pruned) {
      const mask = prune(one.graph, { nodes, edges, steered }),
        found = scores(one.graph, mask);
      assert.deepEqual(
        [...mask.nodes.keys()].filter((row) => mask.nodes[row]).map((row) => one.graph.id[row]),
        kept,
      );
      assert.equal(counts(mask).edges, links);
      close(found.replacement, replacement, "replacement");
      close(found.completeness, completeness, "completeness");
      close(found.among.replacement, among[0], "replacement among nodes");
      close(found.among.completeness, among[1], "completeness among nodes");
    }
  }
});

test("strongest paths are Python's", () => {
  for (const one of graphs) {
    const roots = [],
      ends = new Map();
    for (let row = 0; row < one.graph.count; row += 1) {
      if ([EMBEDDING, ERROR].includes(one.graph.kind[row])) roots.push(row);
      if (one.graph.kind[row] === LOGIT && one.graph.weightOf[row] > 0)
        ends.set(row, one.graph.weightOf[row]);
    }
    const found = strongestPaths(one.graph, roots, ends, 6);
    assert.deepEqual(
      found.map(({ nodes }) => nodes),
      one.paths.map(({ nodes }) => nodes),
    );
    found.forEach(({ strength }, at) => close(strength, one.paths[at].strength, "strength"));
  }
});

test("the main path is the strongest of those through a feature", () => {
  for (const one of graphs) {
    const through = one.paths.find(
      ({ nodes }) =>
        one.graph.kind[nodes[0]] === EMBEDDING && nodes.some((row) => one.graph.kind[row] === FEATURE),
    );
    if (through) assert.deepEqual(mainPath(one.graph), through.nodes);
  }
});

test("paths from A to B begin at A and end at B", () => {
  const [from, to] = [graph.row.get("E_37_7"), graph.count - 1 - [...graph.kind].reverse().indexOf(LOGIT)];
  const found = strongestPaths(graph, [from], new Map([[to, 1]]), 5);
  assert.ok(found.length > 1);
  for (const { nodes } of found) assert.deepEqual([nodes[0], nodes.at(-1)], [from, to]);
  assert.deepEqual(strongestPaths(graph, [to], new Map([[from, 1]]), 5), []);
});

test("the threshold is the value at which the share is first reached", () => {
  assert.equal(threshold([1, 6, 3], 0.8), 3);
  assert.equal(threshold([1, 6, 3], 1), -Infinity);
  assert.equal(threshold([0, 0], 0.5), Infinity);
});

test("influence of a token is what its paths carry", () => {
  const three = {
    count: 3,
    start: [0, 0, 1, 3],
    source: [0, 0, 1],
    target: [1, 2, 2],
    weight: [2, 1, -3],
    weightOf: [0, 0, 1],
  };
  assert.deepEqual([...influence(three, [0, 2, 4])], [1, 0.75, 0]);
});

test("everything shown is spelled out, as Python spells it", () => {
  for (const [text, shown] of cases.visible) assert.equal(visible(text), shown, JSON.stringify(text));
  for (const [text, shown] of cases.token) assert.equal(token(text), shown);
  for (const [share, shown] of cases.percent) assert.equal(percent(share), shown);
});

test("a fragment holds the whole view", () => {
  const state = {
    ...START,
    nodes: 0.5,
    pins: ["a", "b"],
    groups: [{ name: "x & = #", members: ["a"], place: [1, 2] }],
    labels: { a: "</script>%" },
    zoom: [1, 2, 3],
    clicked: "a",
    other: 1,
  };
  assert.deepEqual(fromFragment(`#${toFragment(state)}`), state);
  assert.equal(toFragment(START), "");
});

test("a torn or hostile fragment opens all the same", () => {
  const state = fromFragment(
    "#nodes=7&edges=%22x%22&pins=[1,%22a%22]&groups=%7B%7D&zoom=[1,null,2]&__proto__=1&labels=[1]&links=%22evil%22&clicked=%E0%A4%A",
  );
  assert.deepEqual(state, { ...START, nodes: 1, pins: ["a"] });
  assert.deepEqual(clean({ constructor: 1, toString: 2 }), START);
});

test("a node is in one group, names differ, and groups come apart again", () => {
  let groups = grouped([], ["a", "b", "c"], "one");
  groups = grouped(groups, ["c", "d"], "one");
  assert.deepEqual(
    groups.map(({ name, members }) => [name, members]),
    [
      ["one", ["a", "b"]],
      ["one 2", ["c", "d"]],
    ],
  );
  groups = renamedGroup(groups, "one 2", "two");
  assert.deepEqual(
    ungrouped(groups, "one").map(({ name }) => name),
    ["two"],
  );
  assert.deepEqual(
    grouped(groups, ["a", "b"], "all").map(({ name }) => name),
    ["two", "all"],
  );
});

test("undo and redo walk the edits, and a drag of a slider is one step", () => {
  const history = new History(700);
  let state = { ...START };
  const edit = (patch, key, now) => {
    history.note(state, key, now);
    state = { ...state, ...patch };
  };
  edit({ pins: ["a"] }, "", 0);
  edit({ nodes: 0.7 }, "nodes", 1000);
  edit({ nodes: 0.6 }, "nodes", 1100);
  state = { ...state, clicked: "kept" };
  state = history.undo(state);
  assert.deepEqual([state.nodes, state.pins, state.clicked], [0.8, ["a"], "kept"]);
  state = history.undo(state);
  assert.deepEqual(state.pins, []);
  state = history.undo(state);
  state = history.redo(history.redo(state));
  assert.deepEqual([state.nodes, state.pins], [0.6, ["a"]]);
  assert.equal(history.redo(state), state);
});

test("search looks at labels, tokens, places and examples", () => {
  const known = { ...graph, features: {} };
  const row = [...graph.kind].indexOf(FEATURE),
    key = `${graph.layer[row]}/${graph.feature[row]}`;
  known.features[key] = {
    examples: [{ texts: ["a zebra", " crossing"], activations: [1, 0], position: 0 }],
    fires_on: [[" quux", 1]],
  };
  const has = (query) => search(known, new Names(known), query).map((one) => one.row);
  assert.ok(has("zebra crossing").includes(row));
  assert.ok(has("QUUX").includes(row));
  assert.ok(has(graph.id[row]).includes(row));
  assert.ok(has("Dallas").some((one) => graph.kind[one] === EMBEDDING));
  assert.deepEqual(has("nothing has this"), []);
  assert.deepEqual(has("  "), []);
});

test("a graph compared with itself is shared whole, with another by features", () => {
  const same = compare(graph, graph);
  assert.deepEqual([same.left, same.right], [[], []]);
  close(same.overlap, 1, "overlap");
  const other = compare(graph, graphs[1].graph),
    mask = sharedRows(other, "left", graph.count);
  assert.ok(other.overlap < 1 && other.shared.length > 0);
  assert.equal(
    mask.reduce((sum, one) => sum + one, 0),
    other.shared.reduce((sum, one) => sum + one.left.length, 0),
  );
});

test("every kept node has a place of its own inside the picture", () => {
  const kept = prune(graph, { nodes: 1, edges: 1 }),
    scene = layout(graph, kept, names);
  assert.equal(scene.marks.length, graph.count);
  for (const mark of scene.marks) {
    assert.ok(mark.x > 0 && mark.x < scene.width && mark.y > 0 && mark.y < scene.height);
    assert.equal(hit(scene, mark.x, mark.y, 0.01) >= 0, true);
  }
  for (const a of scene.marks) {
    for (const b of scene.marks)
      if (a !== b)
        assert.ok(
          Math.abs(a.x - b.x) >= (a.w + b.w) / 2 || Math.abs(a.y - b.y) >= (a.h + b.h) / 2,
          `${a.row} covers ${b.row}`,
        );
  }
  const [x, y, , , , , u, v] = route({ x: 0, y: 100, w: 20, h: 20 }, { x: 50, y: 0, w: 20, h: 20 });
  assert.ok(y === 90 && v === 10 && Math.abs(x) <= 10 && Math.abs(u - 50) <= 10);
});

test("edges straight up swing out to the side of their sign and do not lie on each other", () => {
  const at = (y) => ({ x: 0, y, w: 120, h: 20 }),
    middle = (way) => pointOn(way, 0.5)[0];
  const [near, far, against] = [route(at(100), at(0)), route(at(300), at(0)), route(at(300), at(0), -1)];
  assert.ok(middle(near) > 4 && middle(far) > 1.5 * middle(near) && middle(against) === -middle(far));
  const flat = route(at(0), { ...at(0), x: 300 });
  assert.ok(pointOn(flat, 0.5)[1] > 20);
});

test("an edge between two boxes goes round a third", () => {
  const [from, to, third] = [200, 0, 100].map((y) => ({ x: 0, y, w: 100, h: 30 }));
  const way = routeAround(from, to, 1, [from, to, third]);
  for (let at = 1; at < 16; at += 1) {
    const [x, y] = pointOn(way, at / 16);
    assert.ok(Math.abs(x) > 50 || Math.abs(y - 100) > 15, `${x} ${y}`);
  }
});

test("undo says what it brings back", () => {
  const groups = [{ name: "a", members: ["b"], place: null }];
  assert.equal(changed(START, { ...START, pins: ["a"], groups }), "pins, groups");
  assert.equal(changed(START, { ...START, clicked: "a" }), "");
});

test("a circuit with one box has it in the middle, and counts what is too weak to draw", () => {
  const one = circuit(graph, names, { ...START, pins: [graph.id[graph.source[0]]] });
  assert.deepEqual([one.marks[0].x, one.marks[0].y], [one.width / 2, one.height / 2]);
  const all = circuit(graph, names, { ...START, pins: graph.id });
  assert.ok(all.links.length > 2 && all.links.length < all.between);
  const [left, , right] = boundsOf(all);
  assert.ok(all.marks.every(({ x, w }) => left <= x - w / 2 && right >= x + w / 2));
});

test("a hit in a label is not written twice, and long texts are cut between ellipses", () => {
  const row = [...graph.kind].indexOf(FEATURE),
    said = (label) => search(graph, new Names(graph, { [graph.id[row]]: label }), "quagga")[0].text;
  assert.equal(said("on quagga (mostly “x” +2) · is"), "on quagga (mostly “x” +2)");
  const long = said(`${"a".repeat(60)} quagga ${"b".repeat(60)}`);
  assert.ok(long.startsWith("…") && long.endsWith("…"));
});

test("the token of a label is said to fire it only where it is another", () => {
  const row = [...graph.kind].indexOf(FEATURE),
    here = names.at(row).slice(1, -1),
    said = (on) => explain(graph, new Names(graph, { [graph.id[row]]: `says x · ${on}` }), row);
  assert.ok(!said(here).includes("fires on") && said("zebra").includes("names “zebra” as a token it fires on"));
});

test("links are filtered as the field's viewers do", () => {
  const marked = new Set([graph.source[0]]);
  const some = (links) => [...graph.source.keys()].filter(linkFilter(graph, links, marked));
  assert.equal(linkFilter(graph, "all", marked), null);
  assert.ok(some("output").every((edge) => marked.has(graph.source[edge])) && some("output").length > 0);
  assert.ok(some("input").every((edge) => marked.has(graph.target[edge])));
  assert.equal(some("either").length, some("input").length + some("output").length);
  assert.deepEqual(some("both"), []);
});

test("a circuit has a box for each group and pin, and adds up their edges", () => {
  const [a, b] = [graph.source[0], graph.target[0]],
    ids = [graph.id[a], graph.id[b]];
  const state = { ...START, pins: [ids[1]], groups: [{ name: "g", members: [ids[0]], place: [7, 8] }] };
  const found = units(graph, names, state),
    [link] = unitLinks(graph, found);
  assert.deepEqual(
    found.map(({ name }) => name),
    ["g", names.short(b)],
  );
  close(link.through, graph.through[0], "influence");
  const scene = circuit(graph, names, state);
  assert.deepEqual([scene.marks[0].x, scene.marks[0].y], [7, 8]);
  assert.deepEqual(
    suggestion(graph, [{ nodes: [b, a] }]),
    [a, b].sort((x, y) => x - y),
  );
});

test("tables quote what a spreadsheet would run or split", () => {
  const hostile = new Names(graph, { [graph.id[0]]: '=cmd("x"),1\n2' });
  const text = nodeTable(graph, hostile, [0]);
  assert.ok(text.includes(`"'=cmd(""x""),1\n2"`));
  const edge = edgesWithin(graph, [graph.source[0], graph.target[0]]);
  assert.deepEqual(edge, [0]);
  assert.equal(edgeTable(graph, names, edge).split("\n")[1].split(",")[0], graph.id[graph.source[0]]);
});

test("ablating a node takes exactly its effects from its targets", () => {
  const row = graph.source.find((one) => graph.kind[one] === FEATURE),
    { added } = predict(graph, new Map([[row, -1]]), true);
  for (let edge = 0; edge < graph.source.length; edge += 1)
    if (graph.source[edge] === row) close(added[graph.target[edge]], -graph.weight[edge], "change");
  const none = probabilities(graph, new Float64Array(graph.count));
  for (const one of none) close(one.after, one.before, "probability");
  const [first] = none,
    up = new Float64Array(graph.count);
  up[first.row] = 2;
  const raised = probabilities(graph, up)[0],
    odds = (p) => p / (1 - p);
  close(Math.log(odds(raised.after) / odds(raised.before)), 2, "log-odds");
});

test("a swap puts out one node and puts in another where it stood", () => {
  const [a, b] = [...graph.kind.keys()].filter((row) => graph.kind[row] === FEATURE);
  const changes = changesOf(graph, { how: "swap", rows: [a], with: { rows: [b] } });
  assert.deepEqual(changes[0], {
    layer: graph.layer[a],
    position: graph.position[a],
    feature: graph.feature[a],
    scale: 0,
  });
  assert.deepEqual(changes[1], {
    layer: graph.layer[b],
    position: graph.position[a],
    feature: graph.feature[b],
    value: graph.activation[b],
  });
  assert.deepEqual(changesOf(graph, { how: "clamp", rows: [a], value: 3 })[0].value, 3);
  const found = onNodes(graph, changes);
  assert.equal(found.relative.get(a), -1);
});

test("a node is explained with what drives it and what it drives", () => {
  const row = [...graph.label].indexOf("say a capital"),
    text = explain(graph, names, row);
  for (const part of ["say a capital", "Most of what excites it", "excites most", "influence"])
    assert.ok(text.includes(part), part);
});

test("text of a picture is text", () => {
  const pen = new SvgPen(10, 10);
  pen.text(1, 1, `</text><script>alert("x")</script>&`, { colour: "#000" });
  const svg = pen.done("<b>&");
  assert.ok(!/<script|<b>/.test(svg) && svg.includes("&lt;script&gt;"));
});

test("the slider of drawn edges reaches both ends", () => {
  for (const count of [10, 300, 100000])
    assert.ok(Math.abs(toCount(fromCount(count, 100000), 100000) / count - 1) < 0.1);
  assert.equal(toCount(100, 123456), 123456);
});

test("the shortest command that asks the model is said", () => {
  const said = (name, model) => command({ name, metadata: { model } });
  assert.equal(said("hot.graph", "embedded/model"), "tracer view hot.graph");
  assert.equal(said("my graph", "embedded/model"), "tracer view FOLDER");
  assert.equal(said("", "org/m"), "tracer view FOLDER --model M --transcoders T");
});

test("an edge finds a way between boxes that stand close", () => {
  const from = { x: 180, y: 632, w: 86, h: 34 },
    to = { x: 617, y: 387, w: 256, h: 34 },
    between = [84, 312, 610].map((x, at) => ({ x, y: 510, w: [130, 270, 268][at], h: 34 }));
  const way = routeAround(from, to, 1, [from, to, ...between], 860);
  for (let at = 1; at < 64; at += 1) {
    const [x, y] = pointOn(way, at / 64);
    for (const box of between)
      assert.ok(Math.abs(x - box.x) >= box.w / 2 || Math.abs(y - box.y) >= box.h / 2, `${x} ${y}`);
  }
});
