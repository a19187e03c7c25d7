/* Filters, sorting, copying and the viewer. The page can be read without it. */
"use strict";
(() => {
  const root = document.documentElement;
  const find = (id) => document.getElementById(id);
  const all = (where, selector) => [...where.querySelectorAll(selector)];
  root.classList.add("scripted");

  // Light and dark: the system's choice unless the reader makes one.
  const themes = ["system", "light", "dark"];
  const setTheme = (name) => {
    if (name === "system") delete root.dataset.theme;
    else root.dataset.theme = name;
    find("theme").textContent = `Theme: ${name}`;
  };
  let theme = "system";
  try {
    theme = localStorage.getItem("report-theme") || theme;
  } catch { /* the browser keeps nothing for files */ }
  setTheme(themes.includes(theme) ? theme : "system");
  find("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "system") + 1) % themes.length];
    setTheme(next);
    try {
      localStorage.setItem("report-theme", next);
    } catch { /* as above */ }
  });

  // Contents: open beside the text, closed above it; the section in view is marked.
  if (matchMedia("(max-width: 62rem)").matches) find("contents").open = false;
  const links = new Map(all(document, "nav a").map((link) => [link.hash.slice(1), link]));
  const inView = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  all(document, "main > section").forEach((section) => inView.observe(section));

  // Tables: a heading sorts by its column, numbers by their value.
  const cellValue = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text.replace(/[,%\s]/g, "").replace("\u2212", "-"));
    return text !== "" && Number.isFinite(number) ? number : text === "–" ? -1 : text.toLowerCase();
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  for (const table of all(document, "table.sortable")) {
    all(table.tHead, "th:not([data-plain])").forEach((heading) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const falls = heading.getAttribute("aria-sort") !== "descending" && heading.classList.contains("number")
          || heading.getAttribute("aria-sort") === "ascending";
        all(table.tHead, "th").forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", falls ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => (falls ? -1 : 1) * compare(cellValue(a, heading.cellIndex), cellValue(b, heading.cellIndex)));
        table.tBodies[0].append(...rows);
      });
    });
  }
  for (const field of all(document, "input[data-table]")) {
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      for (const row of find(field.dataset.table).tBodies[0].rows) {
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      }
    });
  }

  // Copying. Where the clipboard is closed to a page, a selected field and the old command serve.
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const field = document.createElement("textarea");
      field.value = text;
      field.className = "hidden";
      document.body.append(field);
      field.select();
      const done = document.execCommand("copy");
      field.remove();
      return done;
    }
  };
  for (const button of all(document, "[data-copy]")) {
    button.addEventListener("click", async () => {
      const done = await copy(button.dataset.copy);
      find("copied").textContent = done ? `Copied ${button.dataset.copy}` : `Copy it by hand: ${button.dataset.copy}`;
      button.focus();
    });
  }

  // Images.
  const list = document.querySelector(".shots");
  if (!list) return;
  const STEP = 24;
  const classes = all(find("names"), "li").map((item) => item.textContent);
  const models = all(find("models"), "li").map((item) => item.textContent);
  const cards = all(list, ".shot");
  const chosen = (id) => find(id)?.value ?? "";
  let limit = STEP;
  let fitting = cards;

  const state = () => ({
    model: Number(chosen("f-model")),
    label: chosen("f-class"),
    kind: chosen("f-kind"),
    change: chosen("f-change"),
    score: Number(chosen("f-score")),
  });
  // A change has a place for each other model in the first model's boxes, and one place in the others'.
  const changeOf = (box, model) => {
    const names = (box.dataset.g || "").split(" ");
    return (model === 0 ? names.find(Boolean) : names[0]) || "";
  };

  /* Show the boxes of one drawing that fit. Returns how many fit, and the numbers of each kind of error. */
  const apply = (drawing, model, want) => {
    const counts = {};
    let hits = 0;
    const narrow = want.kind || want.change;
    const judge = (box, kind, change) => {
      const inClass = want.label === "" || box.dataset.c === want.label;
      const fits = (!want.kind || kind === want.kind) && (!want.change || change === want.change);
      box.classList.toggle("out", !inClass);
      box.classList.toggle("dim", inClass && !!narrow && !fits);
      if (!inClass) return;
      if (kind && kind !== "correct" && kind !== "ignored") counts[kind] = (counts[kind] || 0) + 1;
      if (fits) hits += 1;
    };
    for (const group of all(drawing, "g.found")) {
      const isOwn = Number(group.dataset.m) === model;
      group.classList.toggle("off", !isOwn);
      if (!isOwn) continue;
      for (const box of group.children) {
        const isLow = Number(box.dataset.s) < want.score;
        box.classList.toggle("low", isLow);
        if (!isLow) judge(box, box.dataset.k, changeOf(box, model));
      }
    }
    for (const box of all(drawing, "g.truth > rect")) {
      const found = (box.dataset.f || "").split(" ")[model] ?? "";
      const isMissed = !box.classList.contains("region") && found !== "" && Number(found) < Math.max(want.score, 0.001);
      box.classList.toggle("missed", isMissed);
      judge(box, isMissed ? "missed" : "", "");
    }
    return { hits, counts };
  };

  const KINDS = all(find("f-kind"), "option").map((option) => option.value).filter((kind) => kind && kind !== "correct");
  const update = () => {
    const want = state();
    const asks = want.label !== "" || want.kind || want.change;
    find("f-score-now").textContent = want.score.toFixed(2);
    fitting = [];
    for (const card of cards) {
      const { hits, counts } = apply(card.querySelector(".drawing"), want.model, want);
      if (!asks || hits) fitting.push(card);
      card.querySelector(".chips").replaceChildren(...KINDS.filter((kind) => counts[kind]).map((kind) => {
        const chip = document.createElement("span");
        chip.className = `chip k-${kind}`;
        chip.textContent = `${counts[kind]} ${kind}`;
        return chip;
      }));
    }
    const order = chosen("f-order");
    const by = {
      bad: (a, b) => Number(a.dataset.bad) - Number(b.dataset.bad),
      changed: (a, b) => Number(b.dataset.changed) - Number(a.dataset.changed),
      name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
    }[order];
    fitting.sort(by);
    cards.forEach((card) => { card.hidden = true; });
    fitting.forEach((card, place) => { card.hidden = place >= limit; });
    list.append(...fitting);
    find("more").hidden = fitting.length <= limit;
    find("shown").textContent = fitting.length === 0 ? "No image fits these filters."
      : `Showing ${Math.min(limit, fitting.length)} of ${fitting.length} images that fit.`;
  };
  const restart = () => { limit = STEP; update(); };
  const form = document.querySelector(".filters");
  form.addEventListener("input", restart);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(restart));
  find("more").addEventListener("click", () => {
    const first = fitting[limit];
    limit += STEP;
    update();
    first?.querySelector(".open").focus();
  });
  find("see-changed")?.addEventListener("click", () => { find("f-order").value = "changed"; restart(); });

  // The viewer: one image in large, with a list of its boxes, beside another model's where wanted.
  const viewer = find("viewer");
  let place = 0;
  const SVG = "http://www.w3.org/2000/svg";
  const row = (cells, box) => {
    const line = document.createElement("tr");
    cells.forEach((text, column) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      if (column === 1) cell.className = "number";
      line.append(cell);
    });
    line.addEventListener("mouseenter", () => box.classList.add("lit"));
    line.addEventListener("mouseleave", () => box.classList.remove("lit"));
    return line;
  };
  const label = (box, text, size) => {
    const note = document.createElementNS(SVG, "text");
    note.setAttribute("x", Number(box.getAttribute("x")) + size / 4);
    note.setAttribute("y", Math.max(size, Number(box.getAttribute("y")) - size / 3));
    note.setAttribute("font-size", size);
    note.setAttribute("class", box.getAttribute("class"));
    note.textContent = text;
    box.after(note);
  };
  const panel = (card, model) => {
    const piece = find("panel").content.cloneNode(true);
    const drawing = card.querySelector(".drawing").cloneNode(true);
    const want = state();
    apply(drawing, model, want);
    piece.querySelector("h3").textContent = models[model];
    piece.querySelector(".problem").textContent = card.dataset.problem || "";
    piece.querySelector(".stage").append(drawing);
    const rows = piece.querySelector("tbody");
    const size = Math.max(drawing.viewBox.baseVal.width, drawing.viewBox.baseVal.height) / 42;
    for (const box of all(drawing, "g.found:not(.off) > rect:not(.low):not(.out)")) {
      const cells = [classes[box.dataset.c], Number(box.dataset.s).toFixed(2), box.dataset.k];
      if (models.length > 1) cells.push(changeOf(box, model));
      rows.append(row(cells, box));
      label(box, `${classes[box.dataset.c]} ${Number(box.dataset.s).toFixed(2)}`, size);
    }
    for (const box of all(drawing, "g.truth > rect.missed:not(.out)")) {
      rows.append(row([classes[box.dataset.c], "", "missed", ...(models.length > 1 ? [""] : [])], box));
      label(box, `${classes[box.dataset.c]}?`, size);
    }
    return piece;
  };
  const view = () => {
    const card = fitting[place];
    const model = state().model;
    const beside = chosen("viewer-beside");
    find("viewer-name").textContent = card.dataset.name;
    find("viewer-place").textContent = `${place + 1} of ${fitting.length}`;
    const shown = beside !== "" && Number(beside) !== model ? [model, Number(beside)] : [model];
    find("viewer-panels").replaceChildren(...shown.map((index) => panel(card, index)));
  };
  const move = (by) => {
    place = (place + by + fitting.length) % fitting.length;
    view();
  };
  list.addEventListener("click", (event) => {
    const card = event.target.closest(".open")?.closest(".shot");
    if (!card) return;
    place = fitting.indexOf(card);
    view();
    viewer.showModal();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.closest("select, .scroll")) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      move(event.key === "ArrowLeft" ? -1 : 1);
    }
  });
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  find("viewer-before").addEventListener("click", () => move(-1));
  find("viewer-next").addEventListener("click", () => move(1));
  find("viewer-close").addEventListener("click", () => viewer.close());
  find("viewer-beside")?.addEventListener("change", view);
  viewer.addEventListener("close", () => fitting[place]?.querySelector(".open").focus());
  update();
})();
