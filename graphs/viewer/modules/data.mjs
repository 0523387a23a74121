/** From the bytes of a file to a graph: typed columns, edges by target and by source. */

export const KINDS = ["embedding", "error", "feature", "logit"];
export const [EMBEDDING, ERROR, FEATURE, LOGIT] = KINDS.keys();

const TYPES = {
  u8: Uint8Array,
  i32: Int32Array,
  f32: Float32Array,
  f64: Float64Array,
  u32: Uint32Array,
};

/** Bytes of one column; `planes` are bytes of equal significance side by side, which pack better. */
function column(bytes, { type, coding, offset, length }) {
  const Type = TYPES[type],
    width = Type.BYTES_PER_ELEMENT;
  const raw = bytes.subarray(offset, offset + length * width);
  const plain = new Uint8Array(length * width);
  if (coding === "planes") {
    for (let plane = 0; plane < width; plane += 1) {
      for (let at = 0; at < length; at += 1) plain[at * width + plane] = raw[plane * length + at];
    }
  } else plain.set(raw);
  return new Type(plain.buffer);
}

/** The header (JSON) and the columns of an unpacked payload. */
export function unpack(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const size = view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)));
  const body = bytes.subarray(4 + size);
  const columns = {};
  for (const described of header.columns) columns[described.name] = column(body, described);
  return { header, columns };
}

/** Sources of every row, stored as steps from the one before. */
function unstep(steps, start) {
  const source = new Int32Array(steps.length);
  for (let row = 0; row + 1 < start.length; row += 1) {
    let at = 0;
    for (let edge = start[row]; edge < start[row + 1]; edge += 1) source[edge] = at += steps[edge];
  }
  return source;
}

/** The same edges by source: `edges[start[s] .. start[s + 1]]` leave node s. */
export function bySource(source, count) {
  const start = new Int32Array(count + 1);
  for (const node of source) start[node + 1] += 1;
  for (let node = 0; node < count; node += 1) start[node + 1] += start[node];
  const edges = new Int32Array(source.length),
    next = start.slice();
  for (let edge = 0; edge < source.length; edge += 1) edges[next[source[edge]]++] = edge;
  return { start, edges };
}

/** The absolute input of every row as the model computed it: with what a feature cap left out. */
function asComputed(graph) {
  const { count, start, weight, total, leftOutAbsolute } = graph;
  const computed = Float64Array.from(total);
  for (let row = 0; row < count; row += 1) {
    let left = 0;
    for (let edge = start[row]; edge < start[row + 1]; edge += 1) left += Math.abs(weight[edge]);
    const beyond = left + (leftOutAbsolute[row] || 0) - total[row];
    if (beyond > 1e-9 * total[row]) computed[row] += beyond;
  }
  return computed;
}

/** A graph as every other module reads it. Rows stand in the order of computation. */
export function graphOf({ header, columns }) {
  const count = header.nodes.id.length;
  const start = columns.start,
    source = unstep(columns.source, start);
  const target = new Int32Array(source.length);
  for (let row = 0; row < count; row += 1) target.fill(row, start[row], start[row + 1]);
  const graph = {
    ...header,
    ...columns,
    count,
    start,
    source,
    target,
    id: header.nodes.id,
    text: header.nodes.text,
    label: header.nodes.label,
    tokens: header.metadata.tokens || [],
    row: new Map(header.nodes.id.map((id, row) => [id, row])),
    outputs: bySource(source, count),
  };
  graph.computed = asComputed(graph);
  graph.capped = graph.computed.some((one, row) => one !== graph.total[row]);
  graph.share = new Float64Array(source.length);
  graph.through = new Float64Array(source.length);
  for (let edge = 0; edge < source.length; edge += 1) {
    const at = target[edge],
      size = graph.weight[edge];
    graph.share[edge] = size / (graph.computed[at] || 1);
    graph.through[edge] =
      (Math.abs(size) / (graph.total[at] || 1)) * (graph.influence[at] + graph.weightOf[at]);
  }
  graph.before = header.metadata.pruned || { nodes: 1, edges: 1 };
  return graph;
}

/** Unpacks gzip. */
export async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Base64 text to bytes. */
export function fromBase64(text) {
  const binary = atob(text.trim());
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at += 1) bytes[at] = binary.charCodeAt(at);
  return bytes;
}

/** A graph from packed bytes. */
export async function readGraph(packed) {
  return graphOf(unpack(await inflate(packed)));
}
