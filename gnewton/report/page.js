"use strict";

// The menu of a figure shows one of its plots. A button of its legend hides the curves of a set-up or shows them
// again, a double click shows them alone.
document.querySelectorAll("figure").forEach((figure) => {
  const plots = [...figure.querySelectorAll(".plot")];
  const buttons = [...figure.querySelectorAll(".legend button")];
  const menu = figure.querySelector("select");
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  const set = (button, shown) => {
    button.setAttribute("aria-pressed", String(shown));
    figure.querySelectorAll(`.plot [data-series="${button.dataset.series}"]`).forEach((curve) => {
      curve.style.display = shown ? "" : "none";
    });
  };
  if (menu) {
    menu.addEventListener("change", () => plots.forEach((plot, i) => { plot.hidden = i !== menu.selectedIndex; }));
  }
  buttons.forEach((button) => {
    button.addEventListener("click", () => set(button, !pressed(button)));
    button.addEventListener("dblclick", () => {
      const alone = pressed(button) && buttons.every((other) => other === button || !pressed(other));
      buttons.forEach((other) => set(other, alone || other === button));
    });
  });
});
document.documentElement.dataset.ready = String(document.querySelectorAll("figure").length);
