/** The viewer: holds the state, tells stage and panels what to show, and acts on what the user does. */

import { sharedRows, compare } from "./compare.mjs";
import { fromBase64, readGraph, FEATURE } from "./data.mjs";
import { button, corners, h } from "./dom.mjs";
import { question, savePage, savePng, saveSvg, saveTable } from "./exports.mjs";
import { keyPanel } from "./key_panel.mjs";
import { listen } from "./keyboard.mjs";
import { nodePanel } from "./node_panel.mjs";
import { comparePanel, findPanel, groupsPanel, pathsBetween, pathsPanel } from "./side_panels.mjs";
import { suggestion } from "./circuit.mjs";
import { counts } from "./prune.mjs";
import {
  changed,
  clean,
  fromFragment,
  grouped,
  History,
  renamedGroup,
  START,
  toFragment,
  toggled,
  ungrouped,
} from "./state.mjs";
import { Stage } from "./stage.mjs";
import { Toolbar, said } from "./toolbar.mjs";
import { viewOf } from "./view.mjs";
import { whatIfPanel } from "./whatif_panel.mjs";
import { visible } from "./words.mjs";

const TABS = [
  ["node", "Node"],
  ["find", "Find"],
  ["paths", "Paths"],
  ["groups", "Groups"],
  ["compare", "Compare"],
  ["whatif", "What if"],
  ["key", "Legend"],
];
const PANELS = {
  node: nodePanel,
  find: findPanel,
  paths: pathsPanel,
  groups: groupsPanel,
  compare: comparePanel,
  whatif: whatIfPanel,
  key: keyPanel,
};
const KEEPS_TAB = new Set(["paths", "groups", "compare", "whatif"]);
let instances = 0;

export class App {
  /**
   * @param root element to fill
   * @param graphs [{name, load: () => Promise of a graph}]
   * @param host {whatIf?, save?, page?: boolean, fragment?: boolean, view?, changed?}
   */
  constructor(root, graphs, host) {
    Object.assign(this, {
      root,
      graphs,
      host,
      other: null,
      otherView: null,
      found: [],
      measured: null,
      problem: "",
      grouping: null,
      renaming: "",
    });
    this.id = `tracer-${++instances}`;
    this.plan = { key: "", how: "scale", value: 0, mode: "free", partner: "" };
    this.history = new History();
  }

  async start() {
    const wanted = this.host.fragment ? fromFragment(location.hash) : clean(this.host.view);
    const index = Number.isInteger(wanted.graph) && this.graphs[wanted.graph] ? wanted.graph : 0;
    await this.load(index);
    this.base = { ...this.opening(), graph: index };
    this.state = this.host.fragment ? fromFragment(location.hash, this.base) : this.base;
    this.build();
    if (this.state.other !== null) await this.compareWith(this.state.other, true);
    this.refresh();
    if (this.host.fragment) addEventListener("hashchange", () => this.fromHash());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.refresh());
    this.root.dataset.ready = "1";
  }

  async load(index) {
    this.graph = await this.graphs[index].load();
    return this.graph;
  }

  /** How a graph opens: as it was saved, at the thresholds of its export. */
  opening() {
    const { graph, host } = this,
      most = graph.metadata.pruned ? { nodes: 1, edges: 1 } : {};
    return clean({ ...graph.opening, ...most, groups: graph.groups, ...graph.view, ...host.view }, START);
  }

  get dark() {
    const { theme } = this.state;
    return theme === "dark" || (theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  }

  build() {
    const on = {
      hover: (row) => this.hover(row),
      edge: (edge) => this.hover(-1, edge),
      say: (text) => this.announce(text),
      click: (row, event) => this.clickStage(row, event),
      zoom: (zoom) => this.zoomed(zoom),
      box: (rows) => this.selectMany(rows, true),
      move: (key, place) => this.moved(key, place),
      resize: () => this.view && this.refresh(),
    };
    this.stage = new Stage(
      on,
      "The graph. Arrow keys move between nodes, Enter reads one, question mark lists all keys.",
    );
    this.second = new Stage(
      {
        ...on,
        hover: (row) => this.hoverOther(row),
        edge: (edge) => this.second.setHover(-1, edge),
        click: (row) => row >= 0 && this.chooseOther(row),
        zoom: (zoom) => {
          this.second.zoom = zoom;
          this.second.paint();
        },
        box: () => {},
        move: () => {},
      },
      "The graph compared with.",
    );
    this.toolbar = new Toolbar(this, this.id);
    this.title = h("h1", {});
    this.scores = h("p", { class: "scores" });
    this.live = h("p", { class: "live", role: "status", "aria-live": "polite" });
    this.tabs = TABS.map(([name, label]) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          id: `${this.id}-tab-${name}`,
          "aria-controls": `${this.id}-panel`,
          data: { tab: name },
          on: { click: () => this.openTab(name), keydown: (event) => this.tabKey(event, name) },
        },
        label,
      ),
    );
    this.panel = h("div", { class: "panel", role: "tabpanel", id: `${this.id}-panel`, tabindex: 0 });
    this.panel.addEventListener("pointerover", (event) => this.hoverPanel(event));
    this.panel.addEventListener("pointerleave", () => {
      this.stage.path = [];
      this.hover(-1);
    });
    this.panel.addEventListener("focusin", (event) => this.hoverPanel(event));
    this.stages = h("div", { class: "stages" }, this.stage.element, this.second.element, this.toolbar.zoom);
    this.undoButton = button("↶", () => this.undo(), { title: "Undo", key: "z", "aria-label": "Undo" });
    this.redoButton = button("↷", () => this.redo(), { title: "Redo", key: "Shift+z", "aria-label": "Redo" });
    this.root.replaceChildren(
      h("header", {}, h("div", { class: "about" }, this.title, this.scores), this.headButtons()),
      h(
        "main",
        {},
        this.stages,
        h(
          "aside",
          { "aria-label": "Details" },
          h("div", { class: "tabs", role: "tablist", "aria-label": "Panels" }, this.tabs),
          this.panel,
        ),
      ),
      h("footer", {}, this.toolbar.element, this.live),
    );
    listen(this, this.host.page ? document : this.root);
  }

  headButtons() {
    const pick = h(
      "select",
      { "aria-label": "Graph", on: { change: () => this.openGraph(Number(pick.value)) } },
      this.graphs.map(({ name }, at) => h("option", { value: at }, visible(name))),
    );
    pick.value = String(this.state.graph);
    this.pick = pick;
    const group = (label, ...buttons) =>
      h("div", { class: "segment", role: "group", "aria-label": label }, buttons);
    return h(
      "div",
      { class: "head" },
      this.graphs.length > 1 ? pick : null,
      group("History", this.undoButton, this.redoButton),
      group(
        "Save",
        this.host.save
          ? button("Save", () => this.save(), {
              key: "s",
              title: "Save labels, groups, pins and view beside the graph",
              class: "primary",
            })
          : null,
        button("SVG", () => saveSvg(this.stage, this.said), { title: "Save what is seen as SVG" }),
        button("PNG", () => savePng(this.stage, this.said), { title: "Save what is seen as PNG" }),
        button("CSV", () => this.exportTable(), {
          title: "Save the selection, or what is shown, as a table of nodes",
        }),
        button("Edges", () => this.exportTable("edges"), {
          title: "Save the edges of the selection, or those shown, as a table",
        }),
        this.host.page
          ? button("Copy", () => this.saveCopy(), {
              title: "Save this page with its present view",
              key: this.host.save ? undefined : "s",
            })
          : null,
      ),
      group(
        "Window",
        button("◐", () => this.turnTheme(), {
          title: "Light, dark or as the system",
          key: "t",
          "aria-label": "Theme",
        }),
        button(corners(), () => this.fullScreen(), {
          title: "Full screen",
          key: "f",
          "aria-label": "Full screen",
        }),
        button("?", () => this.openTab("key"), {
          title: "Legend and keys",
          key: "?",
          "aria-label": "Legend and keys",
        }),
      ),
    );
  }

  // What changes the state.

  /** A change that undo brings back. `key` names a slider, whose steps the panel need not follow at once. */
  edit(patch, key = "") {
    this.history.note(this.state, key, performance.now());
    this.sliding = Boolean(key);
    this.set(patch);
  }

  /** A change of where one looks. */
  look(patch) {
    this.set(patch);
  }

  set(patch) {
    this.state = clean(patch, this.state);
    this.soon();
  }

  /** One refresh a frame, however many changes. */
  soon() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.refresh();
    });
  }

  refresh() {
    const { state, graph, root } = this;
    root.dataset.theme = this.dark ? "dark" : "light";
    this.stages.classList.toggle("two", Boolean(this.other));
    const comparison = this.other && this.otherView ? compare(graph, this.other) : null;
    const shared = comparison
      ? [sharedRows(comparison, "left", graph.count), sharedRows(comparison, "right", this.other.count)]
      : [null, null];
    this.view = viewOf(graph, state, { dark: this.dark, shape: this.stage.shape, shared: shared[0] });
    this.view.found = state.tab === "find" ? this.found : [];
    this.view.weight = graph.weightOf.reduce((sum, one) => sum + one, 0);
    this.stage.show(this.view, state.zoom);
    if (this.other) this.showOther(shared[1]);
    const { marks, links } = this.view.scene,
      empty = state.mode === "circuit" && !links.length;
    this.stage.empty.hidden = !empty;
    this.stage.empty.classList.toggle("low", marks.length > 0);
    if (empty)
      this.stage.empty.replaceChildren(
        h(
          "p",
          {},
          marks.length
            ? "No edges between the boxes yet: pin or group more nodes."
            : "Pin nodes or group them, and they stand here as boxes to arrange.",
        ),
        button("Pin the main steps", () => this.suggest(), { class: marks.length ? "" : "primary" }),
      );
    this.said = said(graph, state, this.view, counts(this.view.kept));
    this.toolbar.update(this.view, counts(this.view.kept));
    this.showHead();
    clearTimeout(this.later);
    if (this.sliding) this.later = setTimeout(() => this.showPanel(), 90);
    else this.showPanel();
    this.sliding = false;
    this.remember();
  }

  showOther(shared) {
    const mirrored = {
      ...this.state,
      pins: [],
      groups: this.other.groups || [],
      labels: {},
      clicked: this.otherClicked ?? null,
      chosen: [],
      zoom: null,
      mode: "graph",
    };
    this.otherView = viewOf(this.other, mirrored, { dark: this.dark, shape: this.second.shape, shared });
    this.second.show(this.otherView, this.second.zoom);
  }

  showHead() {
    const { graph, view } = this,
      { scores } = view.kept,
      traced = graph.metadata.scores || {};
    const pair = (name) =>
      `${name} ${digits(scores[name])} (${digits(scores.among[name])} among the nodes; ${digits(traced[name])} as traced)`;
    this.title.textContent = question(view);
    const parts = [pair("replacement"), pair("completeness")];
    if (traced.uncovered > 0) parts.push(`uncovered ${digits(traced.uncovered)}`);
    this.scores.textContent = parts.join(" · ");
    this.undoButton.disabled = !this.history.past.length;
    this.redoButton.disabled = !this.history.future.length;
  }

  showPanel() {
    const { tab } = this.state,
      { panel } = this;
    for (const one of this.tabs) {
      const open = one.dataset.tab === tab;
      one.setAttribute("aria-selected", String(open));
      one.tabIndex = open ? 0 : -1;
      if (open) panel.setAttribute("aria-labelledby", one.id);
    }
    const key = JSON.stringify([
      tab,
      tab === "find" ? 0 : { ...this.state, zoom: 0, query: 0 },
      this.renaming,
      this.plan,
      this.measured,
      this.problem,
      this.running,
      this.dark,
      Boolean(this.otherView),
    ]);
    if (key === this.panelKey) return;
    const same = this.panelTab === `${tab} ${this.state.clicked}`,
      top = same ? panel.scrollTop : 0,
      focused = focusables(panel).indexOf(document.activeElement);
    Object.assign(this, { panelKey: key, panelTab: `${tab} ${this.state.clicked}` });
    panel.replaceChildren(...[PANELS[tab](this)].flat(Infinity).filter(Boolean));
    panel.scrollTop = top;
    if (focused >= 0 && focusables(panel)[focused]) focusables(panel)[focused].focus({ preventScroll: true });
  }

  /** The fragment holds the view, so a copied address opens it. */
  remember() {
    if (this.host.changed) this.host.changed(this.state);
    if (!this.host.fragment) return;
    clearTimeout(this.writing);
    this.writing = setTimeout(() => {
      const text = toFragment(this.state, this.base);
      if (text !== location.hash.slice(1))
        history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
    }, 150);
  }

  async fromHash() {
    const wanted = fromFragment(location.hash, this.base);
    if (wanted.graph !== this.state.graph && this.graphs[wanted.graph]) await this.openGraph(wanted.graph);
    this.state = fromFragment(location.hash, this.base);
    this.refresh();
  }

  undo() {
    this.travel("undo", "Undone");
  }

  redo() {
    this.travel("redo", "Redone");
  }

  travel(way, word) {
    const before = this.state;
    this.state = this.history[way](before);
    this.announce(this.state === before ? `Nothing to ${way}` : `${word}: ${changed(before, this.state)}`);
    this.refresh();
  }

  // Nodes.

  clickStage(row, event) {
    this.stage.element.focus({ preventScroll: true });
    if (row < 0) {
      if (!event.shiftKey) {
        this.look({ clicked: null });
        this.announce("Nothing selected");
      }
      return;
    }
    this.choose(row, event);
  }

  choose(row, event = {}) {
    const id = this.graph.id[row];
    if (this.grouping) {
      this.grouping.used = true;
      this.select(row);
    } else if (event.ctrlKey || event.metaKey) this.pin([row]);
    else if (event.shiftKey) this.select(row);
    else {
      this.renaming = "";
      this.look({ clicked: id, tab: KEEPS_TAB.has(this.state.tab) ? this.state.tab : "node" });
      this.announce(this.view.names.long(row));
    }
  }

  select(row) {
    const start =
      this.state.chosen.length || this.state.clicked === null || this.state.clicked === this.graph.id[row]
        ? this.state.chosen
        : [this.state.clicked];
    const chosen = toggled(start, this.graph.id[row]);
    this.look({ chosen });
    this.announce(`${chosen.length} selected: press G to group them`);
  }

  selectMany(rows, add = false) {
    const ids = rows.map((row) => this.graph.id[row]);
    this.look({ chosen: [...new Set([...(add ? this.state.chosen : []), ...ids])], tab: "groups" });
    this.announce(`${ids.length} selected`);
  }

  /** What an act on "the selection" means. */
  marked() {
    const { chosen, clicked } = this.view;
    return chosen.size ? [...chosen] : clicked >= 0 ? [clicked] : [];
  }

  pin(rows, only = false) {
    const ids = rows.map((row) => this.graph.id[row]);
    if (!ids.length) return this.announce("Click a node first");
    const add = only || ids.some((id) => !this.state.pins.includes(id));
    const pins = add
      ? [...new Set([...this.state.pins, ...ids])]
      : this.state.pins.filter((id) => !ids.includes(id));
    this.edit({ pins });
    return this.announce(
      `${ids.length === 1 ? this.view.names.short(rows[0]) : `${ids.length} nodes`} ${add ? "pinned" : "unpinned"}`,
    );
  }

  group() {
    const rows = this.marked();
    if (!rows.length)
      return this.announce("Select nodes first: Shift-click them, or drag a box with Shift held");
    const best = [...rows].sort((a, b) => this.graph.influence[b] - this.graph.influence[a])[0];
    const groups = grouped(
      this.state.groups,
      rows.map((row) => this.graph.id[row]),
      this.view.names.short(best),
    );
    this.edit({ groups, chosen: [], tab: "groups" });
    const what = rows.length === 1 ? "1 node" : `${rows.length} nodes`,
      { name } = groups[groups.length - 1];
    this.announce(`${what} grouped as ${name}: one box in Circuit (V)`);
    return setTimeout(() => {
      const inputs = this.panel.querySelectorAll(".group input");
      if (inputs.length) inputs[inputs.length - 1].select();
    }, 60);
  }

  ungroup() {
    const ids = this.marked().map((row) => this.graph.id[row]);
    const names = this.state.groups
      .filter((one) => one.members.some((id) => ids.includes(id)))
      .map((one) => one.name);
    if (!names.length) return this.announce("Nothing selected is in a group");
    this.edit({ groups: names.reduce(ungrouped, this.state.groups) });
    return this.announce(`Ungrouped: ${names.join(", ")}`);
  }

  dissolve(name) {
    this.edit({ groups: ungrouped(this.state.groups, name) });
    this.announce(`Ungrouped: ${name}`);
  }

  renameGroup(old, name) {
    this.edit({ groups: renamedGroup(this.state.groups, old, name) });
    this.announce(name ? `The group is called ${name}` : "A group needs a name");
  }

  leaveGroup(name, id) {
    this.edit({
      groups: this.state.groups.map((one) =>
        one.name === name ? { ...one, members: one.members.filter((other) => other !== id) } : one,
      ),
    });
    this.announce(`Taken out of ${name}`);
  }

  startRename() {
    if (this.view.clicked < 0) return this.announce("Click a node first");
    this.renaming = "node";
    return this.look({ tab: "node" });
  }

  stopRename() {
    this.renaming = "";
    this.soon();
  }

  /** A label is the feature's: all its places in the graph take it. */
  rename(row, label) {
    const { graph } = this,
      labels = { ...this.state.labels };
    for (let other = 0; other < graph.count; other += 1) {
      const same =
        other === row ||
        (graph.kind[row] === FEATURE &&
          graph.kind[other] === FEATURE &&
          graph.layer[other] === graph.layer[row] &&
          graph.feature[other] === graph.feature[row]);
      if (same && label) labels[graph.id[other]] = label;
      else if (same) delete labels[graph.id[other]];
    }
    this.renaming = "";
    this.edit({ labels });
    this.announce(label ? `Labelled ${label}` : "Label taken back");
    this.stage.element.focus({ preventScroll: true });
  }

  moved(key, place) {
    const group = this.state.groups.find((one) => `group ${one.name}` === key);
    if (group)
      this.edit({ groups: this.state.groups.map((one) => (one === group ? { ...one, place } : one)) });
    else this.edit({ places: { ...this.state.places, [key]: place } });
  }

  suggest() {
    const { paths } = pathsBetween({ graph: this.graph, state: { from: null, to: null } }, 12);
    const steps = suggestion(this.graph, paths).map((row) => this.graph.id[row]);
    this.edit({ pins: [...new Set([...this.state.pins, ...steps])] });
    this.announce(`${steps.length} nodes of the strongest paths pinned`);
  }

  firstRow() {
    const { scene, answer } = this.view;
    return this.stage.markOf(answer) ? answer : scene.marks.length ? scene.marks[0].row : -1;
  }

  // Where one looks.

  hover(row, edge = null) {
    this.stage.setHover(row, edge);
    const id = row < 0 ? "" : this.graph.id[row];
    for (const one of this.panel.querySelectorAll(".node"))
      one.classList.toggle("hovered", one.dataset.id === id);
    if (this.otherView) this.second.setHover(row < 0 ? -1 : this.counterpart(row));
  }

  hoverPanel(event) {
    const way = event.target.closest && event.target.closest("[data-path]");
    this.stage.path = way ? way.dataset.path.split(" ").map(Number) : [];
    const found = event.target.closest && event.target.closest("[data-id]");
    this.hover(found ? (this.graph.row.get(found.dataset.id) ?? -1) : -1);
  }

  hoverOther(row) {
    this.second.setHover(row);
    this.stage.setHover(row < 0 ? -1 : this.counterpart(row, true));
  }

  /** The same feature, token or answer in the other graph. */
  counterpart(row, back = false) {
    const [from, to] = back ? [this.other, this.graph] : [this.graph, this.other];
    for (let other = 0; other < to.count; other += 1) {
      if (
        to.kind[other] !== from.kind[row] ||
        to.feature[other] !== from.feature[row] ||
        to.token[other] !== from.token[row]
      )
        continue;
      if (to.kind[other] !== FEATURE || to.layer[other] === from.layer[row]) return other;
    }
    return -1;
  }

  chooseOther(row) {
    this.otherClicked = this.other.id[row];
    const here = this.counterpart(row, true);
    if (here >= 0) this.choose(here);
    this.soon();
  }

  search(query, rows) {
    this.found = rows.slice(0, 60);
    this.view.found = this.found;
    this.state = clean({ query }, this.state);
    this.stage.paintOver();
    this.remember();
  }

  zoomed(zoom) {
    this.state = clean({ zoom: zoom && zoom.map((one) => Math.round(one * 1000) / 1000) }, this.state);
    this.stage.zoom = this.state.zoom;
    if (this.painting) return;
    this.painting = true;
    requestAnimationFrame(() => {
      this.painting = false;
      this.stage.paint();
      this.remember();
    });
  }

  openTab(tab, focus = false) {
    this.look({ tab });
    if (focus)
      setTimeout(() => {
        const input = this.panel.querySelector("input");
        if (input) input.focus();
      }, 60);
  }

  tabKey(event, name) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const at = TABS.findIndex(([one]) => one === name),
      next = (at + step + TABS.length) % TABS.length;
    this.openTab(TABS[next][0]);
    this.tabs[next].focus();
  }

  focusTitle() {
    const title = this.panel.querySelector(".title");
    if (title) title.focus();
  }

  escape() {
    if (this.renaming) return this.stopRename();
    this.look({ clicked: null, chosen: [] });
    return this.announce("Nothing selected");
  }

  turnTheme() {
    const next = { auto: this.dark ? "light" : "dark", light: "dark", dark: "light" };
    this.look({ theme: next[this.state.theme] || "auto" });
  }

  fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (this.root.requestFullscreen)
      this.root.requestFullscreen().catch(() => this.announce("This window does not allow full screen"));
  }

  announce(text) {
    this.live.textContent = text;
  }

  // Other graphs, files, the server.

  async openGraph(index) {
    await this.load(index);
    const { theme, tab } = this.state;
    this.base = { ...this.opening(), graph: index };
    Object.assign(this, {
      state: { ...this.base, theme, tab },
      history: new History(),
      other: null,
      otherView: null,
    });
    this.refresh();
  }

  async compareWith(index, quiet = false) {
    Object.assign(this, { other: null, otherView: null, otherClicked: null });
    if (index !== null && this.graphs[index] && index !== this.state.graph) {
      this.other = await this.graphs[index].load();
      this.stages.classList.add("two");
      this.showOther(null);
    }
    this.state = clean({ other: this.other ? index : null }, this.state);
    this.state.other = this.other ? index : null;
    if (!quiet) this.refresh();
  }

  async openFile(file) {
    try {
      const blocks = [...(await file.text()).matchAll(/class="tracer-graph">([^<]*)<\/script>/g)];
      const graph = await readGraph(fromBase64(blocks[0][1]));
      graph.packed = fromBase64(blocks[0][1]);
      this.graphs.push({
        name: graph.name || visible(graph.metadata.prompt || file.name),
        load: async () => graph,
      });
      await this.compareWith(this.graphs.length - 1);
    } catch {
      this.announce(`${visible(file.name)} is no page that tracer exported`);
    }
  }

  exportTable(what = "nodes") {
    saveTable(this.view, what);
  }

  saveCopy() {
    savePage(
      [this.graph, this.other].filter(Boolean),
      { ...this.state, graph: 0, other: this.other ? 1 : null },
      this.view,
    );
  }

  async save() {
    if (!this.host.save) {
      if (this.host.page) this.saveCopy();
      return;
    }
    const { groups, labels, ...view } = this.state;
    try {
      await this.host.save(this.state.graph, {
        view: { ...view, labels: {}, graph: 0, other: null, query: "" },
        groups,
        labels,
      });
      this.announce("Saved");
    } catch (error) {
      this.announce(`Not saved: ${visible(error.message)}`);
    }
  }

  planned(patch) {
    Object.assign(this.plan, patch);
    this.problem = "";
    this.soon();
  }

  async runWhatIf(changes, mode, key) {
    Object.assign(this, { running: true, problem: "" });
    this.soon();
    try {
      this.measured = { ...(await this.host.whatIf(this.state.graph, { changes, mode })), key };
    } catch (error) {
      this.problem = visible(error.message);
    }
    this.running = false;
    this.soon();
  }
}

const digits = (value) => (typeof value === "number" && Number.isFinite(value) ? value.toFixed(2) : "–");

function focusables(element) {
  return [...element.querySelectorAll("button, input, select, summary, [tabindex]")];
}
