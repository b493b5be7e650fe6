"use strict";
// The page works without this script, which adds sliders, filters, keys and the large view. Text is only set as text.
(() => {
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll(".card")];
  const selects = [...document.querySelectorAll("select.method")];
  const large = $("large");
  const stage = large.querySelector(".stack");
  root.classList.add("js");

  const overlayOf = (card) => card.querySelector(".overlay:not([hidden])");
  const visible = () => cards.filter((card) => !card.hidden);

  function cut(stack, value) {
    stack.style.setProperty("--cut", `${value}%`);
    stack.classList.toggle("split", value > 0 && value < 100);
  }

  function filter() {
    const value = (id) => ($(id) ? $(id).value : "");
    const least = Number(value("least")) / 100;
    const wanted = value("search").toLowerCase();
    for (const card of cards) {
      const { outcome, label, prediction, confidence, name } = card.dataset;
      card.hidden =
        (value("outcome") !== "" && outcome !== value("outcome")) ||
        (value("class") !== "" && label !== value("class") && prediction !== value("class")) ||
        (confidence !== "" && Number(confidence) < least) ||
        !name.toLowerCase().includes(wanted);
    }
    if ($("least")) $("least-shown").textContent = `${value("least")}%`;
    $("count").textContent = `${visible().length} of ${cards.length} images`;
    $("none").hidden = visible().length > 0;
  }

  function chooseMethod(index) {
    for (const select of selects) select.selectedIndex = index;
    const { value, dataset } = selects[0].selectedOptions[0];
    $("chosen").textContent = dataset.source;
    for (const overlay of document.querySelectorAll(".card .overlay")) overlay.hidden = overlay.dataset.method !== value;
    for (const card of cards) card.querySelector(".explains").textContent = overlayOf(card).dataset.explains;
    if (large.open) show(current);
  }

  let current = null;
  function show(card) {
    current = card;
    for (const [target, source] of [[$("large-original"), card.querySelector(".original")], [$("large-overlay"), overlayOf(card)]]) {
      for (const name of ["src", "alt", "width", "height"]) target.setAttribute(name, source.getAttribute(name));
    }
    const original = $("large-original");
    stage.style.setProperty("--aspect", original.getAttribute("width") / original.getAttribute("height"));
    $("large-name").textContent = card.dataset.name;
    $("large-facts").replaceChildren(...card.querySelector(".facts").cloneNode(true).childNodes);
    $("large-cut").setAttribute("aria-label", `How much of ${card.dataset.name} the overlay covers`);
    cut(stage, $("large-cut").value);
    if (large.open) return;
    large.showModal();
    large.focus(); // not its first control, which would take the arrow keys
  }

  function neighbour(card, step) {
    const there = visible();
    return there[(there.indexOf(card) + step + there.length) % there.length];
  }

  function below(card, step) {
    const there = visible();
    const columns = there.filter((other) => other.offsetTop === there[0].offsetTop).length;
    return there[there.indexOf(card) + step * columns] || card;
  }

  const keys = {
    ArrowRight: (card) => neighbour(card, 1).focus(),
    ArrowLeft: (card) => neighbour(card, -1).focus(),
    ArrowDown: (card) => below(card, 1).focus(),
    ArrowUp: (card) => below(card, -1).focus(),
    Enter: show,
  };
  for (const card of cards) {
    const stack = card.querySelector(".stack");
    card.querySelector(".cut input").addEventListener("input", (event) => cut(stack, event.target.value));
    card.querySelector(".enlarge").addEventListener("click", () => show(card));
    stack.addEventListener("click", () => show(card));
    card.addEventListener("keydown", (event) => {
      if (event.target !== card || !Object.hasOwn(keys, event.key)) return;
      keys[event.key](card);
      event.preventDefault();
    });
  }

  large.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select")) return;
    if (event.key === "ArrowRight") show(neighbour(current, 1));
    if (event.key === "ArrowLeft") show(neighbour(current, -1));
  });
  large.addEventListener("close", () => current.focus());
  $("before").addEventListener("click", () => show(neighbour(current, -1)));
  $("after").addEventListener("click", () => show(neighbour(current, 1)));
  $("close").addEventListener("click", () => large.close());
  $("large-cut").addEventListener("input", (event) => cut(stage, event.target.value));
  const drag = (event) => {
    if (!event.buttons) return;
    const { left, width } = stage.getBoundingClientRect();
    $("large-cut").value = (100 * (event.clientX - left)) / width;
    cut(stage, $("large-cut").value);
  };
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", drag);

  $("cut-all").addEventListener("input", (event) => {
    for (const card of cards) {
      card.querySelector(".cut input").value = event.target.value;
      cut(card.querySelector(".stack"), event.target.value);
    }
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("input", filter);
  for (const select of selects) select.addEventListener("input", () => chooseMethod(select.selectedIndex));
  if (selects.length) chooseMethod(selects[0].selectedIndex); // a browser may remember what was chosen before

  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const mark = () => $("theme").setAttribute("aria-pressed", String(dark()));
  $("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    mark();
  });
  system.addEventListener("change", mark);
  mark();
  filter();
})();
