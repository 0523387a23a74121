/** What a view is: a plain value, its changes, undo and redo, and the URL fragment that holds it. */

export const START = {
  nodes: 0.8,
  edges: 0.98,
  drawn: 300,
  errors: true,
  steered: false,
  links: "all",
  mode: "graph",
  tab: "node",
  clicked: null,
  chosen: [],
  pins: [],
  groups: [],
  labels: {},
  places: {},
  from: null,
  to: null,
  other: null,
  graph: 0,
  query: "",
  zoom: null,
  theme: "auto",
};

/** Parts that undo brings back; the rest is only where one looks. */
export const EDITED = ["nodes", "edges", "drawn", "errors", "steered", "links", "pins", "groups", "labels", "places"];

export const LINKS = ["all", "input", "output", "either", "both"];

/** A state from anything: unknown parts are dropped, those of a wrong kind stay as they were. */
export function clean(given, base = START) {
  const state = { ...base };
  for (const [name, value] of Object.entries(given || {})) {
    if (!(name in START) || value === undefined) continue;
    if (name === "groups") state.groups = cleanGroups(value);
    else if (name === "labels") state.labels = texts(value);
    else if (name === "places") state.places = spots(value);
    else if (name === "pins" || name === "chosen")
      state[name] = list(value).filter((one) => typeof one === "string");
    else if (name === "zoom")
      state.zoom = list(value).length === 3 && value.every(Number.isFinite) ? value : null;
    else if (name === "nodes" || name === "edges") state[name] = bounded(value, 0.01, 1, base[name]);
    else if (name === "drawn") state.drawn = Math.round(bounded(value, 1, 1e7, base.drawn));
    else if (START[name] === null || typeof value === typeof START[name]) state[name] = value;
  }
  if (!LINKS.includes(state.links)) state.links = "all";
  return state;
}

const list = (value) => (Array.isArray(value) ? value : []);
const record = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});
const texts = (value) =>
  Object.fromEntries(Object.entries(record(value)).filter(([, text]) => typeof text === "string"));
const spots = (value) =>
  Object.fromEntries(
    Object.entries(record(value)).filter(
      ([, spot]) => list(spot).length === 2 && spot.every(Number.isFinite),
    ),
  );

function bounded(value, low, high, otherwise) {
  return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise;
}

export function cleanGroups(value) {
  return list(value)
    .filter((one) => one && typeof one.name === "string" && Array.isArray(one.members))
    .map(({ name, members, place }) => ({
      name,
      members: members.filter((id) => typeof id === "string"),
      place: list(place).length === 2 && place.every(Number.isFinite) ? place : null,
    }))
    .filter((one) => one.members.length);
}

/** Groups after `ids` became one; who was in another leaves it, empty ones go. */
export function grouped(groups, ids, name) {
  const members = [...new Set(ids)];
  const rest = groups.map((one) => ({ ...one, members: one.members.filter((id) => !members.includes(id)) }));
  return [...rest.filter((one) => one.members.length), { name: unused(rest, name), members, place: null }];
}

function unused(groups, name) {
  const taken = new Set(groups.filter((one) => one.members.length).map((one) => one.name));
  let free = name;
  for (let at = 2; taken.has(free); at += 1) free = `${name} ${at}`;
  return free;
}

export function ungrouped(groups, name) {
  return groups.filter((one) => one.name !== name);
}

export function renamedGroup(groups, old, name) {
  if (!name || name === old) return groups;
  const free = unused(
    groups.filter((one) => one.name !== old),
    name,
  );
  return groups.map((one) => (one.name === old ? { ...one, name: free } : one));
}

export function toggled(list, item) {
  return list.includes(item) ? list.filter((one) => one !== item) : [...list, item];
}

/** Past and future of the edited parts. Changes under one key within `pause` ms are one step. */
export class History {
  constructor(pause = 700) {
    Object.assign(this, { past: [], future: [], key: "", when: 0, pause });
  }

  note(state, key, now) {
    const same = key && key === this.key && now - this.when < this.pause;
    if (!same) this.past.push(edited(state));
    this.past = this.past.slice(-200);
    Object.assign(this, { future: [], key, when: now });
  }

  undo(state) {
    return this.move(state, this.past, this.future);
  }

  redo(state) {
    return this.move(state, this.future, this.past);
  }

  move(state, from, to) {
    if (!from.length) return state;
    to.push(edited(state));
    this.key = "";
    return { ...state, ...from.pop() };
  }
}

const CHANGED = {
  nodes: "threshold of nodes",
  edges: "threshold of edges",
  drawn: "edges drawn",
  errors: "error nodes",
  steered: "what steers attention",
  links: "links shown",
  pins: "pins",
  groups: "groups",
  labels: "labels",
  places: "places of boxes",
};

/** What differs between two states, in words; empty where nothing that undo brings back does. */
export function changed(before, after) {
  return EDITED.filter((name) => !same(before[name], after[name]))
    .map((name) => CHANGED[name])
    .join(", ");
}

function edited(state) {
  return Object.fromEntries(EDITED.map((name) => [name, state[name]]));
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** The fragment: what differs from `base`, readable and short. */
export function toFragment(state, base = START) {
  const differing = Object.entries(state).filter(
    ([name, value]) => name in START && !same(value, base[name]),
  );
  return differing.map(([name, value]) => `${name}=${encodeURIComponent(JSON.stringify(value))}`).join("&");
}

export function fromFragment(text, base = START) {
  const given = {};
  for (const part of text.replace(/^#/, "").split("&")) {
    const [name, value] = part.split("=");
    try {
      if (name in START) given[name] = JSON.parse(decodeURIComponent(value));
    } catch {
      /* a torn link: that part stays as it was */
    }
  }
  return clean(given, base);
}
