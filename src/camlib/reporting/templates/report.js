"use strict";
// The page is whole without this; it adds sliders, filters, keys and the large view. Text is only ever set as text.
(() => {
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll(".card")];
  const large = $("large");
  root.classList.add("js");

  const cut = (stack, value) => stack.style.setProperty("--cut", `${value}%`);
  const method = () => ($("method") ? $("method").value : null);
  const overlayOf = (card) => card.querySelector(".overlay:not([hidden])");
  const visible = () => cards.filter((card) => !card.hidden);

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

  function chooseMethod() {
    for (const overlay of document.querySelectorAll(".card .overlay")) {
      overlay.hidden = overlay.dataset.method !== method();
    }
  }

  let current = null;
  function show(card) {
    current = card;
    const original = card.querySelector(".original");
    const overlay = overlayOf(card);
    for (const [target, source] of [[$("large-original"), original], [$("large-overlay"), overlay]]) {
      target.src = source.src;
      target.alt = source.alt;
      target.width = source.width;
      target.height = source.height;
    }
    $("large-name").textContent = card.dataset.name;
    $("large-cut").setAttribute("aria-label", `How much of ${card.dataset.name} the overlay covers`);
    cut(large.querySelector(".stack"), $("large-cut").value);
    if (!large.open) large.showModal();
  }

  function beside(card, step) {
    const there = visible();
    return there[(there.indexOf(card) + step + there.length) % there.length];
  }

  for (const card of cards) {
    const stack = card.querySelector(".stack");
    card.querySelector(".cut input").addEventListener("input", (event) => cut(stack, event.target.value));
    stack.addEventListener("click", () => show(card));
    card.addEventListener("keydown", (event) => {
      if (event.target !== card) return;
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) beside(card, step).focus();
      else if (event.key === "Enter") show(card);
      else return;
      event.preventDefault();
    });
  }
  large.addEventListener("keydown", (event) => {
    if (event.target === $("large-cut")) return;
    if (event.key === "ArrowRight") show(beside(current, 1));
    if (event.key === "ArrowLeft") show(beside(current, -1));
  });
  large.addEventListener("close", () => current && current.focus());
  $("before").addEventListener("click", () => show(beside(current, -1)));
  $("after").addEventListener("click", () => show(beside(current, 1)));
  $("close").addEventListener("click", () => large.close());
  $("large-cut").addEventListener("input", (event) => cut(large.querySelector(".stack"), event.target.value));
  $("cut-all").addEventListener("input", (event) => {
    for (const card of cards) {
      card.querySelector(".cut input").value = event.target.value;
      cut(card.querySelector(".stack"), event.target.value);
    }
  });

  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("input", (event) => {
    if (event.target.id === "method") chooseMethod();
    else if (event.target.id !== "cut-all") filter();
  });
  if (method() !== null) chooseMethod(); // a browser may remember what was chosen before

  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const theme = $("theme");
  const mark = () => {
    theme.textContent = dark() ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(dark()));
  };
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    mark();
  });
  mark();
  filter();
})();
