"use strict";
// Draws the rows in view: ten thousand of them at once would hold the browser up. Text goes in as text, never as markup.
(() => {
  const one = (selector) => document.querySelector(selector);
  const data = JSON.parse(one("#data").textContent);
  const rows = data.rows.map((values) => Object.fromEntries(data.columns.map((name, n) => [name, values[n]])));
  const searched = ["id", "state", "marks", "python", "ray", "commit", "closure", "reason", "message"];
  const bytes = (count) => {
    if (count === null) return "–";
    for (const unit of ["B", "KiB", "MiB", "GiB"]) {
      if (Math.abs(count) < 1024) return `${unit === "B" ? count : count.toFixed(1)} ${unit}`;
      count /= 1024;
    }
    return `${count.toFixed(1)} TiB`;
  };
  const age = (at) => {
    const seconds = Math.max(0, (Date.now() - Date.parse(at)) / 1000);
    for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]])
      if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
    return `${Math.floor(seconds)} s`;
  };
  const natural = new Intl.Collator("en", { numeric: true });
  const order = { failed: 0, stale: 1, building: 2, pending: 3, ready: 4 };
  const columns = [
    { name: "state", title: "State", width: 8, text: (row) => row.state, key: (row) => order[row.state] },
    { name: "id", title: "Environment", width: 17, text: (row) => (row.marks ? `${row.id} (${row.marks})` : row.id) },
    { name: "generation", title: "Gen", width: 5, number: true },
    { name: "python", title: "Python", width: 7 },
    { name: "ray", title: "Ray", width: 6 },
    { name: "size", title: "Size", width: 8, number: true, text: (row) => bytes(row.size) },
    { name: "saved", title: "Saved", width: 8, number: true, text: (row) => bytes(row.saved) },
    { name: "built", title: "Age", width: 6, number: true, text: (row) => (row.built ? age(row.built) : "–"),
      key: (row) => (row.built ? -Date.parse(row.built) : null) },
    { name: "commit", title: "Commit", width: 8, text: (row) => row.commit.slice(0, 8) },
    { name: "error", title: "Error", width: 21, text: (row) => (row.reason ? `${row.reason}: ${row.message}` : ""),
      key: (row) => row.reason },
    { name: "log", title: "Log", width: 6, key: (row) => row.failure_log || row.build_log },
  ];
  for (const row of rows) row.hay = searched.map((name) => row[name] ?? "").join("\n").toLowerCase();

  const scroll = one("#scroll"), body = one("tbody"), head = one("#table thead tr"), search = one("#search");
  const dialog = one("#details"), HEIGHT = 32, MORE = 12;
  let shown = rows, sorted = { name: "state", down: false }, at = 0, drawn = "";
  const states = new Set();

  const make = (tag, text, names) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (names) made.className = names;
    return made;
  };
  const link = (href, text) => Object.assign(make("a", text), { href });

  const heads = columns.map((column) => {
    const cell = make("th", undefined, column.number ? "number" : "");
    const button = make("button", column.title);
    cell.scope = "col";
    cell.style.width = `${column.width}%`;
    button.type = "button";
    button.addEventListener("click", () => {
      sorted = { name: column.name, down: sorted.name === column.name && !sorted.down };
      choose();
    });
    cell.append(button);
    head.append(cell);
    return { cell, button, column };
  });

  const compare = () => {
    const column = columns.find((each) => each.name === sorted.name);
    const key = column.key ?? ((row) => row[column.name]);
    const sign = sorted.down ? -1 : 1;
    return (a, b) => {
      const x = key(a), y = key(b);
      // What has no value comes last, whichever way.
      if (x === null || y === null) return x === y ? natural.compare(a.id, b.id) : x === null ? 1 : -1;
      const found = typeof x === "number" ? x - y : natural.compare(x, y);
      return found ? sign * found : natural.compare(a.id, b.id);
    };
  };

  let ordered = null, orderedBy = "";
  function choose() {
    const by = `${sorted.name} ${sorted.down}`;
    // Only a click on a title sorts; a key in the search box goes through the rows once.
    if (orderedBy !== by) [ordered, orderedBy] = [[...rows].sort(compare()), by];
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = ordered.filter(
      (row) => (!states.size || states.has(row.state)) && words.every((word) => row.hay.includes(word)),
    );
    for (const { cell, button, column } of heads) {
      const here = column.name === sorted.name;
      cell.setAttribute("aria-sort", here ? (sorted.down ? "descending" : "ascending") : "none");
      button.textContent = column.title + (here ? (sorted.down ? " ▼" : " ▲") : "");
    }
    for (const button of document.querySelectorAll("[data-state]"))
      button.setAttribute("aria-pressed", String(states.has(button.dataset.state)));
    one("#found").textContent = shown.length === rows.length ? `${rows.length} environments`
      : `${shown.length} of ${rows.length} environments`;
    one("#table").setAttribute("aria-rowcount", String(shown.length + 1));
    at = 0;
    scroll.scrollTop = 0;
    draw(true);
  }

  const gap = (height) => {
    const row = make("tr", undefined, "gap"), cell = make("td");
    row.setAttribute("aria-hidden", "true");
    cell.colSpan = columns.length;
    cell.style.height = `${height}px`;
    row.append(cell);
    return row;
  };

  const line = (row, n) => {
    const made = make("tr");
    made.tabIndex = n === at ? 0 : -1;
    made.dataset.n = n;
    made.setAttribute("aria-rowindex", String(n + 2));
    for (const column of columns) {
      const cell = make(column.name === "id" ? "th" : "td", undefined, column.number ? "number" : "");
      if (column.name === "id") cell.scope = "row";
      if (column.name === "log") {
        const href = row.failure_log ?? row.build_log;
        if (href) cell.append(Object.assign(link(href, row.failure_log ? "failure" : "build"), { tabIndex: -1 }));
      } else {
        const text = column.text ? column.text(row) : row[column.name] ?? "–";
        if (column.name === "state") cell.append(make("span", text, `state ${row.state}`));
        else cell.textContent = text;
        if (column.name === "built" && row.built) cell.title = row.built;
        if (column.name === "error" || column.name === "id") cell.title = text;
      }
      made.append(cell);
    }
    return made;
  };

  function draw(anew) {
    const first = Math.max(0, Math.floor(scroll.scrollTop / HEIGHT) - MORE);
    const last = Math.min(shown.length, first + Math.ceil(scroll.clientHeight / HEIGHT) + 2 * MORE);
    if (!anew && drawn === `${first} ${last}`) return;
    drawn = `${first} ${last}`;
    const held = body.contains(document.activeElement);
    body.replaceChildren(gap(first * HEIGHT), ...shown.slice(first, last).map((row, n) => line(row, first + n)),
      gap((shown.length - last) * HEIGHT));
    // The row that has the focus may be out of view: Tab finds the table all the same.
    const here = body.querySelector(`[data-n="${at}"]`);
    if (held) (here ?? scroll).focus({ preventScroll: true });
    scroll.tabIndex = here ? -1 : 0;
  }

  function go(n) {
    at = Math.max(0, Math.min(shown.length - 1, n));
    const top = at * HEIGHT, room = scroll.clientHeight - 2 * HEIGHT;
    if (top < scroll.scrollTop) scroll.scrollTop = top;
    else if (top > scroll.scrollTop + room) scroll.scrollTop = top - room;
    draw(true);
    body.querySelector(`[data-n="${at}"]`)?.focus({ preventScroll: true });
  }

  function open(row) {
    const list = one("#details dl");
    one("#details-id").textContent = row.id;
    const logs = make("span");
    if (row.failure_log) logs.append(link(row.failure_log, "failure log"), " ");
    if (row.build_log) logs.append(link(row.build_log, "build log"));
    const told = [
      ["state", make("span", row.marks ? `${row.state} (${row.marks})` : row.state, `state ${row.state}`)],
      ["error", row.reason && `${row.reason}: ${row.message}`], ["failed at", row.at], ["next try", row.retry],
      ["logs", logs.childNodes.length ? logs : null], ["log file", row.path], ["generation", row.generation],
      ["python", row.python], ["ray", row.ray], ["size alone", row.size === null ? null : bytes(row.size)],
      ["saved by sharing", row.saved === null ? null : bytes(row.saved)], ["built", row.built],
      ["commit", row.commit], ["closure", row.closure],
    ];
    list.replaceChildren();
    for (const [name, value] of told) {
      if (value === null || value === undefined) continue;
      const cell = make("dd");
      cell.append(value);
      list.append(make("dt", name), cell);
    }
    dialog.showModal();
  }

  scroll.addEventListener("scroll", () => draw(false), { passive: true });
  addEventListener("resize", () => draw(true));
  search.addEventListener("input", choose);
  for (const button of document.querySelectorAll("[data-state]"))
    button.addEventListener("click", () => {
      const state = button.dataset.state;
      if (!states.delete(state)) states.add(state);
      choose();
    });
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-n]");
    if (!row || event.target.closest("a")) return;
    at = Number(row.dataset.n);
    go(at);
    open(shown[at]);
  });
  dialog.addEventListener("close", () => shown.length && go(at));
  document.addEventListener("keydown", (event) => {
    if (dialog.open || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = document.activeElement === search;
    const inRows = body.contains(document.activeElement) || document.activeElement === scroll;
    const page = Math.max(1, Math.floor(scroll.clientHeight / HEIGHT) - 2);
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: Infinity };
    if (event.key === "/" && !typing) search.focus(), search.select();
    else if (event.key === "Escape" && (typing || inRows)) {
      if (search.value) (search.value = ""), choose();
      search.focus();
    } else if (typing && (event.key === "ArrowDown" || event.key === "Enter") && shown.length) go(at);
    else if (inRows && event.key === "Enter" && shown.length) open(shown[at]);
    else if (inRows && event.key in moves && shown.length) go(moves[event.key]);
    else return;
    event.preventDefault();
  });

  const published = one("#published");
  const tick = () => { published.textContent = `${age(published.dateTime)} ago`; };
  if (published) {
    published.title = published.dateTime;
    tick();
    setInterval(tick, 10000);
  }
  one("#app").hidden = false;
  choose();
})();
