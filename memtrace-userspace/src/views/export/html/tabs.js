// The lists below the flame graph.

const TABS = {
  functions: { title: "Functions", make: functionsTab },
  stacks: { title: "Stacks", make: stacksTab },
  leaks: { title: "Leaks", make: leaksTab },
  spikes: { title: "Spikes", make: spikesTab },
  operations: { title: "Operations", make: operationsTab },
  threads: { title: "Threads", make: threadsTab },
  processes: { title: "Processes", make: processesTab },
  blocks: { title: "Blocks", make: blocksTab },
  session: { title: "Session", make: sessionTab },
};

/** The numbers of a row or a function that tables list, in the order of the columns. */
const LISTED = ["live", "peak", "growth", "allocated", "allocations", "temporary"];

const LEAK_CLASSES = {
  linear_growth: "linear growth",
  buffer_leak: "buffer leak",
  listener_leak: "listener leak",
  cache_growth: "cache growth",
  bounded_cache: "levelled off",
  fragmentation: "fragmentation",
  undetermined: "undetermined",
};

class Tabs {
  constructor(session, state) {
    Object.assign(this, { session, state, made: {} });
    const number = { leaks: session.report.leaks.filter((leak) => leak.is_leak).length, spikes: session.report.spikes.length, operations: session.report.operations.length, threads: session.report.threads.length, processes: session.report.target.processes.length };
    this.buttons = Object.entries(TABS).map(([name, { title }]) =>
      element(
        "button",
        { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "tab-panel", click: () => state.set({ tab: name }), keydown: (event) => this.key(event, name) },
        title,
        number[name] !== undefined && element("span", { class: "badge" }, count(number[name])),
      ),
    );
    byId("tabs").replaceChildren(...this.buttons);
  }

  show(values, measured, isShown) {
    for (const button of this.buttons) {
      const isChosen = button.id === `tab-${values.tab}`;
      button.setAttribute("aria-selected", String(isChosen));
      button.tabIndex = isChosen ? 0 : -1;
    }
    this.made[values.tab] ??= TABS[values.tab].make(this.session, this.state);
    const { box, show } = this.made[values.tab];
    byId("tab-panel").setAttribute("aria-labelledby", `tab-${values.tab}`);
    byId("tab-panel").replaceChildren(box);
    show?.(values, measured, isShown);
  }

  key(event, name) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const names = Object.keys(TABS);
    const next = names[(names.indexOf(name) + step + names.length) % names.length];
    this.state.set({ tab: next });
    byId(`tab-${next}`).focus();
  }
}

function numberColumns(valueOf, skip) {
  return LISTED.filter((metric) => metric !== skip()).map((metric) => ({
    title: METRICS[metric].title,
    about: METRICS[metric].about,
    className: "right",
    key: (row) => valueOf(row, metric),
    cell: (row) => quantity(valueOf(row, metric), METRICS[metric].isBytes),
  }));
}

/** Functions, with what they allocated themselves and with their callees. */
function functionsTab(session, state) {
  let metric = "live";
  let whole = 0;
  const table = new Table({
    sortBy: 1,
    empty: "No function has any.",
    columns: [
      {
        title: "Function",
        key: (row) => row.called.name,
        cell: ({ called }) => [
          element("button", { type: "button", class: "link name", title: `Search for ${called.name}`, click: () => state.set({ search: called.name }) }, called.name),
          element("span", { class: "place", title: [called.file, called.module].filter(Boolean).join("\n") }, placeOf(called)),
        ],
      },
      { title: "Self", about: "What the function allocated itself", className: "right wide", key: (row) => row.own[metric], cell: (row) => barCell(row.own[metric], whole, METRICS[metric].isBytes) },
      { title: "Total", about: "With all that it called", className: "right wide", key: (row) => row.total, cell: (row) => barCell(row.total, whole, METRICS[metric].isBytes) },
      { title: "Allocated", about: "Allocated by itself, freed or not", className: "right", key: (row) => row.own.allocated, cell: (row) => quantity(row.own.allocated, true) },
      { title: "Allocations", about: "Calls that allocated, by itself", className: "right", key: (row) => row.own.allocations, cell: (row) => quantity(row.own.allocations, false) },
      { title: "Temporary", about: "Of these, freed by their thread almost at once", className: "right", key: (row) => row.own.temporary, cell: (row) => quantity(row.own.temporary, false) },
    ],
  });
  const show = (values, measured, isShown) => {
    metric = values.metric;
    whole = sumOf(measured[metric], isShown);
    const sums = () => new Float64Array(session.functions.length);
    const total = sums();
    const own = { [metric]: sums(), allocated: sums(), allocations: sums(), temporary: sums() };
    session.rows.forEach((_, row) => {
      if (!isShown(row)) return;
      const inside = session.functionsIn(row);
      for (const called of inside) total[called] += measured[metric][row];
      for (const [key, sum] of Object.entries(own)) sum[inside[0]] += measured[key][row];
    });
    const isMatch = session.matches(values.search);
    const rows = [];
    session.functions.forEach((called, index) => {
      const isListed = (!isMatch || isMatch[index]) && (total[index] !== 0 || own.allocations[index] > 0);
      const numbers = (sum) => [sum[0], sum[1][index]];
      if (isListed) rows.push({ called, total: total[index], own: Object.fromEntries(Object.entries(own).map(numbers)) });
    });
    table.show(rows);
  };
  return { box: table.box, show };
}

function sumOf(values, isShown) {
  return values.reduce((sum, value, row) => (isShown(row) && value > 0 ? sum + value : sum), 0);
}

/** Call paths, each of which opens. */
function stacksTab(session) {
  let metric = "live";
  let whole = 0;
  let measured = null;
  const valueOf = (row, key) => measured[key][row];
  const inner = (row) => session.functions[session.functionOf[session.rows[row].node]];
  const make = () =>
    new Table({
      sortBy: 1,
      empty: "No stack has any.",
      open: (row) => [
        session.rows[row].stacks > 1 && element("p", { class: "place" }, `${counted(session.rows[row].stacks, "stack")} with the same lines, or folded into one`),
        stackList(session.frames(row)),
      ],
      columns: [
        {
          title: "Allocated by",
          key: (row) => inner(row).name,
          cell: (row) => {
            const frames = session.frames(row);
            const callers = frames.slice(1, 4).map(({ name }) => withoutArguments(name));
            return [
              element("span", { class: "name" }, frames[0].name),
              element("span", { class: "place" }, `${session.rows[row].api}${placeOf(frames[0]) ? ` · ${placeOf(frames[0])}` : ""}`),
              callers.length > 0 && element("div", { class: "callers" }, `← ${callers.join(" ← ")}${frames.length > 4 ? " ← …" : ""}`),
            ];
          },
        },
        { title: METRICS[metric].title, about: METRICS[metric].about, className: "right wide", key: (row) => valueOf(row, metric), cell: (row) => barCell(valueOf(row, metric), whole, METRICS[metric].isBytes) },
        ...numberColumns(valueOf, () => metric),
      ],
    });
  const box = element("div");
  let table = null;
  const show = (values, now, isShown) => {
    if (!table || values.metric !== metric) {
      metric = values.metric;
      table = make();
      box.replaceChildren(table.box);
    }
    measured = now;
    whole = sumOf(measured[metric], isShown);
    const isMatch = session.matches(values.search);
    const rows = session.rows.map((_, row) => row).filter((row) => {
      return isShown(row) && (measured[metric][row] !== 0 || measured.allocations[row] > 0) && (!isMatch || session.functionsIn(row).some((index) => isMatch[index]));
    });
    table.show(rows);
  };
  return { box, show };
}

/** The verdicts, with their evidence. */
function leaksTab(session, state) {
  const { leaks, leak_detection: detection } = session.report;
  const card = (leak) => {
    const frames = reportFrames(session.report, leak.places);
    const [name, place] = makerOf(frames);
    const parts = leak.survival.map((cohort) => cohort.live_bytes);
    const kept = leak.survival.reduce((sum, cohort) => sum + cohort.live_blocks, 0);
    const made = leak.survival.reduce((sum, cohort) => sum + cohort.allocated_blocks, 0);
    return element(
      "article",
      { class: `finding ${leak.is_leak ? leak.level : "healthy"}` },
      element(
        "header",
        null,
        element("span", { class: "amount" }, leak.is_leak ? `+${bytes(Math.max(0, leak.bytes_per_hour))}/h` : bytes(leak.live_bytes)),
        leak.is_leak && element("span", { class: "muted" }, `± ${bytes(leak.bytes_per_hour_plus_minus)}`),
        element("span", { class: "kind" }, LEAK_CLASSES[leak.class] ?? leak.class),
        leak.is_leak && element("span", { class: "muted" }, `${leak.confidence} confidence`),
      ),
      element("button", { type: "button", class: "link name", title: `Search for ${name}`, click: () => state.set({ search: name, metric: "live" }) }, name),
      element("span", { class: "place" }, place),
      element(
        "p",
        null,
        `${bytes(leak.live_bytes)} in ${counted(leak.live_blocks, "block")}; ${bytes(leak.aged_bytes)} of it older than a tenth of the session. `,
        made > 0 && `${share(kept, made)} of the blocks survived. `,
        `The oldest is ${duration(Math.max(0, session.duration - leak.oldest_ns))} old. `,
        leak.limit_in_ns !== null && `The memory limit is reached in ${duration(leak.limit_in_ns)}.`,
      ),
      parts.length > 1 && bars(parts, "live by age, oldest first"),
      element("details", null, element("summary", null, "Call path"), stackList(frames)),
    );
  };
  const accused = leaks.filter((leak) => leak.is_leak);
  const rest = leaks.filter((leak) => !leak.is_leak);
  const box = element(
    "div",
    { class: "findings" },
    accused.length === 0 &&
      element("p", { class: "empty" }, session.duration < detection.needed_ns ? `No verdict: the session lasted ${duration(session.duration)}, and nobody is accused before ${duration(detection.needed_ns)}.` : "No call path grows without end."),
    accused.map(card),
    detection.suppressed.map((each) => element("p", { class: "muted" }, `suppressed by ${each.pattern}: ${counted(each.leaks, "leak")}, ${bytes(each.live_bytes)} live`)),
    rest.length > 0 && [element("h3", null, "Watched, and no leak"), rest.map(card)],
  );
  return { box };
}

/** Names of who allocates. */
function makerOf([first]) {
  return first ? [first.name, placeOf(first)] : ["unknown", ""];
}

/** Numbers as small bars; `name` says what a bar's number is. */
function bars(values, title, name = bytes) {
  const most = Math.max(1, ...values);
  return element(
    "figure",
    { class: "bars" },
    element("div", null, values.map((value) => element("i", { title: name(value), style: { height: `${Math.max(2, (100 * value) / most)}%` } }))),
    element("figcaption", null, title),
  );
}

function spikesTab(session, state) {
  const card = (spike) =>
    element(
      "article",
      { class: `finding ${spike.severity}` },
      element(
        "header",
        null,
        element("span", { class: "amount" }, `+${bytes(spike.height_bytes)}`),
        element("span", { class: "kind" }, `${spike.severity}, ${memoryOf(spike)}`),
        element("span", { class: "muted" }, `from ${duration(spike.start_ns)} to ${duration(spike.end_ns)}, ${spike.returned_ns === null ? `not given back: ${bytes(spike.left_bytes)} of it held at the end` : `back at ${duration(spike.returned_ns)}`}`),
        element("button", { type: "button", class: "chip", click: () => state.set(rangeOfSpike(spike, session)) }, "Show what grew"),
      ),
      element(
        "ul",
        { class: "makers" },
        spike.contributors.map((maker) => {
          const frames = reportFrames(session.report, maker.places);
          const [name, place] = makerOf(frames);
          return element("li", null, barCell(maker.bytes, spike.measured_bytes, true), element("details", null, element("summary", null, element("span", { class: "name" }, name), element("span", { class: "place" }, place)), stackList(frames)));
        }),
      ),
      spike.threads.length > 0 && element("p", { class: "muted" }, `by ${spike.threads.map((each) => `${each.name || "?"} (thread ${each.tid}) ${bytes(each.bytes)}`).join(", ")}`),
    );
  const { spikes } = session.report;
  return { box: element("div", { class: "findings" }, spikes.length === 0 ? element("p", { class: "empty" }, "No sudden growth.") : spikes.map(card)) };
}

/** Threads: the blocks that they allocated, whoever freed them. */
/** Columns of what rows of the report used of the heap, and of what they have mapped. */
function usageColumns() {
  const heap = (title, key, isBytes) => ({ title, className: "right", key: (row) => row.heap[key], cell: (row) => quantity(row.heap[key], isBytes) });
  return [
    heap("Live", "live_bytes", true),
    heap("At peak", "peak_bytes", true),
    heap("Allocated", "allocated_bytes", true),
    heap("Allocations", "allocations", false),
    { title: "Mapped", className: "right", key: (row) => row.mapped.live_bytes, cell: (row) => quantity(row.mapped.live_bytes, true) },
  ];
}

function operationsTab(session) {
  const table = new Table({
    sortBy: 2,
    empty: "No operations were named: --operation CLASS=FUNCTION does.",
    columns: [
      { title: "Operation", key: (row) => row.name, cell: (row) => element("span", { class: "name" }, row.name) },
      ...usageColumns(),
      { title: "Spikes", className: "right", key: (row) => row.spikes, cell: (row) => count(row.spikes) },
    ],
  });
  table.show(session.report.operations);
  return wholeSession(table.box, "operations");
}

function threadsTab(session) {
  const table = new Table({
    sortBy: 3,
    empty: "No thread was seen.",
    columns: [
      { title: "Thread", key: (row) => row.thread.name, cell: (row) => element("span", { class: "name" }, row.thread.name || "?") },
      { title: "Id", className: "right", key: (row) => row.thread.tid, cell: (row) => String(row.thread.tid) },
      { title: "Process", className: "right", key: (row) => row.thread.pid, cell: (row) => String(row.thread.pid) },
      ...numberColumns((row, metric) => row[metric], () => null),
    ],
  });
  return { box: table.box, show: (values) => table.show(session.measureThreads(chosenRange(values, session))) };
}

function processesTab(session) {
  const table = new Table({
    sortBy: 2,
    empty: "No process was seen.",
    columns: [
      { title: "Process", key: (row) => row.exe, cell: (row) => [element("span", { class: "name" }, baseName(row.exe)), element("div", { class: "callers", title: row.command.join(" ") }, row.command.join(" "))] },
      { title: "Id", className: "right", key: (row) => row.pid, cell: (row) => String(row.pid) },
      ...usageColumns(),
      { title: "Resident", about: "When last sampled", className: "right", key: (row) => row.resident_bytes ?? -1, cell: (row) => (row.resident_bytes === null ? "-" : quantity(row.resident_bytes, true)) },
      { title: "Ran", about: "From when to when it was seen", className: "right", key: (row) => row.started_ns, cell: (row) => `${duration(row.started_ns)} – ${row.ended_ns === null ? "end" : duration(row.ended_ns)}` },
    ],
  });
  table.show(session.report.target.processes);
  return wholeSession(table.box, "processes");
}

/** Says of a list that it does not follow the chosen range. */
function wholeSession(box, what) {
  const note = element("p", { class: "muted" }, `Of the whole session: ${what} do not follow the range on the timeline.`);
  return { box: element("div", null, note, box), show: (values) => (note.hidden = values.from === null && values.to === null) };
}

/** What blocks were like: how large, and how long they lived. */
function blocksTab(session) {
  const { statistics, totals } = session.report;
  const lived = (ns) => (ns === null ? "longer" : ns < 1e6 ? `${ns / 1e3} µs` : duration(ns));
  const histogram = (title, buckets, name) => {
    if (buckets.length === 0) return false;
    const total = buckets.reduce((sum, bucket) => sum + bucket.count, 0);
    const line = ({ from, to, count: blocks, bytes: size }) => {
      return element("tr", null, element("td", null, `${name(from)} – ${name(to)}`), element("td", { class: "right wide" }, barCell(blocks, total, false)), element("td", { class: "right" }, quantity(size, true)));
    };
    const head = ["from, to", "blocks", "bytes"].map((each, index) => element("th", { scope: "col", class: index > 0 ? "right" : "" }, each));
    return [element("h3", null, title), bars(buckets.map((bucket) => bucket.count), `${count(total)} blocks, from ${name(buckets[0].from)} on`, count), element("details", null, element("summary", null, "Numbers"), element("div", { class: "table" }, element("table", null, element("thead", null, element("tr", null, head)), element("tbody", null, buckets.map(line)))))];
  };
  const size = (value) => (value === null ? "more" : bytes(value));
  const box = element(
    "div",
    null,
    element("p", null, `${bytes(statistics.allocated_bytes_per_second)}/s allocated and ${bytes(statistics.freed_bytes_per_second)}/s freed on average; ${share(totals.temporary_allocations, totals.allocations)} of the allocations were temporary.`),
    histogram("Sizes that were asked for", statistics.sizes, size),
    histogram("Lifetimes of blocks that were freed", statistics.lifetimes, lived),
  );
  return wholeSession(box, "these statistics");
}

/** How it was captured, and what it cannot say. */
function sessionTab(session) {
  const { report, page } = session;
  const facts = [
    ["target", page.target],
    ["command", page.command],
    ["captured", page.capture],
    ["events", page.loss],
    ["probes", page.probes],
    ["memtrace", report.capture.tool_version],
    ["started", report.capture.started_unix_s && new Date(report.capture.started_unix_s * 1000).toISOString().replace(".000Z", " UTC").replace("T", " ")],
    ["executable", report.target.exe],
  ];
  const list = (title, rows, columns) => rows.length > 0 && [element("h3", null, title), plainTable(columns, rows)];
  const box = element(
    "div",
    null,
    element("dl", { class: "facts" }, facts.filter(([, value]) => value).map(([name, value]) => [element("dt", null, name), element("dd", null, value)])),
    list("Probes", report.capture.probes.map((probe) => [probe.symbol, baseName(probe.module), `0x${probe.offset.toString(16)}`, probe.kind]), ["function", "file", "offset", "kind"]),
    list("Counters", Object.entries(report.counters).map(([name, value]) => [name, exactly(value)]), ["counter", "value"]),
    list("Code without names", report.modules_without_names.map((each) => [each.module, count(each.addresses), each.reason]), ["file", "addresses", "why"]),
  );
  return { box };
}

function plainTable(titles, rows) {
  return element("div", { class: "table" }, element("table", null, element("thead", null, element("tr", null, titles.map((title) => element("th", { scope: "col" }, title)))), element("tbody", null, rows.map((row) => element("tr", null, row.map((cell) => element("td", null, cell)))))));
}

