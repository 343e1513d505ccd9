"use strict";
// Draws the rows in view: ten thousand of them at once would hold the browser up. Text goes in as text, never as markup.
(() => {
  const one = (selector) => document.querySelector(selector);
  const data = JSON.parse(one("#data").textContent), EVERY = 15000, MOST = 300000;
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
    { name: "id", title: "Environment", width: 17, text: (row) => (row.marks ? `${row.id} (${row.marks})` : row.id),
      key: (row) => row.n },
    { name: "generation", title: "Gen", width: 5, number: true },
    { name: "python", title: "Python", width: 7 },
    { name: "ray", title: "Ray", width: 6 },
    { name: "size", title: "Size", width: 8, number: true, text: (row) => bytes(row.size) },
    { name: "saved", title: "Saved", width: 8, number: true, text: (row) => bytes(row.saved) },
    { name: "built", title: "Age", width: 6, number: true, text: (row) => (row.built ? age(row.built) : "–"),
      key: (row) => (row.built ? -Date.parse(row.built) : null) },
    { name: "commit", title: "Commit", width: 8, plain: true, text: (row) => row.commit.slice(0, 8) },
    { name: "error", title: "Error", width: 21, text: (row) => (row.reason ? `${row.reason}: ${row.message}` : ""),
      key: (row) => row.reason },
    { name: "log", title: "Log", width: 6, plain: true, key: (row) => row.failure_log || row.build_log },
  ];
  let rows = [], ordered = null, orderedBy = "", tag = "";
  function take(from) {
    rows = from.rows.map((values) => Object.fromEntries(from.columns.map((name, n) => [name, values[n]])));
    rows.sort((a, b) => natural.compare(a.id, b.id));
    rows.forEach((row, n) => {
      row.n = n;
      row.hay = searched.map((name) => row[name] ?? "").join("\n").toLowerCase();
    });
    [ordered, tag] = [null, from.tag];
  }
  take(data);

  const scroll = one("#scroll"), body = one("tbody"), head = one("#table thead tr"), search = one("#search");
  const dialog = one("#details"), HEIGHT = 32, MORE = 12;
  let shown = [], sorted = { name: "state", down: false }, at = 0, drawn = "";
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

  function inOrder() {
    const column = columns.find((each) => each.name === sorted.name), sign = sorted.down ? -1 : 1;
    const values = rows.map(column.key ?? ((row) => row[column.name]));
    // Each text becomes its place among the others: texts are compared once each, and not in every step of a sort.
    const texts = [...new Set(values)].filter((one) => typeof one === "string");
    const places = new Map(texts.sort(column.plain ? undefined : natural.compare).map((text, n) => [text, n]));
    const keys = values.map((one) => places.get(one) ?? one);
    const having = rows.filter((row) => keys[row.n] !== null);
    having.sort((a, b) => sign * (keys[a.n] - keys[b.n]) || a.n - b.n);
    // What has no value comes last, whichever way.
    return having.concat(rows.filter((row) => keys[row.n] === null));
  }

  function find() {
    const by = `${sorted.name} ${sorted.down}`;
    // Only a click on a title sorts; a key in the search box goes through the rows once.
    if (!ordered || orderedBy !== by) [ordered, orderedBy] = [inOrder(), by];
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
  }

  function choose() {
    find();
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

  const tick = () => {
    const published = one("#published");
    if (published) [published.textContent, published.title] = [`${age(published.dateTime)} ago`, published.dateTime];
  };

  // Takes over what has been published since: search, filter, order, place and focus stay.
  function renew(from) {
    const id = shown[at]?.id, held = body.contains(document.activeElement), before = at, list = one(".problems");
    take(from);
    one(".told").outerHTML = from.told;
    list?.remove();
    one("main").insertAdjacentHTML("afterbegin", from.problems);
    if (list && one(".problems")) one(".problems").open = list.open;
    for (const button of document.querySelectorAll("[data-state]"))
      button.querySelector("b").textContent = rows.filter((row) => row.state === button.dataset.state).length;
    find();
    const here = shown.findIndex((row) => row.id === id);
    at = here >= 0 ? here : Math.max(0, Math.min(before, shown.length - 1));
    // With the rows above it gone or come, the row that somebody is on stays where it is on the screen.
    const top = scroll.scrollTop + (held ? (at - before) * HEIGHT : 0);
    draw(true);
    scroll.scrollTop = top;
    draw(true);
    tick();
  }

  let heard = Date.now();
  const tell = (failed) => {
    one("#asof").textContent = `${failed ? "no answer since" : "as of"} ${new Date(heard).toTimeString().slice(0, 8)}`;
    one("#asof").className = failed ? "failed" : "";
  };
  async function follow() {
    const began = Date.now();
    // Nothing moves under the eyes of whoever reads details or has marked a text to copy it.
    if (!document.hidden && !dialog.open && getSelection().isCollapsed) {
      try {
        const answer = await fetch("rows.json", { headers: { "If-None-Match": tag }, signal: AbortSignal.timeout(60000) });
        if (answer.status === 200) {
          const from = await answer.json();
          if (from.script !== data.script) return location.reload();
          renew(from);
        } else if (answer.status !== 304) throw new Error(answer.statusText);
        heard = Date.now();
        tell(false);
      } catch {
        tell(true);
      }
    }
    // Ten thousand rows that change all the time take a small part of the daemon's time.
    setTimeout(follow, Math.min(MOST, Math.max(EVERY, 30 * (Date.now() - began))));
  }

  tick();
  setInterval(tick, 10000);
  one("#app").hidden = false;
  choose();
  tell(false);
  setTimeout(follow, EVERY);
})();
