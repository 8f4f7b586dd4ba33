// The flame graph: a tree of functions, drawn from the top down on a canvas.
//
//   |  main                                        |   the root is on top, and the width of a
//   |  serve                    |  build_report    |   function is its share of the metric
//   |  leak_session |  cache    |

const LEVEL = 20;
const LEVELS_SHOWN = 200;

class Flame {
  constructor(session, state, tip) {
    Object.assign(this, { session, state, tip });
    this.trees = {};
    this.canvas = byId("flame");
    this.box = byId("flame-box");
    this.zoomed = -1;
    this.chosen = -1;
    this.colors = new Colors(session);
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => this.hover(null));
    this.canvas.addEventListener("click", (event) => this.zoom(this.find(event)));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    byId("flame-reset").addEventListener("click", () => this.zoom(-1));
    new ResizeObserver(() => this.box.clientWidth !== this.width && this.draw()).observe(this.box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Shows what the rows weigh in the chosen direction. */
  show(values, measured, isShown) {
    const { tree, metric, search } = values;
    this.trees[tree] ??= tree === "callers" ? Tree.byCallers(this.session) : Tree.byAllocators(this.session);
    if (this.weighed?.tree !== this.trees[tree]) this.zoomed = this.chosen = -1;
    this.metric = METRICS[metric];
    this.weighed = this.trees[tree].weigh(measured[metric], isShown);
    if (this.zoomed >= 0 && this.weighed.weight[this.zoomed] === 0) this.zoomed = -1;
    this.isMatch = this.session.matches(search);
    this.draw();
  }

  draw() {
    if (!this.weighed) return;
    const { weight, children, total, tree } = this.weighed;
    this.width = this.box.clientWidth;
    const style = getComputedStyle(document.documentElement);
    this.ink = { text: style.getPropertyValue("--flame-ink"), gap: style.getPropertyValue("--card"), whole: style.getPropertyValue("--flame-whole"), match: style.getPropertyValue("--match"), ring: style.getPropertyValue("--ink"), theme: style.getPropertyValue("--theme").trim() };
    // Layout: rectangles by level, each level from left to right.
    this.levels = [[{ node: -1, x: 0, width: this.width }]];
    const line = this.zoomed >= 0 ? tree.line(this.zoomed) : [];
    line.forEach((node) => this.levels.push([{ node, x: 0, width: this.width }]));
    const base = this.zoomed >= 0 ? weight[this.zoomed] : total;
    let inner = this.levels.at(-1);
    while (base > 0 && inner.length > 0 && this.levels.length < LEVELS_SHOWN) {
      const next = [];
      for (const { node, x } of inner) {
        let left = x;
        for (const child of children.get(node) ?? []) {
          const width = (this.width * weight[child]) / base;
          if (width >= 0.4) next.push({ node: child, x: left, width });
          left += width;
        }
      }
      inner = next;
      if (next.length > 0) this.levels.push(next);
    }
    const height = Math.max(3, this.levels.length) * LEVEL + 1;
    const scale = Math.min(window.devicePixelRatio || 1, 16000 / height);
    this.canvas.width = Math.round(this.width * scale);
    this.canvas.height = Math.round(height * scale);
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    context.font = "12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
    context.textBaseline = "middle";
    this.letter = context.measureText("mmmmmmmmmm").width / 10;
    this.levels.forEach((level, depth) => level.forEach((each) => this.rectangle(context, each, depth, depth < line.length)));
    this.say();
  }

  rectangle(context, { node, x, width }, depth, isAbove) {
    const y = depth * LEVEL;
    const called = node < 0 ? null : this.session.functions[this.weighed.tree.functionOf[node]];
    const isDim = this.isMatch && node >= 0 && !this.isMatch[this.weighed.tree.functionOf[node]];
    context.globalAlpha = isAbove ? 0.55 : isDim ? 0.35 : 1;
    context.fillStyle = called === null ? this.ink.whole : this.isMatch && !isDim ? this.ink.match : this.colors.of(called, this.ink.theme);
    const shown = width > 3 ? width - 1 : width;
    context.fillRect(x, y, shown, LEVEL - 1);
    if (node >= 0 && node === this.chosen) {
      context.strokeStyle = this.ink.ring;
      context.lineWidth = 2;
      context.strokeRect(x + 1, y + 1, Math.max(1, shown - 2), LEVEL - 3);
    }
    const letters = Math.floor((shown - 8) / this.letter);
    if (letters >= 3) {
      context.fillStyle = this.ink.text;
      context.fillText(called === null ? this.wholeText(letters) : fitting(called.name, letters), x + 4, y + LEVEL / 2);
    }
    context.globalAlpha = 1;
  }

  wholeText(letters) {
    const { total } = this.weighed;
    const amount = this.metric.isBytes ? bytes(total) : count(total);
    return fitting(`all: ${amount} ${this.metric.about}`, letters);
  }

  /** The line below the graph: what is searched for, and whether there is anything to see. */
  say() {
    const { weight, total, tree, children } = this.weighed;
    const amount = (value) => (this.metric.isBytes ? bytes(value) : count(value));
    let text = "";
    if (total === 0) {
      text = `Nothing to show: no stack has any (${this.metric.title.toLowerCase()}).`;
    } else if (this.isMatch) {
      // The outermost match on each path, so that nothing counts twice.
      let found = 0;
      const open = [...(children.get(-1) ?? [])];
      while (open.length > 0) {
        const node = open.pop();
        if (this.isMatch[tree.functionOf[node]]) found += weight[node];
        else open.push(...(children.get(node) ?? []));
      }
      text = `Matched: ${amount(found)} of ${amount(total)} (${share(found, total)})`;
    }
    byId("flame-status").textContent = text;
    byId("flame-status").dataset.total = total;
    byId("flame-reset").hidden = this.zoomed < 0;
    if (this.levels.length >= LEVELS_SHOWN) byId("flame-status").textContent += " Deeper calls are not drawn: click one to zoom in.";
  }

  find(event) {
    const place = this.canvas.getBoundingClientRect();
    const level = this.levels?.[Math.floor((event.clientY - place.top) / LEVEL)];
    const x = event.clientX - place.left;
    return level?.find((each) => x >= each.x && x < each.x + Math.max(each.width, 1))?.node ?? -2;
  }

  hover(event) {
    const node = event === null ? -2 : this.find(event);
    this.canvas.style.cursor = node >= -1 ? "pointer" : "default";
    if (node < 0) return this.tip.hide();
    this.tip.show(event, ...this.describe(node));
  }

  describe(node) {
    const { weight, total, tree, children } = this.weighed;
    const { name, module, file, isNote } = this.session.functions[tree.functionOf[node]];
    const inner = (children.get(node) ?? []).reduce((sum, child) => sum + weight[child], 0);
    const amount = (value) => `${this.metric.isBytes ? bytes(value) : count(value)} (${share(value, total)})`;
    const parent = tree.parent[node];
    return [
      element("b", { class: "name" }, name),
      !isNote && element("div", { class: "place" }, [file, module].filter(Boolean).join(" · ")),
      tipLine(this.metric.title, amount(weight[node])),
      this.state.values.tree === "callers" && weight[node] > inner && tipLine("itself", amount(weight[node] - inner)),
      parent >= 0 && tipLine("of its caller's", share(weight[node], weight[parent])),
    ];
  }

  zoom(node) {
    if (node < -1) return;
    this.zoomed = node === this.zoomed && node >= 0 ? this.weighed.tree.parent[node] : node;
    this.chosen = node;
    this.tip.hide();
    this.draw();
  }

  /** Arrows walk the tree, Enter zooms, Escape shows all of it. */
  key(event) {
    const { tree, children } = this.weighed;
    const siblings = children.get(this.chosen < 0 ? -1 : tree.parent[this.chosen]) ?? [];
    const aside = (by) => siblings[siblings.indexOf(this.chosen) + by] ?? this.chosen;
    const moves = {
      ArrowDown: () => children.get(this.chosen)?.[0] ?? this.chosen,
      ArrowUp: () => (this.chosen < 0 ? -1 : tree.parent[this.chosen]),
      ArrowLeft: () => aside(-1),
      ArrowRight: () => aside(1),
    };
    if (moves[event.key]) {
      this.chosen = moves[event.key]();
      this.draw();
      const said = this.chosen < 0 ? [] : this.describe(this.chosen).filter(Boolean);
      byId("flame-said").textContent = said.map((each) => each.textContent).join(", ");
    } else if (event.key === "Enter") {
      this.zoom(this.chosen);
    } else if (event.key === "Escape") {
      this.zoom(-1);
    } else {
      return;
    }
    event.preventDefault();
  }
}

/** Colours by the file that holds the code; functions of one file differ a little. */
class Colors {
  constructor(session) {
    const weight = new Map();
    session.rows.forEach((row, index) => {
      const modules = new Set(Array.from(session.functionsIn(index), (each) => session.functions[each].module));
      for (const module of modules) weight.set(module, (weight.get(module) ?? 0) + row.usage[USAGE.allocated]);
    });
    // The modules that matter most get hues far apart.
    const modules = [...weight].filter(([module]) => module !== null).sort((a, b) => b[1] - a[1]).map(([module]) => module);
    const hues = [28, 205, 145, 330, 265, 60, 180, 0, 95, 300];
    this.hue = new Map(modules.map((module, index) => [module, hues[index] ?? (index * 137) % 360]));
    byId("flame-legend").replaceChildren(
      ...modules.slice(0, 6).map((module) =>
        element("span", { title: module }, element("i", { class: "swatch", style: { background: `hsl(${this.hue.get(module)} 60% 60%)` } }), baseName(module)),
      ),
      ...(modules.length > 6 ? [`and ${modules.length - 6} more`] : []),
    );
  }

  of({ name, module, isNote }, theme) {
    if (isNote) return theme === "dark" ? "#4a4f59" : "#c9ccd2";
    let hash = 0;
    for (let i = 0; i < name.length && i < 200; i += 1) hash = (hash * 31 + name.charCodeAt(i)) | 0;
    const [turn, shade] = [((hash >>> 4) % 17) - 8, (hash >>> 9) % 9];
    const hue = (this.hue.get(module) ?? 0) + turn;
    return theme === "dark" ? `hsl(${hue} 42% ${31 + shade}%)` : `hsl(${hue} 68% ${70 + shade}%)`;
  }
}

/** As much of a name as there is room for: the innermost parts say most. */
function fitting(name, letters) {
  if (name.length <= letters) return name;
  const plain = withoutArguments(name);
  if (plain.length <= letters) return plain;
  const parts = plain.split("::");
  for (let first = 1; first < parts.length; first += 1) {
    const last = parts.slice(first).join("::");
    if (last.length <= letters) return last;
  }
  return `${parts.at(-1).slice(0, Math.max(1, letters - 1))}…`;
}

/** The name without template arguments and parameters: `Vec<T>::push(T)` is `Vec::push`. */
function withoutArguments(name) {
  let plain = "";
  let depth = 0;
  for (const letter of name.length > 2000 ? name.slice(0, 2000) : name) {
    if (letter === "<" || letter === "(") depth += 1;
    else if (letter === ">" || letter === ")") depth = Math.max(0, depth - 1);
    else if (depth === 0) plain += letter;
  }
  // `<T as Trait>::call` leaves `::call`.
  plain = plain.replace(/^(::)+/, "");
  return plain === "" ? name : plain;
}

