// The page: puts the parts together, and shows what the state says.

/** The box with details that follows the pointer. */
class Tip {
  constructor() {
    this.box = byId("tip");
  }

  show(event, ...content) {
    this.box.replaceChildren(...content.filter(Boolean));
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const [x, y] = [event.clientX + 14, event.clientY + 16];
    this.box.style.left = `${Math.max(4, Math.min(x, innerWidth - width - 8))}px`;
    this.box.style.top = `${y + height > innerHeight ? Math.max(4, event.clientY - height - 12) : y}px`;
  }

  hide() {
    this.box.hidden = true;
  }
}

function tipLine(title, text, className) {
  return element("div", { class: "pair" }, element("span", { class: className ?? "" }, title), element("span", null, text));
}

function header(session, state) {
  const { report, page } = session;
  document.title = `${page.target} · memtrace`;
  byId("target").textContent = page.target;
  byId("command").textContent = page.command ?? "";
  byId("command").title = page.command ?? "";
  byId("capture").textContent = page.capture;
  byId("loss").textContent = page.loss;
  byId("loss").classList.toggle("bad", report.capture.lost_events > 0);
  const caveats = [...report.caveats];
  if (page.folded_stacks > 0) {
    caveats.push(`${counted(page.folded_stacks, "light stack")} of ${count(report.capture.stacks)} are summed up as [other stacks]: sums are right, single ones are in the JSON report`);
  }
  byId("caveats").hidden = caveats.length === 0;
  byId("caveat-list").replaceChildren(...caveats.map((caveat) => element("li", null, caveat)));
  byId("caveat-count").textContent = `${counted(caveats.length, "caveat")} on these numbers`;
  byId("caveats").open = caveats.length <= 3 || report.capture.lost_events > 0;
  byId("cards").replaceChildren(...cards(session, state));
}

/** The numbers that matter most; a click leads to what they are made of. */
function cards({ report }, state) {
  const { totals, leaks, spikes } = report;
  const accused = leaks.filter((leak) => leak.is_leak);
  const worst = accused[0];
  const highest = spikes.reduce((most, spike) => (spike.height_bytes > (most?.height_bytes ?? 0) ? spike : most), null);
  const card = (title, value, about, change, className) =>
    element("button", { type: "button", class: `card ${className ?? ""}`, click: () => state.set(change) }, element("span", { class: "card-title" }, title), element("span", { class: "card-value" }, value), element("span", { class: "card-about" }, about));
  const short = (name) => fitting(name ?? "unknown", 26);
  return [
    card("Live", quantity(totals.live_bytes, true), `in ${counted(totals.live_blocks, "block")}`, { metric: "live", memory: "heap" }),
    card("Peak", quantity(totals.peak_live_bytes, true), `after ${duration(totals.peak_at_ns)}`, { metric: "peak", memory: "heap" }),
    card("Allocated", quantity(totals.allocated_bytes, true), `in ${counted(totals.allocations, "allocation")}`, { metric: "allocated", memory: "heap" }),
    card("Temporary", share(totals.temporary_allocations, totals.allocations), `${counted(totals.temporary_allocations, "allocation")} freed at once`, { metric: "temporary", memory: "heap" }),
    card("Leaks", String(accused.length), worst ? `+${bytes(Math.max(0, worst.bytes_per_hour))}/h ${short(worst.function)}` : "no verdict of a leak", { tab: "leaks", ...(worst && { metric: "leaked", memory: "heap" }) }, worst && "alarm"),
    card("Spikes", String(spikes.length), highest ? `+${bytes(highest.height_bytes)} ${short(highest.contributors[0]?.function)}` : "no sudden growth", { tab: "spikes" }, highest && "notice"),
  ];
}

/** Buttons of which one is pressed. */
function choice(id, name, options, state) {
  byId(id).replaceChildren(...options.map(([value, title, about]) => element("button", { type: "button", "data-choice": value, title: about, click: () => state.set({ [name]: value }) }, title)));
  const show = (values) => {
    for (const button of byId(id).children) button.setAttribute("aria-pressed", String(button.dataset.choice === values[name]));
  };
  state.onChange(show);
  show(state.values);
}

async function start() {
  const session = await unpack();
  const state = new State();
  const tip = new Tip();
  header(session, state);
  choice("metrics", "metric", Object.entries(METRICS).map(([name, { title, about }]) => [name, title, about]), state);
  choice("memories", "memory", [["heap", "Heap", "Blocks of the allocator"], ["mapped", "Mapped", "Mappings of the kernel, the allocator's own among them"]], state);
  choice("trees", "tree", [["callers", "From main", "Callers on top, the allocating functions below"], ["allocators", "From allocators", "The allocating functions on top, their callers below"]], state);
  const timeline = new Timeline(session, state, tip);
  const flame = new Flame(session, state, tip);
  const tabs = new Tabs(session, state);
  const search = byId("search");
  search.addEventListener("input", () => state.set({ search: search.value }));
  byId("range-reset").addEventListener("click", () => state.set({ from: null, to: null }));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.closest("input, textarea")) return;
    event.preventDefault();
    search.focus();
    search.select();
  });
  let measuredRange;
  let measured;
  const show = (values) => {
    const range = chosenRange(values, session);
    const key = JSON.stringify(range);
    if (key !== measuredRange) [measuredRange, measured] = [key, session.measure(range)];
    const isShown = (row) => session.rows[row].memory === values.memory;
    if (search.value !== values.search) search.value = values.search;
    byId("metric-about").textContent = `${METRICS[values.metric].title}: ${METRICS[values.metric].about}${range && values.metric === "peak" ? ", as far as the steps of the timeline show it" : ""}.`;
    flame.show(values, measured, isShown);
    tabs.show(values, measured, isShown);
  };
  // Many changes while the mouse is dragged are one picture.
  let isWaiting = false;
  state.onChange(() => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(() => {
      isWaiting = false;
      show(state.values);
    });
  });
  show(state.values);
  timeline.showRange();
  byId("loading").remove();
  document.body.dataset.ready = "true";
}

start().catch((error) => {
  byId("loading").textContent = `This page cannot be shown: ${error.message}. It needs a browser of 2023 or later (Chrome 80, Firefox 113, Safari 16.4).`;
});
