"""How fast the viewer is in a browser: `python -m benchmarks.viewer [--nodes N] [--edges N]`.

A graph of random effects is exported and opened from disk in headless Chromium, which draws on the
processor. Milliseconds, the median and the worst: until the graph stands on the page (from the
start of loading), from a movement of the pointer to the frame that shows what is under it, from a
step of a slider to the frame that shows the graph pruned anew; each with the strongest edges drawn,
and with all. A frame takes 16.7 ms, so nothing can be below that. Bytes: of the page's own code,
and of its data beside the gzipped JSON of the graph, ours and the field's. Needs an installed
Chromium or Chrome, and playwright.
"""

import argparse
import base64
import gzip
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.graph_size import columns, effects
from benchmarks.output import RESULTS, output_file
from graphs import AttributionGraph
from graphs.exchange.tables import edge_list_json
from graphs.viewer import modules

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu"]
PAINTED = """
new MutationObserver((_, observer) => {
  const root = document.querySelector('[data-ready="1"]');
  if (!root) return;
  observer.disconnect();
  requestAnimationFrame(() => setTimeout(() => { window.firstPaint = performance.now(); }, 0));
}).observe(document, { subtree: true, attributes: true, childList: true });
"""
FRAME = """
const frame = (act) => new Promise((done) => {
  const start = performance.now();
  act();
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
});
const rest = () => new Promise((done) => setTimeout(done, 30));
"""
HOVER = """async () => {%s
  const { stage, view } = __viewer, box = stage.element.getBoundingClientRect();
  const [x, y, k] = stage.place, times = [];
  for (let at = 0; at < 40; at += 1) {
    const mark = view.scene.marks[(at * 97) %% view.scene.marks.length];
    const [clientX, clientY] = [box.left + x + k * mark.x, box.top + y + k * mark.y];
    const to = { clientX, clientY, bubbles: true };
    times.push(await frame(() => stage.element.dispatchEvent(new PointerEvent("pointermove", to))));
    await rest();
  }
  return times;
}"""
STEP = """async () => {%s
  const slider = document.querySelector('input[type="range"]'), times = [];
  for (let at = 0; at < 24; at += 1) {
    slider.value = 0.98 - 0.01 * (at %% 12);
    times.push(await frame(() => slider.dispatchEvent(new Event("input", { bubbles: true }))));
    await rest();
  }
  return times;
}"""


def random_graph(nodes: int, edges: int) -> AttributionGraph:
    """A graph of random effects with heavy tails; more edges than can be are not there."""
    rng = np.random.default_rng(0)
    found = columns(nodes, rng)
    tokens = [f" word{at}" for at in range(int(found["position"].max()) + 1)]
    features = np.array(found["kind"]) == "feature"
    found["feature"] = [at if is_one else None for at, is_one in enumerate(features)]
    found["label"] = [f"label {at}, x" if is_one else None for at, is_one in enumerate(features)]
    found["text"] = [tokens[at] for at in found["position"]]
    metadata = {"prompt": "".join(tokens), "tokens": tokens, "model": "random"}
    return AttributionGraph.build(found, effects(found, edges, rng), metadata)


def web_json(graph: AttributionGraph) -> bytes:
    """As little as the field's attribution-graph JSON can say: ids, labels, weights."""
    rows = graph.nodes.to_pylist()
    names = ("id", "kind", "layer", "position", "feature", "label", "influence", "activation")
    links = [
        {
            "source": rows[edge["source"]]["id"],
            "target": rows[edge["target"]]["id"],
            "weight": edge["weight"],
        }
        for edge in graph.edges.select(["source", "target", "weight"]).to_pylist()
    ]
    nodes = [{name: row[name] for name in names} for row in rows]
    return json.dumps({"metadata": graph.metadata, "nodes": nodes, "links": links}).encode()


def sizes(graph: AttributionGraph) -> dict[str, Any]:
    """Bytes of code and of data."""
    data = len(base64.b64encode(graph.packed()))
    ours = len(gzip.compress(edge_list_json(graph.nodes, graph.edges, graph._described), 9))
    theirs = len(gzip.compress(web_json(graph), 9))
    return {
        "code": len((modules.script("page") + modules.style()).encode()),
        "data": data,
        "gzipped_json": ours,
        "gzipped_web_json": theirs,
        "data_over_json": round(data / ours, 3),
        "data_over_web_json": round(data / theirs, 3),
    }


def spread(times: list[float]) -> dict[str, float]:
    """Median and worst."""
    return {"median": round(statistics.median(times), 1), "worst": round(max(times), 1)}


def measure(path: Path, opened: int) -> dict[str, Any]:
    """Milliseconds of one page, opened so many times."""
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, NAMES)), None)
    if browser_path is None:
        raise SystemExit("no Chromium or Chrome is installed: nothing was measured")
    first: list[float] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        for _ in range(opened):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.add_init_script(PAINTED)
            page.goto(path.as_uri())
            page.wait_for_function("() => window.firstPaint", timeout=120_000)
            first.append(page.evaluate("() => window.firstPaint"))
        found: dict[str, Any] = {"browser": browser.version, "first_paint": spread(first)}
        for name, drawn in (("strongest", None), ("all", 1e7)):
            if drawn:
                page.evaluate("(drawn) => __viewer.edit({ drawn, nodes: 1, edges: 1 })", drawn)
                page.wait_for_selector("[data-complete]", timeout=120_000)
            found[f"hover_{name}"] = spread(page.evaluate(HOVER % FRAME))
            found[f"slider_{name}"] = spread(page.evaluate(STEP % FRAME))
        browser.close()
    return found


def main() -> None:
    """Build, export, open, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=3000)
    parser.add_argument("--edges", type=int, default=100_000)
    parser.add_argument("--opened", type=int, default=5, help="Times the page is opened.")
    parser.add_argument("-o", "--output", type=output_file, default=RESULTS / "viewer.json")
    options = parser.parse_args()
    graph = random_graph(options.nodes, options.edges)
    with tempfile.TemporaryDirectory() as folder:
        path = graph.to_html(Path(folder) / "graph.html")
        timed = measure(path, options.opened)
    result = {
        "nodes": graph.nodes.num_rows,
        "edges": graph.effect.nnz,
        "milliseconds": timed,
        "bytes": sizes(graph),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
