// Shows the rows of a task, 25 at a time. The address says which: #system=..&format=..&outcome=..
const data = JSON.parse(document.getElementById("data").textContent);
const SIZE = 25;
const FORMATS = { text_audio: "text + audio", audio_text: "audio + text", audio: "audio only" };
const OUTCOMES = ["answered", "abstained", "ambiguous", "malformed", "error"];
const state = {};

const element = (name, text, className) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
};
const values = (get) => [...new Set(data.rows.map(get).filter((value) => value !== undefined))].sort();
const readings = (row) => row.answers.flatMap((answer) => (answer ? [answer.read[state.protocol]] : [])).filter(Boolean);

// What each filter offers, and whether a row with the answers that are shown passes it.
const filters = {
  system: { title: "System", values: () => data.systems.length > 1 ? data.systems : [] },
  protocol: { title: "Protocol", values: () => data.protocols.length > 1 ? data.protocols : [], needed: true },
  format: { title: "Format", values: () => values((row) => row.format), names: FORMATS, passes: (row) => row.format === state.format },
  source: { title: "Source", values: () => values((row) => row.source), passes: (row) => row.source === state.source },
  file: { title: "File", values: () => values((row) => row.file), passes: (row) => row.file === state.file },
  outcome: { title: "Outcome", values: () => OUTCOMES, passes: (row, shown) => shown.some((read) => read.outcome === state.outcome) },
  label: { title: "Right label", values: () => values((row) => readings(row)[0]?.label), passes: (row, shown) => shown.some((read) => read.label === state.label) },
  read: {
    title: "Label read", values: () => [...new Set(data.rows.flatMap((row) => readings(row).map((read) => read.answer)).filter((value) => value !== undefined)), "∅"],
    skip: () => !data.rows.some((row) => readings(row).some((read) => read.label !== undefined)),
    passes: (row, shown) => shown.some((read) => (read.answer ?? "∅") === state.read),
  },
  group: { title: "Group", values: () => values((row) => row.attributes && "x").length ? [...new Set(data.rows.flatMap((row) => Object.entries(row.attributes ?? {}).map((pair) => pair.join(": "))))].sort() : [], passes: (row) => { const [name, ...rest] = state.group.split(": "); return row.attributes?.[name] === rest.join(": "); } },
  row: { title: "Row", values: () => [], passes: (row) => row.id === state.row || row.id.startsWith(state.row + "#") || row.id.startsWith(state.row + "~") },
  text: { title: "Text", values: () => [], search: true, passes: (row) => JSON.stringify([row.id, row.asked, row.expected, ...row.answers.map((answer) => answer?.said)]).toLowerCase().includes(state.text.toLowerCase()) },
  order: { title: "Order", values: () => data.metrics[state.protocol] ? ["worst first", "best first"] : [], none: "of the data" },
};

const read = () => {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of [...Object.keys(filters), "page"]) state[name] = asked.get(name) ?? "";
  if (!data.protocols.includes(state.protocol)) state.protocol = data.protocols[0];
};
const write = () => {
  const said = Object.entries(state).filter(([, value]) => value !== "");
  history.replaceState(null, "", "#" + new URLSearchParams(said));
};

const choose = (name, value) => {
  state[name] = value;
  if (name !== "page") state.page = "";
  write();
  show();
};

const drawFilters = () => {
  const place = document.getElementById("filters");
  place.replaceChildren();
  for (const [name, filter] of Object.entries(filters)) {
    const offered = filter.skip?.() ? [] : filter.values();
    const label = element("label", filter.title + " ");
    if (filter.search) {
      const input = element("input");
      input.type = "search";
      input.value = state[name];
      input.id = "filter-" + name;
      input.addEventListener("change", () => choose(name, input.value));
      label.append(input);
    } else if (offered.length > (filter.needed || name === "order" ? 0 : 1) || state[name]) {
      const select = element("select");
      select.id = "filter-" + name;
      if (!filter.needed) select.append(new Option(filter.none ?? "all", ""));
      if (state[name] && !offered.includes(state[name])) offered.push(state[name]);
      for (const value of offered) select.append(new Option(filter.names?.[value] ?? value, value));
      select.value = state[name];
      select.addEventListener("change", () => choose(name, select.value));
      label.append(select);
    } else continue;
    place.append(label);
  }
};

const shownAnswers = (row) => row.answers
  .map((answer, number) => ({ ...answer, system: data.systems[number], known: answer !== null }))
  .filter((answer) => answer.known && answer.read[state.protocol] && (!state.system || answer.system === state.system));

const chosen = () => {
  const active = Object.entries(filters).filter(([name, filter]) => filter.passes && state[name]);
  const rows = data.rows.filter((row) => {
    const shown = shownAnswers(row).map((answer) => answer.read[state.protocol]);
    return shown.length && active.every(([, filter]) => filter.passes(row, shown));
  });
  if (!state.order) return rows;
  const sign = (data.metrics[state.protocol]?.better === "lower" ? 1 : -1) * (state.order === "worst first" ? 1 : -1);
  const worst = (row) => {
    const scores = shownAnswers(row).map((answer) => answer.read[state.protocol].score).filter((score) => score !== undefined);
    return scores.length ? Math.max(...scores.map((score) => sign * score)) : -Infinity;
  };
  return rows.map((row) => [worst(row), row]).sort((a, b) => b[0] - a[0]).map(([, row]) => row);
};

const pair = (list, name, text, className) => {
  if (text === undefined || text === null || text === "") return;
  list.append(element("dt", name), element("dd", text, className));
};
const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));

const card = (row) => {
  const made = element("article", undefined, "card example");
  const head = element("h3", row.id + " ");
  head.append(element("small", [row.file, FORMATS[row.format] ?? row.format, row.source].filter(Boolean).join(" · ")));
  made.append(head);
  for (const name of row.audio ?? []) {
    const audio = element("audio");
    audio.controls = true;
    audio.preload = "none";
    audio.src = "audio/" + name;
    made.append(audio);
  }
  if (row.silent) made.append(element("p", row.silent, "note"));
  const list = element("dl");
  pair(list, "asked", row.asked);
  pair(list, "choices", row.choices?.join(" · "));
  pair(list, "expected", row.expected);
  made.append(list);
  for (const answer of shownAnswers(row)) {
    const read = answer.read[state.protocol];
    const line = element("h4", data.systems.length > 1 ? answer.system + " " : "");
    line.append(element("span", read.outcome, "outcome o-" + read.outcome));
    const found = element("dl");
    if (answer.error !== undefined) pair(found, "failed", answer.error, "failed");
    else pair(found, "answered", answer.said || "∅ (empty)");
    if (read.parsed !== undefined) pair(found, "read as", plain(read.parsed));
    if (read.compared !== undefined) {
      pair(found, "compared", read.compared[1] || "∅ (empty)");
      pair(found, "with", read.compared[0] || "∅ (empty)");
    }
    if (read.judge !== undefined) pair(found, "judge", String(read.judge));
    if (read.score !== undefined) pair(found, "score", `${Number(read.score.toFixed(4))} (${data.metrics[state.protocol].name}, of this row)`);
    if (answer.took !== undefined) pair(found, "took", answer.took.toFixed(2) + " s");
    made.append(line, found);
  }
  const attributes = Object.entries(row.attributes ?? {}).map((one) => one.join(": ")).join(" · ");
  if (attributes) made.append(element("p", attributes, "foot"));
  return made;
};

const show = () => {
  drawFilters();
  const rows = chosen();
  const pages = Math.max(1, Math.ceil(rows.length / SIZE));
  const page = Math.min(Math.max(1, Number(state.page) || 1), pages);
  const outcomes = {};
  for (const row of rows) for (const answer of shownAnswers(row)) {
    const outcome = answer.read[state.protocol].outcome;
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  }
  const counted = OUTCOMES.filter((name) => outcomes[name]).map((name) => `${outcomes[name].toLocaleString("en")} ${name}`);
  document.getElementById("count").textContent =
    `${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")} rows` + (counted.length ? `; answers: ${counted.join(", ")}` : "") +
    (data.sound ? "" : "; the recordings were not at hand when this page was made");
  document.getElementById("rows").replaceChildren(...rows.slice((page - 1) * SIZE, page * SIZE).map(card));
  for (const nav of document.querySelectorAll("nav.pages")) {
    nav.replaceChildren();
    nav.hidden = pages < 2;
    for (const [text, to] of [["‹ earlier", page - 1], ["later ›", page + 1]]) {
      const button = element("button", text);
      button.type = "button";
      button.disabled = to < 1 || to > pages;
      button.addEventListener("click", () => { choose("page", String(to)); scrollTo(0, 0); });
      nav.append(button);
    }
    nav.append(element("span", `page ${page} of ${pages}`));
  }
};

addEventListener("hashchange", () => { read(); show(); });
document.addEventListener("play", (event) => {
  for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
}, true);
read();
show();
