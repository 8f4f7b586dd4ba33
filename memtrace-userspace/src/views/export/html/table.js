// Tables that can be sorted and opened row by row.

const ROWS_SHOWN = 100;

class Table {
  /**
   * `columns` have a `title`, a `cell(row)` and, if one can sort by them, a `key(row)`; texts sort
   * upwards, numbers downwards. `open(row)` gives what a row shows when it is opened.
   */
  constructor({ columns, sortBy, open, empty }) {
    Object.assign(this, { columns, open, empty, sorted: columns[sortBy], isReversed: false, limit: ROWS_SHOWN });
    this.head = element("tr");
    this.body = element("tbody");
    this.more = element("button", { type: "button", class: "more", click: () => this.showMore() });
    this.box = element("div", { class: "table" }, element("table", null, element("thead", null, this.head), this.body), this.more);
  }

  show(rows) {
    this.rows = rows;
    this.limit = ROWS_SHOWN;
    this.draw();
  }

  showMore() {
    this.limit *= 4;
    this.draw();
  }

  draw() {
    this.head.replaceChildren(...this.columns.map((column) => this.heading(column)));
    const { key } = this.sorted;
    if (key) {
      const turn = this.isReversed ? -1 : 1;
      const keyed = this.rows.map((row) => [key(row), row]);
      keyed.sort(([a], [b]) => turn * (typeof a === "string" ? a.localeCompare(b) : b - a));
      this.rows = keyed.map(([, row]) => row);
    }
    this.body.replaceChildren(...this.rows.slice(0, this.limit).flatMap((row) => this.line(row)));
    if (this.rows.length === 0) {
      this.body.append(element("tr", null, element("td", { class: "empty", colspan: this.columns.length }, this.empty ?? "Nothing.")));
    }
    const left = this.rows.length - this.limit;
    this.more.hidden = left <= 0;
    this.more.textContent = `Show more (${count(Math.max(0, left))} left)`;
  }

  heading(column) {
    const { title, key, about, className } = column;
    if (!key) return element("th", { class: className, scope: "col" }, title);
    const isSorted = column === this.sorted;
    const isUpwards = isSorted && (typeof (this.rows[0] && key(this.rows[0])) === "string") !== this.isReversed;
    const sort = () => {
      this.isReversed = isSorted && !this.isReversed;
      this.sorted = column;
      this.draw();
    };
    const order = isSorted ? (isUpwards ? "ascending" : "descending") : "none";
    return element("th", { class: className, scope: "col", "aria-sort": order }, element("button", { type: "button", title: about ?? `Sort by ${title.toLowerCase()}`, click: sort }, title));
  }

  line(row) {
    const cells = this.columns.map(({ cell, className }) => element("td", { class: className }, cell(row)));
    const line = element("tr", null, ...cells);
    if (!this.open) return [line];
    const toggle = element("button", { type: "button", class: "open", "aria-expanded": "false", "aria-label": "Show the whole stack" });
    line.firstChild.prepend(toggle);
    line.classList.add("opens");
    let opened = null;
    line.addEventListener("click", (event) => {
      if (event.target.closest("a, button.link") || String(getSelection())) return;
      if (opened) {
        opened.remove();
        opened = null;
      } else {
        opened = element("tr", { class: "opened" }, element("td", { colspan: this.columns.length }, this.open(row)));
        line.after(opened);
      }
      toggle.setAttribute("aria-expanded", String(opened !== null));
    });
    return [line];
  }
}

/** A number with a bar behind it that is its share of the whole. */
function barCell(value, whole, isBytes) {
  const part = whole > 0 ? Math.max(0, Math.min(1, value / whole)) : 0;
  return element(
    "div",
    { class: "bar" },
    element("i", { style: { width: `${(100 * part).toFixed(2)}%` } }),
    quantity(value, isBytes),
    element("span", { class: "share" }, share(value, whole)),
  );
}

/** A call path, the allocating function first. */
function stackList(frames) {
  return element(
    "ol",
    { class: "stack" },
    frames.map((frame) =>
      element(
        "li",
        null,
        element("span", { class: "name" }, frame.name),
        element("span", { class: "place", title: [frame.file, frame.module].filter(Boolean).join("\n") }, placeOf(frame)),
        frame.inlined && element("span", { class: "inlined", title: "the compiler put this function's code into its caller" }, "inlined"),
      ),
    ),
  );
}

/** The frames of a call path, which the report has as numbers of places. */
function reportFrames(report, path) {
  return path.flatMap((index) => {
    const { module, frames } = report.places[index];
    return frames.map((frame, depth) => ({ ...frame, module, inlined: depth < frames.length - 1, name: frame.function ?? `?? in ${baseName(module)}` }));
  });
}

