// What the page cannot do by itself for the nodes of this pack: show what a run said, colour the sockets,
// and mend values of workflows that older versions saved.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const OURS = "StageVAR";
const SAMPLER = "StageVARSampler";
const WIDGET = "stagevar_result";
const MARGIN = 8; // around the text, in pixels of the canvas
const STORE = "StageVAR.results";
const COLORS = { VAR_MODEL: "#4fb3a5", STAGE_SCHEDULE: "#d9a441", STAGE_REPORT: "#8fa3d9", STAGE_EDIT: "#d98fb5" };
const STYLE = `
:root { ${Object.entries(COLORS).map(([type, color]) => `--color-datatype-${type}: ${color};`).join(" ")} }
.stagevar-result { pointer-events: none; font: 12px/1.35 Inter, Arial, sans-serif; }
.stagevar-result p { margin: 0; padding: 1px 0; color: var(--input-text, #ddd); overflow-wrap: anywhere; }
.stagevar-result p + p { color: var(--descrip-text, #999); }
`;

// --- the result line ---

// Results belong to a run, not to the workflow: they stay in this tab, where a reload finds them again, and
// never in a file.
function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) ?? {};
  } catch {
    return {};
  }
}

const keyOf = (node) => `${node.graph?.id}/${node.id}`;

function keep(node, lines) {
  try {
    sessionStorage.setItem(STORE, JSON.stringify({ ...stored(), [keyOf(node)]: lines }));
  } catch {
    // A full or forbidden storage costs the line after a reload, nothing else.
  }
}

/** The height that the text takes at the node's width; a guess before it is laid out at that width. */
function heightOf(node, text) {
  if (!text.childElementCount) return -2 * MARGIN;
  const width = node.size[0] - 2 * MARGIN;
  if (Math.abs(text.offsetWidth - width) < 20) return text.offsetHeight;
  const linesOf = (p) => Math.ceil(p.textContent.length / Math.max(10, width / 6.5));
  return [...text.children].reduce((height, p) => height + linesOf(p) * 17 + 2, 0);
}

/** Makes room for the text; a node never shrinks by it, so that nothing moves that its owner placed. */
function grow(node) {
  if (window.LiteGraph.vueNodesMode) return; // there the elements of a node decide how tall it is
  const needed = node.computeSize()[1];
  if (needed > node.size[1]) node.setSize([node.size[0], needed]);
  app.canvas?.setDirty(true, true);
}

/** The element of a node's text, in a widget that is never saved and never sent. */
function place(node) {
  const known = node.widgets?.find((widget) => widget.name === WIDGET);
  if (known) return known.element.firstChild;
  const box = document.createElement("div");
  const text = document.createElement("div");
  box.className = "stagevar-result";
  text.setAttribute("role", "status");
  box.append(text);
  const height = () => heightOf(node, text) + 2 * MARGIN;
  const options = { serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: height, getMaxHeight: height };
  const widget = node.addDOMWidget(WIDGET, "stagevar", box, options);
  widget.serialize = false;
  // Vue pages stretch a widget that lays itself out, and would halve the room of a picture below an empty one.
  const layout = widget.computeLayoutSize;
  const layoutOf = () => (window.LiteGraph.vueNodesMode ? undefined : layout);
  Object.defineProperty(widget, "computeLayoutSize", { configurable: true, get: layoutOf });
  const observer = new ResizeObserver(() => grow(node));
  observer.observe(text);
  const removed = widget.onRemove;
  widget.onRemove = function () {
    observer.disconnect();
    return removed?.apply(this, arguments);
  };
  return text;
}

/** A Vue page that undoes makes a node anew, but goes on drawing the element of the node before: takes its place. */
function attach(node, box) {
  if (!window.LiteGraph.vueNodesMode || box.isConnected || node.graph !== app.canvas?.graph) return;
  document.querySelector(`[data-node-id="${node.id}"] .stagevar-result`)?.replaceWith(box);
}

/** Shows lines, each an element of its own: not every page keeps line breaks. */
function show(node, lines) {
  const paragraphs = lines.map((line) => Object.assign(document.createElement("p"), { textContent: line }));
  const text = place(node);
  text.replaceChildren(...paragraphs);
  attach(node, text.parentElement);
  grow(node);
}

/** Shows what a node said last, where it said something. */
function showLast(node) {
  const lines = stored()[keyOf(node)];
  if (Array.isArray(lines) && lines.length) show(node, lines);
}

// --- nodes of the graph ---

const root = () => app.rootGraph ?? app.graph;
const isOurs = (node) => String(node?.type).startsWith(OURS);

/** A node by the id that events name, "12:5" for node 5 in the subgraph of node 12. */
function find(id) {
  let node, graph = root();
  for (const part of String(id).split(":")) {
    node = graph?.nodes.find((candidate) => String(candidate.id) === part);
    graph = node?.subgraph;
  }
  return node;
}

function everyNode() {
  const graphs = [root(), ...(root()?.subgraphs?.values() ?? [])];
  return graphs.flatMap((graph) => graph?.nodes ?? []).filter(isOurs);
}

// --- a run ---

const running = new Set();

function onProgress({ detail }) {
  const node = find(detail.display_node ?? detail.node);
  if (!isOurs(node)) return;
  const scale = `scale ${detail.scale} of ${detail.scales}`;
  running.add(node);
  show(node, [detail.images > 1 ? `image ${detail.image} of ${detail.images}, ${scale}` : scale]);
}

/** A run that failed or was stopped leaves the picture before it, so the text of that picture, too. */
function onEnd() {
  for (const node of running) stored()[keyOf(node)] ? showLast(node) : show(node, []);
  running.clear();
}

// --- old workflows ---

// What older samplers said, which older pages saved as one more widget value.
const STATUS = /\d+x\d+.*, \d+ scales|: (as many|[\d.]+x fewer) FLOPs/s;
const isStatus = (value) => typeof value === "string" && STATUS.test(value);
const REFINE = 9; // the place after the values of 0.1.0, where a status became the value of "refine"

function mended(info) {
  const { widgets_values: values, widgets_values_named: named } = info;
  if (!Array.isArray(values) || !values.some(isStatus)) return info;
  const mend = (value, place) => (place === REFINE && isStatus(value) ? "auto" : value);
  const widgets_values = values.map(mend).filter((value) => !isStatus(value));
  if (!named) return { ...info, widgets_values };
  const names = Object.entries(named).map(([name, value]) => [name, name === "refine" && isStatus(value) ? "auto" : value]);
  return { ...info, widgets_values, widgets_values_named: Object.fromEntries(names.filter(([, value]) => !isStatus(value))) };
}

// --- colours ---

function color() {
  for (const colors of [app.canvas?.default_connection_color_byType, app.canvas?.constructor.link_type_colors]) {
    if (colors) Object.assign(colors, COLORS);
  }
}

app.registerExtension({
  name: "StageVAR.page",
  nodeCreated(node) {
    // At once and empty: an early Vue renderer draws no widget that a node gets later.
    if (isOurs(node) || node.comfyClass?.startsWith(OURS)) place(node);
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith(OURS)) return;
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      executed?.apply(this, arguments);
      if (!output?.text) return; // [] takes away what an earlier run said
      const lines = [output.text].flat().filter((line) => typeof line === "string" && line);
      running.delete(this);
      keep(this, lines);
      show(this, lines);
    };
    if (nodeData.name !== SAMPLER) return;
    const configure = nodeType.prototype.configure;
    nodeType.prototype.configure = function (info) {
      return configure.call(this, mended(info));
    };
  },
  setup() {
    document.head.append(Object.assign(document.createElement("style"), { textContent: STYLE }));
    color();
    // A palette that the user chooses resets the colours of types that it does not know.
    app.ui.settings.addEventListener("Comfy.ColorPalette.change", () => setTimeout(color, 500));
    api.addEventListener("stagevar.progress", onProgress);
    for (const name of ["execution_error", "execution_interrupted", "execution_success"]) api.addEventListener(name, onEnd);
  },
  afterConfigureGraph() {
    color();
    everyNode().forEach(showLast);
  },
});
