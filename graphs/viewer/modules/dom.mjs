/** Elements without markup: all text goes in as text. */

function apply(element, name, value) {
  if (value === undefined || value === null || value === false) return;
  if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
  else if (name === "style")
    for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
  else if (name === "data") Object.assign(element.dataset, value);
  else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
  else element.setAttribute(name, value === true ? "" : value);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props || {})) if (name !== "value") apply(element, name, value);
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  if (props && "value" in props) apply(element, "value", props.value);
  return element;
}

export function h(tag, props, ...children) {
  return filled(document.createElement(tag), props, children);
}

export function s(tag, props, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

/** A button that says what it does, its key included. */
export function button(label, act, { title, key, pressed, ...props } = {}) {
  const says = key ? `${title || label} (${key})` : title;
  return h(
    "button",
    {
      type: "button",
      title: says,
      "aria-pressed": pressed === undefined ? null : String(pressed),
      on: { click: act },
      ...props,
    },
    label,
  );
}

/** Hands the user a file. */
export function download(name, content, type) {
  const blob = content instanceof Blob ? content : new Blob([content], { type });
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Corners that stand for full screen: fonts often lack the character. */
export function corners() {
  return s(
    "svg",
    { width: 14, height: 14, viewBox: "0 0 14 14", "aria-hidden": "true" },
    s("path", {
      d: "M1 5V1H5M9 1H13V5M13 9V13H9M5 13H1V9",
      fill: "none",
      stroke: "currentColor",
      "stroke-width": 1.6,
    }),
  );
}

/** Small marks for the legend and lists, drawn with the same shapes as the canvas. */
export function glyph(shape, look) {
  const box = s("svg", {
    width: 26,
    height: 16,
    viewBox: "0 0 26 16",
    "aria-hidden": "true",
    class: "glyph",
  });
  if (shape === "box") box.append(s("rect", { x: 2, y: 2, width: 22, height: 12, rx: 4, ...look }));
  if (shape === "stack")
    box.append(
      s("rect", { x: 5, y: 1, width: 19, height: 10, rx: 3, ...look }),
      s("rect", { x: 2, y: 4, width: 19, height: 10, rx: 3, ...look }),
    );
  if (shape === "circle") box.append(s("circle", { cx: 13, cy: 8, r: 5, ...look }));
  if (shape === "diamond") box.append(s("polygon", { points: "13,2 19,8 13,14 7,8", ...look }));
  if (shape === "line") box.append(s("path", { d: "M2 8H24", fill: "none", ...look }));
  if (shape === "tee") box.append(s("path", { d: "M2 8H22M22 3V13", fill: "none", ...look }));
  if (shape === "ring") box.append(s("circle", { cx: 13, cy: 8, r: 6, fill: "none", ...look }));
  return box;
}
