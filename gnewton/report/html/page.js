"use strict";

const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

const theme = () => {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { ink: read("--ink"), faint: read("--faint"), line: read("--line"), raised: read("--raised") };
};

function layout(view, state) {
  const colors = theme();
  const axis = (title, log, percent) => ({
    title: { text: title, font: { size: 13 } }, type: log ? "log" : "linear", gridcolor: colors.line,
    zerolinecolor: colors.line, linecolor: colors.faint, automargin: true,
    tickformat: percent ? ".3~%" : log ? ".3~g" : undefined, hoverformat: percent ? ".2%" : ".4~g",
    exponentformat: "power", minexponent: 4, tickfont: { size: 11 },
  });
  const rangeOf = (log) => (log ? {} : { rangemode: "tozero" });
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colors.ink, size: 12 },
    margin: { l: 60, r: 16, t: 12, b: 48 }, hovermode: "closest", uirevision: view.metric || "only",
    hoverlabel: { bgcolor: colors.raised, bordercolor: colors.line, font: { color: colors.ink } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colors.faint, activecolor: colors.ink },
    legend: { orientation: "h", y: -0.18, yanchor: "top", groupclick: "togglegroup" },
    xaxis: { ...axis(view.x, state.logX, false), ...rangeOf(state.logX) },
    yaxis: axis(view.y, state.logY, view.percent),
  };
}

function checkbox(text, checked, changed) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.checked = checked;
  box.addEventListener("change", () => changed(box.checked));
  label.append(box, text);
  return { label, box };
}

function chooser(text, values, changed) {
  const label = document.createElement("label");
  const select = document.createElement("select");
  select.append(...values.map((value) => new Option(value, value)));
  select.addEventListener("change", () => changed(select.value));
  label.append(text, select);
  return label;
}

function build(chart) {
  const place = document.getElementById(chart.id);
  const controls = document.getElementById(`${chart.id}-controls`);
  const distinct = (key) => [...new Set(chart.views.map((view) => view[key]).filter(Boolean))];
  const find = (metric, axis) =>
    chart.views.find((view) => view.metric === metric && view.axis === axis)
    || chart.views.find((view) => view.metric === metric) || chart.views[0];
  let view = chart.views[0];
  const state = { logX: Boolean(view.log_x), logY: Boolean(view.log_y) };
  const draw = () =>
    Plotly.react(place, view.traces, layout(view, state), { responsive: true, displaylogo: false });
  const logY = checkbox("log y", state.logY, (on) => { state.logY = on; draw(); });
  const logX = checkbox("log x", state.logX, (on) => { state.logX = on; draw(); });
  const choose = (metric, axis) => {
    const kind = view.metric;
    view = find(metric, axis);
    if (view.metric !== kind) {
      state.logY = Boolean(view.log_y);
      logY.box.checked = state.logY;
    }
    draw();
  };
  if (distinct("metric").length > 1) {
    controls.append(chooser("show", distinct("metric"), (metric) => choose(metric, view.axis)));
  }
  if (distinct("axis").length > 1) {
    controls.append(chooser("against", distinct("axis"), (axis) => choose(view.metric, axis)));
  }
  controls.append(logY.label, logX.label);
  dark.addEventListener("change", draw);
  draw();
}

charts.forEach(build);
document.documentElement.dataset.ready = String(charts.length);
