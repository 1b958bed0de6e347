// The panel of lm.explore, for anywidget: plain ES module, no build, no network.
// Everything that came from a model is put in with textContent; nothing is parsed as markup.

const ORANGE = "230,140,0";
const BLUE = "0,114,178";

/** An element with attributes and children; strings become text nodes, functions become listeners. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A token as it is shown: line ends marked, blanks alone made visible. */
function shown(word) {
  if (word === "") return "∅";
  if (word.trim() === "" && !word.includes("\n")) return word.replaceAll(" ", "·");
  return word.replaceAll("\n", "⏎");
}

/** Background of a value: orange above zero, blue below, the stronger the more. */
function heat(value, largest) {
  if (value === undefined || value === null || !Number.isFinite(value)) return "";
  const strength = Math.min(Math.abs(value) / (largest || 1), 1);
  return strength < 0.01 ? "" : `rgba(${value > 0 ? ORANGE : BLUE},${(0.55 * strength).toFixed(2)})`;
}

function number(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 1 ? value.toFixed(2) : value.toFixed(3);
}

function render({ model, el }) {
  const get = (name) => model.get(name) || {};
  const send = (message) => model.send(message);
  let waiting = false; // a generation is under way; what it is for is drawn when it comes
  let again = false; // the sliders moved meanwhile
  let timer = 0;

  // -- parts that stay ----------------------------------------------------------------------------
  const problem = make("div", { class: "llp-problem", role: "alert", hidden: true });
  const about = make("div", { class: "llp-about" });
  const text = make("textarea", { class: "llp-text", rows: 2, spellcheck: "false", "aria-label": "text" });
  const chat = make("input", { type: "checkbox" });
  const chatLabel = make("label", { class: "llp-check" }, chat, "as a chat");
  const read = make("button", { class: "llp-button", type: "button", click: () => reread() }, "Read");
  const tokens = make("div", { class: "llp-tokens", role: "group", "aria-label": "tokens" });
  const legend = make("div", { class: "llp-note" });
  const inspected = make("section", { class: "llp-part llp-inspected", "aria-live": "polite" });
  const query = make("input", {
    class: "llp-search", type: "search", placeholder: "find: a name, a latent, or happy - sad", "aria-label": "find",
  });
  const found = make("div", { class: "llp-found" });
  const items = make("div", { class: "llp-items" });
  const where = make("select", { class: "llp-where", "aria-label": "where it is added", change: () => steer() });
  const length = make("input", { type: "number", min: 1, max: 512, "aria-label": "tokens written", change: () => steer() });
  const temperature = make("input", { type: "number", min: 0, step: 0.1, "aria-label": "temperature", change: () => steer() });
  const seed = make("input", { type: "number", step: 1, "aria-label": "seed", change: () => steer() });
  const write = make("button", { class: "llp-button llp-main", type: "button", click: () => steer(0) }, "Write");
  const runs = make("div", { class: "llp-runs", "aria-live": "polite" });
  const readings = make("ul", { class: "llp-readings" });
  const code = make("pre", { class: "llp-code" });
  const copy = make("button", { class: "llp-button", type: "button", click: () => copyCode() }, "Copy");
  const codeBox = make("details", { class: "llp-codebox" }, make("summary", {}, "Code for this"), copy, code);

  const root = make(
    "div",
    { class: "llp" },
    about,
    problem,
    make("div", { class: "llp-row" }, text, make("div", { class: "llp-side" }, chatLabel, read)),
    tokens,
    legend,
    make(
      "div",
      { class: "llp-columns" },
      inspected,
      make(
        "section",
        { class: "llp-part" },
        make("h4", {}, "Steer"),
        query,
        found,
        items,
        make(
          "div",
          { class: "llp-how" },
          make("label", {}, "where ", where),
          make("label", {}, "tokens ", length),
          make("label", {}, "temperature ", temperature),
          make("label", {}, "seed ", seed),
          write,
        ),
      ),
    ),
    runs,
    readings,
    codeBox,
  );
  el.replaceChildren(root);

  // -- what the page asks for -----------------------------------------------------------------------
  function reread() {
    send({ kind: "text", text: text.value, chat: chat.checked });
  }

  function settings() {
    const edits = [...items.querySelectorAll("[data-key]")].map((row) => ({
      key: row.dataset.key,
      strength: Number(row.querySelector(".llp-strength").value),
      block: Number(row.querySelector(".llp-block").value),
    }));
    return {
      edits,
      where: where.value,
      length: Number(length.value),
      temperature: Number(temperature.value),
      seed: Number(seed.value),
    };
  }

  /** Ask for both continuations, a moment after the last change, and never two at once. */
  function steer(delay = 250) {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (waiting) {
        again = true;
        return;
      }
      waiting = true;
      root.classList.add("llp-waiting");
      send({ kind: "steer", settings: settings() });
    }, delay);
  }

  function done() {
    if (!waiting) return;
    waiting = false;
    root.classList.remove("llp-waiting");
    if (again) {
      again = false;
      steer(0);
    }
  }

  async function copyCode() {
    try {
      await navigator.clipboard.writeText(code.textContent);
      copy.textContent = "Copied";
    } catch {
      const range = document.createRange(); // no clipboard here: select it, so that one key copies
      range.selectNodeContents(code);
      const selection = window.getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      copy.textContent = "Selected";
    }
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  }

  text.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the notebook's own shortcuts stay out of it
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      reread();
    }
  });
  query.addEventListener("keydown", (event) => event.stopPropagation());
  let asking = 0;
  query.addEventListener("input", () => {
    clearTimeout(asking);
    asking = setTimeout(() => send({ kind: "search", query: query.value }), 200);
  });

  // -- what it shows ------------------------------------------------------------------------------------
  function drawAbout() {
    const given = get("about");
    about.textContent = [given.model, given.sae].filter(Boolean).join("\n");
    chatLabel.hidden = !given.can_chat;
    where.replaceChildren(...(given.where || []).map((one) => make("option", { value: one }, one)));
    drawSettings();
  }

  function drawSettings() {
    const given = get("settings");
    where.value = given.where ?? "all";
    for (const [field, name] of [[length, "length"], [temperature, "temperature"], [seed, "seed"]]) {
      if (document.activeElement !== field) field.value = given[name] ?? 0;
    }
  }

  function drawTokens() {
    const given = get("tokens");
    if (document.activeElement !== text) text.value = given.text ?? "";
    chat.checked = Boolean(given.chat);
    const at = get("inspected").position;
    const values = given.values || [];
    tokens.replaceChildren(
      ...(given.words || []).map((word, i) =>
        make(
          "button",
          {
            type: "button",
            class: `llp-token${given.special?.[i] ? " llp-special" : ""}`,
            style: values.length ? `background:${heat(values[i], given.largest)}` : null,
            title: values.length ? `${i}: ${number(values[i])}` : String(i),
            "aria-pressed": String(i === at),
            "data-position": i,
            click: () => send({ kind: "inspect", position: i }),
          },
          shown(word),
        ),
      ),
    );
    const item = (model.get("items") || []).find((one) => one.key === get("settings").show);
    legend.textContent = item && values.length ? `Coloured by ${item.name}; full colour at ±${number(given.largest)}` : "Click a token to look inside.";
  }

  function bar(value, largest) {
    const size = Math.min(Math.abs(value) / (largest || 1), 1) * 100;
    return make("span", { class: "llp-bar" }, make("span", { style: `width:${size.toFixed(0)}%;background:rgba(${value > 0 ? ORANGE : BLUE},0.8)` }));
  }

  function pinButton(key) {
    return make("button", { type: "button", class: "llp-pin", title: "pin, colour and steer with it", click: () => send({ kind: "show", key }) }, "pin");
  }

  function drawInspected() {
    const given = get("inspected");
    const at = given.position;
    for (const one of tokens.children) one.setAttribute("aria-pressed", String(Number(one.dataset.position) === at));
    if (at === undefined) {
      inspected.replaceChildren(make("h4", {}, "Token"), make("div", { class: "llp-note" }, "Nothing is selected."));
      return;
    }
    const parts = [make("h4", {}, `Token ${at}: `, make("span", { class: "llp-word" }, shown(given.word)))];
    const table = (title, rows) => {
      if (rows.length) parts.push(make("h5", {}, title), make("table", {}, make("tbody", {}, ...rows)));
    };
    const values = given.values || [];
    const most = Math.max(...values.map((one) => Math.abs(one.value)), 1e-9);
    table("Pinned", values.map((one) => make("tr", {}, make("td", {}, one.name), make("td", { class: "llp-n" }, number(one.value)), make("td", {}, bar(one.value, most)))));
    const latents = given.latents || [];
    const strongest = Math.max(...latents.map((one) => one.value), 1e-9);
    table("Latents that fire", latents.map((one) =>
      make("tr", {}, make("td", {}, one.name), make("td", { class: "llp-soft" }, one.note), make("td", { class: "llp-n" }, number(one.value)), make("td", {}, bar(one.value, strongest)), make("td", {}, pinButton(one.key))),
    ));
    table("What would be said next, by block", (given.lens || []).map((one) =>
      make("tr", {}, make("td", { class: "llp-soft" }, one.site === "resid_pre[0]" ? "embedding" : one.site), ...one.says.map(([word, p]) =>
        make("td", {}, make("span", { class: "llp-token llp-said", style: `background:rgba(${BLUE},${(0.6 * p).toFixed(2)})`, title: number(p) }, shown(word))))),
    ));
    inspected.replaceChildren(...parts);
  }

  function drawFound() {
    const given = model.get("found") || [];
    const pinned = new Set((model.get("items") || []).map((one) => one.key));
    const fresh = given.filter((one) => !pinned.has(one.key));
    found.replaceChildren(
      ...fresh.map((one) => make("button", { type: "button", class: "llp-hit", click: () => send({ kind: "show", key: one.key }) }, one.name, make("span", { class: "llp-soft" }, ` ${one.note}`))),
    );
    if (query.value && !given.length) found.append(make("div", { class: "llp-note" }, "Nothing of that name."));
  }

  function drawItems() {
    const given = model.get("items") || [];
    const blocks = get("about").blocks || 1;
    const set = Object.fromEntries((get("settings").edits || []).map((one) => [one.key, one]));
    const held = {}; // sliders in the hand keep their places
    for (const row of items.querySelectorAll("[data-key]")) {
      held[row.dataset.key] = { strength: row.querySelector(".llp-strength").value, block: row.querySelector(".llp-block").value };
    }
    const keys = [...items.querySelectorAll("[data-key]")].map((row) => row.dataset.key);
    if (keys.join("\n") === given.map((one) => one.key).join("\n")) {
      markShown();
      return;
    }
    items.replaceChildren(
      ...given.map((item) => {
        const now = held[item.key] || set[item.key] || { strength: 0, block: item.block };
        const says = make("output", { class: "llp-n" }, Number(now.strength).toFixed(2));
        const at = make("output", { class: "llp-n" }, `block ${now.block}`);
        const strength = make("input", {
          type: "range", class: "llp-strength", min: -3, max: 3, step: 0.05, value: now.strength, "aria-label": `strength of ${item.name}`,
          input: (event) => {
            says.textContent = Number(event.target.value).toFixed(2);
            steer();
          },
        });
        const block = make("input", {
          type: "range", class: "llp-block", min: 0, max: blocks - 1, step: 1, value: now.block, "aria-label": `block of ${item.name}`,
          input: (event) => {
            at.textContent = `block ${event.target.value}`;
            steer();
          },
        });
        const name = make("button", { type: "button", class: "llp-name", title: item.note || item.site, click: () => send({ kind: "show", key: get("settings").show === item.key ? "" : item.key }) }, item.name);
        const away = make("button", { type: "button", class: "llp-away", title: "unpin", "aria-label": `unpin ${item.name}`, click: () => send({ kind: "unpin", key: item.key }) }, "×");
        const note = item.note ? `fires on ${item.note}` : item.site;
        return make("div", { class: "llp-item", "data-key": item.key }, name, strength, says, away, make("div", { class: "llp-soft llp-fires", title: note }, note), block, at);
      }),
    );
    if (!given.length) items.replaceChildren(make("div", { class: "llp-note" }, "Nothing is pinned yet: pin a latent of a token, or type two words as happy - sad."));
    markShown();
  }

  function markShown() {
    for (const row of items.querySelectorAll("[data-key]")) row.classList.toggle("llp-chosen", row.dataset.key === get("settings").show);
  }

  function side(title, given, largest) {
    const values = given.values || [];
    return make(
      "section",
      { class: "llp-part llp-run", "data-side": title },
      make("h4", {}, title),
      make("div", { class: "llp-written" }, ...(given.words || []).map((word, i) =>
        make("span", { class: "llp-token", style: values.length ? `background:${heat(values[i], largest)}` : null, title: values.length ? number(values[i]) : null }, word === "\n" ? "⏎\n" : word))),
    );
  }

  function drawRuns() {
    const given = get("runs");
    done();
    if (!given.plain) {
      runs.replaceChildren();
      readings.replaceChildren();
      return;
    }
    runs.replaceChildren(side("unsteered", given.plain, given.largest), side("steered", given.steered, given.largest));
    const lines = [...(given.readings || [])];
    if (given.same && (get("settings").edits || []).some((one) => one.strength)) lines.push("The text is the same: more strength, another block, or another place.");
    readings.replaceChildren(...lines.map((line) => make("li", {}, line)));
  }

  function drawProblem() {
    const said = model.get("problem") || "";
    problem.textContent = said;
    problem.hidden = !said;
    if (said) done();
  }

  const drawn = {
    about: drawAbout, settings: () => { drawSettings(); markShown(); drawTokens(); }, tokens: drawTokens, inspected: drawInspected,
    items: () => { drawItems(); drawFound(); drawTokens(); }, found: drawFound, runs: drawRuns, problem: drawProblem,
    code: () => { code.textContent = model.get("code") || ""; },
  };
  for (const [name, draw] of Object.entries(drawn)) model.on(`change:${name}`, draw);
  // An answer that changes nothing (the same text again) is told as well, so that nobody waits for it.
  const told = (message) => { if (message && message.kind === "done") done(); };
  model.on("msg:custom", told);
  for (const name of ["about", "settings", "tokens", "inspected", "items", "found", "runs", "problem", "code"]) drawn[name]();

  return () => {
    clearTimeout(timer);
    for (const [name, draw] of Object.entries(drawn)) model.off(`change:${name}`, draw);
    model.off("msg:custom", told);
  };
}

export default { render };
