/** Two pens with the same strokes: one draws on a canvas, the other writes SVG. */

export const FAMILY = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif";

export class CanvasPen {
  constructor(context) {
    this.context = context;
  }

  begin([x, y, k]) {
    this.context.save();
    this.context.translate(x, y);
    this.context.scale(k, k);
  }

  end() {
    this.context.restore();
  }

  /** A canvas keeps strokes for later; reading a point has them drawn now, so that time can be told. */
  settle() {
    this.context.getImageData(0, 0, 1, 1);
  }

  fill(look) {
    const { context } = this;
    context.globalAlpha = look.alpha ?? 1;
    if (look.fill) {
      context.fillStyle = look.fill;
      context.fill();
    }
    if (look.stroke) {
      context.strokeStyle = look.stroke;
      context.lineWidth = look.width ?? 1;
      context.setLineDash(look.dash || []);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  rect(x, y, w, h, look, radius = 0) {
    this.context.beginPath();
    if (radius) this.context.roundRect(x, y, w, h, radius);
    else this.context.rect(x, y, w, h);
    this.fill(look);
  }

  circle(x, y, r, look) {
    this.context.beginPath();
    this.context.arc(x, y, r, 0, 2 * Math.PI);
    this.fill(look);
  }

  polygon(points, look) {
    this.context.beginPath();
    points.forEach(([x, y], at) => (at ? this.context.lineTo(x, y) : this.context.moveTo(x, y)));
    this.context.closePath();
    this.fill(look);
  }

  curve([x, y, a, b, c, d, u, v], look) {
    const { context } = this;
    context.beginPath();
    context.moveTo(x, y);
    context.bezierCurveTo(a, b, c, d, u, v);
    context.globalAlpha = look.alpha ?? 1;
    context.strokeStyle = look.stroke;
    context.lineWidth = look.width;
    context.setLineDash(look.dash || []);
    context.stroke();
    context.globalAlpha = 1;
  }

  line(x, y, u, v, look) {
    this.context.beginPath();
    this.context.moveTo(x, y);
    this.context.lineTo(u, v);
    this.fill({ ...look, fill: null });
  }

  text(x, y, words, { size = 11.5, colour, align = "middle", bold = false }) {
    const { context } = this;
    context.font = `${bold ? "600 " : ""}${size}px ${FAMILY}`;
    context.textAlign = align === "middle" ? "center" : align;
    context.textBaseline = "middle";
    context.fillStyle = colour;
    context.fillText(words, x, y + 0.5);
  }
}

const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
/** Characters that XML cannot hold at all are gone already: every text comes through words.visible. */
const escaped = (text) => String(text).replace(/[&<>"']/g, (char) => ENTITIES[char]);
const short = (value) => String(Math.round(value * 100) / 100);

export class SvgPen {
  constructor(width, height) {
    Object.assign(this, { width, height, parts: [] });
  }

  begin([x, y, k]) {
    this.parts.push(`<g transform="translate(${short(x)} ${short(y)}) scale(${k})">`);
  }

  end() {
    this.parts.push("</g>");
  }

  look({ fill, stroke, width = 1, dash, alpha }) {
    const parts = [`fill="${fill || "none"}"`];
    if (stroke) parts.push(`stroke="${stroke}" stroke-width="${short(width)}"`);
    if (stroke && dash && dash.length) parts.push(`stroke-dasharray="${dash.map(short).join(" ")}"`);
    if (alpha !== undefined && alpha < 1) parts.push(`opacity="${short(alpha)}"`);
    return parts.join(" ");
  }

  rect(x, y, w, h, look, radius = 0) {
    this.parts.push(
      `<rect x="${short(x)}" y="${short(y)}" width="${short(w)}" height="${short(h)}" rx="${radius}" ${this.look(look)}/>`,
    );
  }

  circle(x, y, r, look) {
    this.parts.push(`<circle cx="${short(x)}" cy="${short(y)}" r="${short(r)}" ${this.look(look)}/>`);
  }

  polygon(points, look) {
    this.parts.push(
      `<polygon points="${points.map((point) => point.map(short).join(",")).join(" ")}" ${this.look(look)}/>`,
    );
  }

  curve(points, look) {
    const [x, y, ...rest] = points.map(short);
    this.parts.push(`<path d="M${x} ${y}C${rest.join(" ")}" ${this.look({ ...look, fill: null })}/>`);
  }

  line(x, y, u, v, look) {
    this.parts.push(
      `<path d="M${short(x)} ${short(y)}L${short(u)} ${short(v)}" ${this.look({ ...look, fill: null })}/>`,
    );
  }

  text(x, y, words, { size = 11.5, colour, align = "middle", bold = false }) {
    const anchor = { middle: "middle", left: "start", right: "end" }[align];
    const place = `x="${short(x)}" y="${short(y)}" text-anchor="${anchor}" dominant-baseline="central"`;
    const look = `font-size="${size}" ${bold ? 'font-weight="600" ' : ""}fill="${colour}" xml:space="preserve"`;
    this.parts.push(`<text ${place} ${look}>${escaped(words)}</text>`);
  }

  /** The document, without scripts, fonts or links. */
  done(title) {
    const [width, height] = [short(this.width), short(this.height)];
    const size = `width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"`;
    const head = `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="${escaped(FAMILY)}">`;
    return `${head}<title>${escaped(title)}</title>\n${this.parts.join("\n")}\n</svg>\n`;
  }
}
